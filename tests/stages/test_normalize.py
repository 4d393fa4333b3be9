"""The stage normalize on small artifacts: what it refuses."""

import numpy as np
import pytest

from components import stage
from components.normalize import main as program
from sr_core.errors import DataError
from sr_core.patches import load_part, part_path, save_part
from sr_core.radiometry.normalize import read_normalization
from tests.stages.test_quality_gate import config, write_inputs


@pytest.fixture
def inputs(tmp_path):
    patches = write_inputs(tmp_path)
    (tmp_path / "normalization" / "run.json").unlink()
    return tmp_path, patches


def test_statistics_equal_numpys_on_all_pixels_at_once(inputs):
    root, patches = inputs
    stage.run(program.STAGE, config(), str(root))
    found = read_normalization(root / "normalization")
    cells = [(patch, patch.cell_window()) for patch in patches]
    pixels = np.concatenate(
        [
            load_part(part_path(root / "patches", patch, "s2")).data["BANDS"][:, *cell].reshape(-1, 4)
            for patch, cell in cells
        ]
    )
    for band, name in enumerate(("blue", "green", "red", "nir")):
        statistics, values = found.s2["farm"][name], pixels[:, band] / 1e4
        assert statistics.n_pixels == len(values)
        expected = [np.median(values), values.mean(), values.std(), *np.percentile(values, [1, 99])]
        measured = [statistics.median, statistics.mean, statistics.std, statistics.p_low, statistics.p_high]
        np.testing.assert_allclose(measured, expected, rtol=1e-9)


def test_a_region_whose_dates_are_not_of_one_radiometry_is_refused(inputs):
    root, patches = inputs
    for patch in patches:
        part = part_path(root / "patches", patch, "s2")
        images = load_part(part)
        images.data["BANDS"][3:] += 1000
        save_part(images, part)
    with pytest.raises(DataError, match=r"region farm: .* jumps by \+1001 from 2020-06-11 to 2020-06-16;"):
        stage.run(program.STAGE, config(), str(root))
    assert not (root / "normalization" / "run.json").exists()
