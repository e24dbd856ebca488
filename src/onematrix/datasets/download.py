"""Files from their official place, checked by the hash of their content and kept in one folder."""

import http.client
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from onematrix.datasets.content import content_sha256, file_sha256
from onematrix.errors import DataError, OneMatrixError
from onematrix.records.files import make_folder, replacing

if TYPE_CHECKING:
    from rich.progress import Progress

CHUNK_BYTES = 1 << 16


def cache_folder() -> Path:
    """Where data files are kept: $ONEMATRIX_DATA, by default ~/.cache/onematrix."""
    return Path(os.environ.get("ONEMATRIX_DATA") or "~/.cache/onematrix").expanduser()


def make_cache_folder(folder: Path) -> None:
    """Create a folder of the cache. Raises DataError when that is not possible."""
    try:
        make_folder(folder)
    except OneMatrixError as error:
        raise DataError(
            f"{folder}: the data folder cannot be written to ({error.__cause__}); "
            "set ONEMATRIX_DATA to a folder that can",
            folder=str(folder),
        ) from error


def fetch(
    urls: str | Sequence[str],
    sha256: str,
    target: str,
    timeout_seconds: float = 30,
    unpacked: bool = True,
) -> Path:
    """Path of the file `target` (relative to `cache_folder()`) whose content has the hash `sha256`.

    A file that is there already, also with or without a .gz, is checked and used. Otherwise the addresses
    (http or https) are tried in order; a progress bar shows on a terminal; the file appears under its name
    only when it is complete and right. The hash is that of the unpacked content (`content_sha256`), or with
    `unpacked=False` that of the file as it is.

    Raises DataError: a file with another hash (expected, got), no address that answers (each reason, and
    where to put the file by hand), a folder that cannot be written to.
    """
    path = cache_folder() / target
    hashed = content_sha256 if unpacked else file_sha256
    if found := _lying(path, unpacked):
        _check(found, sha256, f"delete {found} and run again to download it", hashed)
        return found
    make_cache_folder(path.parent)
    reasons = []
    for url in [urls] if isinstance(urls, str) else urls:
        try:
            with replacing(path) as temporary:
                _receive(url, temporary, timeout_seconds)
                _check(temporary, sha256, "try again, or take another mirror", hashed, name=url)
            return path
        except (DataError, OSError, ValueError, http.client.HTTPException) as error:
            reasons.append(str(error) if isinstance(error, DataError) else f"{url}: {error}")
    raise DataError(
        "\n  ".join(
            [f"{path.name} could not be downloaded:", *reasons, f"or put the file at {path} by hand"]
        ),
        path=str(path),
        reasons=tuple(reasons),
    )


def kept(target: str, sha256: str, official: str) -> Path:
    """Path of a file of `cache_folder()` that no address offers in this form, its content checked.

    Raises DataError: no such file, with `official` (where the data come from, and what the file holds), or a
    file with another hash (expected, got).
    """
    path = cache_folder() / target
    if found := _lying(path):
        _check(found, sha256, f"put the right file there: {official}")
        return found
    raise DataError(
        f"{path}: no such file; {official}. Set ONEMATRIX_DATA to the folder that holds {target}",
        path=str(path),
    )


def _lying(path: Path, unpacked: bool = True) -> Path | None:
    """The first of the file, the file without its .gz and the file with a .gz that exists."""
    other = path.with_suffix("") if path.suffix == ".gz" else path.with_name(path.name + ".gz")
    return next((found for found in (path, other if unpacked else path) if found.exists()), None)


def _check(
    path: Path,
    sha256: str,
    remedy: str,
    hashed: Callable[[Path], str] = content_sha256,
    name: str | None = None,
) -> None:
    got = hashed(path)
    if got != sha256:
        raise DataError(
            f"{name or path}: sha256 of the content should be {sha256}, got {got}; {remedy}",
            path=str(path),
            expected=sha256,
            got=got,
        )


def _receive(url: str, temporary: Path, timeout_seconds: float) -> None:
    """Write what `url` sends to `temporary`. Raises DataError when fewer bytes come than announced."""
    with urllib.request.urlopen(url, timeout=timeout_seconds) as answer, open(temporary, "wb") as file:
        length = answer.headers.get("Content-Length")
        total = int(length) if length else None
        for chunk in _shown(iter(lambda: answer.read(CHUNK_BYTES), b""), url, total):
            file.write(chunk)
        got = file.tell()
    if total is not None and got != total:
        raise DataError(f"{url}: {total} bytes announced, got {got}", needed=total, got=got)


def _shown(chunks: Iterator[bytes], url: str, total: int | None) -> Iterator[bytes]:
    """The chunks, counted by a progress bar on the error stream where that is a terminal."""
    with _progress() as progress:
        task = progress.add_task(url.rsplit("/", 1)[-1], total=total)
        for chunk in chunks:
            yield chunk
            progress.update(task, advance=len(chunk))


@contextmanager
def _progress() -> "Iterator[Progress]":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        yield progress
