"""The sample store: what is written comes back, part by part, and people can query the table."""

import datetime as dt
import hashlib

import geopandas as gpd
import numpy as np
import pytest
import zarr
from shapely.geometry import box

from sr_core.errors import ArtifactError
from sr_core.samples.store import (
    COLUMNS,
    ROWS_A_SHARD,
    Candidate,
    Samples,
    SampleStore,
    assemble,
    has_part,
    read_candidates,
    read_images,
    write_part,
)

FRAMES, CHIP = 3, 8
EMPTY = Samples.zeros(0, FRAMES, CHIP)
ATTRIBUTES = {"gsd_m": 10.0, "pairing": "vhr"}


def candidate(patch, index, kept=True, split="train"):
    return Candidate(
        sample_id=f"farm_{patch}_{index}",
        region="farm",
        patch=patch,
        tile="T1",
        split=split,
        target_date=dt.datetime(2020, 7, 1, 10, 30),
        latest_date=dt.datetime(2020, 6, 29, 10, 20, 1) if kept else None,
        n_frames=FRAMES if kept else 0,
        lr_row=index,
        lr_col=0,
        ssim=0.9 if kept else float("nan"),
        psnr=30.0 if kept else float("nan"),
        mse=1e-3 if kept else float("nan"),
        **dict.fromkeys(("bias_blue", "bias_green", "bias_red", "bias_nir"), 0.01 if kept else float("nan")),
        land="varied" if kept else "",
        kept=kept,
        reason="" if kept else "cloud",
        geometry=box(21.0, 63.0 + index / 100, 21.01, 63.01 + index / 100),
    )


def put_together(parts, folder, dropped=()):
    """What the stage does with the parts, with some of those that have images dropped."""
    table = read_candidates(parts)
    table["kept"] &= ~table["sample_id"].isin(dropped)
    table["row"] = np.where(table["kept"], table["kept"].cumsum() - 1, -1)
    table["cluster"] = np.int64(-1)
    table = table[list(COLUMNS)]
    assemble(parts, table, folder, EMPTY, ATTRIBUTES)
    return table


def samples(count, seed):
    rng = np.random.default_rng(seed)

    def like(array):
        shape = (count, *array.shape[1:])
        return rng.integers(0, 2 if array.dtype == bool else 9000, shape).astype(array.dtype)

    return Samples(*(like(getattr(EMPTY, name)) for name in EMPTY.__dataclass_fields__))


@pytest.fixture
def parts(tmp_path):
    """Two patches with samples, more than a shard together, and one with nothing kept between them."""
    contents = {"a": 50, "b": 0, "c": ROWS_A_SHARD}
    for seed, (patch, count) in enumerate(contents.items()):
        rows = [candidate(patch, 1000, kept=False)]
        rows += [candidate(patch, i, split="test" if i % 5 == 0 else "train") for i in range(count)]
        write_part(tmp_path / "parts" / patch, rows, samples(count, seed))
    return [tmp_path / "parts" / patch for patch in contents]


def test_samples_come_back_in_the_order_of_the_parts(parts, tmp_path):
    put_together(parts, tmp_path)
    store = SampleStore(tmp_path)
    expected = Samples.stack([samples(50, 0), samples(ROWS_A_SHARD, 2)])
    found = store.read(range(len(store)))
    for name in EMPTY.__dataclass_fields__:
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    picked = store.read([70, 3])
    assert np.array_equal(picked.hr, expected.hr[[70, 3]])
    assert store.shape == (FRAMES, 4, CHIP, CHIP)
    assert (store.gsd_m, store.pairing, store.scale) == (10.0, "vhr", 4)
    assert store.bands == ("blue", "green", "red", "nir")


def test_rows_of_the_table_point_into_the_arrays(parts, tmp_path):
    table = put_together(parts, tmp_path)
    store = SampleStore(tmp_path)
    assert table.loc[~table["kept"], "row"].tolist() == [-1, -1, -1]
    assert sorted([*store.rows("train"), *store.rows("test")]) == list(range(114))
    row = int(table.loc[table["sample_id"] == "farm_c_7", "row"].iloc[0])
    assert np.array_equal(store.read([row]).lr[0], samples(ROWS_A_SHARD, 2).lr[7])


