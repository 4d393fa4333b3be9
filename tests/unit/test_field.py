"""Checks of a model on frames that real instruments delivered."""

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sr_core import BANDS
from sr_core.config import FilesSource
from sr_core.errors import DataError, SourceError
from sr_core.evaluation.field import consistency, cross_band, held_out_pass, noise_gain, read_20m, wald
from sr_core.models.bundle import SuperResolver
from sr_core.models.highresnet import Estimate, HighResNet, bicubic
from sr_core.models.normalization import Normalization
from sr_core.patches import make_patch
from sr_core.radiometry.resample import degrade
from sr_core.series import S2Series
from sr_core.sources.files import FileSeries
from tests.sample_sets import scene

PLACE = Normalization((0.2,) * 4, (0.06,) * 4)


def untrained() -> SuperResolver:
    """A network that has learned nothing yet: bicubic interpolation of the latest frame."""
    torch.manual_seed(0)
    return SuperResolver(HighResNet(channels=8, residual_blocks=1).eval(), 4, {"bands": list(BANDS)})


class Knowing(HighResNet):
    """Knows the ground of `series`, whatever it is shown: what a perfect model would answer at 2.5 m."""

    def __init__(self, ground: np.ndarray, noise: float = 0.0) -> None:
        super().__init__(channels=8, residual_blocks=1)
        truth = (ground - 0.2) / 0.06
        grain = np.random.default_rng(0).normal(0, noise / 0.06, truth.shape)
        self.answer = torch.from_numpy((truth + grain).astype(np.float32))[None]

    def forward(self, frames, clear, shifts):
        return Estimate(self.answer, None)


def series(noise: float = 0.0005, side: int = 32, dates: int = 6) -> tuple[S2Series, np.ndarray]:
    """A landscape that does not change, seen by passes displaced by fractions of a pixel, and its 2.5 m image as the
    first pass lies: the displacement of passes 1, 3, 5 is half a pixel, of 0, 2, 4 none."""
    ground = scene(3, side * 4)
    ground[:, :, : side * 2] = 0.15  # the west is flat
    shifts = np.array([(0.0, 0.0) if date % 2 == 0 else (0.5, -0.4) for date in range(dates)], np.float32)
    rng = np.random.default_rng(1)
    frames = np.stack([degrade(ground, mtf=0.25, shift=tuple(shift)) for shift in shifts])
    frames += rng.normal(0, noise, frames.shape)
    bands = np.moveaxis((frames * 10_000).round().astype(np.uint16), 1, -1)
    patch = make_patch("here", 32634, (500_000, 6_000_000, 500_000 + side * 10, 6_000_000 + side * 10), 0)
    times = [dt.datetime(2022, 5, 1) + dt.timedelta(days=5 * date) for date in range(dates)]
    clear = np.ones((dates, side, side), bool)
    return S2Series(patch, bands, clear, times, [f"pass-{date}" for date in range(dates)], shifts), ground


def test_an_untrained_model_scores_exactly_as_bicubic():
    found, _ = series()
    held_out = held_out_pass(untrained(), found, PLACE, most=2)
    assert held_out["pairs"] == 2
    assert held_out["psnr"]["sr"] == pytest.approx(held_out["psnr"]["bicubic"], abs=1e-3)
    kept = consistency(untrained(), found, PLACE, most=2)
    assert kept["mae"]["sr"] == pytest.approx(kept["mae"]["bicubic"], rel=1e-3)
    assert noise_gain(untrained(), found, PLACE, most=2)["ratio"] == pytest.approx(dict.fromkeys(BANDS, 1.0), rel=1e-3)
    half = found.bands[:, ::2, ::2, 3]
    band = cross_band(untrained(), found, half, most=2)
    assert band["correlation"]["sr"] == pytest.approx(band["correlation"]["bicubic"], abs=1e-5)
    assert band["psnr"]["sr"] == pytest.approx(band["psnr"]["bicubic"], abs=1e-3)


def test_the_true_image_predicts_a_pass_that_was_held_out():
    found, ground = series()
    found = replace(found, bands=found.bands[:2], clear=found.clear[:2], timestamps=found.timestamps[:2])
    knowing = SuperResolver(Knowing(ground), 4, {"bands": list(BANDS)})
    psnr = held_out_pass(knowing, found, PLACE)["psnr"]
    assert psnr["sr"] > psnr["interpolated"] + 3
    assert psnr["sr"] > psnr["bicubic"] + 3


