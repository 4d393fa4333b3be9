"""Pairs cut from known images: Wald's protocol, and VHR as truth."""

import datetime as dt
from dataclasses import replace

import numpy as np
import pytest

from sr_core.config import QualityGate, Split
from sr_core.errors import ArtifactError
from sr_core.patches import make_patch
from sr_core.radiometry.histogram import match
from sr_core.radiometry.resample import degrade
from sr_core.samples.pairs import cut, vhr_pairs, wald_pairs
from sr_core.samples.split import ChipWindow
from sr_core.series import S2Series, VHRSeries

DAY = dt.timedelta(days=1)
START = dt.datetime(2020, 5, 1, 10, 0)
PATCH = make_patch("farm", 32634, (500_000, 7_000_000, 501_280, 7_001_280), 0)
RNG = np.random.default_rng(4)
LAND = np.kron(RNG.integers(400, 3000, (16, 16, 4)), np.ones((8, 8, 1))).astype(np.uint16)


def series(dates=6, step=10, image=LAND, shifts=None):
    """The same land on every date, one count brighter each time, so that a frame shows which date it is."""
    bands = np.stack([image + n for n in range(dates)]).astype(np.uint16)
    timestamps = [START + n * step * DAY for n in range(dates)]
    shifts = np.zeros((dates, 2), np.float32) if shifts is None else shifts
    return S2Series(PATCH, bands, np.ones(bands.shape[:3], bool), timestamps, [f"p{n}" for n in range(dates)], shifts)


def kept(acquisitions):
    tiles = acquisitions.product_ids if isinstance(acquisitions, S2Series) else acquisitions.tile_ids
    return dict.fromkeys(zip(acquisitions.timestamps, tiles, strict=True), "")


def config(**changes):
    return QualityGate(**{"chip_px": 8, "frames": 4, "max_latest_age_days": 10, **changes})


WINDOW = ChipWindow(8, 16, "train")
LOW, HIGH = (slice(8, 16), slice(16, 24)), (slice(32, 64), slice(64, 96))


class TestWald:
    def test_frames_are_degraded_and_the_truth_is_the_real_frame(self):
        s2 = series()
        frames, truths = wald_pairs(s2, kept(s2), mtf=0.3)
        assert frames.gsd_m == 40.0
        candidates, samples = cut(frames, truths, [WINDOW], config())
        assert [c.reason for c in candidates] == ["frames", "", "", "", "", ""]
        last = samples[4:5]
        expected = np.rint(degrade(np.moveaxis(s2.bands[5], -1, 0).astype(np.float32), mtf=0.3))
        assert np.array_equal(last.lr[0, 0], expected[(..., *LOW)])
        assert np.array_equal(last.hr[0], np.moveaxis(s2.bands[5], -1, 0)[(..., *HIGH)])
        assert last.lr_age.tolist() == [[0, 10, 20, 30]] and last.lr_valid.all()
        assert last.hr_clear.all() and last.lr_clear.all()
        assert candidates[5].latest_date == candidates[5].target_date == s2.timestamps[5]

    def test_missing_frames_are_padded_and_flagged(self):
        s2 = series(dates=2)
        _, samples = cut(*wald_pairs(s2, kept(s2), 0.3), [WINDOW], config())
        assert samples.lr_valid.tolist() == [[True, True, False, False]]
        assert samples.lr_age.tolist() == [[0, 10, -1, -1]]
        assert not samples.lr[0, 2:].any() and not samples.lr_clear[0, 2:].any()

    def test_a_cloud_leaves_its_surroundings_as_they_are(self):
        # one 40 m pixel of cloud in the chip; every other clear pixel must not know of it
        clouded = series()
        clouded.bands[5, 48:52, 80:84] = 9000
        clouded.clear[5, 48:52, 80:84] = False
        frames, _ = wald_pairs(clouded, kept(clouded), 0.3)
        clean, _ = wald_pairs(series(), kept(clouded), 0.3)
        assert not frames.clear[5, 12, 20] and not frames.clear[5, 11:14, 19:22].any()
        assert frames.clear[5].sum() == frames.clear[5].size - 9
        difference = np.abs(frames.bands[5].astype(int) - clean.bands[5].astype(int))[:, frames.clear[5]]
        assert difference.max() < 0.05 * (9000 - 3000)
        _, samples = cut(*wald_pairs(clouded, kept(clouded), 0.3), [WINDOW], config(max_frame_cloud=0.15))
        assert not samples.hr[-1][:, ~samples.hr_clear[-1]].any()
        assert samples.hr_clear[-1].sum() == 32 * 32 - 16

    def test_why_candidates_are_dropped(self):
        s2 = series()
        s2.clear[3, 32:64, 64:96] = False
        s2.clear[4, 32:64, 64:96] = False
        s2.bands[4, 32:64, 64:96] = 0
        reasons = kept(s2)
        reasons[s2.timestamps[2], "p2"] = "cloud"
        candidates, samples = cut(*wald_pairs(s2, reasons, 0.3), [WINDOW], config(min_psnr=99, min_ssim=0.999))
        # the thresholds are for the whole set, later: what has scores has images
        assert [c.reason for c in candidates] == ["frames", "", "cloud", "cloud", "nodata", ""]
        assert len(samples) == 2
        assert np.isfinite(candidates[1].psnr) and np.isnan(candidates[2].psnr)
        assert candidates[1].land != "" and candidates[2].land == ""

    def test_the_bias_is_the_truth_less_the_latest_frame(self):
        s2 = series()
        frames, truths = wald_pairs(s2, kept(s2), mtf=0.3)
        brighter = replace(truths[5], bands=lambda latest: truths[5].bands(latest) + np.uint16(300))
        (as_it_is,), _ = cut(frames, truths[5:], [WINDOW], config())
        (moved,), _ = cut(frames, [brighter], [WINDOW], config())
        for band in ("blue", "green", "red", "nir"):
            name = f"bias_{band}"
            assert getattr(moved, name) - getattr(as_it_is, name) == pytest.approx(0.03, abs=1e-6)

    def test_test_targets_begin_on_a_day_and_others_do_not(self):
        s2 = series()
        split = Split(test_from=s2.timestamps[4].date())
        windows = [ChipWindow(8, 16, "test"), ChipWindow(16, 16, "train")]
        candidates, _ = cut(*wald_pairs(s2, kept(s2), 0.3), windows, config(split=split))
        dates = {name: [c.target_date for c in candidates if c.split == name] for name in ("test", "train")}
        assert dates == {"test": s2.timestamps[4:], "train": s2.timestamps}

    def test_an_acquisition_missing_from_the_table_is_an_error(self):
        s2 = series()
        with pytest.raises(ArtifactError, match=r"no row for patch 34N_500000_7000000, 2020-05-01"):
            wald_pairs(s2, {}, 0.3)


