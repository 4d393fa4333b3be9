"""The model bundle: what is saved is what is loaded, and what is wrong with a damaged one is said."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sr_core import BANDS
from sr_core.errors import ArtifactError, DataError
from sr_core.models.bundle import load_bundle, save_bundle
from sr_core.models.highresnet import HighResNet
from sr_core.models.normalization import Normalization

PLACE = Normalization((0.05, 0.08, 0.07, 0.3), (0.01, 0.02, 0.03, 0.08))


@pytest.fixture
def bundle(tmp_path):
    torch.manual_seed(0)
    model = HighResNet(channels=8, residual_blocks=1)
    torch.nn.init.normal_(model.project.weight, std=0.1)
    meta = {"frames": 4, "normalization": {"here": PLACE.to_json()}, "lineage": {"key": "k"}, "scores": {}}
    save_bundle(tmp_path, model, meta)
    return tmp_path


def series(frames: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(300, 3000, (frames, 4, 9, 11), np.uint16), rng.random((frames, 9, 11)) > 0.2


def test_a_bundle_predicts_reflectance(bundle):
    resolver = load_bundle(bundle)
    image = resolver.predict(*series(4), resolver.region("here"))
    assert image.shape == (4, 36, 44) and image.dtype == np.float32
    assert 0.0 < image.mean() < 0.4
    assert resolver.scale == 4 and resolver.frames == 4 and resolver.receptive_field % 2 == 1
    assert not list(bundle.glob(".*"))


def test_fewer_frames_are_padded_and_of_more_the_latest_are_used(bundle):
    resolver = load_bundle(bundle)
    frames, clear = series(6)
    np.testing.assert_array_equal(
        resolver.predict(frames, clear, PLACE), resolver.predict(frames[:4], clear[:4], PLACE)
    )
    clear[2:] = False
    np.testing.assert_allclose(
        resolver.predict(frames, clear, PLACE), resolver.predict(frames[:2], clear[:2], PLACE), atol=1e-6
    )


def test_bfloat16_is_close_to_float32(bundle):
    resolver = load_bundle(bundle)
    exact = resolver.predict(*series(4), PLACE)
    np.testing.assert_allclose(resolver.predict(*series(4), PLACE, precision="bfloat16"), exact, atol=0.01)


def test_wrong_shapes_are_named(bundle):
    resolver = load_bundle(bundle)
    frames, clear = series(4)
    with pytest.raises(DataError, match=r"frames: found shape \(4, 3, 9, 11\)"):
        resolver.predict(frames[:, :3], clear, PLACE)
    with pytest.raises(DataError, match=r"clear: found shape"):
        resolver.predict(frames, clear[:2], PLACE)
    with pytest.raises(DataError, match="knows here"):
        resolver.region("elsewhere")


def damage_description(bundle, **changes):
    path = bundle / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_missing_damaged_and_foreign_bundles_are_refused(bundle, tmp_path):
    with pytest.raises(ArtifactError, match="missing"):
        load_bundle(tmp_path / "nowhere")
    damage_description(bundle, architecture={"name": "highresnet", "version": 99})
    with pytest.raises(ArtifactError, match=r"version 99, expected highresnet version 2"):
        load_bundle(bundle)
    damage_description(bundle, bands=["red"])
    with pytest.raises(ArtifactError, match=r"found bands \['red'\]"):
        load_bundle(bundle)
    (bundle / "model.json").write_text('{"architecture"')
    with pytest.raises(ArtifactError, match="not valid JSON"):
        load_bundle(bundle)


def test_wrong_tensors_are_named(bundle):
    path = bundle / "model.safetensors"
    weights = load_file(path)
    weights["encoder.wrong"] = weights.pop("encoder.body.0.weight")
    save_file(weights, path)
    with pytest.raises(ArtifactError, match=r"encoder\.body\.0\.weight: found none"):
        load_bundle(bundle)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ArtifactError, match="truncated"):
        load_bundle(bundle)
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        load_bundle(bundle)


def test_normalization_of_a_new_place():
    frames, clear = series(5)
    clear[0] = False
    frames[0] = 60000
    place = Normalization.from_series(frames, clear)
    normalized = place.apply(frames[1:] / 10_000).transpose(0, 2, 3, 1)[clear[1:]]
    np.testing.assert_allclose(normalized.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(normalized.std(axis=0), 1, atol=1e-4)
    np.testing.assert_allclose(place.invert(place.apply(frames / 10_000)), frames / 10_000, atol=1e-5)
    assert Normalization.from_json(place.to_json()) == place
    with pytest.raises(DataError, match="no clear pixel"):
        Normalization.from_series(frames, np.zeros_like(clear))
    with pytest.raises(DataError, match="nir"):
        Normalization.from_json({band: {"mean": 0.0, "std": 1.0} for band in BANDS[:3]})