def test_passes_that_lie_on_each_other_are_no_check():
    found, _ = series()
    still = replace(found, shifts=np.zeros_like(found.shifts))
    assert held_out_pass(untrained(), still, PLACE) == {"pairs": 0}


def test_the_true_image_is_consistent_at_the_instruments_mtf():
    found, ground = series()
    knowing = SuperResolver(Knowing(ground), 4, {"bands": list(BANDS)})
    still = replace(found, bands=found.bands[::2], clear=found.clear[::2], timestamps=found.timestamps[::2])
    mae = consistency(knowing, replace(still, shifts=found.shifts[::2]), PLACE)["mae"]["sr"]
    assert min(mae, key=mae.get) == "0.25"
    assert mae["0.25"] < 0.0006


def test_noise_on_flat_ground_is_seen():
    found, ground = series(noise=0.002)
    quiet = SuperResolver(Knowing(ground), 4, {"bands": list(BANDS)})
    noisy = SuperResolver(Knowing(ground, noise=0.004), 4, {"bands": list(BANDS)})
    assert max(noise_gain(quiet, found, PLACE)["ratio"].values()) < 0.1
    assert min(noise_gain(noisy, found, PLACE)["ratio"].values()) > 1.5


def test_a_band_of_other_size_is_refused():
    found, _ = series()
    with pytest.raises(DataError, match=r"20 m band: found shape \(6, 32, 32\), expected \(6, 16, 16\)"):
        cross_band(untrained(), found, found.bands[..., 3])
    with pytest.raises(SourceError, match="no 20 m file"):
        read_20m(Path("nowhere"), found)


@pytest.mark.realdata
def test_the_narrow_infrared_of_belgium_against_its_broad_one(sample_data):
    source = FileSeries(FilesSource(kind="files", path=sample_data / "belgium", region="belgium"))
    region = source.regions()[1]
    patch = make_patch(region.name, region.epsg, region.bounds, 0)
    part = source.s2(patch, (dt.date(2019, 4, 1), dt.date(2019, 9, 30)))
    clear = (part.mask["VALID"] & ~part.mask["CLM"])[..., 0]
    times = list(part.get_timestamps())
    still = np.zeros((len(times), 2), np.float32)
    belgium = S2Series(patch, part.data["BANDS"], clear, times, part.meta_info["product_ids"], still)
    b8a = read_20m(sample_data / "belgium", belgium)
    assert b8a.shape == (len(times), 32, 32)
    found = cross_band(untrained(), belgium, b8a, most=6)
    assert found["dates"] == 6
    assert 0.94 < found["correlation"]["bicubic"] < 0.99
    assert found["correlation"]["sr"] == pytest.approx(found["correlation"]["bicubic"], abs=1e-4)
    assert found["psnr"]["sr"] == pytest.approx(found["psnr"]["bicubic"], abs=0.01)


def test_bicubic_is_what_the_untrained_network_gives():
    found, _ = series()
    frames = np.moveaxis(found.bands[:2], -1, 1)
    image = untrained().predict(frames, found.clear[:2], PLACE)
    expected = bicubic(torch.from_numpy(frames[:1].astype(np.float32) / 10_000))[0]
    np.testing.assert_allclose(image, expected, atol=1e-5)


def test_an_untrained_network_is_bicubic_by_walds_protocol_and_a_knowing_one_is_better():
    passes, _ = series(side=64)
    found = wald(untrained(), passes, PLACE)
    assert found["dates"] == 6
    assert found["psnr"]["sr"] == pytest.approx(found["psnr"]["bicubic"], abs=0.2)  # frames here are co-registered
    real = passes.bands[0].transpose(2, 0, 1) / np.float32(10_000)
    at_rest = replace(passes, bands=passes.bands[[0]], clear=passes.clear[[0]], timestamps=passes.timestamps[:1])
    at_rest = replace(at_rest, shifts=passes.shifts[:1])
    knowing = SuperResolver(Knowing(real).eval(), 4, {"bands": list(BANDS)})
    assert wald(knowing, at_rest, PLACE)["psnr"]["sr"] > 60


def test_walds_protocol_needs_a_clear_date():
    passes, _ = series()
    assert wald(untrained(), replace(passes, clear=np.zeros_like(passes.clear)), PLACE) == {"dates": 0, "psnr": {}}
