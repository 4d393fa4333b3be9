"""One way to artifacts: a local folder or an S3 prefix.

Work happens in local files; S3 holds whole folders of them. What an upload has to change goes up file by file, several
at a time, the file that names the others last; where something that is there already must change or go, that file is
taken away first. So nobody who begins with it finds half an artifact, or a mixture of two.

Every object carries its SHA-256, in S3's own checksum, which S3 verifies as the object arrives, and in the object's
metadata, against which a download is verified before it gets its name. Requests that fail for a passing reason
(timeouts, 500, 503 SlowDown, connections that break, bodies that end early) are made again with growing pauses.
Endpoint, region and addressing are `StorageSettings`, and boto3's own settings where those say nothing; credentials are
boto3's alone (environment, profile, role).
"""

from __future__ import annotations

import datetime as dt
import email.utils
import hashlib
import mimetypes
import os
import random
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sr_core.config import StorageSettings
from sr_core.errors import StorageError

T = TypeVar("T")
R = TypeVar("R")
PARTIAL = ".part"
DIGEST = "sha256"
"""Key of an object's metadata that holds the digest of its content, in hexadecimal digits."""
PART_BYTES = 8 << 20
"""Larger objects go up and come down in parts of this size."""
THREADS_AN_OBJECT = 4
"""Parts of one object in transfer at the same time."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 20.0
LINK_S = 3600
LONGEST_LINK_S = 7 * 24 * 3600
"""S3 signs no link for longer."""
CONTENT_TYPES = {
    ".geojson": "application/geo+json",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".js": "text/javascript",
    ".parquet": "application/vnd.apache.parquet",
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".webmanifest": "application/manifest+json",
}
"""What `mimetypes` does not know, or takes from the machine."""
REWRITTEN = (".html", ".json", ".js", ".css")
"""Pages, their parts and indices are written again under the same name: a browser has to ask whether they changed."""


def is_remote(uri: str) -> bool:
    return "://" in uri


def storage_for(uri: str, settings: StorageSettings | None = None) -> Storage:
    """The storage of a folder or of `s3://bucket/prefix`. Raises `StorageError` for any other scheme."""
    if uri.startswith("s3://"):
        return S3Storage(uri, settings)
    if is_remote(uri):
        raise StorageError(f"{uri}: expected a folder or s3://bucket/prefix")
    return LocalStorage(Path(uri))


@dataclass(frozen=True)
class Entry:
    """What a listing says of a file or object."""

    name: str
    size: int
    """Bytes."""
    modified: dt.datetime
    """UTC."""


@dataclass(frozen=True)
class Remote:
    """An object of another prefix of the same S3 server, which copies it without sending it."""

    storage: S3Storage
    name: str


Content = Path | Remote
"""Where the content of an object is taken from; `Remote` only between storages of equal settings."""


class Storage(Protocol):
    """Files below one root; names are relative, with forward slashes. Errors are `StorageError`s."""

    uri: str
    local: Path | None

    def read(self, name: str) -> bytes | None:
        """The content of the object `name`, or None where it is not there."""

    def entries(self, prefix: str = "", deep: bool = True) -> Iterator[Entry]:
        """All objects below the folder `prefix`, in order; not `deep`: only those directly there."""

    def names(self, prefix: str = "", deep: bool = True) -> Iterator[str]:
        """The names of `entries`."""

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below `prefix`, hidden ones left out, in order."""

    def download(self, prefix: str, folder: Path) -> None:
        """Copy all objects below `prefix` into `folder`; those copied before and unchanged since are kept."""

    def fetch(self, name: str, path: Path) -> None:
        """Copy one object to a file."""

    def fetch_all(self, names: Iterable[str], folder: Path) -> None:
        """Copy objects to the files of their names below a folder."""

    def send(self, path: Path, name: str) -> None:
        """Copy one file to the object `name`."""

    def put(self, files: Mapping[str, Content], prefix: str, last: str | None = None) -> int:
        """Copy files, or objects of S3, to the names below `prefix` that are their keys; those that are there with the
        same content are kept. Returns how many were copied.

        With `last`, one of the keys, `prefix` is one artifact that this file completes: it is written after all others,
        removed first where another object must change or go, and objects below `prefix` that are not in `files` are
        deleted.
        """

    def upload(self, folder: Path, prefix: str, last: str | None = None) -> int:
        """`put` all files of a folder; hidden ones are left out."""

    def remove(self, prefix: str) -> None:
        """Delete all objects below `prefix`."""

    def link(self, name: str, seconds: int = LINK_S) -> str:
        """An address by which a browser reads the object `name`, for so long, without credentials."""


