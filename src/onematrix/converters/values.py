"""What a tensor of the exported graph is in the program: a part, and how its axes lie in the tensor's dimensions."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onematrix.converters.sizes import BATCH_NAME, times
from onematrix.structures.sizes import Size

BATCH = -1
BATCH_LEADS = "which is dimension 0 of every input"


@dataclass(frozen=True)
class Spread:
    """A factor of a dimension along which the tensor repeats itself; no axis of the part."""

    size: Size


Atom = int | Spread  # an axis of the part, BATCH, or a repetition
Dims = tuple[tuple[Atom, ...], ...]


@dataclass(frozen=True)
class Value:
    """A tensor: part with its axes (none of size 1), and per dimension the factors it is made of, outermost first.

    A transpose, view, squeeze or expand changes `dims` alone. Not yet written: tensor (a parameter or buffer in
    its own order, called name), number (every entry alike), ticks (0, 1, 2, … along its one axis).
    """

    part: str | None
    axes: tuple[Size, ...]
    dims: Dims
    dtype: torch.dtype
    tensor: Tensor | None = None
    name: str = ""
    number: float | None = None
    ticks: bool = False

    def size(self, atom: Atom) -> Size:
        """Size of a factor."""
        if isinstance(atom, Spread):
            return atom.size
        return BATCH_NAME if atom == BATCH else self.axes[atom]

    def dimension(self, place: int) -> Size:
        """Size of one dimension of the tensor."""
        total: Size = 1
        for atom in self.dims[place]:
            total = times(total, self.size(atom))
        return total

    @property
    def column(self) -> str:
        """The part that holds it. The value must have been written."""
        assert self.part is not None, "the value has not been written"
        return self.part

    @property
    def rank(self) -> int:
        """Number of dimensions of the tensor."""
        return len(self.dims)

    @property
    def atoms(self) -> list[Atom]:
        """All factors, outermost first."""
        return [atom for dim in self.dims for atom in dim]

    @property
    def has_batch(self) -> bool:
        """Whether samples differ."""
        return BATCH in self.atoms

    def with_dims(self, dims: Dims) -> "Value":
        """The same numbers in other dimensions."""
        return replace(self, dims=dims)


def axes_of(dims: Dims) -> list[int]:
    """The axes of the part in the order of the tensor's dimensions."""
    return [atom for dim in dims for atom in dim if isinstance(atom, int) and atom != BATCH]
