"""One way to artifacts: a local folder or an S3 prefix.

Work happens in local files; S3 holds whole folders of them. An upload sends the objects first and the one that
names them last, so that nobody finds half an artifact; every object carries a checksum that S3 verifies, and a
download compares sizes. Endpoint, region and credentials are boto3's own settings (`AWS_ENDPOINT_URL`,
`AWS_REGION`, `AWS_ACCESS_KEY_ID`, instance roles, ...).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
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

    def exists(self, name: str) -> bool:
        """Whether the object `name` is there."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """Names of all objects below `prefix`, in order."""

    def download(self, prefix: str, folder: Path) -> None:
        """Copy all objects below `prefix` into `folder`; files of the right size are kept."""

    def upload(self, folder: Path, prefix: str, last: str | None = None) -> None:
        """Copy all files of `folder` to `prefix`, the file `last` after all others."""


class LocalStorage:
    """A folder."""

    def __init__(self, root: Path) -> None:
        self.local: Path | None = root
        self.root = root
        self.uri = str(root)

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def names(self, prefix: str = "") -> Iterator[str]:
        for path in sorted((self.root / prefix).rglob("*")):
            if path.is_file():
                yield path.relative_to(self.root).as_posix()

    def download(self, prefix: str, folder: Path) -> None:
        for name in self.names(prefix):
            _copy(self.root / name, folder / Path(name).relative_to(prefix))

    def upload(self, folder: Path, prefix: str, last: str | None = None) -> None:
        for path in files_in_order(folder, last):
            _copy(path, self.root / prefix / path.relative_to(folder))


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

    def exists(self, name: str) -> bool:
        from botocore.exceptions import ClientError

        with _explained(self.uri):
            try:
                self.client.head_object(Bucket=self.bucket, Key=self._key(name))
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return False
                raise
        return True

    def names(self, prefix: str = "") -> Iterator[str]:
        for item in self._objects(prefix):
            yield self._name(item["Key"])

    def download(self, prefix: str, folder: Path) -> None:
        for item in self._objects(prefix):
            target = folder / Path(self._name(item["Key"])).relative_to(prefix)
            if target.is_file() and target.stat().st_size == item["Size"]:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + PARTIAL)
            with _explained(f"{self.uri}/{prefix}"):
                self.client.download_file(self.bucket, item["Key"], str(partial))
            found = partial.stat().st_size
            if found != item["Size"]:
                raise StorageError(f"s3://{self.bucket}/{item['Key']}: expected {item['Size']} bytes, got {found}")
            partial.replace(target)

    def upload(self, folder: Path, prefix: str, last: str | None = None) -> None:
        for path in files_in_order(folder, last):
            key = self._key(f"{prefix}/{path.relative_to(folder).as_posix()}")
            with _explained(f"s3://{self.bucket}/{key}"):
                self.client.upload_file(str(path), self.bucket, key, ExtraArgs={"ChecksumAlgorithm": "SHA256"})

    def _objects(self, prefix: str) -> Iterator[dict[str, Any]]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{self._key(prefix)}/".lstrip("/")
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

    return boto3.client("s3", config=Config(retries={"max_attempts": 6, "mode": "standard"}))


class _explained:
    """Turns boto3's errors into `StorageError`s that say where and what to do."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(error, ClientError):
            code = error.response.get("Error", {}).get("Code", "unknown")
            hints = {
                "NoSuchBucket": "the bucket does not exist: create it or correct its name",
                "AccessDenied": "the credentials may not do this: check the bucket's policy",
                "403": "the credentials may not do this: check the bucket's policy",
                "InvalidAccessKeyId": "the access key is unknown: check AWS_ACCESS_KEY_ID",
                "SignatureDoesNotMatch": "the secret key is wrong: check AWS_SECRET_ACCESS_KEY",
                "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
                "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
            }
            raise StorageError(f"{self.uri}: S3 answered {code}: {hints.get(code, error)}") from error
        if isinstance(error, BotoCoreError | Boto3Error):
            raise StorageError(f"{self.uri}: {error}") from error
