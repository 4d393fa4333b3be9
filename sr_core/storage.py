"""One way to artifacts: a local folder or an S3 prefix.

Work happens in local files; S3 holds whole folders of them. An upload takes away the object that names the
others (`run.json`), sends them, deletes what an earlier upload left behind, and sends that object last, so
that nobody finds half an artifact or a mixture of two; every object carries a checksum that S3 verifies,
and a download compares sizes and renames. Endpoint, region and credentials are boto3's own settings
(`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, instance roles, ...).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sr_core.errors import StorageError

PARTIAL = ".part"


def is_remote(uri: str) -> bool:
    return "://" in uri


def storage_for(uri: str) -> Storage:
    """The storage of a folder or of `s3://bucket/prefix`. Raises `StorageError` for any other scheme."""
    if uri.startswith("s3://"):
        return S3Storage(uri)
    if is_remote(uri):
        raise StorageError(f"{uri}: expected a folder or s3://bucket/prefix")
    return LocalStorage(Path(uri))


class Storage(Protocol):
    """Files below one root; names are relative, with forward slashes."""

    uri: str
    local: Path | None

    def read(self, name: str) -> bytes | None:
        """The content of the object `name`, or None where it is not there."""

    def names(self, prefix: str = "", deep: bool = True) -> Iterator[str]:
        """Names of all objects below `prefix`, in order; not `deep`: only of those directly there."""

    def download(self, prefix: str, folder: Path) -> None:
        """Copy all objects below `prefix` into `folder`; those copied before and unchanged since are kept."""

    def send(self, path: Path, name: str) -> None:
        """Copy one file to the object `name`."""

    def upload(self, folder: Path, prefix: str, last: str | None = None) -> None:
        """Copy all files of `folder` to `prefix`.

        With `last`, `prefix` is one artifact that the file `last` completes: that file is removed first and
        written after all others, and objects below `prefix` that `folder` does not have are deleted.
        """

    def remove(self, prefix: str) -> None:
        """Delete all objects below `prefix`."""


class LocalStorage:
    """A folder."""

    def __init__(self, root: Path) -> None:
        self.local: Path | None = root
        self.root = root
        self.uri = str(root)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self.root / name}: cannot be read: {error.strerror}") from error

    def names(self, prefix: str = "", deep: bool = True) -> Iterator[str]:
        for path in sorted((self.root / prefix).glob("**/*" if deep else "*")):
            if path.is_file():
                yield path.relative_to(self.root).as_posix()

    def download(self, prefix: str, folder: Path) -> None:
        for name in self.names(prefix):
            _copy(self.root / name, folder / Path(name).relative_to(prefix))

    def upload(self, folder: Path, prefix: str, last: str | None = None) -> None:
        files = files_in_order(folder, last)
        if last is not None:
            (self.root / prefix / last).unlink(missing_ok=True)
            kept = {f"{prefix}/{path.relative_to(folder).as_posix()}" for path in files}
            for name in [name for name in self.names(prefix) if name not in kept]:
                (self.root / name).unlink()
        for path in files:
            self.send(path, f"{prefix}/{path.relative_to(folder).as_posix()}")

    def send(self, path: Path, name: str) -> None:
        _copy(path, self.root / name)

    def remove(self, prefix: str) -> None:
        for name in list(self.names(prefix)):
            (self.root / name).unlink()


class S3Storage:
    """A prefix of an S3 bucket, through boto3's managed transfers (multipart, retries with backoff)."""

    def __init__(self, uri: str, client: Any = None) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise StorageError(f"{uri}: expected s3://bucket/prefix, found no bucket")
        self.uri = uri.rstrip("/")
        self.local: Path | None = None
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.client = client or _s3_client()

    def read(self, name: str) -> bytes | None:
        with _explained(f"{self.uri}/{name}"):
            try:
                content: bytes = self.client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
            except self.client.exceptions.NoSuchKey:
                return None
        return content

    def names(self, prefix: str = "", deep: bool = True) -> Iterator[str]:
        for item in self._objects(prefix, deep):
            yield self._name(item["Key"])

    def download(self, prefix: str, folder: Path) -> None:
        for item in self._objects(prefix):
            relative = Path(self._name(item["Key"])).relative_to(prefix)
            if item["Key"].endswith("/"):
                continue  # a "folder" that a console made
            if ".." in relative.parts:
                raise StorageError(f"s3://{self.bucket}/{item['Key']}: refused, its name leads out of the folder")
            target, modified = folder / relative, item["LastModified"].timestamp()
            if target.is_file() and (target.stat().st_size, target.stat().st_mtime) == (item["Size"], modified):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
            with _explained(f"s3://{self.bucket}/{item['Key']}"):
                self.client.download_file(self.bucket, item["Key"], str(partial))
            found = partial.stat().st_size
            if found != item["Size"]:
                partial.unlink()
                raise StorageError(f"s3://{self.bucket}/{item['Key']}: expected {item['Size']} bytes, got {found}")
            os.utime(partial, (modified, modified))
            partial.replace(target)

    def upload(self, folder: Path, prefix: str, last: str | None = None) -> None:
        files = {f"{prefix}/{path.relative_to(folder).as_posix()}": path for path in files_in_order(folder, last)}
        final = None if last is None else f"{prefix}/{last}"
        if final is not None:
            self._delete(final)
        for name, path in files.items():
            if name == final:
                for left in [left for left in self.names(prefix) if left not in files]:
                    self._delete(left)
            self.send(path, name)

    def send(self, path: Path, name: str) -> None:
        with _explained(f"{self.uri}/{name}"):
            self.client.upload_file(str(path), self.bucket, self._key(name), ExtraArgs={"ChecksumAlgorithm": "SHA256"})

    def remove(self, prefix: str) -> None:
        for name in list(self.names(prefix)):
            self._delete(name)

    def _delete(self, name: str) -> None:
        with _explained(f"{self.uri}/{name}"):
            self.client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def _objects(self, prefix: str, deep: bool = True) -> Iterator[dict[str, Any]]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{self._key(prefix)}/".lstrip("/"), Delimiter="" if deep else "/"
        )
        with _explained(self.uri):
            for page in pages:
                yield from page.get("Contents", [])

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self.prefix, name.strip("/")) if part)

    def _name(self, key: str) -> str:
        return key.removeprefix(f"{self.prefix}/") if self.prefix else key


