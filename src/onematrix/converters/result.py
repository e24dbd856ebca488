"""What a node of the graph will be: sizes and dtype, known before its rows are written."""

from dataclasses import dataclass

import torch

from onematrix.converters.sizes import BATCH_NAME, divide
from onematrix.converters.values import BATCH, Atom, Dims, Spread, Value
from onematrix.structures.sizes import Size


@dataclass(frozen=True)
class Result:
    """Sizes of the dimensions, the batch among them, and dtype."""

    sizes: tuple[Size, ...]
    dtype: torch.dtype


def uniform(number: float, sizes: tuple[Size, ...], dtype: torch.dtype) -> Value:
    """A tensor of equal entries."""
    return Value(None, (), tuple(repeated(size) for size in sizes), dtype, number=float(number))


def repeated(size: Size) -> tuple[Atom, ...]:
    """A dimension along which nothing changes."""
    if size == 1:
        return ()
    rest = divide(size, BATCH_NAME) if isinstance(size, str) and BATCH_NAME in size else None
    if rest is None:
        return (Spread(size),)
    return (BATCH,) if rest == 1 else (BATCH, Spread(rest))


def broadcast(dims: Dims, sizes: tuple[Size, ...]) -> Dims:
    """The dimensions repeated to sizes, aligned at the last one."""
    missing: Dims = ((),) * (len(sizes) - len(dims))
    return tuple(
        dim if dim or size == 1 else repeated(size) for dim, size in zip(missing + dims, sizes, strict=True)
    )
