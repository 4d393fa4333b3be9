"""VHR radiance in Sentinel-2's units, and the file of statistics."""

from pathlib import Path

import numpy as np
import pytest

from sr_core.errors import ArtifactError
from sr_core.radiometry.normalize import (
    Normalization,
    band_statistics,
    read_normalization,
    vhr_to_s2_units,
    write_normalization,
)
from sr_core.radiometry.statistics import PixelStatistics


def statistics_of(pixels: np.ndarray, scale: float) -> dict:
    return band_statistics(PixelStatistics(4).add(pixels.reshape(-1, 4)), scale, (1.0, 99.0))


def test_radiance_becomes_reflectance() -> None:
    reflectance = np.random.default_rng(0).gamma(4, 0.03, (50, 50, 4))
    radiance = 250 * reflectance + np.array([60, 40, 30, 20])  # another gain, and the atmosphere's own light
    region = statistics_of(np.rint(reflectance * 10_000).astype(np.uint16), 10_000)
    tile = statistics_of(np.rint(radiance * 100).astype(np.uint16), 100)
    found = vhr_to_s2_units(radiance.astype(np.float32), tile, region)
    assert found.dtype == np.float32 and found.shape == radiance.shape
    assert np.abs(found - reflectance).max() < 0.002


def test_a_tile_without_contrast() -> None:
    region = statistics_of(np.random.default_rng(0).integers(1, 999, (500, 4)).astype(np.uint16), 10_000)
    flat = statistics_of(np.full((500, 4), 70, np.uint16), 1)
    found = vhr_to_s2_units(np.full((2, 2, 4), 70, np.float32), flat, region)
    assert np.allclose(found[0, 0], [region[band].median for band in ("blue", "green", "red", "nir")])


def test_written_and_read_again(tmp_path: Path) -> None:
    statistics = statistics_of(np.random.default_rng(0).integers(1, 999, (500, 4)).astype(np.uint16), 10_000)
    written = Normalization({"area": statistics}, {"tile": statistics}, (1.0, 99.0))
    write_normalization(tmp_path, written)
    assert read_normalization(tmp_path) == written
    assert statistics["red"].n_pixels == 500 and statistics["red"].p_low < statistics["red"].p_high
    (tmp_path / "normalization.json").write_text("{}")
    with pytest.raises(ArtifactError, match="run normalize first"):
        read_normalization(tmp_path)
