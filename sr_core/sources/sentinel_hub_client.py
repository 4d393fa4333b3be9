"""HTTP to Sentinel Hub: tokens, one rate limit for all processes of a machine, and retries that come to an end.

`sentinelhub`'s own client builds the requests and pages through the Catalog; only how one request is sent is replaced
here. Its own way waits for a rate limit for ever unless told otherwise, knows nothing of other processes, has no time
limit for tokens and answers that trickle, keeps a token that the service no longer accepts, and takes a truncated body
for an answer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests
from sentinelhub import DownloadRequest, SentinelHubCatalog, SentinelHubDownloadClient, SHConfig
from sentinelhub.download.models import DownloadResponse
from urllib3.exceptions import HTTPError, ReadTimeoutError

from sr_core.errors import SourceError

T = TypeVar("T")
FIRST_PAUSE_S = 0.5
"""Before the first retry; doubled from one to the next, up to `LONGEST_BACKOFF_S`."""
LONGEST_BACKOFF_S = 60.0
LONGEST_WAIT_S = 600.0
"""A service that asks for a longer pause than this is not waited for."""
RENEW_BEFORE_S = 60.0
"""A token is renewed this long before it expires, or after half its life where that is sooner."""
CHUNK = 1 << 16
_QUOTA = re.compile(r"INSUFFICIENT_PROCESSING_UNITS|insufficient (processing units|requests)|quota", re.IGNORECASE)
"""What a 403 says when the month's processing units or requests are used up."""


class TemporaryError(Exception):
    """An answer that another attempt may mend. `wait_s` is what the service asked to wait."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Token:
    """An OAuth2 access token; `renew_at` on the monotonic clock."""

    value: str
    renew_at: float

    def sign(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the token into a request; given as its `auth`, so that a .netrc entry of the host does not replace it."""
        prepared.headers["Authorization"] = f"Bearer {self.value}"
        return prepared

    def __repr__(self) -> str:
        return "Token(...)"


