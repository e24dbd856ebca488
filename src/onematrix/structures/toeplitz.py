"""Toeplitz matrices: one number per diagonal."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.base import Fit, Structure, below_minimum, relative_error
from onematrix.structures.sizes import Size, numbers_within
from onematrix.structures.spectral import cyclic_convolution, fast_size, spectral_multiply_adds


@dataclass(frozen=True, eq=False)
class Toeplitz(Structure):
    """A[i, j] = t[i − j + n − 1]: (m, n), stored as its m + n − 1 diagonals from the upper right to the lower left.

    A x is a piece of the convolution t ∗ x, by FFTs of the next fast size N ≥ m + n − 1: about 5 N log₂ N
    multiply-adds. As a convolution matrix it is one channel with as many taps as diagonals.
    G. Golub, C. Van Loan, Matrix Computations, 4th ed., §4.7.

    >>> Toeplitz(torch.tensor([1.0, 2.0, 3.0, 4.0]), 2).to_dense()
    tensor([[3., 2., 1.],
            [4., 3., 2.]])
    """

    source = "G. Golub, C. Van Loan, Matrix Computations, 4th ed., §4.7"
    can_fit = True
    can_random = True
    exempt = frozenset({"counted work"})  # FFTs: a leading-order count, tested by its own law

    diagonals: Tensor  # t: (m + n − 1,)
    rows: int

    def check(self) -> None:
        if self.diagonals.dim() != 1 or not 1 <= self.rows <= len(self.diagonals):
            raise ShapeError(
                f"toeplitz.diagonals: a vector of at least {max(self.rows, 1)} numbers was needed for "
                f"{self.rows} rows, got {tuple(self.diagonals.shape)}"
            )

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.rows, self._columns

    @property
    def _columns(self) -> int:
        return self.diagonals.shape[0] - self.rows + 1

    def _to_dense(self) -> Tensor:
        return self.diagonals[_places(self.rows, self._columns, self.diagonals.device)]

    def _matmul(self, x: Tensor) -> Tensor:
        size = fast_size(self.diagonals.shape[0])
        return cyclic_convolution(x, self.diagonals, size, self._columns - 1, self.rows)

    def _rmatmul(self, y: Tensor) -> Tensor:
        size = fast_size(self.diagonals.shape[0])
        return cyclic_convolution(y, self.diagonals.flip(0), size, self.rows - 1, self._columns)

    def multiply_adds(self) -> int:
        return spectral_multiply_adds(fast_size(len(self.diagonals)))

    @classmethod
    def _fit(cls, dense: Tensor, gram: Tensor | None, *, budget: float = 1.0) -> Fit:
        """t_k = mean of the k-th diagonal, the nearest in Frobenius norm; with a gram, the normal equations."""
        m, n = dense.shape
        if numbers_within(budget, m, n, cls.name) < m + n - 1:
            raise below_minimum(cls, budget, m + n - 1, m, n, "one number per diagonal")
        if gram is None:
            diagonals = _diagonal_sums(dense) / _lengths(dense)
        else:
            diagonals = _weighted(dense, gram)
        fitted = cls(diagonals.contiguous(), m)
        error = relative_error(fitted, dense, gram)
        return Fit(fitted, error, _predicted(dense) if gram is None else None)

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """t ~ N(0, 1/n)."""
        if numbers_within(budget, m, n, cls.name) < m + n - 1:
            raise below_minimum(cls, budget, m + n - 1, m, n, "one number per diagonal")
        return cls(torch.randn(m + n - 1, generator=generator) * n**-0.5, m)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for m, n in ((1, 1), (5, 3), (1, 4), (4, 1), (6, 9)):
            yield cls(torch.randn(m + n - 1, generator=generator, dtype=torch.float64), m)


def _places(m: int, n: int, device: torch.device) -> Tensor:
    """i − j + n − 1: (m, n)."""
    return torch.arange(m, device=device)[:, None] - torch.arange(n, device=device) + n - 1


def _diagonal_sums(dense: Tensor) -> Tensor:
    m, n = dense.shape
    places = _places(m, n, dense.device).reshape(-1)
    return dense.new_zeros(m + n - 1).index_add(0, places, dense.reshape(-1))


def _lengths(dense: Tensor) -> Tensor:
    """Entries on each diagonal."""
    return _diagonal_sums(torch.ones_like(dense))


# With D_k the matrix of ones on diagonal k, ⟨(W − Σ t_l D_l) G, D_k⟩ = 0 for every k. ⟨D_l G, D_k⟩ sums G over the
# pairs of columns in which diagonals l and k meet the same row: row i adds G, both axes reversed, at place i.
def _weighted(dense: Tensor, gram: Tensor) -> Tensor:
    m, n = dense.shape
    g = gram.to(torch.float64)
    turned = g.flip(0, 1)
    normal = g.new_zeros(m + n - 1, m + n - 1)
    for i in range(m):
        normal[i : i + n, i : i + n] += turned
    right = _diagonal_sums(dense.to(torch.float64) @ g)
    inverse: Tensor = torch.linalg.pinv(normal, hermitian=True)
    return (inverse @ right).to(dense.dtype)


def _predicted(dense: Tensor) -> float:
    """√(1 − Σ_k length_k mean_k² ÷ ‖W‖²): what the means leave, by Pythagoras."""
    target = dense.double()
    total = float(target.square().sum())
    kept = float((_diagonal_sums(target).square() / _lengths(target)).sum())
    return max(0.0, 1 - kept / total) ** 0.5 if total else 0.0
