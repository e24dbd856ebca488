"""Block tensor trains: two or more block-diagonal cores with the digits of the index moved between them."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.base import SECONDS, Fit, Structure, check_cores, check_dtypes
from onematrix.structures.block_kronecker import FAMILY, BlockKronecker, Conversion, fit_family, require_ones
from onematrix.structures.block_projection import choose_factors, grid_candidates
from onematrix.structures.block_train import (
    dense_train,
    fit_train,
    multiply_train,
    multiply_train_adjoint,
    random_train,
    train_numbers,
)
from onematrix.structures.dense import Dense
from onematrix.structures.factor_sizes import parse_factors, write_factors
from onematrix.structures.family_product import Factors
from onematrix.structures.sizes import Size
from onematrix.structures.train_sizes import (
    TrainSizes,
    best_train,
    block_limit,
    choose_train,
    fit_of_train,
    read_block_ranks,
    single_rank,
    train_options,
    two_cores,
    useful_ranks,
)
from onematrix.structures.weighted_error import reduce_error


@dataclass(frozen=True, eq=False)
class BlockTensorTrain(Structure):
    """A[(i1 … ic), (jc … j1)] = Σ_r Π_t W_t[i1 … i(t−1), jc … j(t+1)][(i_t, r_t), (r(t−1), j_t)].

    Core t holds K_t = m1 … m(t−1) n(t+1) … nc blocks (m_t r_t) × (r(t−1) n_t), one below the other.
    Σ_t K_t m_t r_t r(t−1) n_t numbers, and as many multiply-adds. Two cores: an m1 × n2 grid of blocks
    m2 × n1 of rank r1, the same as Monarch. Columns are read with their last digit first, jc … j1.

    >>> a = BlockTensorTrain((Dense(torch.ones(3 * 2, 4)), Dense(torch.ones(2 * 5, 3))), "2 5", "4 3")
    >>> a.shape, a.multiply_adds()
    ((10, 12), 54)
    """

    source = "S. Qiu et al., Compute Better Spent, arXiv:2406.06248, section 3.1"
    composite = True
    can_fit = True
    can_random = True

    cores: tuple[Dense, ...]  # core t: (K_t m_t r_t, r(t−1) n_t)
    row_factors: str  # "m1 … mc"
    column_factors: str  # "n1 … nc"

    def check(self) -> None:
        _ = self.ranks
        check_cores(self.name, "cores", self.cores)

    def _factors(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return parse_factors(self.name, self.row_factors), parse_factors(self.name, self.column_factors)

    def _weights(self) -> list[Tensor]:
        return [core.weight for core in self.cores]

    @property
    def ranks(self) -> tuple[int, ...]:
        """(r0, r1, …, rc) with r0 = rc = 1."""
        return read_block_ranks(self.name, [core.fixed_shape for core in self.cores], *self._factors())

    @property
    def shape(self) -> tuple[Size, Size]:
        rows, columns = self._factors()
        return math.prod(rows), math.prod(columns)

    def exact_size(self) -> dict[str, Any]:
        rows, columns = self._factors()
        ranks = useful_ranks(self.ranks[1:-1], rows, columns, block_limit)
        return {"rows": rows, "columns": columns, "rank": ranks}

    def learning_rate_scale(self) -> dict[str, float]:
        """(n ÷ inputs of one sum) ÷ cores: core t sums over r(t−1) n_t (arXiv:2406.06248, section 3.2)."""
        n, count = self.fixed_shape[1], len(self.cores)
        return {f"cores.{t}.weight": n / (count * w.shape[1]) for t, w in enumerate(self._weights())}

    def _to_dense(self) -> Tensor:
        return dense_train(self._weights(), *self._factors())

    def _matmul(self, x: Tensor) -> Tensor:
        check_dtypes(self.name, self.cores[0].weight, x)
        return multiply_train(self._weights(), *self._factors(), x)

    def _rmatmul(self, y: Tensor) -> Tensor:
        check_dtypes(self.name, self.cores[0].weight, y)
        return multiply_train_adjoint(self._weights(), *self._factors(), y)

    def multiply_adds(self) -> int:
        return sum(w.numel() for w in self._weights())

    @classmethod
    def _fit(cls, dense: Tensor, gram: Tensor | None, *, seconds: float | None = SECONDS, **size: Any) -> Fit:
        """Two cores: the exact projection. More: successive singular values, at most √(c − 1) × the best.

        Options: rows=(m1, …), columns=(n1, …), cores=c, rank=r or (r1, …), budget. With a budget, splits
        that are not given are chosen by the error. With a gram the result is the start of a descent on the
        weighted error.
        """
        if two_cores(size):
            return fit_family(dense, gram, _choose_two(cls, *dense.shape, **size), cls, seconds)
        m, n = dense.shape
        begin, target = time.perf_counter(), dense.detach().double()
        options = train_options(cls, m, n, train_numbers, block_limit, **size)
        limit = seconds if seconds is None or gram is None else seconds / 4
        cores, rest, sizes = best_train(options, lambda s: fit_train(target, s), limit)
        found = cls._from(cores, sizes)
        if gram is not None:
            left = None if seconds is None else seconds - (time.perf_counter() - begin)
            found = reduce_error(found, dense, gram, left)
        a = cls._from([w.to(dense.dtype) for w in found._weights()], sizes)
        return fit_of_train(a, dense, gram, rest)

    @classmethod
    def _from(cls, cores: Sequence[Tensor], sizes: TrainSizes) -> Self:
        weights = tuple(Dense(core.contiguous()) for core in cores)
        return cls(weights, write_factors(sizes.rows), write_factors(sizes.columns))

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """Cores as `core_deviations` says; two of them in the grid nearest to √m × √n that the budget allows.

        The variance is kept, and one rate of Adam suits all. The source draws core t ~ N(0, min(1, outputs ÷
        inputs) ÷ inputs) instead, by spectral norms: for r > 1 its outputs are smaller.
        """
        budget_if = None if "rank" in size else budget
        if two_cores(size):
            f = _choose_two(cls, m, n, budget=budget_if, **size)[0]
            sizes = TrainSizes((f.phi, f.epsilon), (f.alpha, f.gamma), (1, f.rank, 1))
        else:
            sizes = choose_train(cls, m, n, train_numbers, budget=budget_if, limit=block_limit, **size)
        return cls._from(random_train(sizes, generator), sizes)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for rows, columns, ranks in (
            ((1,), (1,), (1, 1)),
            ((2, 3), (3, 2), (1, 2, 1)),
            ((2, 1, 3), (2, 4, 1), (1, 2, 1, 1)),
            ((2, 2, 2), (3, 2, 1), (1, 2, 2, 1)),
        ):
            sizes = TrainSizes(rows, columns, ranks)
            yield cls._from(random_train(sizes, generator, torch.float64), sizes)


def _choose_two(
    cls: type[Structure],
    m: int,
    n: int,
    budget: float | None = None,
    rank: int | Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
    cores: int = 2,
) -> list[Factors]:
    rank = single_rank(cls.name, rank)
    fixed = None
    if rows is not None or columns is not None:
        sizes = choose_train(cls, m, n, train_numbers, rows=rows, columns=columns, rank=1, cores=2)
        (phi, epsilon), (alpha, gamma) = sizes.rows, sizes.columns
        fixed = (alpha, 1, gamma, 1, epsilon, phi)
    option = "rows=(m1, m2), columns=(n1, n2)"
    return choose_factors(cls, (m, n), grid_candidates(m, n), budget, rank, fixed, option)


def _widen(a: BlockTensorTrain) -> BlockKronecker:
    if len(a.cores) != 2:
        raise ShapeError(
            f"block_tensor_train as block_kronecker: two cores were needed, got {len(a.cores)}",
            got=len(a.cores),
        )
    (phi, epsilon), (alpha, gamma) = a._factors()
    r = a.ranks[1]
    right, left = a._weights()
    return BlockKronecker(left.view(phi, epsilon, 1, r, gamma), right.view(gamma, phi, r, 1, alpha))


def _narrow(a: BlockKronecker) -> BlockTensorTrain:
    f = require_ones(a, BlockTensorTrain, "beta", "delta").factors
    sizes = TrainSizes((f.phi, f.epsilon), (f.alpha, f.gamma), (1, f.rank, 1))
    cores = a.right.view(-1, f.alpha), a.left.view(-1, f.rank * f.gamma)
    return BlockTensorTrain._from(cores, sizes)


FAMILY[BlockTensorTrain] = Conversion(_widen, _narrow)