class _Files(ABC):
    """What both kinds of storage do alike, of the few things that they do differently."""

    @abstractmethod
    def entries(self, prefix: str = "", deep: bool = True) -> Iterator[Entry]: ...

    @abstractmethod
    def fetch(self, name: str, path: Path) -> None: ...

    @abstractmethod
    def _send(self, content: Content, name: str) -> None:
        """Write an object."""

    @abstractmethod
    def _same(self, content: Content, entry: Entry) -> bool:
        """Whether an object has this content."""

    @abstractmethod
    def _delete(self, name: str) -> None:
        """Delete an object, if it is there."""

    def _each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Do work on all items."""
        return [work(item) for item in items]

    def names(self, prefix: str = "", deep: bool = True) -> Iterator[str]:
        for entry in self.entries(prefix, deep):
            yield entry.name

    def fetch_all(self, names: Iterable[str], folder: Path) -> None:
        self._each(lambda name: self.fetch(name, folder / name), names)

    def put(self, files: Mapping[str, Content], prefix: str, last: str | None = None) -> int:
        there = {entry.name: entry for entry in self.entries(prefix)}
        wanted = {_join(prefix, name): path for name, path in files.items()}
        final = None if last is None else _join(prefix, last)
        present = [name for name in wanted if name in there]
        kept = {
            name
            for name, same in zip(
                present, self._each(lambda name: self._same(wanted[name], there[name]), present), strict=True
            )
            if same
        }
        todo = [name for name in wanted if name != final and name not in kept]
        stale = [] if final is None else [name for name in there if name not in wanted]
        if final in there and (stale or any(name in there for name in todo)):
            self._delete(final)
            kept.discard(final)
        self._each(lambda name: self._send(wanted[name], name), todo)
        self._each(self._delete, stale)
        if final is not None and final not in kept:
            self._send(wanted[final], final)
            todo.append(final)
        return len(todo)

    def upload(self, folder: Path, prefix: str, last: str | None = None) -> int:
        files: dict[str, Content] = {path.relative_to(folder).as_posix(): path for path in visible_files(folder)}
        return self.put(files, prefix, last if last in files else None)

    def remove(self, prefix: str) -> None:
        self._each(self._delete, list(self.names(prefix)))


class LocalStorage(_Files):
    """A folder."""

    def __init__(self, root: Path) -> None:
        self.local: Path | None = root
        self.root = root
        self.uri = str(root)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(f"{self.root / name}: cannot be read: {error.strerror}") from error

    def entries(self, prefix: str = "", deep: bool = True) -> Iterator[Entry]:
        for path in sorted((self.root / prefix).glob("**/*" if deep else "*")):
            with suppress(FileNotFoundError):  # what another process has just renamed
                if path.is_file():
                    found = path.stat()
                    modified = dt.datetime.fromtimestamp(found.st_mtime, dt.UTC)
                    yield Entry(path.relative_to(self.root).as_posix(), found.st_size, modified)

    def folders(self, prefix: str = "") -> list[str]:
        place = self.root / prefix
        found = (path.name for path in place.iterdir() if path.is_dir()) if place.is_dir() else iter(())
        return sorted(name for name in found if not name.startswith("."))

    def download(self, prefix: str, folder: Path) -> None:
        for name in self.names(prefix):
            _copy(self.root / name, folder / Path(name).relative_to(prefix))

    def fetch(self, name: str, path: Path) -> None:
        _copy(self.root / name, path)

    def send(self, path: Path, name: str) -> None:
        _copy(path, self.root / name)

    def _send(self, content: Content, name: str) -> None:
        if isinstance(content, Remote):
            content.storage.fetch(content.name, self.root / name)
        else:
            self.send(content, name)

    def _same(self, content: Content, entry: Entry) -> bool:
        if isinstance(content, Remote):
            about = content.storage.head(content.name)
            return bool(about["Metadata"].get(DIGEST) == sha256(self.root / entry.name))
        source, target = content.stat(), (self.root / entry.name).stat()
        return (source.st_size, source.st_mtime_ns) == (target.st_size, target.st_mtime_ns)

    def _delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def link(self, name: str, seconds: int = LINK_S) -> str:
        return (self.root / name).resolve().as_uri()


class S3Storage(_Files):
    """A prefix of an S3 bucket, through boto3's managed transfers."""

    def __init__(self, uri: str, settings: StorageSettings | None = None) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise StorageError(f"{uri}: expected s3://bucket/prefix, found no bucket")
        self.uri = uri.rstrip("/")
        self.local: Path | None = None
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.settings = settings or StorageSettings()
        with _explained(self.uri):
            self.client = _s3_client(self.settings)

    def read(self, name: str) -> bytes | None:
        def attempt() -> bytes | None:
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=self._key(name))
            except self.client.exceptions.NoSuchKey:
                return None
            content: bytes = answer["Body"].read()
            _verify(answer["Metadata"].get(DIGEST), hashlib.sha256(content).hexdigest())
            return content

        return self._again(self._place(name), attempt)

    def entries(self, prefix: str = "", deep: bool = True) -> Iterator[Entry]:
        for page in self._pages(prefix, deep):
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):  # a "folder" that a console made
                    yield Entry(self._name(item["Key"]), item["Size"], item["LastModified"])

    def folders(self, prefix: str = "") -> list[str]:
        found = [item["Prefix"] for page in self._pages(prefix, deep=False) for item in page.get("CommonPrefixes", [])]
        names = (key.rstrip("/").rpartition("/")[2] for key in found)
        return sorted(name for name in names if name and not name.startswith("."))

    def download(self, prefix: str, folder: Path) -> None:
        todo = []
        for entry in self.entries(prefix):
            relative = Path(entry.name).relative_to(prefix)
            if ".." in relative.parts or relative.is_absolute():
                raise StorageError(f"{self._place(entry.name)}: refused, its name leads out of the folder")
            target = folder / relative
            kept = target.is_file() and (target.stat().st_size, target.stat().st_mtime) == (
                entry.size,
                entry.modified.timestamp(),
            )
            if not kept:
                todo.append((entry.name, target))
        self._each(lambda pair: self.fetch(*pair), todo)

    def fetch(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _aside(path)

        def attempt() -> None:
            about = self.client.head_object(Bucket=self.bucket, Key=self._key(name))
            self.client.download_file(self.bucket, self._key(name), str(partial), Config=_transfer_config())
            size = partial.stat().st_size
            if size != about["ContentLength"]:
                raise _DamagedError(f"expected {about['ContentLength']} bytes, got {size}")
            _verify(about["Metadata"].get(DIGEST), sha256(partial))
            modified = about["LastModified"].timestamp()
            os.utime(partial, (modified, modified))
            partial.replace(path)

        try:
            self._again(self._place(name), attempt)
        finally:
            partial.unlink(missing_ok=True)

    def send(self, path: Path, name: str) -> None:
        extra = {**_headers(name), "ChecksumAlgorithm": "SHA256", "Metadata": {DIGEST: sha256(path)}}
        self._again(
            self._place(name),
            lambda: self.client.upload_file(
                str(path), self.bucket, self._key(name), ExtraArgs=extra, Config=_transfer_config()
            ),
        )

    def link(self, name: str, seconds: int = LINK_S) -> str:
        if not 0 < seconds <= LONGEST_LINK_S:
            raise StorageError(f"link to {name}: found {seconds} s, expected 1 to {LONGEST_LINK_S} s (7 days)")
        with _explained(self._place(name)):
            signed: str = self.client.generate_presigned_url(
                "get_object", Params={"Bucket": self.bucket, "Key": self._key(name)}, ExpiresIn=seconds
            )
        return signed

    def head(self, name: str) -> dict[str, Any]:
        """What S3 says of an object: `ContentLength` (bytes), `Metadata`, `LastModified`, ..."""
        found: dict[str, Any] = self._again(
            self._place(name), lambda: self.client.head_object(Bucket=self.bucket, Key=self._key(name))
        )
        return found

    def _send(self, content: Content, name: str) -> None:
        if not isinstance(content, Remote):
            self.send(content, name)
            return
        source = content.storage
        known = source.head(content.name)["Metadata"].get(DIGEST)
        extra = {**_headers(name), "Metadata": {DIGEST: known} if known else {}, "MetadataDirective": "REPLACE"}
        origin = {"Bucket": source.bucket, "Key": source._key(content.name)}
        self._again(
            self._place(name),
            lambda: self.client.copy(origin, self.bucket, self._key(name), ExtraArgs=extra, Config=_transfer_config()),
        )

    def _same(self, content: Content, entry: Entry) -> bool:
        if isinstance(content, Remote):
            about = content.storage.head(content.name)
            known = about["Metadata"].get(DIGEST)
            return known is not None and known == self.head(entry.name)["Metadata"].get(DIGEST)
        if content.stat().st_size != entry.size:
            return False
        return bool(self.head(entry.name)["Metadata"].get(DIGEST) == sha256(content))

    def _delete(self, name: str) -> None:
        with _explained(self._place(name)):
            self.client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def _pages(self, prefix: str, deep: bool) -> Iterator[dict[str, Any]]:
        listing = self.client.get_paginator("list_objects_v2")
        place = f"{self._key(prefix)}/".lstrip("/")
        pages = iter(listing.paginate(Bucket=self.bucket, Prefix=place, Delimiter="" if deep else "/"))
        while True:
            with _explained(self.uri):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def _each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Do work on all items, several at a time. At the first error the rest is left undone."""
        stop = threading.Event()

        def guarded(item: T) -> R:
            if stop.is_set():
                raise StorageError(f"{self.uri}: stopped")
            try:
                return work(item)
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(self.settings.transfers) as pool:
            futures = [pool.submit(guarded, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                stop.set()  # Ctrl-C: what is in transfer is finished, nothing is begun
                raise

    def _again(self, place: str, attempt: Callable[[], T]) -> T:
        """The result of `attempt`, made again where a body was damaged on its way, which boto3 does not do."""
        from boto3.exceptions import RetriesExceededError
        from botocore import exceptions as boto

        passing = (
            _DamagedError,
            RetriesExceededError,
            boto.FlexibleChecksumError,
            boto.IncompleteReadError,
            boto.ReadTimeoutError,
            boto.ResponseStreamingError,
        )
        for number in range(1, self.settings.max_attempts + 1):
            with _explained(place):
                try:
                    return attempt()
                except Exception as error:
                    damaged = isinstance(error, passing) or _code(error) in ("BadDigest", "XAmzContentSHA256Mismatch")
                    if not damaged or number == self.settings.max_attempts:
                        raise
            time.sleep(random.uniform(0.5, 1) * min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S))
        raise AssertionError("unreachable")

    def _place(self, name: str) -> str:
        return f"s3://{self.bucket}/{self._key(name)}"

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self.prefix, name.strip("/")) if part)

    def _name(self, key: str) -> str:
        return key.removeprefix(f"{self.prefix}/") if self.prefix else key


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder, sorted, hidden ones left out."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_type(name: str) -> str:
    """The media type of a file, from its name."""
    known = CONTENT_TYPES.get(Path(name).suffix.lower())
    return known or mimetypes.guess_type(name)[0] or "application/octet-stream"


def _headers(name: str) -> dict[str, Any]:
    """What a browser is told of an object."""
    return {"ContentType": content_type(name), **({"CacheControl": "no-cache"} if name.endswith(REWRITTEN) else {})}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix else name


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}{PARTIAL}")


def _copy(source: Path, target: Path) -> None:
    """Copy aside and rename; the copy keeps the time of change, by which a later one knows that it is the same."""
    partial = _aside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
        shutil.copystat(source, partial)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"{target}: cannot be written from {source}: {error.strerror}") from error


class _DamagedError(Exception):
    """What arrived is not what was sent."""


def _verify(expected: str | None, found: str) -> None:
    """Objects that others wrote have no digest of ours; boto3 has compared S3's own checksum, where there is one."""
    if expected is not None and expected != found:
        raise _DamagedError(f"expected SHA-256 {expected}, got {found}")


def _transfer_config() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=THREADS_AN_OBJECT,
        preferred_transfer_client="classic",
    )


