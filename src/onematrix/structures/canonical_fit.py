"""Canonical decompositions of many small tensors at once: a start that is exact on members, then sweeps."""

import math

import torch
from torch import Tensor

SWEEPS = 60


def fit_rows(tensors: Tensor, rank: int, sweeps: int = SWEEPS) -> list[Tensor]:
    """W_d: (K, R, P_d) with tensors[k] ≈ Σ_r W1[k, r] ∘ … ∘ WD[k, r], for tensors (K, P1, …, PD), D ≥ 3.

    Two starts, simultaneous diagonalisation (exact on almost every member of rank ≤ two of its sizes) and
    leading singular vectors; each improved by alternating least squares; the better one per tensor is kept.
    """
    starts = [_singular_vectors(tensors, rank)]
    if rank <= sorted(tensors.shape[1:])[-2]:
        starts.append(_diagonalise(tensors, rank))
    fits = [_alternate(tensors, start, sweeps) for start in starts]
    errors = torch.stack([_error(tensors, fit) for fit in fits])
    best = torch.nan_to_num(errors, nan=math.inf).argmin(0)  # (K,)
    return [torch.stack(each)[best, torch.arange(len(best))] for each in zip(*fits, strict=True)]


def _unfold(tensors: Tensor, mode: int) -> Tensor:
    """(K, P_mode, product of the others)."""
    return tensors.movedim(mode + 1, 1).flatten(2)


def _products(factors: list[Tensor], but: int) -> Tensor:
    """Row-wise products of all factors but one: (K, R, product of their sizes)."""
    whole = factors[0].new_ones(*factors[0].shape[:2], 1)
    for d, factor in enumerate(factors):
        if d != but:
            whole = (whole[..., None] * factor[:, :, None]).flatten(2)
    return whole


def _error(tensors: Tensor, factors: list[Tensor]) -> Tensor:
    whole = torch.einsum("krp,krn->kpn", factors[0], _products(factors, 0))
    return (_unfold(tensors, 0) - whole).square().sum((1, 2))


def _alternate(tensors: Tensor, factors: list[Tensor], sweeps: int) -> list[Tensor]:
    """Each factor in turn the least-squares solution given the others; of equal norms at the end."""
    factors = list(factors)
    for _ in range(sweeps):
        for d in range(len(factors)):
            others = _products(factors, d)
            factors[d] = torch.linalg.pinv(others).mT @ _unfold(tensors, d).mT
            factors = _even(factors)
    return factors


def _even(factors: list[Tensor]) -> list[Tensor]:
    """The same terms with factors of equal norm."""
    norms = torch.stack([f.norm(dim=2) for f in factors])  # (D, K, R)
    mean = norms.clamp(min=1e-300).log().mean(0).exp()
    mean = torch.where((norms > 0).all(0), mean, torch.zeros_like(mean))
    return [f * (mean / n.clamp(min=1e-300))[..., None] for f, n in zip(factors, norms, strict=True)]


def _singular_vectors(tensors: Tensor, rank: int) -> list[Tensor]:
    """The leading left singular vectors of every unfolding; random numbers where a mode has too few."""
    draw = torch.Generator().manual_seed(0)
    starts = []
    for mode in range(tensors.dim() - 1):
        u = torch.linalg.svd(_unfold(tensors, mode), full_matrices=False).U.mT[:, :rank]
        more = torch.randn(len(u), rank - u.shape[1], u.shape[2], generator=draw, dtype=torch.float64)
        starts.append(torch.cat([u, more.to(u)], 1))
    return starts


def _diagonalise(tensors: Tensor, rank: int) -> list[Tensor]:
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
