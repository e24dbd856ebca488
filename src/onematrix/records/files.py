"""Files that are either whole or absent: written to a temporary name beside the target, then renamed."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from onematrix.errors import FormatError, OneMatrixError


def make_folder(folder: str | Path) -> Path:
    """Create the folder (and its parents) and prove that it can be written to.

    Raises OneMatrixError naming the folder and the reason.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".writable-")
        os.close(descriptor)
        os.unlink(name)
    except OSError as error:
        raise OneMatrixError(
            f"output folder {folder} cannot be written to ({error.strerror}); name another with --out",
            folder=str(folder),
        ) from error
    return folder


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to `path` when the block ends well, removed when it does not.

    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file atomically (UTF-8)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: object) -> Path:
    """Write a JSON file atomically, keys in the order given, two-space indent."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict[str, object]:
    """Read a JSON object. Raises FormatError naming the file and the place of the fault."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number too long, nested too deep
        raise FormatError(f"{path}: not valid JSON ({error})", path=str(path)) from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: a JSON object was needed, got {type(value).__name__}", path=str(path))
    return value


def append_line(path: str | Path, record: Mapping[str, object]) -> None:
    """Append one record as a JSON line and flush it to disk."""
    with open(path, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def read_lines(path: str | Path) -> list[dict[str, object]]:
    """Records of a JSON-lines file. A last line torn by a kill is left out; a torn line elsewhere raises."""
    if not Path(path).exists():
        return []
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline after it: the write was cut off
                break
            raise FormatError(f"{path}, line {number}: not valid JSON ({error})", line=number) from error
    return records
