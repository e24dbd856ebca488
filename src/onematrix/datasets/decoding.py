"""Compressed images to pixels, read by Pillow: many JPEG files in one array, and sheets of tiles."""

from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy
import torch
from torch import Tensor

from onematrix.errors import DataError

COLUMNS = 100  # tiles in one row of a sheet


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            'compressed images are read with Pillow, which is not installed; pip install "onematrix[viz]"',
            package="pillow",
        ) from error
    return Image


def decode_files(path: str | Path, blob: numpy.ndarray, offsets: numpy.ndarray, size: int) -> Tensor:
    """Pixels uint8 (N, 3, size, size) of N image files, file i being the bytes offsets[i] … offsets[i + 1].

    Grey images get three equal channels; other sizes are resized by Pillow's BILINEAR (triangle filter that
    widens where it shrinks, half-pixel centres). `path` only names the file in errors. Raises DataError for
    offsets that do not fit the blob, an image that cannot be decoded (its number) and without Pillow.
    """
    library, edges = _pillow(), offsets.tolist()
    if len(edges) < 2 or edges[0] != 0 or edges != sorted(edges) or edges[-1] != len(blob):
        ends = f"{edges[:1]} … {edges[-1:]}"
        raise DataError(
            f"{path}: offsets must rise from 0 to {len(blob)}, the bytes there are, got {ends}",
            needed=len(blob),
            got=edges[-1:],
        )
    pixels = numpy.empty((len(edges) - 1, size, size, 3), numpy.uint8)
    for number, (start, stop) in enumerate(pairwise(edges)):
        try:
            pixels[number] = _decode(library, blob[start:stop].tobytes(), size)
        except OSError as error:
            raise DataError(
                f"{path}: image {number} of {len(pixels)} ({stop - start} bytes) cannot be decoded: {error}",
                path=str(path),
                number=number,
            ) from error
    return _channels_first(pixels)


def _decode(library: ModuleType, data: bytes, size: int) -> numpy.ndarray:
    with library.open(BytesIO(data)) as image:
        coloured = image.convert("RGB")
    if coloured.size != (size, size):
        coloured = coloured.resize((size, size), library.Resampling.BILINEAR)
    return numpy.asarray(coloured)


def decode_sheet(path: str | Path, count: int, size: int) -> Tensor:
    """Pixels uint8 (count, 3, size, size) of the tiles of one image, 100 in a row, read row by row.

    Raises DataError when the file is no image or has not the size of ⌈count / 100⌉ rows, and without Pillow.
    """
    library = _pillow()
    try:
        with library.open(path) as image:
            sheet = numpy.asarray(image.convert("RGB"))
    except OSError as error:
        raise DataError(f"{path}: cannot be decoded: {error}", path=str(path)) from error
    rows = -(-count // COLUMNS)
    needed, got = (rows * size, COLUMNS * size), sheet.shape[:2]
    if got != needed:
        raise DataError(
            f"{path}: {count} tiles of {size} × {size} need a sheet of {needed} pixels, got {got}",
            needed=needed,
            got=got,
        )
    tiles = sheet.reshape(rows, size, COLUMNS, size, 3).transpose(0, 2, 1, 3, 4)
    return _channels_first(tiles.reshape(-1, size, size, 3)[:count])


def _channels_first(pixels: numpy.ndarray) -> Tensor:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