def _s3_client(settings: StorageSettings) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": settings.max_attempts, "mode": "standard"},
        connect_timeout=min(settings.timeout_s, 20.0),
        read_timeout=settings.timeout_s,
        max_pool_connections=settings.transfers * THREADS_AN_OBJECT,
        # boto3's links would otherwise be signed by the old protocol, which newer regions and servers refuse
        signature_version=UNSIGNED if settings.anonymous else "s3v4",
        s3={"addressing_style": settings.addressing_style},
    )
    try:
        # a session of its own: boto3's default one keeps the first credentials it finds
        return boto3.Session().client("s3", endpoint_url=settings.endpoint, region_name=settings.region, config=config)
    except ValueError as error:
        raise StorageError(f"storage: {error}; expected AWS_ENDPOINT_URL such as https://s3.example.org") from error


DENIED = "the credentials may not do this: check the bucket's policy, and that the name is right"
HINTS = {
    "NoSuchBucket": "the bucket does not exist: create it or correct its name",
    "AccessDenied": DENIED,
    "403": DENIED,
    "404": "nothing is there",
    "InvalidAccessKeyId": "the access key is unknown: check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong: check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session has ended: log in again, or renew AWS_SESSION_TOKEN",
    "InvalidToken": "the session token is wrong: check AWS_SESSION_TOKEN",
    "SlowDown": "the server asks for less: try again later, or lower storage.transfers",
    "ServiceUnavailable": "the server is overloaded: try again later",
    "InternalError": "the server has failed: try again later",
    "RequestTimeout": "the connection is too slow: try again, or lower storage.transfers",
    "QuotaExceeded": "the bucket is full: make room, or raise its quota",
    "InvalidBucketName": "expected 3 to 63 lower-case letters, digits, hyphens and dots",
}
"""What to do about S3's error codes."""
WRONG_REGION = {"PermanentRedirect", "TemporaryRedirect", "301", "307", "AuthorizationHeaderMalformed"}
WRONG_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
SAFE_AFTER = "what is finished is kept, and nothing half is visible"