def test_what_the_selection_drops_is_left_out_of_the_arrays_and_can_still_be_looked_at(parts, tmp_path):
    table = put_together(parts, tmp_path, dropped={"farm_a_3", "farm_c_0", "farm_c_63"})
    store = SampleStore(tmp_path)
    expected = Samples.stack([samples(50, 0), samples(ROWS_A_SHARD, 2)])
    stays = [row for row in range(114) if row not in (3, 50, 113)]
    assert np.array_equal(store.read(range(111)).hr, expected.hr[stays])
    row = int(table.loc[table["sample_id"] == "farm_c_7", "row"].iloc[0])
    assert np.array_equal(store.read([row]).lr[0], expected.lr[57])
    images = read_images(parts, ["farm_c_63", "farm_a_3", "farm_a_1000"])
    assert set(images) == {"farm_c_63", "farm_a_3"}
    assert np.array_equal(images["farm_c_63"].hr, expected.hr[113:]) and len(images["farm_a_3"]) == 1
    # a view of one sample would keep all images of its part in memory
    assert all(image.lr.base is None and image.hr.base is None for image in images.values())


def test_the_table_is_geoparquet(parts, tmp_path):
    put_together(parts, tmp_path)
    table = gpd.read_parquet(tmp_path / "samples.parquet")
    assert tuple(table.columns) == COLUMNS
    assert table.crs.to_epsg() == 4326
    first = table[table["kept"]].iloc[0]
    assert first.geometry.equals(box(21.0, 63.0, 21.01, 63.01))
    assert first["latest_date"] == dt.datetime(2020, 6, 29, 10, 20, 1)
    assert table.loc[~table["kept"], "latest_date"].isna().all()
    assert table.loc[~table["kept"], "reason"].tolist() == ["cloud"] * 3


def test_the_store_is_zarr_3_with_a_chunk_a_sample(parts, tmp_path):
    put_together(parts, tmp_path)
    group = zarr.open_group(tmp_path / "samples.zarr", mode="r")
    assert group.metadata.zarr_format == 3
    assert group["lr"].chunks == (1, FRAMES, 4, CHIP, CHIP)
    assert group["hr"].dtype == np.uint16


def test_assembling_twice_gives_the_same_bytes_and_leaves_nothing_aside(parts, tmp_path):
    put_together(parts, tmp_path)
    first = digests(tmp_path)
    put_together(parts, tmp_path)
    assert digests(tmp_path) == first
    assert {path.name for path in tmp_path.iterdir()} == {"parts", "samples.zarr", "samples.parquet"}


def test_a_part_is_there_as_a_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="found 1 samples, expected 2"):
        write_part(tmp_path / "p", [candidate("p", 0), candidate("p", 1)], samples(1, 0))
    assert not has_part(tmp_path / "p")


def test_nothing_kept_is_a_store_of_no_samples(tmp_path):
    write_part(tmp_path / "p", [candidate("p", 0, kept=False)], EMPTY)
    write_part(tmp_path / "q", [], EMPTY)
    put_together([tmp_path / "p", tmp_path / "q"], tmp_path)
    store = SampleStore(tmp_path)
    assert len(store) == 0 and len(store.table) == 1 and store.rows("train").size == 0


def test_a_missing_or_inconsistent_store_is_named(parts, tmp_path):
    with pytest.raises(ArtifactError, match="run quality_gate first"):
        SampleStore(tmp_path / "nowhere")
    table = put_together(parts, tmp_path)
    table[table["sample_id"] != "farm_a_3"].to_parquet(tmp_path / "samples.parquet", index=False)
    with pytest.raises(ArtifactError, match=r"114 rows in samples.zarr, expected 113"):
        SampleStore(tmp_path)


def test_a_damaged_part_is_named(parts, tmp_path):
    (parts[2] / "arrays.npz").write_bytes(b"PK")
    with pytest.raises(ArtifactError, match=r"parts/c: damaged part"):
        put_together(parts, tmp_path)


def digests(folder):
    files = [folder / "samples.parquet", *(folder / "samples.zarr").rglob("*")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
