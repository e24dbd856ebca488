"""Choices of structured products kept on disk, one file each, by structure, sizes, batch and machine."""

from collections.abc import Mapping
from pathlib import Path

from onematrix.errors import OneMatrixError
from onematrix.records.choices import choice_key
from onematrix.records.files import read_json, write_json
from onematrix.structures.base import Structure
from onematrix.structures.tree import leaves

VERSION = 1


def product_key(a: Structure, batch: int, mode: str) -> str:
    """A name for this kind of structure, its sizes, the batch and this machine: versions, threads and all."""
    sizes = [[path, list(t.shape), str(t.dtype), t.device.type] for path, t in leaves(a)]
    return choice_key(VERSION, a.name, list(a.shape), sizes, batch, mode)


def recall(folder: Path, key: str) -> tuple[str, dict[str, float]] | None:
    """The form chosen before and the seconds of all; None where there is none, or the file is another's."""
    try:
        found = read_json(folder / f"{key}.json")
    except (OSError, RecursionError, OneMatrixError):
        return None
    form, seconds = found.get("form"), found.get("seconds")
    if found.get("key") != key or not isinstance(form, str) or not isinstance(seconds, dict):
        return None
    return form, seconds


def remember(folder: Path, key: str, form: str, seconds: Mapping[str, float]) -> None:
    """Keep a choice for the next time; where the folder cannot be written to, it is measured again then."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{key}.json", {"key": key, "form": form, "seconds": dict(seconds)})
    except OSError:
        return
