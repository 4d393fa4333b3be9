"""Requests to a model server from files of this machine or objects in S3."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sr_core.errors import ServiceError, SourceError
from sr_core.sources.products import sensing_time
from subpixel.client import NPZ, TIFF, Client, content_of, write_whole


def predict(
    client: Client,
    frames: Sequence[str],
    output: str,
    clear: Sequence[str] = (),
    window: tuple[int, int, int, int] | None = None,
    uncertainty: bool = False,
    consistency: bool = False,
) -> list[str]:
    """Super-resolve what `frames` name into `output`; returns the places written.

    frames are GeoTIFFs of this machine, one a date (`output` becomes a GeoTIFF); objects in S3, GeoTIFFs or STAC Items
    (`output` is a prefix); or one `.npz` as the server takes it (`output` is an .npz, or a GeoTIFF where the .npz says
    where it lies). Where all names hold a date, frames are sent latest first; else as they are given. Raises
    `ServiceError`.
    """
    wanted = {"uncertainty": uncertainty, "consistency": consistency}
    if clear and len(clear) != len(frames):
        raise ServiceError(f"--clear: found {len(clear)} masks for {len(frames)} frames, expected one a frame")
    dates = dates_of(frames)
    if dates:
        order = sorted(range(len(frames)), key=dates.__getitem__, reverse=True)
        frames, dates = [frames[index] for index in order], [dates[index] for index in order]
        clear = [clear[index] for index in order] if clear else []
    told = [date.isoformat() for date in dates]
    remote = {name.startswith("s3://") for name in (*frames, output)}
    if len(remote) > 1:
        raise ServiceError(f"frames and --out {output}: expected all in S3, or all on this machine")
    if remote == {True}:
        named: list[dict[str, str]] = [{"item" if name.endswith(".json") else "image": name} for name in frames]
        for key, values in (("clear", clear), ("date", told)):
            for frame, value in zip(named, values, strict=False):  # one each, or none
                frame[key] = value
        answer = client.predict_stored(named, output, window, **wanted)
        return [str(place) for place in answer.get("keys", {}).values()]
    if window is not None:
        raise ServiceError("--window: for frames in S3 only; cut files of this machine before they are sent")
    if frames[0].endswith(".npz"):
        if len(frames) > 1 or clear:
            raise ServiceError(f"{frames[0]}: an .npz holds the frames of one request and their masks; give it alone")
        kind = NPZ if output.endswith(".npz") else TIFF
        write_whole(Path(output), client.ask(content_of(Path(frames[0])), NPZ, kind))
        return [output]
    paths, masks = [*map(Path, frames)], [*map(Path, clear)]
    return [str(client.predict_files(paths, Path(output), masks, dates=told, **wanted))]


def dates_of(names: Sequence[str]) -> list[dt.datetime]:
    """The date in each name; nothing where one has none."""
    try:
        return [sensing_time(PurePosixPath(name).name, name) for name in names]
    except SourceError:
        return []
