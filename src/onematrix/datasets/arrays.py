"""Arrays of numbers in .npz files; objects (pickles) in such a file are refused."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy

from onematrix.errors import DataError


def read_arrays(path: str | Path, names: Sequence[str]) -> list[numpy.ndarray]:
    """The arrays called `names` in an .npz file, in that order.

    Raises DataError naming the file: no .npz file, damaged, pickled objects in it, or an array missing (which
    were needed, which were found).
    """
    try:
        with numpy.load(path, allow_pickle=False) as arrays:
            if missing := sorted(set(names) - set(arrays)):
                raise DataError(
                    f"{path}: arrays {', '.join(names)} needed, got {', '.join(arrays)}",
                    path=str(path),
                    missing=missing,
                )
            return [arrays[name] for name in names]
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: an .npz file with {', '.join(names)} needed, got a file that cannot be read as one "
            f"({error})",
            path=str(path),
        ) from error