def to_reflectance(radiance, tile):
    assert radiance.dtype == np.float32 and tile.startswith("t")
    return radiance / np.float32(100)


class TestVHR:
    land = np.kron(RNG.integers(400, 3000, (32, 32, 4)), np.ones((4, 4, 1))).astype(np.uint16)

    def pairs(self, vhr, s2=None, matching=None, reasons=None):
        s2 = s2 or series(image=self.land)
        return vhr_pairs(s2, vhr, reasons or kept(vhr), to_reflectance, matching)

    @staticmethod
    def vhr(timestamps):
        fine = TestVHR.land.repeat(4, axis=0).repeat(4, axis=1)
        shape = (len(timestamps), *fine.shape[:2])
        bands = np.stack([fine] * len(timestamps)).astype(np.uint16)
        tiles = [f"t{n}" for n in range(len(timestamps))]
        # stored integers are radiance x 100, and radiance here is 100 x reflectance
        unknown = np.full((len(timestamps), 2), np.nan, np.float32)
        clear, shadow = np.ones(shape, bool), np.zeros(shape, bool)
        return VHRSeries(PATCH, bands, clear, shadow, list(timestamps), tiles, 100.0, unknown)

    window = ChipWindow(24, 40, "train")
    high = (slice(96, 128), slice(160, 192))

    def test_the_truth_is_radiance_in_reflectance_and_frames_are_the_dates_before(self):
        vhr = self.vhr([START + 33 * DAY])
        frames, truths = self.pairs(vhr)
        assert frames.gsd_m == 10.0
        (candidate,), samples = cut(frames, truths, [self.window], config())
        assert candidate.tile == "t0" and candidate.latest_date == START + 30 * DAY
        assert samples.lr_age.tolist() == [[3, 13, 23, 33]]
        expected = np.moveaxis(vhr.bands[0], -1, 0)[(..., *self.high)]
        np.testing.assert_allclose(samples.hr[0], expected, atol=1)
        assert np.array_equal(samples.lr[0, 0], np.moveaxis(self.land + 3, -1, 0)[:, 24:32, 40:48])

    def test_matching_undoes_another_radiometry_and_keeps_the_contrast(self):
        # a haze over the VHR: darker, flatter, and not linear
        vhr = self.vhr([START + 33 * DAY])
        clean = vhr.bands[0] / 1e4
        hazy = replace(vhr, bands=(np.sqrt(vhr.bands / 1e4) * 1e4).astype(np.uint16))
        seen = np.moveaxis(degrade(np.moveaxis(clean, -1, 0).astype(np.float32)), 0, -1)
        s2 = series(image=np.rint(seen * 1e4).astype(np.uint16))
        (_,), samples = cut(*self.pairs(hazy, s2, match), [self.window], config())
        found = samples.hr[0] / 1e4
        expected = np.moveaxis(clean, -1, 0)[(..., *self.high)]
        assert np.sqrt(np.mean((found - expected) ** 2)) < 0.15 * expected.std()
        assert found.std() == pytest.approx(expected.std(), rel=0.1)

    def test_the_mapping_is_found_over_ground_that_is_clear_in_both(self):
        s2, vhr = series(image=self.land), self.vhr([START + 33 * DAY])
        s2.clear[3, :10] = False
        vhr.shadow[0, :, :80] = True
        calls = []

        def shift(source, reference, source_mask, reference_mask):
            calls.append((source[source_mask], reference[reference_mask]))
            return source + np.float32(0.01)

        (_,), samples = cut(*self.pairs(vhr, s2, shift), [self.window], config())
        ((source, reference),) = calls
        # 80 high-resolution columns are 20 low ones, and the ring takes one more
        clear_in_both = (128 - 10) * (128 - 21)
        assert source.shape == reference.shape and 0.8 * clear_in_both < len(source) <= clear_in_both
        here = {tuple(pixel) for pixel in (self.land + 3)[10:, 21:].reshape(-1, 4).tolist()}
        assert {tuple(pixel) for pixel in np.rint(reference * 1e4).astype(int).tolist()} <= here
        np.testing.assert_allclose(samples.hr[0], np.moveaxis(vhr.bands[0], -1, 0)[(..., *self.high)] + 100, atol=1)

    def test_why_candidates_are_dropped(self):
        dates = [START + day * DAY for day in (-1, 5, 33, 34, 35, 36, 37, 70)]
        vhr = self.vhr(dates)
        vhr.clear[2, 96:128, 160:192] = False
        vhr.shadow[3, 96:128, 160:192] = True
        vhr.clear[4, 96:128, 160:192] = False
        vhr.bands[4, 96:128, 160:192] = 0
        reasons = kept(vhr)
        reasons[dates[5], "t5"] = "shadow"
        candidates, samples = cut(*self.pairs(vhr, reasons=reasons), [self.window], config(max_age_days=40))
        assert [c.reason for c in candidates] == [
            "frames", "frames", "cloud", "shadow", "nodata", "shadow", "", "latest_age",
        ]  # fmt: skip
        assert len(samples) == 1

    def test_cloudy_frames_over_the_chip_are_passed_over(self):
        s2 = series(image=self.land)
        s2.clear[3, 24:32, 40:48] = False
        (candidate,), samples = cut(
            *self.pairs(self.vhr([START + 33 * DAY]), s2), [self.window], config(max_latest_age_days=20)
        )
        assert candidate.latest_date == START + 20 * DAY
        assert samples.lr_age.tolist() == [[13, 23, 33, -1]]

    def test_masked_truth_is_zero_and_clear_truth_never_is(self):
        vhr = self.vhr([START + 33 * DAY])
        vhr.clear[0, 100, 165], vhr.bands[0, 101, 165] = False, 0
        _, samples = cut(*self.pairs(vhr), [self.window], config())
        assert not samples.hr[0, :, 4, 5].any() and not samples.hr_clear[0, 4, 5]
        assert (samples.hr[0, :, 5, 5] == 1).all()

    def test_two_tiles_of_one_time_are_two_samples(self):
        vhr = self.vhr([START + 33 * DAY] * 2)
        candidates, _ = cut(*self.pairs(vhr), [self.window], config())
        assert [c.sample_id for c in candidates] == [
            "farm_34N_500000_7000000_024_040_20200603T100000",
            "farm_34N_500000_7000000_024_040_20200603T100000-2",
        ]


def test_displacements_are_those_on_the_grid_of_the_truth():
    shifts = np.linspace(-0.4, 0.6, 12, dtype=np.float32).reshape(6, 2)
    s2 = series(shifts=shifts)
    config = QualityGate(frames=2, chip_px=8, max_age_days=60, min_ssim=-1, min_psnr=0)
    reasons = dict.fromkeys(zip(s2.timestamps, s2.product_ids, strict=True), "")
    frames, truths = wald_pairs(s2, reasons, 0.3)
    _, samples = cut(frames, truths[-1:], [ChipWindow(0, 0, "train")], config)
    # by Wald the truth is the latest frame itself; a degraded pixel is four times as wide
    np.testing.assert_allclose(samples.lr_shift[0], (shifts[[5, 4]] - shifts[5]) / 4, atol=1e-6)