def files_in_order(folder: Path, last: str | None) -> list[Path]:
    """The files of a folder, sorted, hidden ones left out, the one named `last` at the end."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    end = [path for path in files if last is not None and path == folder / last]
    return [path for path in files if path not in end] + end


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    shutil.copyfile(source, partial)
    partial.replace(target)


def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    # a session of its own: boto3's default one keeps the first credentials it finds
    return boto3.Session().client("s3", config=Config(retries={"max_attempts": 6, "mode": "standard"}))


HINTS = {
    "NoSuchBucket": "the bucket does not exist: create it or correct its name",
    "AccessDenied": "the credentials may not do this: check the bucket's policy",
    "InvalidAccessKeyId": "the access key is unknown: check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong: check AWS_SECRET_ACCESS_KEY",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
}
"""What to do about S3's error codes."""


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turns boto3's errors into `StorageError`s that say where and what to do."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        # a managed upload wraps S3's answer into its own error
        answer = error if isinstance(error, ClientError) else error.__context__
        if isinstance(answer, ClientError):
            code = answer.response.get("Error", {}).get("Code", "unknown")
            raise StorageError(f"{uri}: S3 answered {code}: {HINTS.get(code, answer)}") from error
        if isinstance(error, NoCredentialsError):
            raise StorageError(
                f"{uri}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a role"
            ) from error
        raise StorageError(f"{uri}: {error}") from error
