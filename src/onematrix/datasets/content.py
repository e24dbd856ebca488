"""The content of a data file, whether it lies there plain or compressed with gzip."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

from onematrix.errors import DataError

CHUNK_BYTES = 1 << 20


def read_chunks(path: str | Path) -> Iterator[bytes]:
    """The file's content in pieces of at most 1 MiB; gzip is known by its first two bytes, not by the name.

    Raises DataError naming the file: missing, unreadable, or a gzip stream that is cut off or corrupt, with
    the number of bytes that came out before the fault.
    """
    got = 0
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else open(path, "rb") as content:
            while chunk := content.read1(CHUNK_BYTES):
                got += len(chunk)
                yield chunk
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", path=str(path)) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: corrupt gzip data after {got} bytes of content ({error}); fetch the file again",
            path=str(path),
            got=got,
            reason=str(error),
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", path=str(path)) from error


def read_content(path: str | Path) -> bytes:
    """The whole content of a file, unpacked. Raises DataError as `read_chunks`."""
    return b"".join(read_chunks(path))


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text in UTF-8, without their line feeds; other line separators stay in the lines.

    Raises DataError naming the file and the byte that is no UTF-8, and as `read_chunks`.
    """
    data = read_content(path)
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: UTF-8 text needed, got byte {data[error.start]:#04x} at {error.start}; "
            "fetch the file again",
            path=str(path),
            position=error.start,
        ) from error
    return lines[:-1] if lines[-1] == "" else lines


def file_sha256(path: str | Path) -> str:
    """Hash of the file's own bytes, hexadecimal, packed or not. Raises DataError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", path=str(path)) from error


def content_sha256(path: str | Path) -> str:
    """Hash of the content, hexadecimal: the same for a file and for any gzip of it."""
    digest = hashlib.sha256()
    for chunk in read_chunks(path):
        digest.update(chunk)
    return digest.hexdigest()
