"""Objects in S3 that requests may name: only those below prefixes that whoever runs the service allows.

Credentials, endpoint and region are boto3's own settings (`AWS_ENDPOINT_URL`, `AWS_REGION`, instance roles, ...).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from serving.core import RequestError

VARIABLE = "SUBPIXEL_ALLOWED_PREFIXES"
"""s3://bucket/prefix, several separated by commas."""
PLACE = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9])/(?P<key>[A-Za-z0-9!_.*'()+,=@~/ -]{1,1000})")
DENIED = {"403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled"}
MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}


class Objects:
    """Objects below the allowed prefixes."""

    def __init__(self, prefixes: str) -> None:
        """Raises `ValueError` where one of the comma-separated `prefixes` is not s3://bucket or s3://bucket/prefix."""
        self.prefixes = tuple(prefix.strip().rstrip("/") for prefix in prefixes.split(",") if prefix.strip())
        for prefix in self.prefixes:
            if split(f"{prefix}/x") is None:
                raise ValueError(f"{VARIABLE}: found {prefix!r}, expected s3://bucket or s3://bucket/prefix")

    def check(self, uri: Any) -> tuple[str, str]:
        """Bucket and key of a place that may be read and written. Raises `RequestError`."""
        if not self.prefixes:
            raise RequestError("This service reads and writes no objects in S3: send the frames themselves.", 403)
        if not isinstance(uri, str):
            raise RequestError("A place must be a text, s3://bucket/key.")
        found = split(uri)
        if found is None:
            raise RequestError(f"{uri[:200]!r} is not a place in S3: expected s3://bucket/key.", 403)
        if not any(uri.startswith(f"{prefix}/") for prefix in self.prefixes):
            raise RequestError(f"{uri[:200]!r} lies outside of what this service may reach.", 403)
        return found

    def path(self, uri: str) -> str:
        """GDAL's path of an object that is there. Raises `RequestError` where it is denied or missing."""
        bucket, key = self.check(uri)
        with explained(uri):
            self.client.head_object(Bucket=bucket, Key=key)
        return f"/vsis3/{bucket}/{key}"

    def reading(self) -> dict[str, Any]:
        """GDAL's options to read with, of the same credentials and endpoint."""
        from rasterio.session import AWSSession

        endpoint = urlsplit(self.client.meta.endpoint_url)
        own = bool(os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"))
        options: dict[str, Any] = {
            "session": AWSSession(self.session, endpoint_url=endpoint.netloc if own else None),
            # another object may lie under the same key by now
            "CPL_VSIL_CURL_NON_CACHED": "/vsis3/",
            "GDAL_HTTP_CONNECTTIMEOUT": 5,
            "GDAL_HTTP_TIMEOUT": 30,
            "GDAL_HTTP_MAX_RETRY": 3,
            "GDAL_HTTP_RETRY_DELAY": 0.5,
        }
        if own:
            options |= {"AWS_HTTPS": endpoint.scheme == "https", "AWS_VIRTUAL_HOSTING": False}
        return options

    def read(self, uri: str, most: int) -> bytes:
        """The content of a small object. Raises `RequestError`."""
        bucket, key = self.check(uri)
        with explained(uri):
            answer = self.client.get_object(Bucket=bucket, Key=key)
            content: bytes = answer["Body"].read(most + 1)
        if len(content) > most:
            raise RequestError(f"{uri}: larger than {most} bytes.", 413)
        return content

    def write(self, uri: str, content: bytes, media_type: str) -> None:
        """Write an object, whole or not at all. Raises `RequestError`."""
        bucket, key = self.check(uri)
        with explained(uri):
            self.client.put_object(
                Bucket=bucket, Key=key, Body=content, ContentType=media_type, ChecksumAlgorithm="SHA256"
            )

    @cached_property
    def session(self) -> Any:
        import boto3

        return boto3.Session()

    @cached_property
    def client(self) -> Any:
        from botocore.config import Config

        retries = {"max_attempts": 4, "mode": "standard"}
        return self.session.client("s3", config=Config(retries=retries, connect_timeout=5, read_timeout=30))


def split(uri: str) -> tuple[str, str] | None:
    """Bucket and key; None where `uri` is not plainly one place: keys that lead elsewhere are not made sense of."""
    match = PLACE.fullmatch(uri)
    if match is None or any(part in ("", ".", "..") for part in match["key"].split("/")):
        return None
    return match["bucket"], match["key"]


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns boto3's errors into `RequestError`s."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        if code in DENIED:
            raise RequestError(f"{uri}: S3 denies this service the object.", 403) from error
        if code in MISSING:
            raise RequestError(f"{uri}: there is no such object.", 404) from error
        raise RequestError(f"{uri}: S3 answered {code}.", 502) from error
    except BotoCoreError as error:
        raise RequestError(f"{uri}: S3 could not be reached ({type(error).__name__}).", 502) from error
