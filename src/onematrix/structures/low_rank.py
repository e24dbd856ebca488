"""Low-rank matrices: a product of two thin factors."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.errors import FitError, ShapeError
from onematrix.structures.base import Fit, Structure, below_minimum, relative_error
from onematrix.structures.block_projection import CHUNK, norm_of, project
from onematrix.structures.deviations import core_deviations
from onematrix.structures.family_product import Factors
from onematrix.structures.sizes import Size, check_rank_within, check_sides, numbers_within


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
        return {"rank": min(self.rank, *self.fixed_shape)}

    def learning_rate_scale(self) -> dict[str, float]:
        """(n ÷ inputs of one sum) ÷ 2 factors: r inputs, then n (arXiv:2406.06248, section 3.2)."""
        return {"left": self.right.shape[1] / (2 * self.rank), "right": 0.5}

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
        sizes = Factors(alpha=n, epsilon=m, rank=_choose_rank(cls, m, n, budget, rank))
        if gram is None:
            return _fit_plain(cls, dense, sizes)
        root, inverse = _root(gram)
        matrix = dense.detach().double() @ root
        left, right, rest = project(matrix, sizes)
        fitted = cls(
            left[0, :, 0, :, 0].to(dense.dtype).contiguous(),
            (right[0, 0, :, 0] @ inverse).to(dense.dtype).contiguous(),
        )
        total = float(matrix.norm())
        return Fit(fitted, relative_error(fitted, dense, gram), rest**0.5 / total if total else 0.0)

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
        """U entries N(0, 1/n), V entries N(0, 1/r): the variance is kept, and both need one rate of Adam."""
        rank = _choose_rank(cls, m, n, budget, rank)
        outer, inner = core_deviations([rank, n])
        left = torch.randn(m, rank, generator=generator) * outer
        return cls(left, torch.randn(rank, n, generator=generator) * inner)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for m, r, n in ((1, 1, 1), (5, 2, 3), (2, 1, 7), (3, 4, 2)):
            left = torch.randn(m, r, generator=generator, dtype=torch.float64)
            yield cls(left, torch.randn(r, n, generator=generator, dtype=torch.float64))


def _fit_plain(cls: type[LowRank], dense: Tensor, sizes: Factors) -> Fit:
    left, right, rest = project(dense, sizes, dense.dtype)
    fitted = cls(left[0, :, 0, :, 0].contiguous(), right[0, 0, :, 0].contiguous())
    total = norm_of(dense)
    error = _distance(dense.detach(), fitted)
    return Fit(fitted, error / total if total else error, rest**0.5 / total if total else 0.0)


def _distance(dense: Tensor, a: LowRank) -> float:
    """‖W − U V‖_F, some rows at a time: no whole matrix is made."""
    step = max(1, CHUNK // (4 * dense.shape[1]))
    parts = zip(torch.split(dense, step), torch.split(a.left, step), strict=True)
    norms = [torch.linalg.vector_norm(w - u @ a.right, dtype=torch.float64) for w, u in parts]
    return float(torch.stack(norms).norm())


def _choose_rank(cls: type[Structure], m: int, n: int, budget: float | None, rank: int | None) -> int:
    check_sides(cls.name, m, n)
    if rank is not None:
        return check_rank_within(f"{cls.name} {m}×{n}", rank, min(m, n))
    rank = numbers_within(1.0 if budget is None else budget, m, n, cls.name) // (m + n)
    if rank < 1 and budget is not None and m + n <= m * n:
        raise below_minimum(cls, budget, m + n, m, n, "rank 1")
    if rank < 1:
        raise FitError(f"low_rank {m}×{n}: rank 1 stores {m + n} numbers, more than the {m * n} of dense")
    return rank


def _root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """L with G = L Lᵀ and its pseudo-inverse; directions no input excites are left at zero."""
    values, vectors = torch.linalg.eigh(gram.detach().double())
    values = values.clamp(min=0).sqrt()
    keep = values > values.max() * 1e-8
    inverse = torch.where(keep, 1 / values.clamp(min=1e-300), torch.zeros_like(values))
    return vectors * values, inverse[:, None] * vectors.mT
