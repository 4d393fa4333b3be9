"""Images for the page, as data URIs that stay within a number of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sr_core.errors import ArtifactError

SMALLEST_SIDE = 64


@dataclass(frozen=True)
class Picture:
    """An embedded image. `width` and `height` in pixels of what is embedded."""

    uri: str
    width: int
    height: int


def embed(paths: Sequence[Path], budget: int, max_side: int) -> list[Picture]:
    """Embed pictures so that together they take at most about `budget` bytes of the page.

    Each gets an equal share. Those that fit are kept without loss, because people judge sharpness on them; others
    are compressed, and made smaller only when that is not enough. Raises `ArtifactError` for an unreadable file.
    """
    allowance = budget * 3 // 4 // max(len(paths), 1)  # base64 makes four characters of three bytes
    return [_embed(path, allowance, max_side) for path in paths]


def _embed(path: Path, allowance: int, max_side: int) -> Picture:
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise ArtifactError(f"{path}: expected a picture that a finished stage wrote: {error}") from error
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    data = _webp(image, lossless=True)
    quality = 92
    while len(data) > allowance and max(image.size) > SMALLEST_SIDE:
        if quality < 70:
            image.thumbnail((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
            quality = 85
        data = _webp(image, quality=quality)
        quality -= 10
    return Picture("data:image/webp;base64," + base64.b64encode(data).decode("ascii"), image.width, image.height)


def _webp(image: Image.Image, lossless: bool = False, quality: int = 80) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=lossless, quality=quality, method=4)
    return buffer.getvalue()
