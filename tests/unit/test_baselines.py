"""Baselines: plain bicubic and mean where all is clear, sensible where it is not."""

import numpy as np
import pytest
import rasterio
import torch

from sr_core.evaluation.baselines import bicubic_latest, temporal_mean
from sr_core.evaluation.metrics import psnr
from sr_core.models.highresnet import bicubic
from sr_core.radiometry.resample import degrade


def test_on_clear_frames_they_are_what_their_names_say():
    frames, clear = torch.rand(2, 3, 4, 6, 7), torch.ones(2, 3, 6, 7)
    torch.testing.assert_close(bicubic_latest(frames, clear), bicubic(frames[:, 0]))
    each = torch.stack([bicubic(frames[:, index]) for index in range(3)]).mean(dim=0)
    torch.testing.assert_close(temporal_mean(frames, clear), each)


def test_clouds_and_padding_leave_no_trace():
    frames, clear = torch.rand(1, 4, 4, 6, 7), torch.ones(1, 4, 6, 7)
    clear[:, 0, 2:4] = 0
    clear[:, 3] = 0
    spoiled = torch.where(clear.unsqueeze(2) > 0, frames, 9.0)
    for baseline in (bicubic_latest, temporal_mean):
        torch.testing.assert_close(baseline(spoiled, clear), baseline(frames, clear))
    filled = frames[:, 0].clone()
    filled[..., 2:4, :] = frames[:, 1:3, :, 2:4].mean(dim=1)
    torch.testing.assert_close(bicubic_latest(frames, clear), bicubic(filled))


def test_where_nothing_is_clear_they_are_zero():
    frames = torch.rand(1, 2, 4, 5, 5)
    for baseline in (bicubic_latest, temporal_mean):
        assert (baseline(frames, torch.zeros(1, 2, 5, 5)) == 0).all()


CLEAR_DATES = [f"2017{day}" for day in ("0401", "0411", "0421", "0501", "0511", "0521", "0531", "0610", "0620")]
CLEAR_DATES += [f"2017{day}" for day in ("0630", "0710", "0720", "0809", "0819", "0829")]


@pytest.mark.realdata
def test_okavango_figures_of_the_wald_protocol(sample_data):
    # the figures in the data's own notes: 38.01 dB bicubic, 36.05 dB mean of eight frames
    scenes = []
    for date in CLEAR_DATES:
        folder = next((sample_data / "okavango").glob(f"S2A_MSIL1C_{date}T*"))
        bands = [rasterio.open(folder / f"{folder.name}_{band}.tif").read(1) for band in ("b02", "b03", "b04", "b08")]
        scenes.append(np.stack(bands).astype(np.float32) / 10_000)
    chips = [(slice(row, row + 64), slice(192, 256)) for row in (0, 64, 128, 192, 236)]
    scores = {bicubic_latest: [], temporal_mean: []}
    for target in range(CLEAR_DATES.index("20170610"), len(CLEAR_DATES)):
        frames = torch.from_numpy(np.stack([degrade(scenes[target - age]) for age in range(min(8, target + 1))]))[None]
        clear = torch.ones(1, frames.shape[1], 75, 75)
        truth = torch.from_numpy(scenes[target])[None]
        for baseline, found in scores.items():
            image = baseline(frames, clear)
            found += [psnr(image[..., *chip], truth[..., *chip], torch.ones(1, 64, 64)).item() for chip in chips]
    assert np.mean(scores[bicubic_latest]) == pytest.approx(38.01, abs=0.05)
    assert np.mean(scores[temporal_mean]) == pytest.approx(36.05, abs=0.1)
