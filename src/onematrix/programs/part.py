"""Parts: the named slices of a network's state."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from onematrix.errors import DTypeError, ProgramError, ShapeError
from onematrix.structures.sizes import Size, evaluate_size, multiply_sizes, size_names

KINDS = ("real", "index", "noise")
ONE = "one"
NAME = re.compile(r"[A-Za-z_][\w.\-]*'*")


@dataclass(frozen=True)
class Part:
    """A slice of the state: shape without the batch, kind, element type.

    shape: integers, or names such as "time" left free until run time; expressions of names are allowed.
    kind: "real"; "index" (one-hot vectors along the last dimension, stored as integers of shape[:-1]);
    "noise" (uniform on [0, 1), drawn from a counter keyed by seed, part and tick).
    dtype: a torch name such as "bool" or "float64"; None means that of the program's numbers.

    >>> Part(("time", 8)).features
    '8 * time'
    """

    shape: tuple[Size, ...]
    kind: str = "real"
    dtype: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "shape", tuple(check_size(size, f"part shape {self.shape}") for size in self.shape)
        )
        if not self.shape:
            raise ShapeError("a part needs at least one dimension; write shape (1,) for a single number")
        if self.kind not in KINDS:
            raise ProgramError(f"part kind {self.kind!r} is unknown; there are: {', '.join(KINDS)}")
        if self.dtype is not None and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise DTypeError(f"part dtype {self.dtype!r} is no torch dtype; write for example 'float32'")

    @property
    def features(self) -> Size:
        """Product of the shape: the width of the flattened part."""
        return multiply_sizes(*self.shape)

    @property
    def stored_shape(self) -> tuple[Size, ...]:
        """Shape of the tensor that holds the part: one-hot vectors are stored as integers."""
        return self.shape[:-1] if self.kind == "index" else self.shape

    def names(self) -> set[str]:
        """Named sizes of the shape."""
        return size_names(*self.shape)

    def at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The stored shape with named sizes fixed. Raises ShapeError where one is missing or negative."""
        return tuple(fix_size(size, sizes) for size in self.stored_shape)

    def peel(self, size: Size) -> "Part | None":
        """The part without its dimension `size`; None when it has no such dimension or nothing else."""
        if size not in self.shape:
            return None
        place = self.shape.index(size)
        rest = self.shape[:place] + self.shape[place + 1 :]
        return Part(rest or (1,), self.kind, self.dtype)


def fix_size(size: Size, sizes: Mapping[str, int]) -> int:
    """The size under the given named sizes, 0 or more. Raises ShapeError.

    >>> fix_size("time + 3", {"time": 10})
    13
    """
    if isinstance(size, int):
        return size
    value = sizes[size] if size in sizes else evaluate_size(size, sizes)
    if value < 0:
        raise ShapeError(f"size {size!r}: 0 or more was needed, got {value} for {dict(sizes)}", got=value)
    return value


def check_size(size: object, who: str, least: int = 1) -> Size:
    """The size itself, digits as an integer. Raises ShapeError for what is neither a size nor an expression.

    >>> check_size(" 12 ", "ticks")
    12
    """
    if isinstance(size, str):
        size = int(size) if re.fullmatch(r"\s*[0-9]{1,15}\s*", size) else size.strip()
    if isinstance(size, str):
        try:
            evaluate_size(size, {name: 97 + i for i, name in enumerate(sorted(size_names(size)))})
        except (ShapeError, ValueError, ZeroDivisionError, RecursionError, MemoryError) as error:
            raise ShapeError(f"{who}: {size!r} is no expression of names, integers, + - * //") from error
    elif isinstance(size, bool) or not isinstance(size, int) or size < least:
        raise ShapeError(f"{who}: sizes are integers of at least {least} or names, got {size!r}")
    return size


def make_part(value: "Part | int | str | tuple[Size, ...]") -> Part:
    """A part from a part, a size, or a shape.

    >>> make_part(3).shape
    (3,)
    """
    if isinstance(value, Part):
        return value
    return Part((value,) if isinstance(value, int | str) else tuple(value))


def check_name(name: str) -> str:
    """The name itself. Raises ProgramError when it cannot stand in a program's text."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ProgramError(
            f"part name {name!r}: a letter or underscore, then letters, digits, '_', '-', '.', was needed"
        )
    return name
