"""What is served, without a server: arrays, windows, batches, formats, limits, refusals."""

import io
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine
from rio_cogeo.cogeo import cog_validate

import serving
from serving import core, formats, objects
from serving.archive import describe_program, export_program
from sr_core.inference import products
from sr_core.models.bundle import SuperResolver, load_bundle
from sr_core.models.normalization import Normalization
from sr_core.radiometry.resample import degrade
from tests.bad_requests import BAD, FORM, GRID, JSON, NPZ, OUTSIDE, Bad, npz, stored, tiff
from tests.served import FRAMES, stack, write_bundle

NO_OBJECTS = objects.Objects("")


@pytest.fixture(scope="module")
def resolver(tmp_path_factory: pytest.TempPathFactory) -> SuperResolver:
    return load_bundle(write_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def exported(resolver: SuperResolver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    export_program(resolver, folder / "program.pt2")
    describe_program(resolver, folder / "program.json")
    return folder


@pytest.fixture(scope="module")
def program(exported: Path) -> core.Program:
    return core.load_program(exported)


def order_of(bad: Bad, allowed: objects.Objects = NO_OBJECTS) -> formats.Order:
    fields = bad.body if isinstance(bad.body, dict) else {"body": bad.body}
    return formats.read_order({"content-type": bad.kind, "accept": bad.accept}, fields, allowed, margin=4)


def difference(result: core.Result, resolver: SuperResolver, request: core.Request, place: Normalization) -> float:
    """Largest difference from the library, in counts, where there is an answer."""
    clear = request.clear if request.clear is not None else request.frames.any(axis=1)
    shifts = None if request.shifts is None else request.shifts.astype(np.float32)
    expected = resolver.predict(request.frames, clear, place, shifts=shifts) * 10_000
    known = result.sr.all(axis=0)
    assert known.mean() > 0.5
    return float(np.abs(result.sr - np.clip(expected, 1, 65535))[:, known].max())


def test_image_and_uncertainty_are_the_library_s(program: core.Program, resolver: SuperResolver) -> None:
    images, clear = stack()
    shifts = np.random.default_rng(2).normal(0, 0.3, (FRAMES, 2))
    request = core.Request(images, clear, shifts=shifts, uncertainty=True)
    place = Normalization.from_series(images, clear)

    result = core.super_resolve(program, request)

    assert difference(result, resolver, request, place) <= 1
    _, scale = resolver.predict_with_scale(images, clear, place, shifts=shifts.astype(np.float32))
    assert scale is not None and result.uncertainty is not None
    known = result.sr.all(axis=0)
    assert np.abs(result.uncertainty - scale * 10_000)[:, known].max() <= 1
    assert (result.uncertainty[:, ~known] == core.COMPANION_NODATA).all()


def test_consistency_is_that_of_the_products(program: core.Program) -> None:
    assert (core.CONSISTENCY_MTF, core.BLUR_PX) == (products.CONSISTENCY_MTF, products.BLUR_PX)
    images = 1000 + stack()[0] // 4  # far from 0, where the image is cut off
    shifts = np.full((FRAMES, 2), 0.25)
    result = core.super_resolve(program, core.Request(images, shifts=shifts))
    seen = degrade(result.sr.astype(np.float32), mtf=0.3, shift=(0.25, 0.25))
    assert np.abs(result.consistency - np.abs(seen - images[0])).max() <= 1.5
    assert result.consistency_mae == pytest.approx(np.abs(seen - images[0]).mean() / 10_000, abs=1e-4)


def test_what_was_never_seen_is_nodata(program: core.Program) -> None:
    images, clear = stack()
    clear[:, 5, 6] = False
    images[0, :, 7, 8] = 0  # no data in the latest frame
    result = core.super_resolve(program, core.Request(images, clear))
    assert not result.sr[:, 20:24, 24:28].any() and not result.sr[:, 28:32, 32:36].any()
    assert (result.consistency[:, ~(clear[0] & images[0].any(axis=0))] == core.COMPANION_NODATA).all()


def test_windows_leave_no_seam(program: core.Program, resolver: SuperResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    images, clear = stack(rows=101, columns=133)
    request = core.Request(images, clear, uncertainty=True)
    whole = core.super_resolve(program, request)
    monkeypatch.setattr(core, "NETWORK_SIDE", 80)
    parts = core.super_resolve(program, request)
    assert whole.windows == 1 and parts.windows == 12
    assert np.abs(parts.sr.astype(int) - whole.sr).max() <= 1
    assert np.abs(parts.consistency.astype(int) - whole.consistency).max() <= 1
    assert difference(parts, resolver, request, Normalization.from_series(images, clear)) <= 1


def test_a_window_is_the_same_as_of_the_whole(program: core.Program) -> None:
    images, clear = stack(rows=90, columns=90)
    place = {"mean": np.full(4, 0.2), "std": np.full(4, 0.1)}
    whole = core.super_resolve(program, core.Request(images, clear, **place))
    margin = program.halo + core.BLUR_PX
    cut = formats.cut_of([40, 30, 20, 25], (90, 90), margin)
    rows, columns = slice(cut.row, cut.row + cut.height), slice(cut.column, cut.column + cut.width)
    request = core.Request(images[..., rows, columns], clear[..., rows, columns], **place, window=cut.inner)
    part = core.super_resolve(program, request)
    assert np.abs(part.sr.astype(int) - whole.sr[:, 160:240, 120:220]).max() <= 1
    assert np.abs(part.consistency.astype(int) - whole.consistency[:, 40:60, 30:55]).max() <= 1


def test_a_batch_is_answered_as_one_by_one(program: core.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.Program, "together", 3)  # as on a GPU
    shapes = [(1, 30, 41), (4, 30, 41), (7, 20, 20), (3, 30, 41), (2, 33, 9), (16, 8, 8)]
    requests = [core.Request(*stack(*shape, seed=seed)) for seed, shape in enumerate(shapes)]
    requests.insert(2, core.Request(stack()[0], np.zeros((FRAMES, 30, 41), bool)))
    together = core.super_resolve_all(program, requests)
    assert isinstance(together.pop(2), core.RequestError)
    for result, request in zip(together, [*requests[:2], *requests[3:]], strict=True):
        assert isinstance(result, core.Result)
        assert np.abs(result.sr.astype(int) - core.super_resolve(program, request).sr).max() <= 1


def test_bfloat16_differs_by_little(program: core.Program) -> None:
    """What GPUs compute in; the exported program's own assertions would forbid it."""
    images, clear = stack()
    lower = core.Program(**{**vars(program), "precision": "bfloat16"})
    exact, rounded = (core.super_resolve(each, core.Request(images, clear)).sr.astype(int) for each in (program, lower))
    assert 0 < np.abs(exact - rounded).max() <= 40


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_with_a_sentence(name: str, program: core.Program) -> None:
    bad = BAD[name]
    allowed = objects.Objects("s3://bucket/allowed")
    with pytest.raises(core.RequestError, match=bad.sentence) as refused:
        core.super_resolve(program, order_of(bad, allowed).request)
    assert refused.value.status == bad.status


@pytest.mark.parametrize("place", OUTSIDE)
@pytest.mark.parametrize("field", ["image", "output"])
def test_only_allowed_places_are_gone_to(place: str, field: str) -> None:
    body = stored(place) if field == "image" else stored("s3://bucket/allowed/a.tif", output=place)
    with pytest.raises(core.RequestError, match=r"outside of what|is not a place") as refused:
        order_of(Bad(body, 403, "", JSON), objects.Objects("s3://bucket/allowed"))
    assert refused.value.status == 403


def test_nothing_is_allowed_unless_said() -> None:
    with pytest.raises(core.RequestError, match="reads and writes no objects") as refused:
        order_of(Bad(stored("s3://bucket/a.tif"), 403, "", JSON))
    assert refused.value.status == 403


@pytest.mark.parametrize("prefixes", ["bucket/a", "s3://", "http://a/b", "s3://b/../c"])
def test_a_prefix_that_is_none(prefixes: str) -> None:
    with pytest.raises(ValueError, match="SUBPIXEL_ALLOWED_PREFIXES: found"):
        objects.Objects(prefixes)


def forms() -> dict[str, tuple[str, dict[str, bytes]]]:
    """The same request in each format that carries its frames."""
    images, clear = stack()
    masks = clear.astype(np.uint8)
    place = {"epsg": 32734, "transform": np.array(GRID["transform"][:6])}
    return {
        "npz": (NPZ, {"body": npz(frames=images, clear=clear, **place)}),
        "one file": (FORM, {"frames": tiff(images.reshape(-1, 30, 41)), "clear": tiff(masks)}),
        "a file a date": (
            FORM,
            {f"frame_{number}": tiff(image) for number, image in enumerate(images)}
            | {f"clear_{number}": tiff(mask[None]) for number, mask in enumerate(masks)},
        ),
    }


@pytest.mark.parametrize("name", forms())
@pytest.mark.parametrize("accept", [formats.NPZ, formats.TIFF])
def test_formats_say_the_same(name: str, accept: str, program: core.Program) -> None:
    kind, fields = forms()[name]
    order = formats.read_order({"content-type": kind, "accept": accept}, fields, NO_OBJECTS, 4)
    result = core.super_resolve(program, order.request)
    np.testing.assert_array_equal(result.sr, core.super_resolve(program, core.Request(*stack())).sr)

    answer = formats.write_answer(order, result, NO_OBJECTS)

    fine = Affine(2.5, 0, 700_000, 0, -2.5, 7_850_000)
    if accept == formats.NPZ:
        arrays = np.load(io.BytesIO(answer))
        np.testing.assert_array_equal(arrays["sr"], result.sr)
        assert tuple(arrays["transform"]) == fine[:6] and arrays["epsg"] == 32734
    else:
        with rasterio.MemoryFile(answer) as memory, memory.open() as raster:
            np.testing.assert_array_equal(raster.read(), result.sr)
            assert raster.transform == fine and raster.crs == GRID["crs"]
            assert raster.nodata == 0 and raster.scales == (1e-4,) * 4
            assert raster.descriptions == ("blue", "green", "red", "nir")


def test_a_tiff_is_a_cog_with_its_attribution(program: core.Program, tmp_path: Path) -> None:
    images, _ = stack(rows=140, columns=150)
    dates = ["2024-03-01T08:00:00Z", "2024-02-20", "2023-12-30", "2023-12-01"]
    body = npz(frames=images, epsg=32734, transform=np.array(GRID["transform"][:6]), dates=dates)
    order = formats.read_order({"content-type": NPZ, "accept": "image/tiff"}, {"body": body}, NO_OBJECTS, 4)
    path = tmp_path / "sr.tif"
    path.write_bytes(formats.write_answer(order, core.super_resolve(program, order.request), NO_OBJECTS))
    valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    assert valid, (errors, warnings)
    with rasterio.open(path) as raster:
        assert raster.profile["compress"] == "deflate" and raster.block_shapes[0] == (512, 512)
        assert raster.overviews(1) == [2]
        assert raster.tags()["attribution"] == "Contains modified Copernicus Sentinel data 2023-2024"
        assert raster.tags()["TIFFTAG_DATETIME"] == "2024:03:01 08:00:00"


@pytest.mark.parametrize(
    ("accept", "stored", "expected"),
    [
        ("", False, formats.NPZ),
        ("*/*", False, formats.NPZ),
        ("application/octet-stream", False, formats.NPZ),
        ("text/html, image/*;q=0.8", False, formats.TIFF),
        ("application/x-npz;q=0.2, image/tiff", False, formats.TIFF),
        ("image/tiff;q=0, */*;q=0.1", False, formats.NPZ),
        ("*/*", True, formats.JSON),
    ],
)
def test_the_answer_is_what_the_sender_likes_best(accept: str, stored: bool, expected: str) -> None:
    assert formats.accepted(accept, stored) == expected


def test_sizes_of_the_server_come_from_the_limits_of_requests() -> None:
    folder = Path(serving.__file__).parent
    lines = (folder / "config.properties").read_text().splitlines()
    config = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    batch = next(
        int(line.partition(":")[2])
        for line in (folder / "model-config.yaml").read_text().splitlines()
        if line.startswith("batchSize")
    )
    frames = np.zeros((core.MAX_FRAMES, 4, core.MAX_SIDE, core.MAX_SIDE), np.uint16)
    clear = np.zeros((core.MAX_FRAMES, core.MAX_SIDE, core.MAX_SIDE), bool)
    largest = len(npz(frames=frames, clear=clear, mean=np.zeros(4), std=np.zeros(4), shifts=np.zeros((16, 2))))
    assert largest <= core.MAX_REQUEST_BYTES <= int(config["max_request_size"])
    sr = np.zeros((4, 4 * core.MAX_SIDE, 4 * core.MAX_SIDE), np.uint16)
    answer = len(npz(sr=sr, uncertainty=sr, consistency=frames[0], transform=np.zeros(6), epsg=1))
    assert answer <= core.MAX_ANSWER_BYTES
    assert batch * core.MAX_ANSWER_BYTES <= int(config["max_response_size"])
    # TorchServe reads the whole batch into one array
    assert int(config["max_response_size"]) < 2**31


def test_the_program_runs_on_another_device(exported: Path) -> None:
    """No tensor of the program stays behind on the CPU: `meta` stands for a GPU here."""
    moved = core.load_program(exported, "meta")
    shapes = ((1, FRAMES, 4, 20, 24), (1, FRAMES, 20, 24), (1, FRAMES, 2))
    image, *_ = moved.module(*(torch.ones(shape, device="meta") for shape in shapes))
    assert (image.device.type, tuple(image.shape)) == ("meta", (1, 4, 80, 96))
