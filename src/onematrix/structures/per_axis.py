"""Maps per axis: one matrix per axis of a tensor, then the axes in another order. Views, slices, sums, transposes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.algebra import Transposed
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones
from onematrix.structures.permutation import Selection
from onematrix.structures.sizes import Size, multiply_sizes
from onematrix.structures.window import Window


@dataclass(frozen=True, eq=False)
class PerAxis(Structure):
    """A = P (A_1 ⊗ … ⊗ A_k): each axis has its matrix, then output axis i is axis order[i] of the result.

    order: "" for the order as it is, or the k places, as "1 0" for a transpose. Applied axis by axis: the cost of
    each matrix times the sizes of the other axes. Nothing is stored for identities; sizes may be named.

    >>> PerAxis((Identity(2), Identity(3)), "1 0").matmul(torch.arange(6))
    tensor([0, 3, 1, 4, 2, 5])
    """

    composite = True

    axes: tuple[Structure, ...]
    order: str = ""

    def check(self) -> None:
        if self.order and sorted(self.order.split()) != sorted(str(i) for i in range(len(self.axes))):
            raise ShapeError(
                f"per_axis.order: each of 0..{len(self.axes) - 1} once was needed, got {self.order!r}"
            )

    @property
    def places(self) -> list[int]:
        """Axis of the product of the terms that each output axis is."""
        return [int(word) for word in self.order.split()] or list(range(len(self.axes)))

    @property
    def shape(self) -> tuple[Size, Size]:
        rows = multiply_sizes(*(self.axes[i].shape[0] for i in self.places))
        return rows, multiply_sizes(*(t.shape[1] for t in self.axes))

    def _to_dense(self) -> Tensor:
        dense = torch.ones(1, 1, dtype=torch.float64)
        for term in self.axes:
            entries = term.to_dense(torch.float64)
            (m, n), (p, q) = dense.shape, entries.shape
            blocks = torch.einsum("ij,kl->ikjl", dense.to(entries.device), entries)
            dense = blocks.reshape(m * p, n * q)  # torch.kron trips over strides
        rows = [t.fixed_shape[0] for t in self.axes]
        index = torch.arange(math.prod(rows), device=dense.device).reshape(rows)
        return dense[index.permute(self.places).reshape(-1)]

    def _matmul(self, x: Tensor) -> Tensor:
        batch = x.shape[:-1]
        x = x.reshape(*batch, *(t.fixed_shape[1] for t in self.axes))
        for i, term in enumerate(self.axes):
            x = _apply(term, x, len(batch) + i)
        x = x.permute(*range(len(batch)), *(len(batch) + i for i in self.places))
        return x.reshape(*batch, self.fixed_shape[0])

    def _rmatmul(self, y: Tensor) -> Tensor:
        batch, places = y.shape[:-1], self.places
        y = y.reshape(*batch, *(self.axes[i].fixed_shape[0] for i in places))
        y = y.permute(*range(len(batch)), *(len(batch) + places.index(i) for i in range(len(places))))
        for i, term in enumerate(self.axes):
            y = _apply(term, y, len(batch) + i, transposed=True)
        return y.reshape(*batch, self.fixed_shape[1])

    def multiply_adds(self) -> int:
        total, sizes = 0, [t.fixed_shape[1] for t in self.axes]
        for i, term in enumerate(self.axes):
            if not _copies(term):
                total += term.multiply_adds() * math.prod(sizes[:i] + sizes[i + 1 :])
            sizes[i] = term.fixed_shape[0]
        return total

    def nonzeros(self) -> int:
        return math.prod(t.nonzeros() for t in self.axes)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        square = Dense(torch.randn(3, 2, generator=generator, dtype=torch.float64))
        yield cls((Identity(1),))
        yield cls((Identity(2), square, Ones(1, 2)), "2 0 1")
        yield cls((Ones(2, 1), Identity(3), Selection(torch.tensor([1, 1, 0]), 2)), "1 2 0")
        yield cls((Transposed(Window(2, 4, 1)), Identity(2)))
        yield cls((Diagonal(torch.randn(3, generator=generator, dtype=torch.float64)), Identity(2)), "1 0")


def _copies(term: Structure) -> bool:
    return isinstance(term, Ones) and term.columns == 1


def _apply(term: Structure, x: Tensor, axis: int, transposed: bool = False) -> Tensor:
    """The matrix, or its transpose, along one axis. Copies and sums along an axis need no product."""
    if isinstance(term, Identity):
        return x
    if _copies(term) and not transposed:
        return x.expand(*x.shape[:axis], term.fixed_shape[0], *x.shape[axis + 1 :])
    if isinstance(term, Ones) and term.shape[0 if not transposed else 1] == 1:
        return x.sum(axis, keepdim=True)
    product = term.rmatmul if transposed else term.matmul
    return product(x.movedim(axis, -1)).movedim(-1, axis)