def _answer_in(error: BaseException) -> Any:
    """S3's own answer (a `ClientError`) in an error, which a managed transfer may have wrapped; or None."""
    from botocore.exceptions import ClientError

    return next((it for it in (error, error.__cause__, error.__context__) if isinstance(it, ClientError)), None)


def _code(error: BaseException) -> str | None:
    answer = _answer_in(error)
    return None if answer is None else str(answer.response.get("Error", {}).get("Code", "unknown"))


def _answered(error: Any) -> str:
    """What S3 answered, and what to do."""
    said = error.response.get("Error", {})
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    code = said.get("Code", "unknown")
    if code in WRONG_REGION:
        region = headers.get("x-amz-bucket-region") or said.get("Region")
        right = f"in {region}: set AWS_REGION={region}" if region else "in another region: set AWS_REGION"
        return f"S3 answered {code}: the bucket is {right} (or storage.region)"
    if code in WRONG_CLOCK:
        theirs = headers.get("date")
        ahead = (dt.datetime.now(dt.UTC) - email.utils.parsedate_to_datetime(theirs)).total_seconds() if theirs else 0.0
        by = f" by {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}" if abs(ahead) > 1 else ""
        return f"S3 answered {code}: this machine's clock is wrong{by}: set it, such as by NTP"
    return f"S3 answered {code}: {HINTS.get(code) or said.get('Message') or error}"


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turns boto3's errors into `StorageError`s that say where and what to do."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as boto

    try:
        yield
    except (Boto3Error, boto.BotoCoreError, boto.ClientError, _DamagedError) as error:
        answer = _answer_in(error)
        match error if answer is None else answer:
            case boto.ClientError() as answered:
                what = _answered(answered)
            case boto.NoCredentialsError() | boto.PartialCredentialsError():
                what = (
                    "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, use a role, or"
                    " storage.anonymous for a public bucket"
                )
            case boto.NoRegionError():
                what = "no region: set AWS_REGION (or storage.region)"
            case boto.SSLError():
                what = f"{error}; is the endpoint's certificate one that AWS_CA_BUNDLE knows?"
            case boto.EndpointConnectionError() | boto.ConnectTimeoutError() | boto.ProxyConnectionError():
                what = f"{error}; is AWS_ENDPOINT_URL (or storage.endpoint) right, and the network up?"
            case _:
                what = f"{error}; {SAFE_AFTER}: try again"
        raise StorageError(f"{uri}: {what}") from error
