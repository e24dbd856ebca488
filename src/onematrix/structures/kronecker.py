"""Kronecker products of two matrices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.base import SECONDS, Fit, Structure
from onematrix.structures.block_kronecker import FAMILY, BlockKronecker, Conversion, fit_family, require_ones
from onematrix.structures.block_projection import choose_factors, kronecker_candidates
from onematrix.structures.factor_sizes import check_product
from onematrix.structures.family_product import Factors, learning_rates, random_family
from onematrix.structures.sizes import Size


@dataclass(frozen=True, eq=False)
class Kronecker(Structure):
    """A = B ⊗ C: block (i, j) is B[i, j] C, for B: (m1, n1) and C: (m2, n2). m1 n1 + m2 n2 numbers.

    The product contracts with C or with B first, whichever is less: n1 m2 (n2 + m1) or m1 n2 (n1 + m2)
    multiply-adds. Every number is used many times, so one rate of learning does not suit all widths.

    >>> Kronecker(torch.tensor([[1.0, 2.0]]), torch.eye(2)).to_dense()
    tensor([[1., 0., 2., 0.],
            [0., 1., 0., 2.]])
    """

    source = "C. Van Loan, N. Pitsianis, Linear Algebra for Large Scale and Real-Time Applications, 1993"
    can_fit = True
    can_random = True

    left: Tensor  # B: (m1, n1)
    right: Tensor  # C: (m2, n2)

    def check(self) -> None:
        if self.left.dim() != 2 or self.right.dim() != 2:
            raise ShapeError(
                "kronecker: left (m1, n1) and right (m2, n2) were needed, "
                f"got {tuple(self.left.shape)} and {tuple(self.right.shape)}"
            )

    @property
    def factors(self) -> Factors:
        """The sizes as a member of the block-Kronecker family: φ = γ = ρ = 1."""
        (epsilon, beta), (delta, alpha) = self.left.shape, self.right.shape
        return Factors(alpha=alpha, beta=beta, delta=delta, epsilon=epsilon)

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.factors.shape

    def exact_size(self) -> dict[str, Any]:
        return {"left": tuple(self.left.shape)}

    def learning_rate_scale(self) -> dict[str, float]:
        return learning_rates(self.factors)

    def _to_dense(self) -> Tensor:
        return torch.einsum("eb,da->edba", self.left, self.right).reshape(self.fixed_shape)

    def _matmul(self, x: Tensor) -> Tensor:
        return _multiply(self.left, self.right, x)

    def _rmatmul(self, y: Tensor) -> Tensor:
        return _multiply(self.left.mT, self.right.mT, y)

    def multiply_adds(self) -> int:
        return min(_costs(self.left, self.right))

    @classmethod
    def _fit(cls, dense: Tensor, gram: Tensor | None, *, seconds: float | None = SECONDS, **size: Any) -> Fit:
        """The first singular pair of the rearranged matrix: exact. Options: left=(m1, n1), budget."""
        return fit_family(dense, gram, _choose(cls, *dense.shape, **size), cls, seconds)

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """B ~ N(0, 1/n2), C ~ N(0, 1/n1), of the sizes nearest to square roots within the budget."""
        options = _choose(cls, m, n, budget=None if "left" in size else budget, **size)
        left, right = random_family(options[0], generator)
        return cls(left[0, :, :, 0, 0], right[0, 0, 0])

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for m1, n1, m2, n2 in ((1, 1, 1, 1), (2, 3, 3, 2), (1, 4, 5, 1), (3, 1, 2, 4)):
            left = torch.randn(m1, n1, generator=generator, dtype=torch.float64)
            yield cls(left, torch.randn(m2, n2, generator=generator, dtype=torch.float64))


def _costs(left: Tensor, right: Tensor) -> tuple[int, int]:
    """Multiply-adds with the right factor first, and with the left factor first."""
    (m1, n1), (m2, n2) = left.shape, right.shape
    return n1 * m2 * (n2 + m1), m1 * n2 * (n1 + m2)


def _multiply(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """Y = B X Cᵀ per vector, X and Y its rows and columns; no copy between the two products."""
    (m1, n1), (m2, n2) = left.shape, right.shape
    rows = x.reshape(-1, n1 * n2)
    k = rows.shape[0]
    right_first, left_first = _costs(left, right)
    if right_first <= left_first:
        z = (rows.reshape(k * n1, n2) @ right.mT).reshape(k, n1, m2)
        y = torch.bmm(left.expand(k, m1, n1), z)
    else:
        z = torch.bmm(left.expand(k, m1, n1), rows.reshape(k, n1, n2))
        y = z.reshape(k * m1, n2) @ right.mT
    return y.reshape(*x.shape[:-1], m1 * m2)


def _choose(
    cls: type[Structure],
    m: int,
    n: int,
    budget: float | None = None,
    left: Sequence[int] | None = None,
) -> list[Factors]:
    if left is None:
        candidates = kronecker_candidates(m, n)
    else:
        m1, n1 = left
        check_product(cls.name, "left=(m1, n1), rows", (m1, m // max(m1, 1)), m)
        check_product(cls.name, "left=(m1, n1), columns", (n1, n // max(n1, 1)), n)
        candidates = [Factors(alpha=n // n1, beta=n1, delta=m // m1, epsilon=m1)]
    rank = 1 if left is not None and budget is None else None
    fitting = choose_factors(cls, (m, n), candidates, budget, rank, option="left=(m1, n1)")
    return [replace(f, rank=1) for f in fitting]


FAMILY[Kronecker] = Conversion(
    lambda a: BlockKronecker(a.left[None, :, :, None, None], a.right[None, None, None]),
    lambda a: Kronecker(
        require_ones(a, Kronecker, "gamma", "phi", "rank").left[0, :, :, 0, 0], a.right[0, 0, 0]
    ),
)
