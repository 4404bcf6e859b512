"""Downloads that are either whole and right or absent."""

import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from wshare.errors import UserError
from wshare.files.atomic import atomic, check_space
from wshare.files.sealed import sha256_file
from wshare.progress import PROGRESS

BACKOFF_SECONDS = 1.0
BLOCK_BYTES = 1 << 20
# Answers that may be another one soon: time-out, too early, too many requests. 5xx are retried as well.
RETRIED_STATUS = (408, 425, 429)


class _Failed(Exception):
    """One try has failed: the message, and whether the next try may do better."""

    def __init__(self, message: str, final: bool = False):
        super().__init__(message)
        self.final = final


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    tries: int = 3,
    timeout: float = 30,
) -> Path:
    """`target`, holding what `url` serves; no network is used if it is there already with the right hash.

    `sha256` is the whole hexadecimal hash, `sha256_prefix` its first digits; with neither, only length and kind are
    checked, and a file that is there is trusted. `timeout` in seconds counts for each wait, not for the whole file.
    The file takes its name only after the checks, so nobody ever sees a part of it. UserError, in one line, after
    `tries` tries.
    """
    target = Path(target)
    expected = (sha256 or sha256_prefix or "").lower()
    found = ""
    if target.is_file():
        if not expected or sha256_file(target).startswith(expected):
            return target
        found = f" (the file there has another sha256 than {expected})"
    for attempt in range(1, tries + 1):
        try:
            with atomic(target) as temporary:
                _receive(url, temporary, target, timeout)
                _check(temporary, expected)
            return target
        except _Failed as error:
            if error.final or attempt == tries:
                raise UserError(
                    f"{url}: {error}; get the file another way and put it at {target}{found}, "
                    "or set models.<name>.path to it"
                ) from None
        time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
    raise ValueError(f"tries: {tries}: must be at least 1")


def _receive(url: str, path: Path, target: Path, timeout: float) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "wshare"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response, open(path, "wb") as file:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            check_space(target, total or 0)
            received = 0
            with tqdm(desc=url.rsplit("/", 1)[-1], total=total, unit="B", unit_scale=True, **PROGRESS) as bar:
                while block := response.read(BLOCK_BYTES):
                    file.write(block)
                    received += len(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        final = error.code < 500 and error.code not in RETRIED_STATUS
        raise _Failed(f"HTTP status {error.code} ({error.reason})", final) from None
    except urllib.error.URLError as error:
        raise _Failed(f"cannot be reached ({error.reason})") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _Failed(f"broke off ({type(error).__name__}: {error})") from None
    if total is not None and received != total:
        raise _Failed(f"broke off after {received} of {total} bytes")


def _check(path: Path, expected: str) -> None:
    with open(path, "rb") as file:
        page = re.match(rb"\s*<(!doctype|html)", file.read(512).lower()) is not None
    got = sha256_file(path)
    if expected and not got.startswith(expected):
        kind = "an HTML page" if page else "another file"
        raise _Failed(f"serves {kind}: expected sha256 {expected}, got {got}")
    if page and not expected:
        raise _Failed("serves an HTML page instead of the file")
