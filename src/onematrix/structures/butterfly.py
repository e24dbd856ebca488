"""Butterfly matrices: a product of log n sparse factors, each mixing one digit of the index."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from onematrix.errors import FitError, ShapeError
from onematrix.structures.base import (
    SECONDS,
    Fit,
    Structure,
    below_minimum,
    check_cores,
    check_dtypes,
    relative_error,
)
from onematrix.structures.block_projection import SMALL
from onematrix.structures.block_train import (
    dense_train,
    fit_train,
    multiply_train,
    multiply_train_adjoint,
    random_train,
    train_numbers,
)
from onematrix.structures.dense import Dense
from onematrix.structures.factor_sizes import (
    cannot_split,
    check_product,
    divisors,
    parse_factors,
    prime_factors,
    spread,
    write_factors,
)
from onematrix.structures.sizes import Size, check_sides, numbers_within
from onematrix.structures.train_sizes import TrainSizes, read_block_ranks
from onematrix.structures.weighted_error import reduce_error


@dataclass(frozen=True, eq=False)
class Butterfly(Structure):
    """A = F_c … F_1: factor t turns digit t of the index, j_t into i_t, and leaves the other digits alone.

    An index is (digit c, …, digit 1, s) with s in 0..k−1; (F_t x)[…, i_t, …, s'] = Σ_{j, s} W_t[all other
    digits][(i_t, s'), (j, s)] x[…, j, …, s]. n = 2^c and k = 1 is the butterfly of the fast Fourier
    transform; k > 1 is the block butterfly. Σ_t K_t m_t n_t k² numbers (2 n k c for square base 2), and as
    many multiply-adds, K_t the number of settings of the other digits. With the digits of its outputs
    reversed it is a block tensor train of rank k.

    >>> twiddle = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    >>> Butterfly((Dense(twiddle.repeat(2, 1)),) * 2, "2 2", "2 2", 1).to_dense()
    tensor([[ 1.,  1.,  1.,  1.],
            [ 1., -1.,  1., -1.],
            [ 1.,  1., -1., -1.],
            [ 1., -1., -1.,  1.]])
    """

    source = (
        "T. Dao et al., arXiv:1903.05895; block butterfly: B. Chen et al., Pixelated Butterfly, 2112.00029"
    )
    composite = True
    can_fit = True
    can_random = True

    # Factor t: K_t blocks (m_t k) × (n_t k), one below the other, in the order (i1 … i(t−1), jc … j(t+1)).
    # Rows are (i_t, s'); columns are (j_1, s) in the first factor and (s, j_t) in the others, as the sums
    # before them leave their results.
    cores: tuple[Dense, ...]
    row_factors: str  # digits of the outputs, "m1 … mc"
    column_factors: str  # digits of the inputs, "n1 … nc"
    block: int  # k

    def check(self) -> None:
        if self.block < 1:
            raise ShapeError(f"butterfly.block: at least 1 was needed, got {self.block}")
        rows, columns = self._train_factors()
        ranks = read_block_ranks(self.name, [core.fixed_shape for core in self.cores], rows, columns)
        if wrong := [r for r in ranks[1:-1] if r != self.block]:
            raise ShapeError(f"butterfly: cores for block {self.block} were needed, got block {wrong[0]}")
        check_cores(self.name, "cores", self.cores)

    def _digits(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return parse_factors(self.name, self.row_factors), parse_factors(self.name, self.column_factors)

    def _train_factors(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """As a block tensor train: s belongs to the first digit of the inputs and the last of the outputs."""
        rows, columns = self._digits()
        return (*rows[:-1], rows[-1] * self.block), (columns[0] * self.block, *columns[1:])

    def _weights(self) -> list[Tensor]:
        return [core.weight for core in self.cores]

    @property
    def shape(self) -> tuple[Size, Size]:
        rows, columns = self._digits()
        return math.prod(rows) * self.block, math.prod(columns) * self.block

    def exact_size(self) -> dict[str, Any]:
        rows, columns = self._digits()
        return {"rows": rows, "columns": columns, "block": self.block}

    def learning_rate_scale(self) -> dict[str, float]:
        """(n ÷ inputs of one sum) ÷ factors: n_t k inputs in factor t (arXiv:2406.06248, section 3.2)."""
        n, count = self.fixed_shape[1], len(self.cores)
        return {f"cores.{t}.weight": n / (count * w.shape[1]) for t, w in enumerate(self._weights())}

    def _to_dense(self) -> Tensor:
        rows, columns = self._train_factors()
        return _reverse_rows(dense_train(self._weights(), rows, columns), self._digits()[0], self.block)

    def _matmul(self, x: Tensor) -> Tensor:
        check_dtypes(self.name, self.cores[0].weight, x)
        y = multiply_train(self._weights(), *self._train_factors(), x)
        return _reverse_digits(y, self._digits()[0], self.block)

    def _rmatmul(self, y: Tensor) -> Tensor:
        check_dtypes(self.name, self.cores[0].weight, y)
        turned = _reverse_digits(y, self._digits()[0][::-1], self.block)
        return multiply_train_adjoint(self._weights(), *self._train_factors(), turned)

    def multiply_adds(self) -> int:
        return sum(w.numel() for w in self._weights())

    @classmethod
    def _fit(cls, dense: Tensor, gram: Tensor | None, *, seconds: float | None = SECONDS, **size: Any) -> Fit:
        """Successive singular values of every block: exact on members, at most √(c − 1) × the best otherwise.

        Options: block=k, rows=(m1, …), columns=(n1, …), budget. With a gram the result is the start of a
        descent on the weighted error.
        """
        target = dense.detach().double()
        fits = [_fit_digits(target, digits) for digits in _choose(cls, *dense.shape, **size)]
        found, rest = min(fits, key=lambda fit: fit[1])
        if gram is not None:
            found = reduce_error(found, dense, gram, seconds)
        cores = tuple(Dense(w.to(dense.dtype)) for w in found._weights())
        a = cls(cores, found.row_factors, found.column_factors, found.block)
        total = float(target.norm())
        predicted = rest**0.5 / total if total else 0.0
        return Fit(a, relative_error(a, dense, gram), predicted if gram is None else None)

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """Factors as `core_deviations` says, n_t k inputs per sum; the largest block that the budget allows."""
        check_sides(cls.name, m, n)
        options = _choose(cls, m, n, budget=None if "block" in size else budget, **size)
        return cls._random(max(options, key=lambda d: d.block), generator, torch.float32)

    @classmethod
    def _random(cls, digits: "_Digits", generator: torch.Generator | None, dtype: torch.dtype) -> Self:
        cores = tuple(Dense(w) for w in random_train(digits.sizes, generator, dtype))
        return cls(cores, write_factors(digits.rows), write_factors(digits.columns), digits.block)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for rows, columns, block in (
            ((1,), (1,), 1),
            ((2, 2, 2), (2, 2, 2), 1),
            ((2, 2), (2, 2), 3),
            ((3, 2, 1), (1, 2, 2), 1),
            ((2, 3), (4, 1), 2),
        ):
            yield cls._random(_Digits(rows, columns, block), generator, torch.float64)


@dataclass(frozen=True)
class _Digits:
    """Digits of the outputs and of the inputs, and the block size."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    block: int

    @property
    def sizes(self) -> TrainSizes:
        """The same as a block tensor train."""
        rows = (*self.rows[:-1], self.rows[-1] * self.block)
        columns = (self.columns[0] * self.block, *self.columns[1:])
        return TrainSizes(rows, columns, (1, *[self.block] * (len(rows) - 1), 1))

    def numbers(self) -> int:
        """Stored numbers."""
        return train_numbers(self.sizes)


def _fit_digits(target: Tensor, digits: _Digits) -> tuple[Butterfly, float]:
    turned = _reverse_rows(target, digits.rows[::-1], digits.block)
    cores, rest = fit_train(turned, digits.sizes)
    weights = tuple(Dense(w.contiguous()) for w in cores)
    rows, columns = write_factors(digits.rows), write_factors(digits.columns)
    return Butterfly(weights, rows, columns, digits.block), rest


def _reverse_digits(y: Tensor, digits: tuple[int, ...], block: int) -> Tensor:
    """(…, (d1 … dc, s)) → (…, (dc … d1, s)): the digits of the last dimension in reverse."""
    batch = y.dim() - 1
    order = [*range(batch), *range(batch + len(digits) - 1, batch - 1, -1), batch + len(digits)]
    return y.reshape(*y.shape[:-1], *digits, block).permute(order).reshape(y.shape)


def _reverse_rows(dense: Tensor, digits: tuple[int, ...], block: int) -> Tensor:
    return _reverse_digits(dense.mT, digits, block).mT


def _choose(
    cls: type[Structure],
    m: int,
    n: int,
    budget: float | None = None,
    block: int | None = None,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
) -> list[_Digits]:
    """Digits and block within the budget, the most numbers first; four of all for a large matrix.

    Given ones stand; otherwise prime digits and every common divisor as block.
    """
    if rows is not None or columns is not None:
        options = [_given(cls, m, n, block or 1, rows, columns)]
    else:
        options = [d for k in _block_sizes(m, n, block) if len((d := _prime_digits(m, n, k)).rows) > 1]
    if not options:
        raise cannot_split(cls.name, m, n, "rows=(…), columns=(…)")
    if budget is None and (block is not None or rows is not None):
        return options
    budget = 1.0 if budget is None else budget
    allowed = numbers_within(budget, m, n, cls.name)
    if fitting := sorted((d for d in options if d.numbers() <= allowed), key=lambda d: -d.numbers()):
        return spread(fitting, len(fitting) if m * n <= SMALL else 4)
    least = min(options, key=_Digits.numbers)
    what = f"digits {least.rows} × {least.columns}, block {least.block}"
    if least.numbers() > m * n:
        raise FitError(
            f"butterfly {m}×{n}: {what} stores {least.numbers()} numbers, more than the {m * n} of dense"
        )
    raise below_minimum(cls, budget, least.numbers(), m, n, what)


def _block_sizes(m: int, n: int, block: int | None) -> list[int]:
    """Common divisors of both sizes, or the one that is given."""
    shared = divisors(math.gcd(m, n))
    if block is None:
        return shared
    if block not in shared:
        raise FitError(f"butterfly {m}×{n}: block={block} does not divide both; usable: {shared}", got=block)
    return [block]


def _given(
    cls: type[Structure],
    m: int,
    n: int,
    block: int,
    rows: Sequence[int] | None,
    columns: Sequence[int] | None,
) -> _Digits:
    _block_sizes(m, n, block)  # raises when the block does not divide both
    given = _prime_digits(m, n, block)
    found = _Digits(
        check_product(cls.name, "rows", given.rows if rows is None else rows, m // block),
        check_product(cls.name, "columns", given.columns if columns is None else columns, n // block),
        block,
    )
    if len(found.rows) != len(found.columns):
        raise FitError(
            f"butterfly: as many digits on both sides were needed, got {found.rows} and {found.columns}"
        )
    return found


def _prime_digits(m: int, n: int, block: int) -> _Digits:
    """The prime digits of m ÷ k and n ÷ k, the smallest merged until both have as many.

    Digits of the outputs rise and those of the inputs fall: the order with the fewest numbers.
    """
    rows, columns = prime_factors(m // block), prime_factors(n // block)
    count = min(len(rows), len(columns))
    return _Digits(_merge(rows, count), _merge(columns, count)[::-1], block)


def _merge(primes: list[int], count: int) -> tuple[int, ...]:
    factors = sorted(primes)
    while len(factors) > max(count, 1):
        factors = sorted([factors[0] * factors[1], *factors[2:]])
    return tuple(factors) if count else ()
