"""Weights from the network: into a cache, resumed where it broke off, checked before use.

A file stands under its name only when its sha256 is right. Nothing is fetched unless it was asked
for. One thread; two processes that fetch the same file at once may both fail the check, never
pass it wrongly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from pipeline.errors import ModelError, UsageError
from pipeline.home import home_folder

_CHUNK_BYTES: Final = 1 << 18
_TIMEOUT_S: Final = 30.0
"""Longest silence of a server."""

Progress = Callable[[int, int | None], None]
"""Told the bytes that are here and the size of the whole, None where the server does not say it."""


def cache_folder() -> Path:
    """Return where weights are kept: in `pipeline.home.home_folder`."""
    return home_folder() / "weights"


def cached(url: str, sha256: str, folder: Path | None = None) -> Path | None:
    """Return the file of `url` in the cache, checked; None where there is none.

    Raises:
        ModelError: a file of that name is there and has another digest.
    """
    target = _target(url, folder)
    if not target.is_file():
        return None
    found = _sha256(target)
    if not found.startswith(sha256):
        raise ModelError(
            f"{target} is not the file that was published: its sha256 is {found}, expected "
            f"{_told(sha256)}; delete it and try again"
        )
    return target


def fetch(
    url: str, sha256: str, *, folder: Path | None = None, progress: Progress | None = None
) -> Path:
    """Return the file of `url`, from the cache or the network.

    Args:
        url: http or https; its last part is the file's name.
        sha256: the published digest, or its first eight or more digits where only these are.
        folder: instead of `cache_folder()`.
        progress: told after each chunk.

    Raises:
        ModelError: no network, or what came is not the published file.
        UsageError: the URL is of another kind.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"weights are fetched over http or https, not from {url}")
    if len(sha256) < 8:
        raise ValueError(f"sha256 must have eight digits or more, got {sha256!r}")
    here = cached(url, sha256, folder)
    if here is not None:
        return here
    target = _target(url, folder)
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _load(url, part, progress)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        reason = error.reason if isinstance(error, URLError) else error
        kept = " What has arrived is kept, and the next try goes on from there." * part.is_file()
        raise ModelError(
            f"{url} cannot be downloaded ({reason}).{kept} Without network: download it "
            f"elsewhere and put it at {target} (sha256 {_told(sha256)})"
        ) from error
    found = _sha256(part)
    if not found.startswith(sha256):
        part.unlink()
        raise ModelError(
            f"{url} gave another file than was published: sha256 {found}, expected "
            f"{_told(sha256)}. It was deleted"
        )
    part.replace(target)
    return target


def is_cached(url: str) -> bool:
    """Return whether a file of that name is in the cache, unchecked."""
    return _target(url, None).is_file()


def _told(sha256: str) -> str:
    digits = len(sha256)
    return sha256 if digits == 64 else f"{sha256}..., of which only {digits} digits are published"


def _target(url: str, folder: Path | None) -> Path:
    return (folder or cache_folder()) / url.rstrip("/").rpartition("/")[2]


def _load(url: str, part: Path, progress: Progress | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=_TIMEOUT_S)
    except HTTPError as error:
        with error:
            if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
                raise
        # The part is as long as the whole or longer: either complete or wrong. The digest tells.
        return
    with response:
        _receive(response, part, have, progress)


def _receive(response: HTTPResponse, part: Path, have: int, progress: Progress | None) -> None:
    goes_on = response.status == HTTPStatus.PARTIAL_CONTENT and response.headers.get(
        "Content-Range", ""
    ).startswith(f"bytes {have}-")
    if not goes_on:
        have = 0  # a server without ranges sends the whole again
    length = response.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    with part.open("ab" if goes_on else "wb") as file:
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            have += len(chunk)
            if progress is not None:
                progress(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"the connection broke off after {have} of {total} bytes")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
