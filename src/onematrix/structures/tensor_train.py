"""Tensor trains: a sum of Kronecker products of many factors, stored core by core."""

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
from onematrix.structures.block_projection import choose_factors, kronecker_candidates, truncate
from onematrix.structures.dense import Dense
from onematrix.structures.deviations import core_deviations
from onematrix.structures.factor_sizes import parse_factors, write_factors
from onematrix.structures.family_product import Factors
from onematrix.structures.sizes import Size
from onematrix.structures.train_sizes import (
    TrainSizes,
    balance,
    best_train,
    choose_train,
    fit_of_train,
    plain_limit,
    read_ranks,
    single_rank,
    train_options,
    two_cores,
    useful_ranks,
)
from onematrix.structures.weighted_error import reduce_error


@dataclass(frozen=True, eq=False)
class TensorTrain(Structure):
    """A[(i1 … ic), (j1 … jc)] = Σ_r G1[1, i1, j1, r1] G2[r1, i2, j2, r2] … Gc[r(c−1), ic, jc, 1].

    Σ_t r(t−1) m_t n_t r_t numbers for m = m1 … mc, n = n1 … nc. The product goes through the cores from
    the last to the first: Σ_t (n1 … nt) r_t · m_t r(t−1) · (m(t+1) … mc) multiply-adds. Core t is held as
    the matrix (r(t−1) m_t) × (n_t r_t).

    >>> a = TensorTrain((Dense(torch.ones(2, 6)), Dense(torch.ones(4, 5))), "2 2", "3 5")
    >>> a.shape, a.ranks
    ((4, 15), (1, 2, 1))
    """

    source = "I. Oseledets, SIAM J. Sci. Comput. 33(5), 2011; A. Novikov et al., arXiv:1509.06569"
    composite = True
    can_fit = True
    can_random = True

    cores: tuple[Dense, ...]  # core t: (r(t−1) m_t, n_t r_t)
    row_factors: str  # "m1 … mc"
    column_factors: str  # "n1 … nc"

    def check(self) -> None:
        rows, columns = self._factors()
        shapes = [core.fixed_shape for core in self.cores]
        read_ranks(self.name, shapes, rows, columns)
        check_cores(self.name, "cores", self.cores)

    def _factors(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return parse_factors(self.name, self.row_factors), parse_factors(self.name, self.column_factors)

    @property
    def ranks(self) -> tuple[int, ...]:
        """(r0, r1, …, rc) with r0 = rc = 1."""
        rows, _ = self._factors()
        return (*(core.weight.shape[0] // m for core, m in zip(self.cores, rows, strict=True)), 1)

    @property
    def shape(self) -> tuple[Size, Size]:
        rows, columns = self._factors()
        return math.prod(rows), math.prod(columns)

    def exact_size(self) -> dict[str, Any]:
        rows, columns = self._factors()
        ranks = useful_ranks(self.ranks[1:-1], rows, columns, plain_limit)
        return {"rows": rows, "columns": columns, "rank": ranks}

    def learning_rate_scale(self) -> dict[str, float]:
        """(n ÷ inputs of one sum) ÷ cores: core t sums over n_t r_t (arXiv:2406.06248, section 3.2)."""
        n, count = self.fixed_shape[1], len(self.cores)
        return {f"cores.{t}.weight": n / (count * core.weight.shape[1]) for t, core in enumerate(self.cores)}

    def _to_dense(self) -> Tensor:
        whole = self.cores[0].weight.new_ones(1, 1, 1)  # (rows so far, columns so far, rank)
        rows, columns = self._factors()
        for core, m, n in zip(self.cores, rows, columns, strict=True):
            part = core.weight.reshape(whole.shape[2], m, n, -1)
            whole = torch.einsum("IJr,rijs->IiJjs", whole, part).flatten(0, 1).flatten(1, 2)
        return whole[:, :, 0]

    def _matmul(self, x: Tensor) -> Tensor:
        check_dtypes(self.name, self.cores[0].weight, x)
        rows, columns = self._factors()
        z, done = x.reshape(-1, math.prod(columns)), 1
        k = z.shape[0]
        for t in reversed(range(len(rows))):
            weight = self.cores[t].weight
            left = k * math.prod(columns[:t])
            z = _contract(weight, z.reshape(left, weight.shape[1], done))  # (left, r(t−1) m_t, done)
            done *= rows[t]
        return z.reshape(*x.shape[:-1], done)

    def _rmatmul(self, y: Tensor) -> Tensor:
        check_dtypes(self.name, self.cores[0].weight, y)
        rows, columns = self._factors()
        z, left = y.reshape(-1, math.prod(rows)), y.shape[:-1].numel()
        rest = math.prod(rows)
        for core, m, n in zip(self.cores, rows, columns, strict=True):
            rest //= m
            weight = core.weight
            z = _contract(weight.mT, z.reshape(left, weight.shape[0], rest))  # (left, n_t r_t, rest)
            left *= n
        return z.reshape(*y.shape[:-1], math.prod(columns))

    def multiply_adds(self) -> int:
        rows, columns = self._factors()
        return sum(
            math.prod(columns[:t]) * core.weight.numel() * math.prod(rows[t + 1 :])
            for t, core in enumerate(self.cores)
        )

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
        options = train_options(cls, m, n, plain_numbers, **size)
        limit = seconds if seconds is None or gram is None else seconds / 4
        found, rest, sizes = best_train(options, lambda s: _successive(cls, target, s), limit)
        if gram is not None:
            left = None if seconds is None else seconds - (time.perf_counter() - begin)
            found = reduce_error(found, dense, gram, left)
        a = cls._from([core.weight.to(dense.dtype) for core in found.cores], sizes)
        return fit_of_train(a, dense, gram, rest)

    @classmethod
    def _from(cls, cores: Sequence[Tensor], sizes: TrainSizes) -> Self:
        weights = tuple(Dense(core.contiguous()) for core in cores)
        return cls(weights, write_factors(sizes.rows), write_factors(sizes.columns))

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """Cores as `core_deviations` says, n_t r_t inputs per sum. Two unless cores= or rows= says more."""
        if two_cores(size):
            two = _choose_two(cls, m, n, budget=None if "rank" in size else budget, **size)[0]
            sizes = TrainSizes((two.epsilon, two.delta), (two.beta, two.alpha), (1, two.rank, 1))
        else:
            sizes = choose_train(cls, m, n, plain_numbers, budget=None if "rank" in size else budget, **size)
        return cls._random(sizes, generator, torch.float32)

    @classmethod
    def _random(cls, sizes: TrainSizes, generator: torch.Generator | None, dtype: torch.dtype) -> Self:
        tall = [rank * m for rank, m in zip(sizes.ranks[:-1], sizes.rows, strict=True)]
        wide = [rank * n for rank, n in zip(sizes.ranks[1:], sizes.columns, strict=True)]
        cores = [
            torch.randn(rows, columns, generator=generator, dtype=dtype) * size
            for rows, columns, size in zip(tall, wide, core_deviations(wide), strict=True)
        ]
        return cls._from(cores, sizes)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for rows, columns, ranks in (
            ((1,), (1,), (1, 1)),
            ((2, 3), (3, 2), (1, 2, 1)),
            ((2, 1, 3), (1, 4, 2), (1, 2, 3, 1)),
            ((2, 2, 2), (3, 2, 1), (1, 2, 1, 1)),
        ):
            yield cls._random(TrainSizes(rows, columns, ranks), generator, torch.float64)


def _contract(weight: Tensor, z: Tensor) -> Tensor:
    """weight z[k] for every k: (p, q) and (K, q, b) → (K, p, b); one plain product where b = 1."""
    count, _, width = z.shape
    if width == 1:
        return (z.reshape(count, weight.shape[1]) @ weight.mT).unsqueeze(-1)
    return torch.bmm(weight.expand(count, *weight.shape), z)


def plain_numbers(sizes: TrainSizes) -> int:
    """Σ_t r(t−1) m_t n_t r_t."""
    pairs = zip(sizes.rows, sizes.columns, sizes.ranks, sizes.ranks[1:], strict=False)
    return sum(m * n * before * after for m, n, before, after in pairs)


def _successive(cls: type[TensorTrain], dense: Tensor, sizes: TrainSizes) -> tuple[TensorTrain, float]:
    """TT-SVD: cores from the first to the last by truncated singular values, and Σ σ² of what was left out.

    The parts left out are orthogonal to one another, so their squares add up to the error exactly.
    """
    count = len(sizes.rows)
    order = [axis for t in range(count) for axis in (t, count + t)]
    rest = dense.reshape(*sizes.rows, *sizes.columns).permute(order)  # (m1, n1, m2, n2, …)
    cores, left_out, before = [], 0.0, 1
    for t, (m, n) in enumerate(zip(sizes.rows[:-1], sizes.columns[:-1], strict=True)):
        u, v, lost = truncate(rest.reshape(1, before * m * n, -1), sizes.ranks[t + 1])
        norms = u[0].norm(dim=0).clamp(min=1e-300)  # √σ: the left factor is kept orthonormal
        cores.append((u[0] / norms).reshape(before * m, -1))
        rest, before, left_out = v[0] * norms[:, None], sizes.ranks[t + 1], left_out + float(lost)
    cores.append(rest.reshape(before * sizes.rows[-1], sizes.columns[-1]))
    return cls._from(balance(cores), sizes), left_out


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
        sizes = choose_train(cls, m, n, plain_numbers, rows=rows, columns=columns, rank=1, cores=2)
        (epsilon, delta), (beta, alpha) = sizes.rows, sizes.columns
        fixed = (alpha, beta, 1, delta, epsilon, 1)
    option = "rows=(m1, m2), columns=(n1, n2)"
    return choose_factors(cls, (m, n), kronecker_candidates(m, n), budget, rank, fixed, option)


def _widen(a: TensorTrain) -> BlockKronecker:
    if len(a.cores) != 2:
        raise ShapeError(
            f"tensor_train as block_kronecker: two cores were needed, got {len(a.cores)}", got=len(a.cores)
        )
    (m1, m2), (n1, n2) = a._factors()
    left, right = (core.weight for core in a.cores)
    r = a.ranks[1]
    return BlockKronecker(left.view(1, m1, n1, r, 1), right.view(1, 1, r, m2, n2))


def _narrow(a: BlockKronecker) -> TensorTrain:
    f = require_ones(a, TensorTrain, "gamma", "phi").factors
    sizes = TrainSizes((f.epsilon, f.delta), (f.beta, f.alpha), (1, f.rank, 1))
    left, right = a.left.view(f.epsilon, f.beta * f.rank), a.right.view(f.rank * f.delta, f.alpha)
    return TensorTrain._from((left, right), sizes)


FAMILY[TensorTrain] = Conversion(_widen, _narrow)
