"""BLAST: blocks that share their column and row spaces, each with its own diagonal coupling."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from onematrix.errors import FitError, ShapeError
from onematrix.structures.base import SECONDS, Fit, Structure, below_minimum, relative_error
from onematrix.structures.blast_fit import choose_blocks, fit_blast, rank_bound
from onematrix.structures.deviations import core_deviations
from onematrix.structures.grouped_product import multiply_columns
from onematrix.structures.multilinear_fit import Search
from onematrix.structures.sizes import Size, check_rank_within, numbers_within


@dataclass(frozen=True, eq=False)
class Blast(Structure):
    """A_ij = U_i diag(s_ij) V_j, block (i, j) of b1 × b2 blocks of p × q; r (m + n + b1 b2) numbers.

    As many multiply-adds, in three batched products whose layouts follow from each other, so that none is
    copied; for its gradient the product keeps B r (b1 + b2) numbers. The output of B vectors is stored
    column by column. All s_ij equal: low rank. s_ij one-hot on groups: block low-rank, Monarch.

    >>> Blast(torch.ones(2, 3, 5), torch.ones(5, 2, 4), torch.ones(4, 5, 2)).shape
    (6, 8)
    """

    source = "C. Lee, S. M. Kwon, Q. Qu, H.-S. Kim, BLAST, NeurIPS 2024, arXiv:2410.21262, eq. 1"
    can_fit = True
    can_random = True
    searches = True

    left: Tensor  # U: (b1, p, r)
    coupling: Tensor  # S: (r, b1, b2)
    right: Tensor  # V: (b2, r, q)

    def check(self) -> None:
        shapes = [tuple(t.shape) for t in (self.left, self.coupling, self.right)]
        if [len(s) for s in shapes] != [3, 3, 3] or shapes[1] != (
            shapes[0][2],
            shapes[0][0],
            shapes[2][0],
        ):
            raise ShapeError(_needed(shapes))
        if shapes[0][2] != shapes[2][1]:
            raise ShapeError(_needed(shapes))

    @property
    def shape(self) -> tuple[Size, Size]:
        (b1, p, _), (b2, _, q) = self.left.shape, self.right.shape
        return b1 * p, b2 * q

    @property
    def rank(self) -> int:
        """r, the components of every block; may exceed the block's sizes."""
        return self.left.shape[2]

    @property
    def blocks(self) -> tuple[int, int]:
        """(b1, b2), blocks down and across."""
        return self.left.shape[0], self.right.shape[0]

    def exact_size(self) -> dict[str, Any]:
        return {"rank": min(self.rank, rank_bound(*self.fixed_shape, self.blocks)), "blocks": self.blocks}

    def generic_rank(self) -> int:
        """The rank of almost every member of these sizes: min(m, n, r min(b1, b2)) for b1, b2 with p, q ≥ r."""
        (m, n), (b1, b2) = self.fixed_shape, self.blocks
        p, q = m // b1, n // b2
        return min(m, n, b1 * min(p, self.rank), b2 * min(q, self.rank))

    def _to_dense(self) -> Tensor:
        blocks = torch.einsum("ipr,rij,jrq->ipjq", self.left, self.coupling, self.right)
        return blocks.reshape(self.fixed_shape)

    # Vectors stand as columns between the stages: (b2, r, B), (r, b1, B), (b1, p, B). The axis that a stage
    # sums over and the one it is batched over then never lie apart in memory, whatever the stage.

    def _matmul(self, x: Tensor) -> Tensor:
        (b1, p, _), (b2, _, q) = self.left.shape, self.right.shape
        inner = multiply_columns(self.right, _columns(x, b2, q))
        coupled = torch.bmm(self.coupling, inner.transpose(0, 1))
        out = multiply_columns(self.left, coupled.transpose(0, 1))
        return out.reshape(b1 * p, -1).mT.reshape(*x.shape[:-1], b1 * p)

    def _rmatmul(self, y: Tensor) -> Tensor:
        (b1, p, _), (b2, _, q) = self.left.shape, self.right.shape
        inner = multiply_columns(self.left.mT, _columns(y, b1, p))
        coupled = torch.bmm(self.coupling.mT, inner.transpose(0, 1))
        out = multiply_columns(self.right.mT, coupled.transpose(0, 1))
        return out.reshape(b2 * q, -1).mT.reshape(*y.shape[:-1], b2 * q)

    def multiply_adds(self) -> int:
        return self.left.numel() + self.coupling.numel() + self.right.numel()

    def learning_rate_scale(self) -> dict[str, float]:
        """For Adam, relative to a dense layer of n inputs: n ÷ (3 fan-in), fan-ins r, b2 and q."""
        _, n = self.fixed_shape
        fans = {"left": self.rank, "coupling": self.blocks[1], "right": self.right.shape[2]}
        return {name: n / (3 * fan) for name, fan in fans.items()}

    @classmethod
    def _fit(
        cls,
        dense: Tensor,
        gram: Tensor | None,
        *,
        budget: float | None = None,
        rank: int | None = None,
        blocks: tuple[int, int] | None = None,
        seconds: float | None = SECONDS,
        starts: int = 4,
        seed: int = 0,
    ) -> Fit:
        """Least squares through lowered weight decay from several starts, one the best block low-rank fit.

        seconds: a limit for the search (None: none; results then depend on the seed alone). See `fit_blast`.
        The problem is not convex: `predicted` is None.
        """
        m, n = dense.shape
        blocks, rank = _choose_sizes(cls, m, n, budget, rank, blocks)
        factors = fit_blast(dense.detach(), blocks, rank, gram, Search(seconds, starts, seed))
        fitted = cls(*(t.to(dense.dtype).contiguous() for t in factors))
        return Fit(fitted, relative_error(fitted, dense, gram))

    @classmethod
    def random(
        cls,
        m: int,
        n: int,
        budget: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        rank: int | None = None,
        blocks: tuple[int, int] | None = None,
        **size: Any,
    ) -> Self:
        """Factors of the deviations of `core_deviations`: U sums over r inputs, s over b2, V over q."""
        (b1, b2), rank = _choose_sizes(cls, m, n, budget, rank, blocks)
        shapes = ((b1, m // b1, rank), (rank, b1, b2), (b2, rank, n // b2))
        sizes = core_deviations([rank, b2, n // b2])
        return cls(*(torch.randn(s, generator=generator) * d for s, d in zip(shapes, sizes, strict=True)))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for b1, p, r, b2, q in (
            (1, 1, 1, 1, 1),
            (2, 2, 1, 3, 1),
            (3, 1, 2, 2, 3),
            (2, 3, 4, 2, 2),
            (1, 4, 2, 3, 2),
        ):
            shapes = ((b1, p, r), (r, b1, b2), (b2, r, q))
            yield cls(*(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes))


def _columns(x: Tensor, blocks: int, size: int) -> Tensor:
    """x: (..., blocks · size) as (blocks, size, vectors), a view where x has rows one after the other."""
    return x.reshape(-1, x.shape[-1]).mT.reshape(blocks, size, -1)


def _needed(shapes: list[tuple[int, ...]]) -> str:
    got = ", ".join(map(str, shapes))
    return f"blast: left (b1, p, r), coupling (r, b1, b2) and right (b2, r, q) were needed, got {got}"


def _choose_sizes(
    cls: type[Structure],
    m: int,
    n: int,
    budget: float | None,
    rank: int | None,
    blocks: tuple[int, int] | None,
) -> tuple[tuple[int, int], int]:
    """The grid and the rank. Raises FitError for a grid that does not divide, BudgetError below rank 1."""
    blocks = blocks or choose_blocks(m, n)
    if blocks is None:
        raise FitError(
            f"blast {m}×{n}: no grid of 2 to 16 blocks a side divides it; pad it, or take blocks=(1, 1), low rank",
            rows=m,
            columns=n,
        )
    b1, b2 = blocks
    if b1 < 1 or b2 < 1 or m % b1 or n % b2:
        raise FitError(
            f"blast {m}×{n}: blocks={blocks} does not divide it; {_divisors(m)} divide {m}, "
            f"{_divisors(n)} divide {n}",
            blocks=blocks,
        )
    if rank is not None:
        bound, where = rank_bound(m, n, blocks), f" on {b1} × {b2} blocks"
        return blocks, check_rank_within(f"{cls.name} {m}×{n}", rank, bound, where, "blocks=(b1, b2)")
    each = m + n + b1 * b2
    rank = numbers_within(1.0 if budget is None else budget, m, n, cls.name) // each
    if rank < 1 and budget is not None and each <= m * n:
        raise below_minimum(cls, budget, each, m, n, f"rank 1 on {b1} × {b2} blocks")
    if rank < 1:
        raise FitError(
            f"blast {m}×{n}: rank 1 on {b1} × {b2} blocks stores {each} numbers, "
            f"more than the {m * n} of dense",
            needed=each,
        )
    return blocks, rank


def _divisors(size: int) -> str:
    return ", ".join(str(d) for d in range(1, size + 1) if size % d == 0)
