"""Structures made of structures: product, sum, transpose, block-diagonal, stacks."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Zero
from onematrix.structures.low_rank import LowRank
from onematrix.structures.sizes import Size


def _sizes(terms: tuple[Structure, ...], side: int) -> list[int]:
    return [term.fixed_shape[side] for term in terms]


def _names(terms: tuple[Structure, ...]) -> str:
    return ", ".join(f"{t.name} {t.shape[0]}×{t.shape[1]}" for t in terms)


def _split(x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    return torch.split(x, sizes, dim=-1)


def _random(generator: torch.Generator, m: int, n: int) -> Dense:
    return Dense(torch.randn(m, n, generator=generator, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Product(Structure):
    """A = L R: (m, k) times (k, n), applied one after the other; the sum of both costs.

    >>> Product(Dense(torch.ones(2, 3)), Dense(torch.ones(3, 4))).shape
    (2, 4)
    """

    composite = True

    left: Structure
    right: Structure

    def check(self) -> None:
        if self.left.shape[1] != self.right.shape[0]:
            raise ShapeError(f"product: inner sizes differ: {_names((self.left, self.right))}")

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.left.shape[0], self.right.shape[1]

    def _to_dense(self) -> Tensor:
        return self.left.to_dense(torch.float64) @ self.right.to_dense(torch.float64)

    def _matmul(self, x: Tensor) -> Tensor:
        return self.left.matmul(self.right.matmul(x))

    def _rmatmul(self, y: Tensor) -> Tensor:
        return self.right.rmatmul(self.left.rmatmul(y))

    def multiply_adds(self) -> int:
        return self.left.multiply_adds() + self.right.multiply_adds()

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield cls(_random(generator, 4, 2), _random(generator, 2, 3))
        yield cls(Diagonal(torch.randn(3, generator=generator, dtype=torch.float64)), Identity(3))


@dataclass(frozen=True, eq=False)
class Sum(Structure):
    """A = Σ_k A_k, all (m, n); the sum of all costs (additions are not counted).

    >>> Sum((Identity(2), Identity(2))).to_dense()
    tensor([[2., 0.],
            [0., 2.]])
    """

    composite = True

    terms: tuple[Structure, ...]

    def check(self) -> None:
        if len({term.shape for term in self.terms}) > 1:
            raise ShapeError(f"sum: shapes differ: {_names(self.terms)}")

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.terms[0].shape

    def _to_dense(self) -> Tensor:
        return torch.stack([term.to_dense(torch.float64) for term in self.terms]).sum(0)

    def _matmul(self, x: Tensor) -> Tensor:
        return _add([term.matmul(x) for term in self.terms])

    def _rmatmul(self, y: Tensor) -> Tensor:
        return _add([term.rmatmul(y) for term in self.terms])

    def multiply_adds(self) -> int:
        return sum(term.multiply_adds() for term in self.terms)

    def nonzeros(self) -> int:
        m, n = self.fixed_shape
        return min(m * n, sum(term.nonzeros() for term in self.terms))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield cls((_random(generator, 3, 2),))
        yield cls((_random(generator, 3, 3), Identity(3)))
        left = torch.randn(4, 1, generator=generator, dtype=torch.float64)
        right = torch.randn(1, 5, generator=generator, dtype=torch.float64)
        yield cls((LowRank(left, right), Zero(4, 5), _random(generator, 4, 5)))


@dataclass(frozen=True, eq=False)
class Transposed(Structure):
    """Aᵀ of the structure inside, sharing its tensors; its cost.

    >>> Transposed(Dense(torch.ones(2, 3))).shape
    (3, 2)
    """

    composite = True

    inner: Structure

    @property
    def shape(self) -> tuple[Size, Size]:
        m, n = self.inner.shape
        return n, m

    def _to_dense(self) -> Tensor:
        return self.inner.to_dense().mT

    def _matmul(self, x: Tensor) -> Tensor:
        return self.inner.rmatmul(x)

    def _rmatmul(self, y: Tensor) -> Tensor:
        return self.inner.matmul(y)

    def multiply_adds(self) -> int:
        return self.inner.multiply_adds()

    def nonzeros(self) -> int:
        return self.inner.nonzeros()

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield cls(_random(generator, 3, 5))
        yield cls(cls(_random(generator, 2, 1)))


@dataclass(frozen=True, eq=False)
class BlockDiagonal(Structure):
    """A = diag(A_1, …, A_k): each block reads its own slice and writes its own slice.

    >>> BlockDiagonal((Identity(1), Dense(torch.ones(1, 2)))).to_dense()
    tensor([[1., 0., 0.],
            [0., 1., 1.]])
    """

    composite = True

    terms: tuple[Structure, ...]

    @property
    def shape(self) -> tuple[Size, Size]:
        return sum(_sizes(self.terms, 0)), sum(_sizes(self.terms, 1))

    def _to_dense(self) -> Tensor:
        dense: Tensor = torch.block_diag(*(term.to_dense(torch.float64) for term in self.terms))  # type: ignore[no-untyped-call]
        return dense

    def _matmul(self, x: Tensor) -> Tensor:
        parts = zip(self.terms, _split(x, _sizes(self.terms, 1)), strict=True)
        return torch.cat([term.matmul(part) for term, part in parts], dim=-1)

    def _rmatmul(self, y: Tensor) -> Tensor:
        parts = zip(self.terms, _split(y, _sizes(self.terms, 0)), strict=True)
        return torch.cat([term.rmatmul(part) for term, part in parts], dim=-1)

    def multiply_adds(self) -> int:
        return sum(term.multiply_adds() for term in self.terms)

    def nonzeros(self) -> int:
        return sum(term.nonzeros() for term in self.terms)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield cls((_random(generator, 2, 3),))
        yield cls((_random(generator, 2, 3), Identity(1), _random(generator, 1, 4)))
        yield cls((_random(generator, 3, 2), Identity(1), _random(generator, 4, 1)))


@dataclass(frozen=True, eq=False)
class VerticalStack(Structure):
    """A = [A_1; …; A_k]: one input, outputs one below the other.

    >>> VerticalStack((Identity(2), Dense(torch.ones(1, 2)))).shape
    (3, 2)
    """

    composite = True

    terms: tuple[Structure, ...]

    def check(self) -> None:
        if len(set(_sizes(self.terms, 1))) > 1:
            raise ShapeError(f"vertical_stack: numbers of columns differ: {_names(self.terms)}")

    @property
    def shape(self) -> tuple[Size, Size]:
        return sum(_sizes(self.terms, 0)), self.terms[0].shape[1]

    def _to_dense(self) -> Tensor:
        return torch.cat([term.to_dense(torch.float64) for term in self.terms], dim=0)

    def _matmul(self, x: Tensor) -> Tensor:
        return torch.cat([term.matmul(x) for term in self.terms], dim=-1)

    def _rmatmul(self, y: Tensor) -> Tensor:
        parts = zip(self.terms, _split(y, _sizes(self.terms, 0)), strict=True)
        return _add([term.rmatmul(part) for term, part in parts])

    def multiply_adds(self) -> int:
        return sum(term.multiply_adds() for term in self.terms)

    def nonzeros(self) -> int:
        return sum(term.nonzeros() for term in self.terms)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield cls((_random(generator, 2, 3), _random(generator, 1, 3)))
        yield cls((Identity(4),))


@dataclass(frozen=True, eq=False)
class HorizontalStack(Structure):
    """A = [A_1 … A_k]: inputs side by side, outputs added.

    >>> HorizontalStack((Identity(2), Dense(torch.ones(2, 1)))).shape
    (2, 3)
    """

    composite = True

    terms: tuple[Structure, ...]

    def check(self) -> None:
        if len(set(_sizes(self.terms, 0))) > 1:
            raise ShapeError(f"horizontal_stack: numbers of rows differ: {_names(self.terms)}")

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.terms[0].shape[0], sum(_sizes(self.terms, 1))

    def _to_dense(self) -> Tensor:
        return torch.cat([term.to_dense(torch.float64) for term in self.terms], dim=1)

    def _matmul(self, x: Tensor) -> Tensor:
        parts = zip(self.terms, _split(x, _sizes(self.terms, 1)), strict=True)
        return _add([term.matmul(part) for term, part in parts])

    def _rmatmul(self, y: Tensor) -> Tensor:
        return torch.cat([term.rmatmul(y) for term in self.terms], dim=-1)

    def multiply_adds(self) -> int:
        return sum(term.multiply_adds() for term in self.terms)

    def nonzeros(self) -> int:
        return sum(term.nonzeros() for term in self.terms)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield cls((_random(generator, 2, 3), _random(generator, 2, 1)))
        yield cls((Identity(4),))


def _add(terms: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)
