"""cloud_shadow_filter on simulated farmland under clouds, against its truth."""

from pathlib import Path

import numpy as np
import pytest

from components.cloud_shadow_filter.main import STAGE as MASKS
from components.download.main import STAGE as DOWNLOAD
from components.stage import run
from sr_core.config import Config, parse_config
from sr_core.masks.acquisitions import read_acquisitions
from sr_core.patches import load_part, part_path, read_index
from sr_core.series import load_vhr

CUMULUS = "2020-06-15"
"""Under this seed: 7 % clouds, 850 m high, and 18 % shadow."""


def configured(**section: object) -> Config:
    return parse_config(
        {
            "name": "clouds",
            "area": {"region": "farmland", "crs": "EPSG:32634", "bbox": [682240, 6134400, 683520, 6135680]},
            "period": {"start": "2020-05-25", "end": "2020-06-30"},
            "source": {"kind": "simulated", "seed": 7, "vhr_dates": [CUMULUS], "vhr_cloudy_share": 1.0},
            "grid": {"cell_m": 640, "buffer_m": 0},
            "preparation": {"workers": 1},
            "cloud_shadow_filter": section,
        }
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clouds")
    run(DOWNLOAD, configured(), str(folder))
    return folder


def test_shadows_are_cut_out_where_they_are(root: Path) -> None:
    """In the north: the clouds that shade the south lie outside the area, where nobody sees them."""
    run(MASKS, configured(shadows="geometric"), str(root))
    shadow, truth, cloud = [], [], []
    patches = read_index(root / "patches")
    for patch in [one for one in patches if one.cell[3] == max(other.cell[3] for other in patches)]:
        mask = load_part(part_path(root / "masks", patch, "vhr"))
        known = load_part(part_path(root / "patches", patch, "truth_vhr"))
        for kept, part, name in (
            (shadow, mask, "SHADOW"),
            (cloud, mask, "CLM"),
            (truth, known, "SHADOW"),
        ):
            kept.append(part.mask[name][0, ..., 0].astype(bool))
        assert not (mask.mask["CLEAR"] & (mask.mask["SHADOW"] | mask.mask["CLM"])).any()
    found, expected, clear = np.array(shadow), np.array(truth), ~np.array(cloud)
    assert expected.mean() > 0.05
    assert (found & expected & clear).sum() > 0.8 * (expected & clear).sum()
    assert (found & ~expected).sum() < 0.05 * (~expected & clear).sum()
    table = read_acquisitions(root / "masks")
    vhr = table[table.sensor == "vhr"]
    assert vhr.shadowed.any() and set(vhr.reason) <= {"", "cloud", "shadow"}


def test_the_rule_of_neighbours_takes_whole_patches(root: Path) -> None:
    record = run(MASKS, configured(shadows="neighbours", max_cloud_cover=0.02), str(root))
    assert record["counts"]["vhr"]["acquisitions"] == 4
    table = read_acquisitions(root / "masks")
    flagged = set(table[(table.sensor == "vhr") & table.shadowed].patch)
    assert flagged
    for patch in read_index(root / "patches"):
        shadow = load_part(part_path(root / "masks", patch, "vhr")).mask["SHADOW"]
        assert shadow.all() == shadow.any() == (patch.id in flagged)


def test_vhr_that_lies_elsewhere_is_dropped(root: Path) -> None:
    record = run(MASKS, configured(max_shift_m=0.1, max_cloud_cover=1.0), str(root))
    table = read_acquisitions(root / "masks")
    vhr = table[table.sensor == "vhr"]
    known = vhr[vhr.shift_confidence > 0.25]
    assert len(known) == record["counts"]["vhr_registration"]["known"] > 0
    assert (known.reason == "shift").all() and not known.kept.any()
    assert np.hypot(known.shift_rows_m, known.shift_columns_m).between(0.1, 6).all()
    assert table[table.sensor == "s2"].shift_rows_m.isna().all()
    first = read_index(root / "patches")[0]
    series = load_vhr(root / "patches", root / "masks", first)
    row = vhr[vhr.patch == first.id].iloc[0]
    assert series is not None and series.shifts_m[0] == pytest.approx([row.shift_rows_m, row.shift_columns_m])
