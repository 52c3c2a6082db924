"""Pictures named by a URL: fetched once into a folder, by its name from then on."""

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from configs.errors import DataError

SCHEMES = ("http", "https")
CHUNK_BYTES = 1 << 16
MOST_TIMEOUTS = 15  # that one answer may last: a server that drips must end, too
AGAIN = (408, 429, *range(500, 600))  # statuses that may be others a moment later
LOST = (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
KEPT = "%/:=&?~#+!$,;'@()*[]"  # characters of a URL that stay; others (é, 中) are percent-encoded
HEADERS = {"User-Agent": "visiongraft", "Accept": "image/*"}  # some servers refuse urllib's name


class _Again(Exception):
    """The fetch failed in a way that may pass; its text is the reason."""


@dataclass(frozen=True)
class Downloads:
    """Fetches pictures into a folder. Several processes may fetch one URL at once."""

    folder: Path
    max_bytes: int
    timeout_seconds: float = 20  # of silence; an answer may last 15 times as long
    backoff_seconds: tuple[float, ...] = (0.5, 1.0, 2.0)  # before each further try

    def fetch(self, url: str) -> Path:
        """Return the file with what `url` names, fetched unless it is there.

        Raises:
            DataError: it is no http(s) URL, cannot be had, or is larger than `max_bytes`.
        """
        _check_url(url)
        place = (
            self.folder
            / hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        )
        if place.is_file():
            return place
        self.folder.mkdir(parents=True, exist_ok=True)
        for wait in (*self.backoff_seconds, None):
            try:
                return self._fetch(url, place)
            except _Again as reason:
                if wait is None:
                    tries = len(self.backoff_seconds) + 1
                    raise DataError(f"{_failed(url)}: {reason} ({tries} tries)") from reason
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _fetch(self, url: str, place: Path) -> Path:
        """Fetch once. What is at `place` is whole: it is written beside it and renamed."""
        staging = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        try:
            with staging.open("wb") as file:
                for chunk in self._chunks(url):
                    file.write(chunk)  # a full disk is an OSError here, and no bad row
            return staging.replace(place)
        finally:
            staging.unlink(missing_ok=True)

    def _chunks(self, url: str) -> Iterator[bytes]:
        """Yield what the server sends, of a length that it tells or not."""
        timeout, num_bytes = self.timeout_seconds, 0
        deadline = time.monotonic() + MOST_TIMEOUTS * timeout
        with _told(url, timeout), _open(url, timeout) as answer:
            if answer.headers.get_content_type() == "text/html":
                raise DataError(f"{_failed(url)}: a web page (text/html) is there, not a picture")
            length = answer.length  # None: in chunks, or to the end of the connection
            self._check_size(url, length or 0, f"{length}")
            while chunk := answer.read1(CHUNK_BYTES):
                num_bytes += len(chunk)
                self._check_size(url, num_bytes, f"at least {num_bytes}")
                if time.monotonic() > deadline:
                    raise DataError(f"{_failed(url)}: takes over {MOST_TIMEOUTS * timeout:g} s")
                yield chunk
            if num_bytes < (length or 0):  # which read1 does not mind
                raise _Again(f"the connection ended after {num_bytes} of {length} bytes")

    def _check_size(self, url: str, num_bytes: int, told: str) -> None:
        if num_bytes > self.max_bytes:
            raise DataError(
                f"image {shown(url)!r} has {told} bytes, more than "
                f"data.max_image_bytes={self.max_bytes}"
            )


def is_url(reference: str) -> bool:
    """Whether a picture's name is a URL that could be fetched."""
    return reference.lower().startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def shown(url: str) -> str:
    """Return a URL as messages may show it: without user, password and query string."""
    scheme, host, path = _parts(url)
    return f"{scheme}{host.rpartition('@')[2]}{path}"


def _parts(url: str) -> tuple[str, str, str]:
    """Return scheme, host with what stands before it, and path; never fails."""
    found = re.match(r"([a-z][a-z0-9+.-]*://)?([^/?#]*)([^?#]*)", url, re.IGNORECASE)
    assert found is not None
    return found[1] or "", found[2], found[3]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) alone; urllib's own follows them to ftp, too."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        """Return the request that a redirect asks for, or None: it stays an HTTPError."""
        if not is_url(newurl):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, timeout_seconds: float) -> Any:
    """Ask a server, by an opener that knows http, https and proxies, and neither files nor ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(quote(url, safe=KEPT), headers=HEADERS)
    return opener.open(request, timeout=timeout_seconds)


@contextmanager
def _told(url: str, timeout_seconds: float) -> Iterator[None]:
    """Tell errors of urllib as ours, those that may pass as `_Again`.

    Their own texts may hold a URL with its secrets, so the kind of an error is told, not its text.
    """
    try:
        yield
    except DataError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"status {error.code} ({http.client.responses.get(error.code, 'unknown')})"
        if 300 <= error.code < 400:
            reason += ", with no http(s) URL to go to or too many of them"
        if error.code in AGAIN:
            raise _Again(reason) from None
        raise DataError(f"{_failed(url)}: {reason}") from None
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            raise _Again(f"no answer within {timeout_seconds:g} s") from None
        if isinstance(cause, (*LOST, http.client.IncompleteRead)):
            raise _Again("the connection was lost") from None
        invalid = isinstance(cause, str | ValueError | http.client.InvalidURL)
        told = "the URL is not valid" if invalid else getattr(cause, "strerror", None)
        told = told or type(cause).__name__
        raise DataError(f"{_failed(url)}: {told}") from None


def _check_url(url: str) -> None:
    if not is_url(url):
        raise DataError(f"image {shown(url)!r} is not an http or https URL")
    if "@" in _parts(url)[1]:
        raise DataError(f"{_failed(url)}: its URL names a user; download it and give its path")


def _failed(url: str) -> str:
    return f"image {shown(url)!r} cannot be fetched"
