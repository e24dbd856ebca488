"""Circulant matrices: every column is the one before it, turned one step down."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.base import Fit, Structure, below_minimum, relative_error, require_square
from onematrix.structures.sizes import Size, numbers_within
from onematrix.structures.spectral import COARSE, cyclic_convolution, spectral_multiply_adds


@dataclass(frozen=True, eq=False)
class Circulant(Structure):
    """A[i, j] = c[(i − j) mod n]: (n, n), stored as its first column c, n numbers.

    A x is the cyclic convolution c ∗ x, a product after the FFT: about 5 n log₂ n multiply-adds.
    T. Chan, SIAM J. Sci. Stat. Comput. 9(4), 1988: the nearest circulant has the means of the wrapped diagonals.

    >>> Circulant(torch.tensor([1.0, 2.0, 3.0])).to_dense()
    tensor([[1., 3., 2.],
            [2., 1., 3.],
            [3., 2., 1.]])
    """

    source = "T. Chan, SIAM J. Sci. Stat. Comput. 9(4), 1988"
    square_only = True
    can_fit = True
    can_random = True
    exempt = frozenset({"counted work"})  # FFTs: a leading-order count, tested by its own law

    column: Tensor  # c: (n,)

    def check(self) -> None:
        if self.column.dim() != 1 or not len(self.column):
            raise ShapeError(
                f"circulant.column: one dimension of length 1 or more was needed, "
                f"got {tuple(self.column.shape)}"
            )

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.column.shape[0], self.column.shape[0]

    def _to_dense(self) -> Tensor:
        return self.column[_turns(len(self.column), self.column.device)]

    def _matmul(self, x: Tensor) -> Tensor:
        n = self.column.shape[0]
        return cyclic_convolution(x, self.column, n, 0, n)

    def _rmatmul(self, y: Tensor) -> Tensor:
        n = self.column.shape[0]
        turned_back = self.column.roll(-1).flip(0)  # the first column of Aᵀ
        return cyclic_convolution(y, turned_back, n, 0, n)

    def multiply_adds(self) -> int:
        return spectral_multiply_adds(len(self.column))

    def solve(self, y: Tensor) -> Tensor:
        wide = torch.float32 if y.dtype in COARSE else y.dtype
        spectrum = torch.fft.rfft(y.to(wide)) / torch.fft.rfft(self.column.to(wide))
        x: Tensor = torch.fft.irfft(spectrum, self.column.shape[0])
        return x.to(y.dtype)

    def logdet(self) -> Tensor:
        spectrum: Tensor = torch.fft.fft(self.column)
        return spectrum.abs().log().sum()

    @classmethod
    def _fit(cls, dense: Tensor, gram: Tensor | None, *, budget: float = 1.0) -> Fit:
        """c_k = mean of the k-th wrapped diagonal; with a gram, of W G, divided cyclically by those of G.

        Nearest in Frobenius norm: the wrapped diagonals share no entry (T. Chan 1988, eq. 2.1).
        """
        n = require_square(cls, *dense.shape)
        if numbers_within(budget, n, n, cls.name) < n:
            raise below_minimum(cls, budget, n, n, n, "one number per row")
        weighted = dense if gram is None else dense @ gram.to(dense.dtype)
        column = _diagonal_sums(weighted) / n
        if gram is not None:
            column = _divide_cyclically(column, _diagonal_sums(gram.to(dense.dtype)) / n)
        fitted = cls(column.contiguous())
        error = relative_error(fitted, dense, gram)
        return Fit(fitted, error, _predicted(dense) if gram is None else None)

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """c ~ N(0, 1/n)."""
        require_square(cls, m, n)
        if numbers_within(budget, n, n, cls.name) < n:
            raise below_minimum(cls, budget, n, n, n, "one number per row")
        return cls(torch.randn(n, generator=generator) * n**-0.5)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield from (cls(torch.randn(n, generator=generator, dtype=torch.float64)) for n in (1, 2, 7, 12))


def _turns(n: int, device: torch.device) -> Tensor:
    """(i − j) mod n: (n, n)."""
    i = torch.arange(n, device=device)
    return (i[:, None] - i) % n


def _diagonal_sums(dense: Tensor) -> Tensor:
    """Σ_i A[i, i − k mod n] for every k."""
    n = len(dense)
    return dense.new_zeros(n).index_add(0, _turns(n, dense.device).reshape(-1), dense.reshape(-1))


def _divide_cyclically(b: Tensor, g: Tensor) -> Tensor:
    """c with g ∗ c = b in the least squares; g, the mean gram of all turns, is symmetric and not negative."""
    top, bottom = torch.fft.rfft(b), torch.fft.rfft(g)
    kept = bottom.abs() > 1e-12 * bottom.abs().max()
    c: Tensor = torch.fft.irfft(torch.where(kept, top / torch.where(kept, bottom, 1.0), 0.0), len(b))
    return c


def _predicted(dense: Tensor) -> float:
    """√(1 − n Σ_k mean_k² ÷ ‖W‖²): what the means leave, by Pythagoras."""
    target = dense.double()
    total = float(target.square().sum())
    sums = _diagonal_sums(target)
    return (max(0.0, 1 - float(sums.square().sum()) / len(dense) / total)) ** 0.5 if total else 0.0
