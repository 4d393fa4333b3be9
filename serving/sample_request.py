"""Super-resolve a made-up sample through a running service and judge the answer: `helm test`.

    python3 -m serving.sample_request http://host:8080/predictions/subpixel

The sample is a patchwork of fields seen on eight dates, with noise. The answer must be four times as fine, complete,
and be the latest frame again when it is averaged over the frame's pixels.
"""

from __future__ import annotations

import io
import sys
import time
import urllib.error
import urllib.request

import numpy as np
from numpy.typing import NDArray

FRAMES, SIDE, SCALE, REFLECTANCE_SCALE = 8, 32, 4, 10_000
TOLERANCE = 0.02
"""Reflectance: mean absolute difference between the averaged answer and the latest frame."""
TIMEOUT_S = 120.0


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    frames, body = sample(), io.BytesIO()
    np.savez_compressed(body, frames=frames)
    request = urllib.request.Request(
        arguments[0], body.getvalue(), {"Content-Type": "application/x-npz", "Accept": "application/x-npz"}
    )
    started = time.monotonic()
    try:
        # no proxy: the service is the next pod
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=TIMEOUT_S) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        print(f"{arguments[0]}: answered {error.code}: {error.read(500).decode(errors='replace')}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - started
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        problem = wrong(frames, arrays["sr"])
    print(f"{arguments[0]}: {problem or f'super-resolved {SIDE} x {SIDE} px of {FRAMES} dates in {seconds:.2f} s'}")
    return 1 if problem else 0


def sample() -> NDArray[np.uint16]:
    """Frames (T,4,H,W), reflectance x 10000, latest first."""
    rng = np.random.default_rng(0)
    fields = rng.uniform((400, 600, 500, 2000), (900, 1200, 1500, 3500), (SIDE // 8, SIDE // 8, 4))
    ground = np.kron(fields.transpose(2, 0, 1), np.ones((1, 8, 8)))
    return (ground + rng.normal(0, 20, (FRAMES, *ground.shape))).astype(np.uint16)


def wrong(frames: NDArray[np.uint16], sr: NDArray[np.uint16]) -> str | None:
    """What is wrong with an answer, in words, or None."""
    expected = (4, SIDE * SCALE, SIDE * SCALE)
    if sr.shape != expected or sr.dtype != np.uint16:
        return f"the answer is {sr.dtype} of shape {sr.shape}; expected uint16 of shape {expected}"
    if not sr.all():
        return f"{int((sr == 0).sum())} of the answer's values are nodata; expected none"
    averaged = sr.reshape(4, SIDE, SCALE, SIDE, SCALE).mean(axis=(2, 4))
    difference = float(np.abs(averaged - frames[0]).mean()) / REFLECTANCE_SCALE
    if difference > TOLERANCE:
        return f"averaged, the answer differs from the latest frame by {difference:.4f}; expected at most {TOLERANCE}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
