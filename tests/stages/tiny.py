"""A whole run in miniature: six small patches of simulated farmland, a few training steps, and a model that is promoted
whatever it has learned."""

from pathlib import Path

TINY = """
name: tiny
area: {region: farmland, crs: EPSG:32634, bbox: [682240, 6134400, 684160, 6135680]}
period: {start: 2020-05-01, end: 2020-06-30}
source: {kind: simulated, seed: 7, vhr_dates: [2020-06-05, 2020-06-25], vhr_cloudy_share: 0.0}
grid: {cell_m: 640, buffer_m: 80}
preparation: {workers: 1}
quality_gate:
  chip_px: 16
  stride_px: 16
  frames: 4
  min_samples: {train: 4, val: 1, test: 1}
  split: {block_m: 640, val: 0.17, test: 0.17, guard_m: 0}
train_hrn: {channels: 8, residual_blocks: 1, steps: 12, batch_size: 4, validate_every: 4, warmup_steps: 2}
evaluate: {gallery: 1, min_gain_db: -100}
delineate: {channels: 4, steps: 8, batch_size: 2, tile_px: 64, dates: 1}
super_resolve: {max_dates: 1, window_px: 48}
"""


def write_config(folder: Path, text: str = TINY) -> Path:
    """Write the configuration to a file of its own."""
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path
