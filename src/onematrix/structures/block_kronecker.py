"""The block-Kronecker family: the general member, its best fit, and its conversions to the named ones."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.base import SECONDS, Fit, Structure, relative_error
from onematrix.structures.block_projection import (
    CHUNK,
    choose_factors,
    discarded,
    family_candidates,
    norm_of,
    project,
)
from onematrix.structures.family_product import (
    Factors,
    learning_rates,
    multiply_family,
    multiply_family_adjoint,
    random_family,
    read_factors,
)
from onematrix.structures.low_rank import LowRank
from onematrix.structures.multilinear import Form
from onematrix.structures.sizes import Size
from onematrix.structures.weighted_error import gram_blocks, reduce_form

S = TypeVar("S", bound=Structure)
FORM = Form(("febrg", "gfrda"), "fed", "gba")  # of left and right


@dataclass(frozen=True, eq=False)
class BlockKronecker(Structure):
    """W_{φγ} = Σ_ρ B_{φ:ργ:} ⊗ A_{φ:ργ:}: a φ × γ grid of blocks (ε δ) × (β α). φ γ ρ (δ α + ε β) numbers.

    β γ δ φ ρ (α + ε) multiply-adds. Low rank, Kronecker, two-core tensor train, Monarch and two-core block
    tensor train are members; `as_block_kronecker` and `from_block_kronecker` turn one into another.

    >>> a = BlockKronecker(torch.ones(2, 3, 1, 1, 2), torch.ones(2, 2, 1, 1, 4))
    >>> a.shape, a.multiply_adds()
    ((6, 8), 28)
    """

    source = "A. Potapczynski et al., arXiv:2410.02117, section 3"
    can_fit = True
    can_random = True

    left: Tensor  # B: (φ, ε, β, ρ, γ)
    right: Tensor  # A: (γ, φ, ρ, δ, α)

    def check(self) -> None:
        read_factors(self.left, self.right)

    @property
    def factors(self) -> Factors:
        """The seven sizes."""
        return read_factors(self.left, self.right)

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.factors.shape

    def exact_size(self) -> dict[str, Any]:
        return {"factors": self.factors.with_rank(self.factors.rank)}

    def learning_rate_scale(self) -> dict[str, float]:
        return learning_rates(self.factors)

    def _to_dense(self) -> Tensor:
        blocks = torch.einsum("febrg,gfrda->fedgba", self.left, self.right)
        return blocks.reshape(self.fixed_shape)

    def _matmul(self, x: Tensor) -> Tensor:
        return multiply_family(self.left, self.right, x)

    def _rmatmul(self, y: Tensor) -> Tensor:
        return multiply_family_adjoint(self.left, self.right, y)

    def multiply_adds(self) -> int:
        return self.factors.multiply_adds()

    @classmethod
    def _fit(cls, dense: Tensor, gram: Tensor | None, *, seconds: float | None = SECONDS, **size: Any) -> Fit:
        """The nearest member, exact for the Frobenius norm: every block by its own singular values."""
        options = choose_factors(cls, dense.shape, family_candidates(*dense.shape), **size)
        return fit_family(dense, gram, options, cls, seconds)

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """A ~ N(0, 1/(β γ ρ)), B ~ N(0, 1/α): the variance is kept, and both need one rate of Adam."""
        exact = "rank" in size or isinstance(size.get("factors"), Factors)
        options = choose_factors(
            cls, (m, n), family_candidates(m, n), budget=None if exact else budget, **size
        )
        return cls(*random_family(options[0], generator))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for sizes in ((1,) * 7, (2, 3, 2, 3, 2, 1, 2), (3, 1, 2, 2, 1, 3, 1), (1, 2, 3, 1, 4, 2, 1)):
            left, right = random_family(Factors(*sizes), generator)
            yield cls(left.double(), right.double())


class Conversion(NamedTuple):
    """How a named member is seen as a general one, and back: views of the same numbers."""

    widen: Callable[[Any], BlockKronecker]
    narrow: Callable[[BlockKronecker], Structure]


FAMILY: dict[type[Structure], Conversion] = {
    BlockKronecker: Conversion(lambda a: a, lambda a: a),
    LowRank: Conversion(
        lambda a: BlockKronecker(a.left[None, :, None, :, None], a.right[None, None, :, None]),
        lambda a: LowRank(
            require_ones(a, LowRank, "beta", "gamma", "delta", "phi").left[0, :, 0, :, 0], a.right[0, 0, :, 0]
        ),
    ),
}


def as_block_kronecker(a: Structure) -> BlockKronecker:
    """The same matrix over the same numbers as a general member. Raises ShapeError when a is no member.

    >>> as_block_kronecker(LowRank(torch.ones(3, 2), torch.ones(2, 4))).factors.rank
    2
    """
    if type(a) not in FAMILY:
        names = ", ".join(sorted(cls.name for cls in FAMILY))
        raise ShapeError(f"{a.name} is not of the block-Kronecker family ({names}); fit one to a.to_dense()")
    return FAMILY[type(a)].widen(a)


def from_block_kronecker(a: BlockKronecker, cls: type[S]) -> S:
    """The same matrix over the same numbers as a named member.

    Raises ShapeError when the class has no such sizes, naming the sizes that would have to be 1.

    >>> general = as_block_kronecker(LowRank(torch.ones(3, 2), torch.ones(2, 4)))
    >>> from_block_kronecker(general, LowRank).rank
    2
    """
    if cls not in FAMILY:
        names = ", ".join(sorted(c.name for c in FAMILY))
        raise ShapeError(f"{cls.name} is not of the block-Kronecker family ({names})")
    return FAMILY[cls].narrow(a)  # type: ignore[return-value]


def require_ones(a: BlockKronecker, cls: type[Structure], *names: str) -> BlockKronecker:
    """The member itself. Raises ShapeError unless the named sizes are 1."""
    sizes = {name: getattr(a.factors, name) for name in names}
    if wrong := {name: size for name, size in sizes.items() if size != 1}:
        raise ShapeError(
            f"block_kronecker as {cls.name}: {', '.join(names)} must be 1, got "
            + ", ".join(f"{name}={size}" for name, size in wrong.items())
            + "; only block_kronecker keeps all seven sizes",
            **wrong,
        )
    return a


def fit_family(
    dense: Tensor,
    gram: Tensor | None,
    options: Sequence[Factors],
    cls: type[Structure],
    seconds: float | None = SECONDS,
) -> Fit:
    """The best member over the given sizes; with a gram the weighted error is the one made small.

    For β = 1 the diagonal blocks of the gram (one per column of blocks) are met exactly, so that the result
    is the best there is when the gram has no others; else it is the start of a descent on all numbers, which
    ends with the seconds.
    """
    if gram is not None:
        return _fit_weighted(dense, gram, options, cls, seconds)
    best = min(options, key=lambda f: discarded(dense, f)) if len(options) > 1 else options[0]
    left, right, rest = project(dense, best, dense.dtype)
    found = BlockKronecker(left, right)
    a, error = _finish(found, dense, cls), _distance(dense.detach(), found)
    total = norm_of(dense)
    return Fit(a, error / total if total else error, rest**0.5 / total if total else 0.0)


def _distance(dense: Tensor, a: BlockKronecker) -> float:
    """‖W − A‖_F, some rows of blocks, or of one block, at a time: no whole matrix is made."""
    f, at, norms = a.factors, 0, []
    width = 4 * f.delta * f.shape[1]
    blocks, lines = max(1, CHUNK // (f.epsilon * width)), max(1, CHUNK // width)
    for i in range(0, f.phi, blocks):
        right = a.right[:, i : i + blocks].contiguous()
        for j in range(0, f.epsilon, lines):
            part = BlockKronecker(a.left[i : i + blocks, j : j + lines].contiguous(), right).to_dense()
            norms.append(torch.linalg.vector_norm(dense[at : at + len(part)] - part, dtype=torch.float64))
            at += len(part)
    return float(torch.stack(norms).norm())


def _fit_weighted(
    dense: Tensor,
    gram: Tensor,
    options: Sequence[Factors],
    cls: type[Structure],
    seconds: float | None,
) -> Fit:
    begin = time.perf_counter()
    starts = [_project_weighted(dense, gram, f) for f in options]
    best, exact = min(starts, key=lambda start: relative_error(start[0], dense, gram))
    if exact:
        a = _finish(best, dense, cls)
        return Fit(a, relative_error(a, dense, gram), relative_error(best, dense, gram))
    plain = BlockKronecker(*project(dense, best.factors)[:2])
    start = min((best, plain), key=lambda a: relative_error(a, dense, gram))
    left = None if seconds is None else seconds - (time.perf_counter() - begin)
    found = reduce_form(FORM, (start.left, start.right), lambda c: BlockKronecker(*c), dense, gram, left)
    a = _finish(found, dense, cls)
    return Fit(a, relative_error(a, dense, gram), None)


def _project_weighted(dense: Tensor, gram: Tensor, f: Factors) -> tuple[BlockKronecker, bool]:
    """The best member under the diagonal blocks of the gram, and whether those are all of it."""
    if f.beta > 1:
        return BlockKronecker(*project(dense, f)[:2]), False
    roots, inverses, exact = gram_blocks(gram, f.gamma)  # (γ, α, α)
    parts = dense.detach().double().reshape(-1, f.gamma, f.alpha)
    left, right, _ = project(torch.einsum("mga,gac->mgc", parts, roots).reshape(dense.shape), f)
    right = torch.einsum("gfrdc,gca->gfrda", right, inverses)
    return BlockKronecker(left, right.contiguous()), exact


def _finish(a: BlockKronecker, dense: Tensor, cls: type[Structure]) -> Structure:
    typed = BlockKronecker(a.left.to(dense.dtype), a.right.to(dense.dtype))
    return from_block_kronecker(typed, cls)