class RateLimit:
    """At most `per_minute` requests a minute, evenly spaced, from all processes and threads that name the same file.

    The file holds when the next request may go, the space between two, and until when that space is kept (times in
    seconds since 1970). Whoever sends a request moves its time on under the file's lock. Where the service says that it
    is asked too often, the space is doubled for all, and then narrows again with each request: an account may allow
    less than `per_minute`, and others may use it as well.
    """

    WIDEST_S = 60.0
    NARROWING = 0.97

    def __init__(self, path: Path, per_minute: int) -> None:
        self.path, self.interval = path, 60.0 / per_minute

    @classmethod
    def of_account(cls, url: str, client_id: str, per_minute: int) -> RateLimit:
        """The limit that all processes of this user and machine share for an account of a service."""
        account = hashlib.sha256(f"{url}\0{client_id}".encode()).hexdigest()[:16]
        return cls(Path(tempfile.gettempdir()) / f"subpixel-{os.getuid()}-{account}.limit", per_minute)

    def wait(self) -> None:
        """Return when a request may be sent, which then counts as sent."""
        while (pause := self._take()) > 0:
            time.sleep(pause)

    def slow_down(self, seconds: float) -> None:
        """No request of any process before `seconds` have passed, and then fewer."""
        with self._state() as (due, space, kept, write):
            now = time.time()
            if now >= kept:  # else another request was refused for the same reason
                space = min(2 * space, self.WIDEST_S)
                kept = now + max(seconds, space)
            write(max(due, now + max(seconds, space)), space, kept)

    def _take(self) -> float:
        with self._state() as (due, space, kept, write):
            now = time.time()
            if due > now:
                return due - now
            if now >= kept:
                space *= self.NARROWING
            write(now + max(space, self.interval), space, kept)
            return 0.0

    @contextmanager
    def _state(self) -> Iterator[tuple[float, float, float, Callable[[float, float, float], None]]]:
        try:
            number = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SourceError(f"{self.path}: the rate limit's file cannot be opened: {error.strerror}") from error
        with os.fdopen(number, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                due, space, kept = (float(word) for word in file.read().split())
            except ValueError:
                due, space, kept = 0.0, 0.0, 0.0  # new
            latest = time.time() + LONGEST_WAIT_S + self.WIDEST_S
            if not (due < latest and kept < latest):
                due, space, kept = 0.0, 0.0, 0.0  # the clock was set back

            def write(*values: float) -> None:
                file.seek(0)
                file.truncate()
                file.write(" ".join(map(repr, values)))
                file.flush()

            yield due, max(space, self.interval), kept, write


class Client(SentinelHubDownloadClient):  # type: ignore[misc]
    """Sends requests as one account. All errors are `SourceError`s that name the URL, and never a secret.

    A request is repeated at most `max_retries` times: after 429, 5xx, timeouts, broken connections, truncated bodies,
    and with a new token after 401; pauses grow, and are never shorter than the service asks for by Retry-After.
    `timeout_s` is for a whole answer.
    """

    def __init__(
        self,
        base_url: str,
        token_url: str,
        credentials: tuple[str, str],
        limit: RateLimit,
        max_retries: int,
        timeout_s: float,
    ) -> None:
        # without defaults, sentinelhub would read and write the user's own configuration file
        config = SHConfig(
            use_defaults=True,
            sh_client_id=credentials[0],
            sh_client_secret=credentials[1],
            sh_base_url=base_url,
            sh_token_url=token_url,
            download_timeout_seconds=timeout_s,
        )
        super().__init__(config=config)
        self.limit, self.max_retries, self.timeout_s = limit, max_retries, timeout_s
        self.catalog = SentinelHubCatalog(config=config)
        self.catalog.client = self
        self._http = requests.Session()
        self._token: Token | None = None
        self._token_lock = threading.Lock()
        self._refusals = 0

    def fetch(self, request: DownloadRequest, read: Callable[[bytes], T]) -> T:
        """What `read` makes of the answer's body; a `TemporaryError` that it raises counts as a failed attempt."""
        backoff = FIRST_PAUSE_S
        for attempt in range(self.max_retries + 1):
            try:
                return read(self._send(request))
            except TemporaryError as fault:
                if attempt == self.max_retries:
                    attempts = f"{attempt + 1} attempt{'s' if attempt else ''}"
                    raise SourceError(
                        f"{request.url}: {self._scrub(str(fault))}; gave up after {attempts}"
                        f" (source.max_retries = {self.max_retries}). Finished patches are kept: run again to continue"
                    ) from None
                # spread, so that processes that failed together do not come back together
                time.sleep(max(fault.wait_s, backoff * random.uniform(0.75, 1.25)))
                backoff = min(2 * backoff, LONGEST_BACKOFF_S)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _execute_download(self, request: DownloadRequest) -> DownloadResponse:
        """How sentinelhub sends a request; here those of the Catalog."""
        return DownloadResponse(request=request, content=self.fetch(request, _search_results))

    def _send(self, request: DownloadRequest) -> bytes:
        token = self._current_token()
        self.limit.wait()
        status, headers, body = self._exchange(
            request.request_type.value,
            str(request.url),
            json=request.post_values,
            headers=dict(request.headers),
            auth=token.sign,
        )
        if status == 200:
            self._refusals = 0
            return body
        said = f"HTTP {status}{self._said(body)}"
        if status == 401:
            self._forget(token)
            if self._refusals > 1:
                raise SourceError(f"{request.url}: {said}; a new token is refused as well: may this account use it?")
            raise TemporaryError(f"{said}: the token is refused")
        if status == 429:
            wait = _retry_after_s(headers, milliseconds=True)
            if wait > LONGEST_WAIT_S:
                raise SourceError(
                    f"{request.url}: {said}, and the service asks to wait {wait:.0f} s; expected at most"
                    f" {LONGEST_WAIT_S:.0f} s. Finished patches are kept: run again later"
                )
            self.limit.slow_down(wait)
            raise TemporaryError(f"{said}: the account's rate limit is reached", wait)
        if status >= 500 or status == 408:
            raise TemporaryError(said, _retry_after_s(headers))
        if status == 403 and _QUOTA.search(said):
            raise SourceError(
                f"{request.url}: {said}: the account's processing units or requests are used up. Finished patches are"
                " kept: run again when they are renewed, or with another account"
            )
        raise SourceError(f"{request.url}: {said}; expected HTTP 200")

    def _current_token(self) -> Token:
        with self._token_lock:
            if self._token is None or time.monotonic() >= self._token.renew_at:
                self._token = self._new_token()
            return self._token

    def _forget(self, token: Token) -> None:
        with self._token_lock:
            if self._token is token:  # else another thread has already renewed it
                self._token = None
                self._refusals += 1

    def _new_token(self) -> Token:
        """OAuth2's client credentials grant (RFC 6749, section 4.4)."""
        url = self.config.sh_token_url
        form = {
            "grant_type": "client_credentials",
            "client_id": self.config.sh_client_id,
            "client_secret": self.config.sh_client_secret,
        }
        asked = time.monotonic()
        # an `auth` that does nothing keeps requests from putting a .netrc entry in the credentials' place
        status, headers, body = self._exchange("POST", url, data=form, auth=lambda prepared: prepared)
        said = f"{url}: HTTP {status}{self._said(body)}"
        if status == 429 or status >= 500:
            raise TemporaryError(f"no token: {said}", _retry_after_s(headers))
        if status != 200:
            raise SourceError(
                f"{said}; no token: are SH_CLIENT_ID and SH_CLIENT_SECRET an OAuth client of this service?"
            )
        try:
            answer = json.loads(body)
            value, life = str(answer["access_token"]), float(answer["expires_in"])
        except (ValueError, KeyError, TypeError):
            raise TemporaryError(f"{url}: the answer holds no token; expected access_token and expires_in") from None
        return Token(value, asked + max(life - RENEW_BEFORE_S, life / 2))

    def _exchange(self, method: str, url: str, **arguments: Any) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and the whole body, within `timeout_s`."""
        end = time.monotonic() + self.timeout_s
        body = bytearray()
        try:
            with self._http.request(
                method, url, timeout=self.timeout_s, stream=True, allow_redirects=False, **arguments
            ) as response:
                # read1 gives what has come; others wait until a chunk is full, and a trickle would never end
                while chunk := response.raw.read1(CHUNK, decode_content=True):
                    body += chunk
                    if time.monotonic() > end:
                        raise requests.Timeout
                return response.status_code, response.headers, bytes(body)
        except (requests.Timeout, ReadTimeoutError):
            raise TemporaryError(f"no complete answer within source.timeout_s = {self.timeout_s:g} s") from None
        except HTTPError:
            raise TemporaryError(f"the answer broke off after {len(body)} bytes") from None
        except requests.ConnectionError as error:
            raise TemporaryError(f"no connection ({type(error).__name__})") from None
        except requests.RequestException as error:
            raise SourceError(f"{url}: {type(error).__name__}: {self._scrub(str(error))}") from None

    def _said(self, body: bytes) -> str:
        """The service's own words, if it has any."""
        text = body[:2000].decode("utf-8", "replace")
        try:
            answer = json.loads(body)
            error = answer.get("error", answer)
            parts = (
                [str(error.get(key, "")) for key in ("message", "code", "errors")]
                if isinstance(error, dict)
                else [str(error), str(answer.get("error_description", ""))]
            )
            text = " ".join(part for part in parts if part)
        except (ValueError, AttributeError):
            pass
        text = " ".join(self._scrub(text).split())[:300]
        return f" ({text})" if text else ""

    def _scrub(self, text: str) -> str:
        secrets = (self.config.sh_client_secret, self.config.sh_client_id, self._token.value if self._token else "")
        for secret in filter(None, secrets):
            text = text.replace(secret, "***")
        return text


def _retry_after_s(headers: Mapping[str, str], milliseconds: bool = False) -> float:
    """What Retry-After asks to wait, seconds; 0 where it says nothing.

    Sentinel Hub's rate limit counts in milliseconds, https://docs.sentinel-hub.com/api/latest/api/overview/rate-limiting/;
    others in seconds (RFC 9110), and a number too large for that can only be milliseconds.
    """
    try:
        found = max(0.0, float(headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0  # a date; growing pauses will do
    return found / 1000 if milliseconds or found > LONGEST_WAIT_S else found


def _search_results(body: bytes) -> bytes:
    """A page of the Catalog, whole."""
    try:
        page = json.loads(body)
    except ValueError:
        raise TemporaryError(f"the answer ({len(body)} bytes) is not whole JSON") from None
    if not isinstance(page, dict) or not isinstance(page.get("features"), list) or "context" not in page:
        raise TemporaryError("the answer is not a page of the Catalog; expected `features` and `context`")
    return body
