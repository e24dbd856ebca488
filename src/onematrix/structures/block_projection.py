"""The nearest member of the block-Kronecker family: every block rearranged, then truncated to its rank."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from onematrix.errors import BudgetError, FitError
from onematrix.structures.base import Structure, below_minimum
from onematrix.structures.factor_sizes import cannot_split, check_product, proper_divisors, spread
from onematrix.structures.family_product import Factors
from onematrix.structures.sizes import check_rank, check_rank_within, numbers_within

CHUNK = 1 << 22  # numbers per batch of blocks, so that the copies in float64 stay small
GRAM_FROM = 256  # blocks this large, kept to less than half their rank, go by the eigenvalues of their Gram
GRAM_TOTAL = 1 << 22  # as do blocks of so many numbers together, however narrow
SMALL = 1 << 14  # matrices up to so many numbers are tried with every split


def truncate(blocks: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Best U V of a rank per block (K, p, q) in float64, √σ on either side, and the sum of the discarded σ².

    Large blocks kept to a small rank: eigenvectors of the Gram matrix, one power step, and the best
    approximation within their span. A power step divides an error of the span by (σ_r ÷ σ_{r+1})², so a
    block of that rank comes back to rounding. Such blocks are never copied whole: besides them stands one
    Gram matrix of the smaller side.
    """
    return _truncate(blocks[:, None, :, None, :, None], rank)


# What follows takes blocks as (φ, γ, ε, β, δ, α), rows (ε, β) and columns (δ, α), in any memory order: the
# rearrangement of a large matrix is then a view of it, of which only some columns are copied at a time.


