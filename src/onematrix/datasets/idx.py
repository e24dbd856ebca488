"""The IDX format of the MNIST files: 0 0 type dimensions, the sizes as big-endian uint32, then the numbers.

Source: Y. LeCun, C. Cortes & C. Burges, "The MNIST database of handwritten digits", section "The IDX file
format".
"""

import math
from pathlib import Path

import numpy
import torch
from torch import Tensor

from onematrix.datasets.content import read_chunks
from onematrix.errors import DataError

# Type byte → numpy's name without byte order; all numbers are stored big-endian.
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}
MOST_DIMENSIONS = 64  # of a numpy array


def read_idx(path: str | Path) -> Tensor:
    """The tensor in an IDX file, plain or gzip: uint8, int8, int16, int32, float32 or float64.

    Raises DataError naming the file, and the bytes needed and got: wrong magic number, truncated or trailing
    data, corrupt gzip.
    """
    data, got, fault = _content(path)
    shape, needed = _sizes(path, data), _needed_bytes(path, data)
    if fault or got != needed:
        why = fault or ("truncated" if got < needed else "trailing data")
        raise DataError(
            f"{path}: {needed} bytes needed for shape {shape}, got {got} ({why}); fetch the file again",
            path=str(path),
            needed=needed,
            got=got,
        )
    dtype = numpy.dtype(DTYPES[data[2]])
    numbers = numpy.frombuffer(data, dtype.newbyteorder(">"), offset=4 + 4 * data[3])
    return torch.from_numpy(numbers.astype(dtype).reshape(shape))


def _content(path: str | Path) -> tuple[bytearray, int, str]:
    """The bytes, how many there are, and the fault that cut a gzip stream off ("" when none did).

    No more is kept than the header asks for (and one piece), whatever the file unpacks to.
    """
    data, got = bytearray(), 0
    try:
        for chunk in read_chunks(path):
            got += len(chunk)
            if len(data) < 4 + 4 * MOST_DIMENSIONS or len(data) < _needed_bytes(path, data):
                data += chunk
    except DataError as error:
        if "reason" not in error.facts:
            raise
        return data, got, f"corrupt gzip data: {error.reason}"
    return data, got, ""


def _sizes(path: str | Path, data: bytearray) -> tuple[int, ...]:
    """Sizes in the header. Raises DataError when the header is cut off or is none."""
    if len(data) >= 4 and not (data[:2] == b"\0\0" and data[2] in DTYPES and 1 <= data[3] <= MOST_DIMENSIONS):
        raise DataError(
            f"{path}: not an IDX file: it must start with 00 00, a type "
            f"({', '.join(f'{code:02x}' for code in DTYPES)}) and 1 to {MOST_DIMENSIONS} dimensions, "
            f"got {data[:4].hex(' ')}",
            path=str(path),
            got=data[:4].hex(" "),
        )
    header = 4 + 4 * data[3] if len(data) >= 4 else 4
    if len(data) < header:
        raise DataError(
            f"{path}: {header} bytes needed for the IDX header, got {len(data)} (truncated); "
            "fetch the file again",
            path=str(path),
            needed=header,
            got=len(data),
        )
    return tuple(numpy.frombuffer(data[4:header], ">u4").tolist())


def _needed_bytes(path: str | Path, data: bytearray) -> int:
    shape = _sizes(path, data)
    return 4 + 4 * len(shape) + math.prod(shape) * numpy.dtype(DTYPES[data[2]]).itemsize
