"""Block-sparse matrices: a few dense tiles on a regular grid."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from onematrix.errors import BudgetError, FitError, ShapeError
from onematrix.structures.base import Fit, Structure, below_minimum, relative_error
from onematrix.structures.patterns import random_entries
from onematrix.structures.sizes import Size, check_sides, nearest_count, numbers_within

LARGEST_TILE = 16


@dataclass(frozen=True, eq=False)
class BlockSparse(Structure):
    """Tile k of size (p, q) stands at grid place (row[k], column[k]); zero elsewhere. K p q numbers.

    K p q multiply-adds: one batched product of the K tiles with the slices they read.

    >>> BlockSparse(torch.ones(1, 2, 2), torch.tensor([1]), torch.tensor([0]), 4, 2).to_dense()
    tensor([[0., 0.],
            [0., 0.],
            [1., 1.],
            [1., 1.]])
    """

    can_fit = True
    can_random = True

    tiles: Tensor  # (K, p, q)
    tile_rows: Tensor  # (K,), in 0..m/p-1
    tile_columns: Tensor  # (K,), in 0..n/q-1
    rows: int
    columns: int

    def check(self) -> None:
        if self.tiles.dim() != 3:
            raise ShapeError(f"block_sparse.tiles: (K, p, q) was needed, got {tuple(self.tiles.shape)}")
        count, p, q = self.tiles.shape
        if self.rows % p or self.columns % q:
            raise ShapeError(f"block_sparse: tiles {p}×{q} do not divide {self.rows}×{self.columns}")
        for index, limit in ((self.tile_rows, self.rows // p), (self.tile_columns, self.columns // q)):
            if index.shape != (count,) or index.dtype not in (torch.int32, torch.int64):
                raise ShapeError(
                    f"block_sparse: {count} tiles need {count} integer rows and columns, "
                    f"got {index.dtype} {tuple(index.shape)}"
                )
            if (
                count
                and index.device.type != "meta"
                and not 0 <= int(index.min()) <= int(index.max()) < limit
            ):
                raise ShapeError(
                    f"block_sparse: grid places must lie in 0..{limit - 1}, "
                    f"got {int(index.min())}..{int(index.max())}"
                )

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.rows, self.columns

    def exact_size(self) -> dict[str, Any]:
        count, p, q = self.tiles.shape
        return {"blocks": count, "tile": (p, q)}

    def _to_dense(self) -> Tensor:
        _, p, q = self.tiles.shape
        grid = self.tiles.new_zeros(self.rows // p, self.columns // q, p, q)
        places = self.tile_rows.long(), self.tile_columns.long()
        grid = grid.index_put(places, self.tiles, accumulate=True)
        return grid.transpose(1, 2).reshape(self.rows, self.columns)

    def _matmul(self, x: Tensor) -> Tensor:
        return _tile_product(self.tiles.mT, x, self.tile_columns, self.tile_rows, self.rows)

    def _rmatmul(self, y: Tensor) -> Tensor:
        return _tile_product(self.tiles, y, self.tile_rows, self.tile_columns, self.columns)

    def learning_rate_scale(self) -> dict[str, float]:
        """n ÷ inputs of one sum, of which a row has K p q ÷ m on average."""
        m, n = self.fixed_shape
        return {"tiles": m * n / max(1, self.tiles.numel())}

    def multiply_adds(self) -> int:
        return self.tiles.numel()

    def nonzeros(self) -> int:
        return self.tiles.numel()

    @classmethod
    def _fit(
        cls,
        dense: Tensor,
        gram: Tensor | None,
        *,
        budget: float | None = None,
        blocks: int | None = None,
        tile: tuple[int, int] | None = None,
    ) -> Fit:
        """The tiles of largest norm, unchanged; exact for the Frobenius norm."""
        m, n = dense.shape
        p, q = _choose_tile(m, n, tile)
        count = _choose_blocks(cls, m, n, p, q, budget, blocks, exact=False)
        grid = dense.reshape(m // p, p, n // q, q).transpose(1, 2)  # (m/p, n/q, p, q)
        score = grid.detach().double().square()
        if gram is not None:
            score = score * gram.detach().double().diagonal().clamp(min=0).view(1, n // q, 1, q)
        score = score.sum((2, 3)).reshape(-1)
        kept = torch.sort(score, descending=True, stable=True).indices[:count].sort().values
        fitted = cls._from(grid.reshape(-1, p, q)[kept], kept, m, n)
        total = float(score.sum())
        rest = (max(0.0, total - float(score[kept].sum())) / total) ** 0.5 if total else 0.0
        return Fit(fitted, relative_error(fitted, dense, gram), rest if gram is None else None)

    @classmethod
    def _from(cls, tiles: Tensor, places: Tensor, m: int, n: int) -> Self:
        wide = n // tiles.shape[2]
        rows = torch.div(places, wide, rounding_mode="floor")
        return cls(tiles.contiguous(), rows.to(torch.int32), (places - rows * wide).to(torch.int32), m, n)

    @classmethod
    def random(
        cls,
        m: int,
        n: int,
        budget: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        blocks: int | None = None,
        tile: tuple[int, int] | None = None,
        **size: Any,
    ) -> Self:
        """round(E m n ÷ p q) tiles at places drawn without replacement; values N(0, m ÷ K p q)."""
        check_sides(cls.name, m, n)
        p, q = _choose_tile(m, n, tile)
        count = _choose_blocks(cls, m, n, p, q, budget, blocks, exact=True)
        places = random_entries(m // p, n // q, count, generator)
        tiles = torch.randn(count, p, q, generator=generator) * (m / (count * p * q)) ** 0.5
        return cls._from(tiles, places, m, n)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for m, n, p, q, count in ((1, 1, 1, 1, 1), (6, 4, 2, 2, 3), (4, 9, 2, 3, 6), (3, 5, 1, 5, 1)):
            tiles = torch.randn(count, p, q, generator=generator, dtype=torch.float64)
            yield cls._from(tiles, random_entries(m // p, n // q, count, generator), m, n)


def _tile_product(factors: Tensor, x: Tensor, source: Tensor, target: Tensor, width: int) -> Tensor:
    """Σ_k x[slice source(k)] @ factors[k] into slice target(k): x (..., a·s), factors (K, s, t)."""
    _, s, t = factors.shape
    slices = x.reshape(-1, x.shape[-1] // s, s).transpose(0, 1)  # (a, B, s)
    products = torch.bmm(slices.index_select(0, source), factors)  # (K, B, t)
    out = products.new_zeros(width // t, products.shape[1], t).index_add(0, target, products)
    return out.transpose(0, 1).reshape(*x.shape[:-1], width)


def _choose_tile(m: int, n: int, tile: tuple[int, int] | None) -> tuple[int, int]:
    p, q = tile or (_largest_divisor(m), _largest_divisor(n))
    if p < 1 or q < 1 or m % p or n % q:
        raise FitError(
            f"block_sparse {m}×{n}: tile {p}×{q} does not divide it; "
            f"the tile taken by itself is {_largest_divisor(m)}×{_largest_divisor(n)}"
        )
    return p, q


def _largest_divisor(n: int) -> int:
    """The largest divisor up to LARGEST_TILE that leaves at least four tiles along the side."""
    return next(d for d in range(min(max(1, n // 4), LARGEST_TILE), 0, -1) if n % d == 0)


def _choose_blocks(
    cls: type[Structure],
    m: int,
    n: int,
    p: int,
    q: int,
    budget: float | None,
    blocks: int | None,
    exact: bool,
) -> int:
    total = (m // p) * (n // q)
    if blocks is None:
        budget = 1.0 if budget is None else budget
        blocks = (
            nearest_count(budget, m // p, n // q, cls.name)
            if exact
            else (numbers_within(budget, m, n, cls.name) // (p * q))
        )
        if blocks < 1:
            raise below_minimum(cls, budget, p * q, m, n, f"one tile {p}×{q}")
    if not 1 <= blocks <= total:
        raise BudgetError(f"block_sparse {m}×{n}: blocks must lie in 1..{total}, got {blocks}", got=blocks)
    return blocks
