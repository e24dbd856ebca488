"""Low-rank matrices: a product of two thin factors."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.errors import FitError, ShapeError
from onematrix.structures.base import Fit, Structure, below_minimum, relative_error
from onematrix.structures.sizes import Size, numbers_within


@dataclass(frozen=True, eq=False)
class LowRank(Structure):
    """A = U V with U: (m, r), V: (r, n). r (m + n) numbers and as many multiply-adds.

    >>> LowRank(torch.ones(3, 1), torch.ones(1, 4)).to_dense().shape
    torch.Size([3, 4])
    """

    source = "C. Eckart, G. Young, Psychometrika 1, 1936, theorem 1"
    can_fit = True
    can_random = True

    left: Tensor  # U: (m, r)
    right: Tensor  # V: (r, n)

    def check(self) -> None:
        if self.left.dim() != 2 or self.right.dim() != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ShapeError(
                "low_rank: left (m, r) and right (r, n) were needed, "
                f"got {tuple(self.left.shape)} and {tuple(self.right.shape)}"
            )

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """r, the number of columns of U."""
        return self.left.shape[1]

    def exact_size(self) -> dict[str, Any]:
        return {"rank": self.rank}

    def _to_dense(self) -> Tensor:
        return self.left @ self.right

    def _matmul(self, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, self.right), self.left)

    def _rmatmul(self, y: Tensor) -> Tensor:
        return (y @ self.left) @ self.right

    def multiply_adds(self) -> int:
        return self.left.numel() + self.right.numel()

    @classmethod
    def _fit(
        cls, dense: Tensor, gram: Tensor | None, *, budget: float | None = None, rank: int | None = None
    ) -> Fit:
        """Truncated singular value decomposition of W L with G = L Lᵀ, and V L⁻¹; exact, O(m n min(m, n))."""
        m, n = dense.shape
        rank = _choose_rank(cls, m, n, budget, rank)
        root, inverse = _root(gram, n)
        left, values, right = torch.linalg.svd(dense.detach().double() @ root, full_matrices=False)
        half = values[:rank].sqrt()
        fitted = cls(
            (left[:, :rank] * half).to(dense.dtype).contiguous(),
            ((half[:, None] * right[:rank]) @ inverse).to(dense.dtype).contiguous(),
        )
        total = float(values.norm())
        predicted = float(values[rank:].norm()) / total if total else 0.0
        return Fit(fitted, relative_error(fitted, dense, gram), predicted)

    @classmethod
    def random(
        cls,
        m: int,
        n: int,
        budget: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        rank: int | None = None,
        **size: Any,
    ) -> Self:
        """U entries N(0, 1/r), V entries N(0, 1/n): r and n inputs per sum."""
        rank = _choose_rank(cls, m, n, budget, rank)
        left = torch.randn(m, rank, generator=generator) / rank**0.5
        return cls(left, torch.randn(rank, n, generator=generator) / n**0.5)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for m, r, n in ((1, 1, 1), (5, 2, 3), (2, 1, 7), (3, 4, 2)):
            left = torch.randn(m, r, generator=generator, dtype=torch.float64)
            yield cls(left, torch.randn(r, n, generator=generator, dtype=torch.float64))


def _choose_rank(cls: type[Structure], m: int, n: int, budget: float | None, rank: int | None) -> int:
    if rank is None:
        rank = numbers_within(1.0 if budget is None else budget, m, n, cls.name) // (m + n)
        if rank < 1 and budget is not None and m + n <= m * n:
            raise below_minimum(cls, budget, m + n, m, n, "rank 1")
        if rank < 1:
            raise FitError(f"low_rank {m}×{n}: rank 1 stores {m + n} numbers, more than the {m * n} of dense")
    if rank < 1:
        raise FitError(f"low_rank: rank must be at least 1, got {rank}", got=rank)
    return min(rank, m, n)


def _root(gram: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
    """L with G = L Lᵀ and its pseudo-inverse; directions no input excites are left at zero."""
    if gram is None:
        eye = torch.eye(n, dtype=torch.float64)
        return eye, eye
    values, vectors = torch.linalg.eigh(gram.detach().double())
    values = values.clamp(min=0).sqrt()
    keep = values > values.max() * 1e-8
    inverse = torch.where(keep, 1 / values.clamp(min=1e-300), torch.zeros_like(values))
    return vectors * values, inverse[:, None] * vectors.mT
