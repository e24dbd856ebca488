"""Matrices that store no numbers: identity, zero, all-ones; and a structure times an exact ratio."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import torch
from torch import Tensor

from onematrix.errors import DTypeError, ShapeError
from onematrix.structures.base import Structure, check_dtypes
from onematrix.structures.dense import Dense
from onematrix.structures.sizes import Size


def _check_sizes(who: str, *sizes: Size) -> None:
    for size in sizes:
        if isinstance(size, bool) or (isinstance(size, int) and size < 1):
            raise ShapeError(f"{who}: a size of at least 1 was needed, got {size!r}", got=size)


@dataclass(frozen=True, eq=False)
class Identity(Structure):
    """A = I: (n, n). Stores nothing, costs nothing; returns its input itself.

    >>> Identity("time").at(time=2).to_dense()
    tensor([[1., 0.],
            [0., 1.]])
    """

    square_only = True
    sizes_are_free = ("size",)

    size: int | str

    def check(self) -> None:
        _check_sizes(self.name, self.size)

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.size, self.size

    def _to_dense(self) -> Tensor:
        return torch.eye(self.fixed_shape[0], dtype=torch.float64)

    def _matmul(self, x: Tensor) -> Tensor:
        return x

    def _rmatmul(self, y: Tensor) -> Tensor:
        return y

    def multiply_adds(self) -> int:
        return 0

    def nonzeros(self) -> int:
        return self.fixed_shape[0]

    def solve(self, y: Tensor) -> Tensor:
        return y

    def logdet(self) -> Tensor:
        return torch.zeros(())

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield from (cls(n) for n in (1, 2, 7))


@dataclass(frozen=True, eq=False)
class Zero(Structure):
    """A = 0: (m, n). Stores nothing; the product is zero whatever the input (also for ∞ and nan).

    >>> Zero(2, 3).matmul(torch.full((3,), torch.inf))
    tensor([0., 0.])
    """

    sizes_are_free = ("rows", "columns")

    rows: int | str
    columns: int | str

    def check(self) -> None:
        _check_sizes(self.name, self.rows, self.columns)

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.rows, self.columns

    def _to_dense(self) -> Tensor:
        return torch.zeros(self.fixed_shape, dtype=torch.float64)

    def _matmul(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.fixed_shape[0])

    def _rmatmul(self, y: Tensor) -> Tensor:
        return y.new_zeros(*y.shape[:-1], self.fixed_shape[1])

    def multiply_adds(self) -> int:
        return 0

    def nonzeros(self) -> int:
        return 0

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield from (cls(m, n) for m, n in ((1, 1), (3, 5), (4, 2)))


@dataclass(frozen=True, eq=False)
class Ones(Structure):
    """A[i, j] = 1: (m, n). Sums (m = 1), broadcasts (n = 1); n additions counted as multiply-adds.

    >>> Ones(2, 3).matmul(torch.tensor([1.0, 2.0, 3.0]))
    tensor([6., 6.])
    """

    sizes_are_free = ("rows", "columns")

    rows: int | str
    columns: int | str

    def check(self) -> None:
        _check_sizes(self.name, self.rows, self.columns)

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.rows, self.columns

    def _to_dense(self) -> Tensor:
        return torch.ones(self.fixed_shape, dtype=torch.float64)

    def _matmul(self, x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True).repeat(*[1] * (x.dim() - 1), self.fixed_shape[0])

    def _rmatmul(self, y: Tensor) -> Tensor:
        return y.sum(-1, keepdim=True).repeat(*[1] * (y.dim() - 1), self.fixed_shape[1])

    def multiply_adds(self) -> int:
        return self.fixed_shape[1]

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield from (cls(m, n) for m, n in ((1, 1), (1, 5), (4, 1), (2, 3)))


@dataclass(frozen=True, eq=False)
class Scaled(Structure):
    """c A with the fixed ratio c = numerator ÷ denominator, exact in text and never trained.

    Costs the product with A and min(m, n) multiply-adds for c.

    >>> Scaled(Identity(2), -1, 2).matmul(torch.tensor([2.0, 4.0]))
    tensor([-1., -2.])
    """

    composite = True

    inner: Structure
    numerator: int
    denominator: int = 1

    def check(self) -> None:
        if self.denominator < 1:
            raise ShapeError(f"scaled: a denominator of at least 1 was needed, got {self.denominator}")

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.inner.shape

    @property
    def factor(self) -> float:
        """c as the nearest float."""
        return self.numerator / self.denominator

    def _to_dense(self) -> Tensor:
        return self.inner.to_dense(torch.float64) * self.factor

    def _matmul(self, x: Tensor) -> Tensor:
        m, n = self.inner.fixed_shape
        if m <= n:
            return self._times(self.inner.matmul(x))
        return self.inner.matmul(self._times(x))

    def _rmatmul(self, y: Tensor) -> Tensor:
        m, n = self.inner.fixed_shape
        if n <= m:
            return self._times(self.inner.rmatmul(y))
        return self.inner.rmatmul(self._times(y))

    def _times(self, x: Tensor) -> Tensor:
        """c x in the dtype of x; an integer x has no half."""
        if (weight := self.any_weight()) is not None:
            check_dtypes(self.name, weight, x)
        if x.is_floating_point():
            return x * self.factor
        if self.denominator > 1:
            raise DTypeError(
                f"scaled: a real input was needed for the factor {self.numerator}/{self.denominator}, "
                f"got {x.dtype}; convert it with .float()",
                got=x.dtype,
            )
        return x * self.numerator

    def multiply_adds(self) -> int:
        return self.inner.multiply_adds() + min(self.inner.fixed_shape)

    def nonzeros(self) -> int:
        return self.inner.nonzeros() if self.numerator else 0

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield cls(Identity(3), -1)
        yield cls(Identity(1), 1, 2)
        yield cls(Dense(torch.randn(4, 2, generator=generator, dtype=torch.float64)), 3, 7)
        yield cls(Dense(torch.randn(2, 5, generator=generator, dtype=torch.float64)), 0)


def scale(structure: Structure, factor: float | Fraction) -> Structure:
    """c A for a number c, kept as the exact ratio it is; c = 1 gives A itself.

    >>> scale(Identity(2), 0.5).denominator
    2
    """
    if not math.isfinite(factor):
        raise ShapeError(f"scale: a finite factor was needed, got {factor}", got=factor)
    if isinstance(structure, Scaled):
        factor = Fraction(factor) * Fraction(structure.numerator, structure.denominator)
        structure = structure.inner
    if factor == 1:
        return structure
    return Scaled(structure, *Fraction(factor).as_integer_ratio())
