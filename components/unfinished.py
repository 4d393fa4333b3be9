"""What a stage has finished of work that is not, below an S3 root: kept there, so that a killed pod costs little.

Below a local root the folder that a stage works in stays, and there is nothing to do. Below `s3://` it is a temporary
one, which goes with its pod: what is worth keeping is copied to `.unfinished/<folder>/<key>/` as it is finished, and
comes back when the stage is called again with the same key. The finished stage removes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sr_core.errors import StorageError
from sr_core.progress import say
from sr_core.storage import Content, Storage

UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Unfinished:
    """Of one stage, folder and key; `storage` is None where the output folder itself is what is kept."""

    storage: Storage | None = None
    output: Path = Path()
    folder: str = ""
    key: str = ""

    def save(self, path: Path, last: str | None = None) -> None:
        """Keep a file of the output, or a folder, of which the file `last` comes after the others.

        Storage that fails is told of and is no error: the work goes on, and only a kill would cost more.
        """
        if self.storage is None:
            return
        files: dict[str, Content] = {path.name: path}
        if path.is_dir():
            files = {each.relative_to(path).as_posix(): each for each in sorted(path.rglob("*")) if each.is_file()}
        folder = path if path.is_dir() else path.parent
        try:
            self.storage.put(files, self._place(folder), last)
        except StorageError as error:
            say(f"not kept for a restart: {error}")

    def discard(self, path: Path) -> None:
        """What `save` kept of a folder is of no use any more."""
        if self.storage is None:
            return
        try:
            self.storage.remove(self._place(path))
        except StorageError as error:
            say(f"left in the bucket until the stage is finished: {error}")

    def restore(self) -> None:
        """Bring into the output folder what was kept under this key."""
        if self.storage is not None:
            self.storage.download(self._place(self.output), self.output)

    def remove(self) -> None:
        """Forget what was kept of this folder, under whatever key."""
        if self.storage is not None:
            self.storage.remove(f"{UNFINISHED}/{self.folder}")

    def _place(self, path: Path) -> str:
        inner = path.relative_to(self.output).as_posix()
        return "/".join([UNFINISHED, self.folder, self.key, *([] if inner == "." else [inner])])
