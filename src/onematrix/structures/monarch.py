"""Monarch matrices: a grid of blocks of low rank, also called uniform block low-rank."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.base import SECONDS, Fit, Structure
from onematrix.structures.block_kronecker import FAMILY, BlockKronecker, Conversion, fit_family, require_ones
from onematrix.structures.block_projection import SMALL, choose_factors
from onematrix.structures.factor_sizes import check_product, divisors, spread
from onematrix.structures.family_product import (
    Factors,
    learning_rates,
    multiply_family,
    multiply_family_adjoint,
    random_family,
)
from onematrix.structures.sizes import Size, check_sides


@dataclass(frozen=True, eq=False)
class Monarch(Structure):
    """A_ij = L_ij R_ij: a b1 × b2 grid of blocks p × q, each of rank t. t (b1 n + b2 m) numbers.

    As many multiply-adds. Rows and columns of a block stand together (m = b1 p, n = b2 q). The Monarch of
    the source sends row (i, k) of block row i to place k b1 + i instead: the same matrix with its rows in
    strided order, `Permutation` away from this one.

    >>> Monarch(torch.ones(2, 3, 1, 4), torch.ones(4, 2, 1, 5)).shape
    (6, 20)
    """

    source = "T. Dao et al., Monarch, arXiv:2204.00595, definition 3.1"
    can_fit = True
    can_random = True

    left: Tensor  # L: (b1, p, t, b2)
    right: Tensor  # R: (b2, b1, t, q)

    def check(self) -> None:
        left, right = self.left, self.right
        if left.dim() == right.dim() == 4:
            blocks, _, rank, columns = left.shape
            if right.shape[:3] == (columns, blocks, rank):
                return
        raise ShapeError(
            "monarch: left (b1, p, t, b2) and right (b2, b1, t, q) were needed, "
            f"got {tuple(left.shape)} and {tuple(right.shape)}"
        )

    @property
    def factors(self) -> Factors:
        """The sizes as a member of the block-Kronecker family: β = δ = 1."""
        phi, epsilon, rank, gamma = self.left.shape
        return Factors(alpha=self.right.shape[3], gamma=gamma, epsilon=epsilon, phi=phi, rank=rank)

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.factors.shape

    def exact_size(self) -> dict[str, Any]:
        f = self.factors.with_rank(self.factors.rank)
        return {"blocks": (f.phi, f.gamma), "rank": f.rank}

    def learning_rate_scale(self) -> dict[str, float]:
        return learning_rates(self.factors)

    def _to_dense(self) -> Tensor:
        blocks = torch.einsum("iptj,jitq->ipjq", self.left, self.right)
        return blocks.reshape(self.fixed_shape)

    def _matmul(self, x: Tensor) -> Tensor:
        return multiply_family(self.left[:, :, None], self.right[:, :, :, None], x)

    def _rmatmul(self, y: Tensor) -> Tensor:
        return multiply_family_adjoint(self.left[:, :, None], self.right[:, :, :, None], y)

    def multiply_adds(self) -> int:
        return self.factors.multiply_adds()

    @classmethod
    def _fit(cls, dense: Tensor, gram: Tensor | None, *, seconds: float | None = SECONDS, **size: Any) -> Fit:
        """Truncated singular values of every block: exact. Options: blocks=b or (b1, b2), rank=t, budget."""
        return fit_family(dense, gram, _choose(cls, *dense.shape, **size), cls, seconds)

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """R ~ N(0, 1/(b2 t)), L ~ N(0, 1/q), in the grid nearest to √min(m, n) that the budget allows.

        One rate of Adam suits both (`core_deviations`). The source of the learning rates draws
        R ~ N(0, min(1, t b1 ÷ q) ÷ q) and likewise L, by spectral norms: for t > 1 its outputs are smaller.
        """
        check_sides(cls.name, m, n)
        options = _choose(cls, m, n, budget=None if "rank" in size else budget, **size)
        left, right = random_family(options[0], generator)
        return cls(left[:, :, 0], right[:, :, :, 0])

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for q, b2, p, b1, t in ((1, 1, 1, 1, 1), (2, 3, 3, 2, 2), (5, 1, 1, 4, 1), (3, 2, 4, 2, 3)):
            left, right = random_family(Factors(alpha=q, gamma=b2, epsilon=p, phi=b1, rank=t), generator)
            yield cls(left[:, :, 0].double(), right[:, :, :, 0].double())


def _choose(
    cls: type[Structure],
    m: int,
    n: int,
    budget: float | None = None,
    rank: int | None = None,
    blocks: int | Sequence[int] | None = None,
) -> list[Factors]:
    if blocks is None:
        grids = [(b, b) for b in _grids(m, n)]
    else:
        b1, b2 = (blocks, blocks) if isinstance(blocks, int) else blocks
        check_product(cls.name, "blocks=(b1, b2), rows", (b1, m // max(b1, 1)), m)
        check_product(cls.name, "blocks=(b1, b2), columns", (b2, n // max(b2, 1)), n)
        grids = [(b1, b2)]
    candidates = [Factors(alpha=n // b2, gamma=b2, epsilon=m // b1, phi=b1) for b1, b2 in grids]
    return choose_factors(cls, (m, n), candidates, budget, rank, option="blocks=(b1, b2)")


def _grids(m: int, n: int) -> list[int]:
    """Numbers of blocks along both sides: common divisors above 1, the one nearest to √min(m, n) first."""
    shared = divisors(math.gcd(m, n))[1:]
    middle = math.log(min(m, n)) / 2
    return spread(
        sorted(shared, key=lambda b: abs(math.log(b) - middle)), 8 if m * n > SMALL else len(shared)
    )


FAMILY[Monarch] = Conversion(
    lambda a: BlockKronecker(a.left[:, :, None], a.right[:, :, :, None]),
    lambda a: Monarch(require_ones(a, Monarch, "beta", "delta").left[:, :, 0], a.right[:, :, :, 0]),
)
