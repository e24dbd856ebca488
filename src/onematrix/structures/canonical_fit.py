"""Canonical decompositions of many small tensors at once: several starts, each followed by exact sweeps."""

import math
import string
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from onematrix.structures.multilinear import Form, Kernel, alternate
from onematrix.structures.multilinear_fit import Search

SWEEPS, BURST = 120, 10  # at most so many; between two looks at the error and at the time
PROGRESS = (
    1e-3  # a burst that gains less of ‖T − A‖² ends the sweeps; 1e-4 took twice as long for 0.1 % of it
)
RIDGE = 1e-12  # of the mean diagonal: terms that grow alike would leave the normal equations singular
ROWS = 2**18  # numbers of the tensors that are swept together, so that they stay in the cache
EXACT = 1e-20  # of ‖T‖²: a rest that no other start makes smaller
Factors = list[Tensor]


def fit_rows(tensors: Tensor, rank: int, search: Search | None = None, sweeps: int = SWEEPS) -> Factors:
    """W_d: (K, R, P_d) with tensors[k] ≈ Σ_r W1[k, r] ∘ … ∘ WD[k, r], for tensors (K, P1, …, PD), D ≥ 3.

    Starts: simultaneous diagonalisation (exact on almost every member of rank ≤ two of its sizes), leading
    singular vectors, and so many at random while there is time; each improved by alternating least squares,
    and the best per tensor is kept.
    """
    search, begin = search or Search(), time.perf_counter()
    end = math.inf if search.seconds is None else begin + search.seconds
    parts = torch.split(tensors, max(1, ROWS // tensors[0].numel()))
    draw = torch.Generator().manual_seed(search.seed)
    fits = []
    for number, part in enumerate(parts):
        now = time.perf_counter()
        share = now + (end - now) / (len(parts) - number) if end < math.inf else end
        fits.append(_fit_part(part, rank, _starts(part, rank, search.starts, draw), sweeps, share))
    return [torch.cat(each) for each in zip(*fits, strict=True)]


def _fit_part(
    tensors: Tensor, rank: int, starts: Iterator[Callable[[], Factors]], sweeps: int, end: float
) -> Factors:
    """The best fit per tensor of all starts; those after the first only while there is time."""
    best = [tensors.new_zeros(len(tensors), rank, size) for size in tensors.shape[1:]]
    total = tensors.flatten(1).square().sum(1)
    least = total
    for number, start in enumerate(starts):
        if number and (time.perf_counter() > end or bool((least <= EXACT * total).all())):
            break
        best, least = _better(tensors, best, least, _alternate(tensors, start(), sweeps, end))
    return _even(best)


def _better(tensors: Tensor, best: Factors, least: Tensor, found: Factors) -> tuple[Factors, Tensor]:
    """Per tensor the factors of the smaller error, and that error; what is not finite is never taken."""
    error = _errors(tensors, found)
    lower = error < least
    kept = [torch.where(lower[:, None, None], new, old) for new, old in zip(found, best, strict=True)]
    return kept, torch.where(lower, error, least)


def form_of(modes: int) -> Form:
    """A[Q, (a …)] = Σ_R Π_d W_d[Q, R, a]."""
    axes = string.ascii_lowercase[:modes]
    return Form(tuple(f"QR{axis}" for axis in axes), "Q", axes)


def _errors(tensors: Tensor, factors: Factors) -> Tensor:
    """‖T − A‖² per tensor."""
    return (tensors - form_of(len(factors)).expand(factors)).flatten(1).square().sum(1)


def _alternate(tensors: Tensor, factors: Factors, sweeps: int, end: float) -> Factors:
    """The best factors per tensor on the way of sweeps, each factor in turn the least-squares solution."""
    kernel = Kernel(form_of(len(factors)))
    best, least = factors, torch.full_like(tensors.flatten(1)[:, 0], math.inf)
    best, least = _better(tensors, best, least, factors)
    for _ in range(0, sweeps, BURST):
        factors = _even(alternate(kernel, factors, tensors, min(BURST, sweeps), RIDGE))
        before = least
        best, least = _better(tensors, best, least, factors)
        gained = float((before - least).sum()) >= PROGRESS * float(least.sum())  # False where all is zero
        if time.perf_counter() > end or not gained:
            break
    return best


def _even(factors: Factors) -> Factors:
    """The same terms with factors of equal norm."""
    norms = torch.stack([f.norm(dim=2) for f in factors])  # (D, K, R)
    mean = norms.clamp(min=1e-300).log().mean(0).exp()
    mean = torch.where((norms > 0).all(0), mean, torch.zeros_like(mean))
    return [f * (mean / n.clamp(min=1e-300))[..., None] for f, n in zip(factors, norms, strict=True)]


def _starts(tensors: Tensor, rank: int, count: int, draw: torch.Generator) -> Iterator[Callable[[], Factors]]:
    """Ways to begin, computed when they are called."""
    if rank <= sorted(tensors.shape[1:])[-2]:
        yield lambda: _diagonalise(tensors, rank)
    yield lambda: _singular_vectors(tensors, rank)
    for _ in range(count):
        yield lambda: _random(tensors, tensors.shape[1:], rank, draw)


def _random(tensors: Tensor, sizes: Sequence[int], rank: int, draw: torch.Generator) -> Factors:
    """Gaussian factors; the scale is found by the first sweep."""
    found = [torch.randn(len(tensors), rank, p, generator=draw, dtype=torch.float64) for p in sizes]
    return [f.to(tensors) for f in found]


def _unfold(tensors: Tensor, mode: int) -> Tensor:
    """(K, P_mode, product of the others)."""
    return tensors.movedim(mode + 1, 1).flatten(2)


def _singular_vectors(tensors: Tensor, rank: int) -> Factors:
    """The leading left singular vectors of every unfolding; random numbers where a mode has too few."""
    draw = torch.Generator().manual_seed(0)
    starts = []
    for mode in range(tensors.dim() - 1):
        u = torch.linalg.svd(_unfold(tensors, mode), full_matrices=False).U.mT[:, :rank]
        more = torch.randn(len(u), rank - u.shape[1], u.shape[2], generator=draw, dtype=torch.float64)
        starts.append(torch.cat([u, more.to(u)], 1))
    return starts


def _diagonalise(tensors: Tensor, rank: int) -> Factors:
    """Two mixtures of slices, M1 = A D1 Bᵀ and M2 = A D2 Bᵀ, share A and B: M1 M2⁺ has eigenvectors A.

    S. Leurgans, R. Ross, R. Abel, SIAM J. Matrix Anal. Appl. 14(4), 1993. The two largest modes are A and
    B; the rest follows by least squares and, mode by mode, leading singular vectors.
    """
    shape = tensors.shape[1:]
    a, b = sorted(range(len(shape)), key=lambda d: (-shape[d], d))[:2]
    rest = [d for d in range(len(shape)) if d not in (a, b)]
    cube = tensors.permute(0, a + 1, b + 1, *(d + 1 for d in rest)).flatten(3)  # (K, A, B, rest)
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(cube.shape[3], 2, generator=draw, dtype=torch.float64).to(cube)
    first, second = (cube @ mixing).unbind(3)  # (K, A, B)
    columns = torch.linalg.svd(cube.flatten(2), full_matrices=False).U[:, :, :rank]  # span of A
    span = torch.linalg.svd(cube.transpose(1, 2).flatten(2), full_matrices=False).U[:, :, :rank]
    small = [columns.mT @ mixture @ span for mixture in (first, second)]  # (K, R, R)
    vectors = torch.linalg.eig(small[0] @ torch.linalg.pinv(small[1])).eigenvectors.real
    of_a = columns @ vectors  # (K, A, R)
    slices = torch.linalg.pinv(of_a) @ cube.flatten(2)  # (K, R, B rest)
    found: dict[int, Tensor] = {a: of_a.mT}
    left = slices.reshape(len(tensors), rank, shape[b], -1)
    for d in (b, *rest):
        parts = left.reshape(len(tensors), rank, shape[d], -1)
        u, s, v = torch.linalg.svd(parts, full_matrices=False)
        found[d] = u[..., 0] * s[..., :1]
        left = v[..., 0, :]
    return [found[d] for d in range(len(shape))]