def _truncate(blocks: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    if 2 * rank > min(_sides(blocks)) or not _by_gram(blocks, GRAM_FROM):
        u, s, v = torch.linalg.svd(_whole(blocks).double(), full_matrices=False)
        half = s[:, None, :rank].sqrt()
        return u[:, :, :rank] * half, half.mT * v[:, :rank], s[:, rank:].square().sum(-1)
    if _sides(blocks)[0] > _sides(blocks)[1]:
        left, right, rest = _truncate(_turned(blocks), rank)
        return right.mT, left.mT, rest
    vectors = _leading(blocks, rank)
    span = torch.linalg.qr(_power_step(blocks, vectors)).Q
    u, s, v = torch.linalg.svd(_within(blocks, span), full_matrices=False)
    half = s[:, None].sqrt()
    outside = [b.baddbmm_(span, span.mT @ b, alpha=-1).square_().sum((1, 2)) for _, b in _columns(blocks)]
    return (span @ u) * half, half.mT * v, torch.stack(outside).sum(0)


def _sides(blocks: Tensor) -> tuple[int, int]:
    """(p, q) of every block."""
    _, _, epsilon, beta, delta, alpha = blocks.shape
    return epsilon * beta, delta * alpha


def _whole(blocks: Tensor) -> Tensor:
    """(K, p, q), a copy where the blocks are not in this order."""
    return blocks.reshape(-1, *_sides(blocks))


def _turned(blocks: Tensor) -> Tensor:
    """Every block transposed."""
    return blocks.permute(0, 1, 4, 5, 2, 3)


def _by_gram(blocks: Tensor, size: int) -> bool:
    """Whether blocks are so large, a side or all together, that they go by their Gram matrix."""
    return min(_sides(blocks)) >= size or blocks.numel() > GRAM_TOTAL


def _columns(blocks: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Some columns of every block at a time, in float64, and the number of the first.

    Each piece stands only until the next, in the same memory.
    """
    phi, gamma, epsilon, beta, delta, alpha = blocks.shape
    k, p = phi * gamma, epsilon * beta
    step = max(1, CHUNK // (4 * k * p))
    many, few = min(delta, max(1, step // alpha)), min(alpha, step)
    room = blocks.new_empty(k * p * many * few, dtype=torch.float64)
    for d in range(0, delta, many):
        for a in range(0, alpha, few):
            part = blocks[..., d : d + many, a : a + few]
            piece = room[: part.numel()].view(part.shape).copy_(part)
            yield d * alpha + a, piece.view(k, p, -1)


def _power_step(blocks: Tensor, vectors: Tensor) -> Tensor:
    """R Rᵀ V per block."""
    image = torch.zeros_like(vectors)
    for _, part in _columns(blocks):
        image.baddbmm_(part, part.mT @ vectors)
    return image


def _within(blocks: Tensor, span: Tensor) -> Tensor:
    """Qᵀ R per block."""
    found = span.new_empty(len(span), span.shape[2], _sides(blocks)[1])
    for at, part in _columns(blocks):
        found[:, :, at : at + part.shape[2]] = span.mT @ part
    return found


def _gram(blocks: Tensor) -> Tensor:
    """R Rᵀ per block in float64."""
    p = _sides(blocks)[0]
    gram = blocks.new_zeros(blocks.shape[0] * blocks.shape[1], p, p, dtype=torch.float64)
    for _, part in _columns(blocks):
        gram.baddbmm_(part, part.mT)
    return gram


def _leading(blocks: Tensor, rank: int) -> Tensor:
    """Leading eigenvectors of R Rᵀ per block, (K, p, rank); a single large one in the memory of its Gram."""
    gram = _gram(blocks)
    if len(gram) > 1 or gram.device.type != "cpu":
        every: Tensor = torch.linalg.eigh(gram).eigenvectors
        return every[:, :, -rank:]
    from scipy.linalg import eigh  # type: ignore[import-untyped]

    p = gram.shape[1]
    _, vectors = eigh(
        gram[0].numpy().T, subset_by_index=[p - rank, p - 1], overwrite_a=True, check_finite=False
    )
    return torch.from_numpy(vectors.copy(order="C"))[None]


def rearrange(dense: Tensor, factors: Factors) -> Tensor:
    """R, a view: (φ, γ, ε, β, δ, α) with R[f, g, e, b, d, a] = W[(f, e, d), (g, b, a)].

    With (e, b) as rows and (d, a) as columns a Kronecker product B ⊗ A becomes the rank-one matrix
    vec(B) vec(A)ᵀ: C. Van Loan, N. Pitsianis, Linear Algebra for Large Scale and Real-Time Applications,
    1993, theorem 2.1.
    """
    f = factors
    parts = dense.reshape(-1, f.epsilon, f.delta, f.gamma, f.beta, f.alpha)
    return parts.permute(0, 3, 1, 4, 2, 5)


def project(
    dense: Tensor, factors: Factors, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, float]:
    """Left and right of the nearest member in the Frobenius norm, and the error Σ σ² it leaves.

    O(φ γ) singular value decompositions of (ε β) × (δ α), in float64. Exact: the blocks share no number.
    """
    f, parts = factors, []
    for blocks in _block_rows(dense, f):
        u, v, rest = _truncate(blocks, f.rank)
        parts.append((u.to(dtype), v.to(dtype), rest))
    u, v, rest = (torch.cat([part[i] for part in parts]) for i in range(3))
    left = u.reshape(f.phi, f.gamma, f.epsilon, f.beta, f.rank).permute(0, 2, 3, 4, 1)
    right = v.reshape(f.phi, f.gamma, f.rank, f.delta, f.alpha).permute(1, 0, 2, 3, 4)
    return left.contiguous(), right.contiguous(), float(rest.sum())


def _block_rows(dense: Tensor, f: Factors) -> Iterator[Tensor]:
    """The rearranged blocks, some rows of blocks at a time."""
    tall = f.epsilon * f.delta
    step = max(1, CHUNK // (tall * f.shape[1]))
    for i in range(0, f.phi, step):
        yield rearrange(dense[i * tall : (i + step) * tall].detach(), f)


def norm_of(dense: Tensor) -> float:
    """‖W‖_F summed in float64, some rows at a time."""
    rows = torch.split(dense.detach(), max(1, CHUNK // (4 * dense.shape[1])))
    return float(torch.stack([torch.linalg.vector_norm(r, dtype=torch.float64) for r in rows]).norm())


def discarded(dense: Tensor, factors: Factors) -> float:
    """Σ σ² that `project` would leave, from singular values alone; for choosing among sizes."""
    return sum(float(_squares(b)[:, : -factors.rank].sum()) for b in _block_rows(dense, factors))


def _squares(blocks: Tensor) -> Tensor:
    """σ² per block, rising."""
    if not _by_gram(blocks, 64):
        values: Tensor = torch.linalg.svdvals(_whole(blocks).double())
        return values.flip(-1).square()
    p, q = _sides(blocks)
    small = _gram(blocks if p <= q else _turned(blocks))
    found: Tensor
    if len(small) > 1 or small.device.type != "cpu":
        found = torch.linalg.eigvalsh(small)
    else:
        from scipy.linalg import eigvalsh

        rising = eigvalsh(small[0].numpy().T, overwrite_a=True, check_finite=False)
        found = torch.from_numpy(rising)[None]
    return found.clamp(min=0)


def family_candidates(m: int, n: int) -> list[Factors]:
    """Grids and Kronecker products that split both sizes: those of Monarch, then those of a tensor train."""
    return [*grid_candidates(m, n), *kronecker_candidates(m, n)]


def grid_candidates(m: int, n: int) -> list[Factors]:
    """β = δ = 1: φ × γ grids of blocks ε × α, the one nearest to √m × √n first."""
    return _paired(m, n, lambda f, g: Factors(alpha=n // g, gamma=g, epsilon=m // f, phi=f))


def kronecker_candidates(m: int, n: int) -> list[Factors]:
    """φ = γ = 1: (ε × β) ⊗ (δ × α), the one nearest to square roots first."""
    return _paired(m, n, lambda e, b: Factors(alpha=n // b, beta=b, delta=m // e, epsilon=e))


def _paired(m: int, n: int, make: Callable[[int, int], Factors]) -> list[Factors]:
    """Small sizes with every pair of divisors; large ones with pairs of like share, eight at most."""
    rows, columns = proper_divisors(m), proper_divisors(n)
    if m * n <= SMALL:
        pairs = sorted(
            ((r, c) for r in rows for c in columns),
            key=lambda p: abs(math.log(p[0] ** 2 / m)) + abs(math.log(p[1] ** 2 / n)),
        )
        return [make(r, c) for r, c in pairs]
    if not rows or not columns:
        return []
    return [make(r, _like_share(r, m, columns, n)) for r in spread(rows, 8)]


def _like_share(r: int, m: int, columns: Sequence[int], n: int) -> int:
    """The divisor of n whose share log_n is nearest to log_m r."""
    share = math.log(r) / math.log(m)
    return min(columns, key=lambda c: abs(math.log(c) / math.log(n) - share))


def choose_factors(
    cls: type[Structure],
    shape: Sequence[int],
    candidates: Sequence[Factors],
    budget: float | None = None,
    rank: int | None = None,
    factors: Factors | Sequence[int] | None = None,
    option: str = "factors=(alpha, beta, gamma, delta, epsilon, phi)",
) -> list[Factors]:
    """The sizes within the budget, each with the largest rank the budget allows; one when a rank is given.

    Raises FitError when the sizes do not split or the rank is below 1, BudgetError when nothing is so small.
    """
    m, n = shape
    if rank is not None:
        check_rank(cls.name, rank)
    if factors is not None:
        fixed = factors if isinstance(factors, Factors) else Factors(*factors)
        check_product(cls.name, "columns", (fixed.gamma, fixed.beta, fixed.alpha), n)
        check_product(cls.name, "rows", (fixed.phi, fixed.epsilon, fixed.delta), m)
        candidates = [fixed]
        if isinstance(factors, Factors) and rank is None and budget is None:
            rank = fixed.rank
    if not candidates:
        raise cannot_split(cls.name, m, n, option)
    if rank is not None:
        f = candidates[0]
        where = f" in {_grid(f)}"
        return [f.with_rank(check_rank_within(f"{cls.name} {m}×{n}", rank, f.largest_rank, where, option))]
    budget = 1.0 if budget is None else budget
    allowed = numbers_within(budget, m, n, cls.name)
    fitting = [
        f.with_rank(allowed // f.with_rank(1).numbers())
        for f in candidates
        if f.with_rank(1).numbers() <= allowed
    ]
    if not fitting:
        raise _too_large(cls, budget, candidates, m, n)
    return fitting


def _too_large(
    cls: type[Structure], budget: float, candidates: Sequence[Factors], m: int, n: int
) -> FitError | BudgetError:
    f = min((f.with_rank(1) for f in candidates), key=lambda f: f.numbers())
    what = f"rank 1 in {_grid(f)}"
    if f.numbers() > m * n:
        return FitError(
            f"{cls.name} {m}×{n}: {what} stores {f.numbers()} numbers, more than the {m * n} of dense"
        )
    return below_minimum(cls, budget, f.numbers(), m, n, what)


def _grid(f: Factors) -> str:
    blocks = f"a {f.phi}×{f.gamma} grid of blocks {f.epsilon * f.delta}×{f.beta * f.alpha}"
    if f.beta == f.delta == 1:
        return blocks
    return f"{blocks}, sums of {f.epsilon}×{f.beta} ⊗ {f.delta}×{f.alpha}"
