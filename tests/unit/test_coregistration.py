"""Displacements of passes: found from the pictures, solved together, and undone."""

import datetime as dt

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from sr_core.config import SimulatedSource
from sr_core.coregistration import PairShift, pair_shifts, read_shifts, solve, write_shifts
from sr_core.models.alignment import align, translate
from sr_core.patches import make_patch
from sr_core.radiometry.resample import degrade
from sr_core.samples.dataset import orient_shift
from sr_core.sources.simulated import SimulatedFarmland

DAYS = [dt.datetime(2020, 5, 1) + dt.timedelta(days=5 * n) for n in range(6)]


def series(shifts, noise=0.002):
    """A textured landscape through the instrument, displaced by `shifts` (T,2), fields changing from date to date."""
    random = np.random.default_rng(3)
    fields = np.kron(random.random((20, 20)), np.ones((24, 24))).astype(np.float32)
    texture = gaussian_filter(random.standard_normal((480, 480)), 2).astype(np.float32)
    frames = []
    for date, shift in enumerate(shifts):
        land = 0.1 + 0.05 * fields + 0.05 * texture + 0.004 * date * np.roll(fields, 24, axis=0)
        frame = degrade(land, shift=tuple(shift)) + random.normal(0, noise, (120, 120))
        frames.append(np.repeat(frame[..., None], 4, axis=-1))
    return np.rint(np.stack(frames) * 10_000).clip(1).astype(np.uint16)


def test_known_displacements_are_recovered_within_a_twentieth_of_a_pixel():
    shifts = np.random.default_rng(1).normal(0, 0.3, (6, 2))
    bands = series(shifts)
    found = solve(pair_shifts(bands, np.ones(bands.shape[:3], bool), DAYS))
    estimated = np.array([found[day] for day in DAYS])
    np.testing.assert_allclose(estimated, shifts - shifts.mean(axis=0), atol=0.05)


def test_clouds_do_not_move_the_ground():
    shifts = np.random.default_rng(2).normal(0, 0.3, (6, 2))
    bands = series(shifts)
    clear = np.ones(bands.shape[:3], bool)
    bands[2, 30:70, 20:80] = 9000
    clear[2, 28:72, 18:82] = False
    found = solve(pair_shifts(bands, clear, DAYS))
    np.testing.assert_allclose([found[day] for day in DAYS], shifts - shifts.mean(axis=0), atol=0.06)


def test_one_wrong_pair_is_outvoted():
    truth = {day: (0.1 * n, -0.1 * n) for n, day in enumerate(DAYS)}
    pairs = [PairShift(a, b, truth[a][0] - truth[b][0], truth[a][1] - truth[b][1]) for a in DAYS for b in DAYS if b < a]
    pairs[4] = pairs[4]._replace(rows=1.5)
    found = solve(pairs)
    np.testing.assert_allclose([found[day][0] for day in DAYS], 0.1 * (np.arange(6) - 2.5), atol=0.02)


def test_dates_that_nothing_connects_are_unknown():
    assert solve([]) == {}
    bands = np.ones((2, 40, 40, 4), np.uint16)
    assert pair_shifts(bands, np.zeros((2, 40, 40), bool), DAYS[:2]) == []


def test_displacements_come_back_from_disk(tmp_path):
    written = {"farmland": {DAYS[0]: (0.25, -0.5)}}
    write_shifts(tmp_path, written)
    assert read_shifts(tmp_path) == written
    assert read_shifts(tmp_path / "nowhere") == {}


def test_alignment_undoes_the_displacement():
    shifts = np.array([[0.4, -0.3], [0.0, 0.0]])
    bands = torch.from_numpy(series(shifts, noise=0.0).astype(np.float32)).permute(0, 3, 1, 2)[None] / 10_000
    aligned = align(bands, torch.ones(1, 2, 120, 120), torch.from_numpy(shifts.astype(np.float32))[None])
    inside = (..., slice(8, -8), slice(8, -8))
    before = (bands[0, 0] - bands[0, 1])[inside].std()
    after = (aligned[0, 0] - aligned[0, 1])[inside].std()
    assert after < 0.5 * before  # what stays is aliasing, and fields that changed


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_a_displacement_turns_with_its_image(turns, flip):
    image = torch.rand(1, 1, 32, 32)
    shift = torch.tensor([[0.7, -0.4]])

    def orient(picture):
        turned = torch.rot90(picture, turns, (-2, -1))
        return turned.flip(-1) if flip else turned

    moved_then_turned = orient(translate(image, shift))
    turned_then_moved = translate(orient(image), orient_shift(shift, turns, flip))
    torch.testing.assert_close(moved_then_turned, turned_then_moved, atol=1e-5, rtol=0)


def test_passes_over_simulated_farmland_are_found_against_its_truth():
    """Fields that grow, are mown and harvested between dates; clouds by the simulation's own masks."""
    source = SimulatedFarmland(SimulatedSource(kind="simulated", seed=7))
    patch = make_patch("farmland", 32634, (682240, 6134400, 683200, 6135360), 0)
    period = (dt.date(2020, 5, 1), dt.date(2020, 6, 30))
    images, truth = source.s2(patch, period), source.truth(patch, period)["truth"]
    clear = ~(truth.mask["CLOUD"] | truth.mask["SHADOW"])[..., 0]
    known = dict(zip(truth.get_timestamps(), np.array(truth.meta_info["shifts_px"]), strict=True))
    found = solve(pair_shifts(images.data["BANDS"], clear, images.get_timestamps()))
    assert len(found) >= 6
    difference = np.array([np.subtract(found[date], known[date]) for date in found])
    assert np.sqrt(((difference - difference.mean(axis=0)) ** 2).mean()) < 0.05
