"""The model bundle: `model.safetensors` (weights) and `model.json` (all that is needed to use them).

Readable without the training code and without unpickling anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from sr_core import BANDS, REFLECTANCE_SCALE
from sr_core.coregistration import MAX_SHIFT_PX
from sr_core.errors import ArtifactError, DataError
from sr_core.models.alignment import LOBES, align
from sr_core.models.highresnet import HighResNet
from sr_core.models.normalization import Normalization

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
NAME = "highresnet"
VERSION = 2
"""Rises when old weights no longer fit the architecture or mean something else."""

SHIPPED = Path(__file__).parent / "shipped"
"""The bundle that comes with the project; docs/model-card.md says what it is for."""

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class SuperResolver:
    """A trained network with what it needs to be used: frames, scale, statistics, lineage and scores."""

    model: HighResNet
    frames: int
    description: Mapping[str, Any]
    """`model.json` as it is."""

    @property
    def scale(self) -> int:
        return self.model.scale

    @property
    def receptive_field(self) -> int:
        """Side, in low-resolution pixels, of the square that one low-resolution pixel's output depends on."""
        return self.model.receptive_field(self.frames) + 2 * (LOBES + math.ceil(MAX_SHIFT_PX))

    def region(self, name: str) -> Normalization:
        """Statistics of a region that the model was trained on. Raises `DataError` for another."""
        known = self.description["normalization"]
        if name not in known:
            raise DataError(f"region {name!r}: not in the bundle, which knows {', '.join(sorted(known))}")
        return Normalization.from_json(known[name])

    def predict(
        self,
        frames: NDArray[np.uint16],
        clear: NDArray[np.bool_],
        normalization: Normalization,
        precision: Precision = "float32",
        shifts: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Super-resolve one series.

        frames (T,C,H,W) reflectance × 10000, latest first; clear (T,H,W). Fewer frames than the model's are
        padded with frames that count as not clear; of more, the latest are used. shifts (T,2) are the frames'
        displacements in low-resolution pixels (`sr_core.coregistration`); none: they lie on one grid. Returns
        reflectance (C,scale*H,scale*W); where no frame is clear it is a smooth guess, near the place's mean.
        """
        return self.predict_with_scale(frames, clear, normalization, precision, shifts)[0]

    @torch.inference_mode()
    def predict_with_scale(
        self,
        frames: NDArray[np.uint16],
        clear: NDArray[np.bool_],
        normalization: Normalization,
        precision: Precision = "float32",
        shifts: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """As `predict`, and beside the image how far off it may be: the scale of a Laplace distribution, in
        reflectance, same shape (half of all errors are below 0.69 of it); None from a model that does not say."""
        if frames.ndim != 4 or frames.shape[1] != len(self.description["bands"]) or not frames.size > 0:
            raise DataError(f"frames: found shape {frames.shape}, expected (T, {len(self.description['bands'])}, H, W)")
        if clear.shape != (frames.shape[0], *frames.shape[2:]):
            raise DataError(f"clear: found shape {clear.shape}, expected {(frames.shape[0], *frames.shape[2:])}")
        frames, clear = frames[: self.frames], clear[: self.frames].astype(bool, copy=False)
        padding = ((0, self.frames - len(frames)), (0, 0), (0, 0))
        normalized = normalization.apply(frames.astype(np.float32) / REFLECTANCE_SCALE)
        moved = np.zeros((self.frames, 2), np.float32)
        if shifts is not None:
            moved[: len(frames)] = shifts[: self.frames]
        device = next(self.model.parameters()).device
        inputs = torch.from_numpy(np.pad(normalized, (*padding, (0, 0))))[None].to(device)
        mask = torch.from_numpy(np.pad(clear, padding))[None].float().to(device)
        displaced = torch.from_numpy(moved)[None].to(device)
        inputs = align(inputs, mask, displaced)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            estimate = self.model(inputs, mask, displaced)
        image = normalization.invert(estimate.image[0].cpu().numpy())
        if estimate.log_scale is None:
            return image, None
        std = np.asarray(normalization.std, np.float32)[:, None, None]
        scale: NDArray[np.float32] = estimate.log_scale[0].exp().cpu().numpy() * std
        return image, scale


def save_bundle(folder: Path, model: HighResNet, meta: Mapping[str, Any]) -> None:
    """Write a bundle.

    `meta` holds `frames`, `normalization` ({region: {band: {mean, std}}}), `lineage` and `scores`. Both
    files are written aside and renamed, the description last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "architecture": {"name": NAME, "version": VERSION, **model.architecture},
        "bands": list(BANDS),
        "scale": model.scale,
        **meta,
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    aside = folder / f".{WEIGHTS}"
    aside.write_bytes(save(weights))
    aside.replace(folder / WEIGHTS)
    aside = folder / f".{DESCRIPTION}"
    aside.write_text(json.dumps(description, indent=1), encoding="utf-8")
    aside.replace(folder / DESCRIPTION)


def load_bundle(folder: Path) -> SuperResolver:
    """Read a bundle. Raises `ArtifactError` when it is missing, damaged, incomplete or of another version."""
    description = _read_description(folder / DESCRIPTION)
    architecture = dict(description["architecture"])
    found = (architecture.pop("name", None), architecture.pop("version", None))
    if found != (NAME, VERSION):
        raise ArtifactError(
            f"{folder / DESCRIPTION}: found architecture {found[0]} version {found[1]},"
            f" expected {NAME} version {VERSION}"
        )
    try:
        model = HighResNet(**architecture)
    except TypeError as error:
        raise ArtifactError(
            f"{folder / DESCRIPTION}: architecture {architecture} is not one of {NAME}: {error}"
        ) from error
    path = folder / WEIGHTS
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; expected the weights beside {DESCRIPTION}")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); it is truncated or not a safetensors file") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if given != expected:
        wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        name = wrong[0]
        raise ArtifactError(
            f"{path}: {len(wrong)} tensors do not fit the architecture in {DESCRIPTION}, the first is {name}:"
            f" found {given.get(name, 'none')}, expected {expected.get(name, 'none')}"
        )
    model.load_state_dict(weights)
    return SuperResolver(model.eval(), int(description["frames"]), description)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path}: missing; expected a model bundle ({WEIGHTS} and {DESCRIPTION})") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}); the bundle is damaged") from error
    missing = [
        name for name in ("architecture", "bands", "scale", "frames", "normalization") if name not in description
    ]
    if missing:
        raise ArtifactError(f"{path}: lacks {', '.join(missing)}; expected a model bundle's description")
    if tuple(description["bands"]) != BANDS:
        raise ArtifactError(f"{path}: found bands {description['bands']}, expected {list(BANDS)}")
    return description
