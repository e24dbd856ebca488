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
        object.__setattr__(self, "shape", tuple(self.shape))
        for size in self.shape:
            if (
                isinstance(size, bool)
                or not isinstance(size, int | str)
                or (isinstance(size, int) and size < 1)
            ):
                raise ShapeError(
                    f"part shape {self.shape}: sizes are integers of at least 1 or names, got {size!r}"
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
        """The stored shape with named sizes fixed."""
        return tuple(evaluate_size(size, sizes) for size in self.stored_shape)

    def peel(self, size: Size) -> "Part | None":
        """The part without its dimension `size`; None when it has no such dimension or nothing else."""
        if size not in self.shape:
            return None
        place = self.shape.index(size)
        rest = self.shape[:place] + self.shape[place + 1 :]
        return Part(rest or (1,), self.kind, self.dtype)


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
