"""The best BLAST matrix for a given matrix: where the search starts, and the search."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onematrix.structures.multilinear import Cores, Form, Kernel
from onematrix.structures.multilinear_fit import Search, fit_form

FORM = Form(("ipr", "rij", "jrq"), "ip", "jq")
LARGE = 1500  # rows and columns above which the singular vectors are found by random projection
Factors = tuple[Tensor, Tensor, Tensor]


class BlastKernel(Kernel):
    """Gradients and grams of BLAST through Y_i = [diag(s_ij) V_j]_j: (b1, r, n), in buffers kept between calls.

    At 1024 × 1024, 16 × 16 blocks, r = 227, a seventh of the time of differentiating the contraction.
    """

    def __init__(self) -> None:
        super().__init__(FORM)
        self.buffers: tuple[Tensor, ...] = ()

    def gradients(self, cores: Cores, pull: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        """Those of U, S and V."""
        left, coupling, right = cores
        scaled, pulled, matrix = self._buffers(cores)
        v, s = right.transpose(0, 1).contiguous(), coupling.transpose(0, 1).contiguous().unsqueeze(-1)
        torch.mul(s, v, out=scaled)  # (b1, r, b2, q)
        y, gradient = scaled.flatten(2), pulled.flatten(2)
        residual = pull(torch.bmm(left, y, out=matrix))
        for_left = torch.bmm(residual, y.mT)
        torch.bmm(left.mT, residual, out=gradient)
        for_coupling = torch.einsum("irjq,rjq->rij", pulled, v)
        return for_left, for_coupling, torch.mul(pulled, s, out=scaled).sum(0).transpose(0, 1)

    def gram(self, cores: Cores, k: int) -> Tensor:
        """YYᵀ over all columns, UᵀU ∘ VVᵀ per block, and over all rows."""
        left, coupling, right = cores
        if k == 1:
            return (torch.bmm(left.mT, left).unsqueeze(1) * torch.bmm(right, right.mT)).flatten(0, 1)
        s = coupling.permute(1, 0, 2) if k == 0 else coupling.permute(2, 0, 1)
        other = right.transpose(0, 1) if k == 0 else left.permute(2, 0, 1)
        y = (s.unsqueeze(-1) * other).flatten(2)
        return torch.bmm(y, y.mT)

    def _buffers(self, cores: Cores) -> tuple[Tensor, ...]:
        left, _, right = cores
        (b1, p, r), (b2, _, q) = left.shape, right.shape
        shapes = [(b1, r, b2, q), (b1, r, b2, q), (b1, p, b2 * q)]
        if [b.shape for b in self.buffers] != shapes or self.buffers[0].dtype != left.dtype:
            self.buffers = tuple(torch.empty(s, dtype=left.dtype) for s in shapes)
        return self.buffers


def fit_blast(
    dense: Tensor,
    blocks: tuple[int, int],
    rank: int,
    gram: Tensor | None = None,
    search: Search | None = None,
) -> Factors:
    """U: (b1, p, r), S: (r, b1, b2), V: (b2, r, q) in float64 with small ‖(W − A) G^½‖.

    Never worse than the best matrix of r components that is block low-rank on the same grid, nor than the
    best of rank r: both are where the search starts (see `latin_start`, `flat_start`), besides random starts.
    """
    m, n = dense.shape
    sizes = {"i": blocks[0], "j": blocks[1], "p": m // blocks[0], "q": n // blocks[1], "r": rank}
    given = [flat_start(dense, blocks, rank, gram)]
    if rank >= max(blocks):
        given.append(latin_start(dense, blocks, rank))
    left, coupling, right = fit_form(BlastKernel(), dense.detach(), sizes, gram, search, given)
    return left, coupling, right


def latin_start(dense: Tensor, blocks: tuple[int, int], rank: int) -> Factors:
    """The best block low-rank matrix with blocks of rank t = r ÷ max(b1, b2), as BLAST, exactly.

    Block (i, j) alone uses the components of group (i + j) mod max(b1, b2), t to a group: within a row or a
    column of blocks no two share a group, so U_i and V_j hold the singular vectors of every block of theirs.
    """
    (b1, b2), (m, n) = blocks, dense.shape
    groups = max(blocks)
    each = min(rank // groups, m // b1, n // b2)
    tiles = dense.double().reshape(b1, m // b1, b2, n // b2).transpose(1, 2)
    u, values, v = torch.linalg.svd(tiles, full_matrices=False)
    half = values[..., :each].sqrt()
    u, v = u[..., :each] * half[..., None, :], half[..., None] * v[..., :each, :]
    i, j = torch.meshgrid(torch.arange(b1), torch.arange(b2), indexing="ij")
    group = (i + j) % groups
    left = u.new_zeros(b1, m // b1, groups, each)
    left[i, :, group] = u
    right = v.new_zeros(b2, groups, each, n // b2)
    right[j, group] = v
    coupling = u.new_zeros(groups, each, b1, b2)
    coupling[group, :, i, j] = 1.0
    return _padded(left.flatten(2), coupling.flatten(0, 1), right.flatten(1, 2), rank)


def flat_start(dense: Tensor, blocks: tuple[int, int], rank: int, gram: Tensor | None = None) -> Factors:
    """The best matrix of rank r, as BLAST with every s_ij one; weighted by G = L Lᵀ where it is given."""
    (b1, b2), (m, n) = blocks, dense.shape
    matrix, back = dense.double(), None
    if gram is not None:
        values, vectors = torch.linalg.eigh(gram.double())
        root = values.clamp(min=values.max() * 1e-10).sqrt()
        matrix, back = matrix @ (vectors * root), vectors.mT / root[:, None]
    rank_there = min(rank, m, n)
    if min(m, n) > LARGE and 4 * rank_there < min(m, n):
        torch_u, values, torch_v = torch.svd_lowrank(matrix.float(), q=rank_there + 8, niter=4)
        u, values, v = torch_u.double(), values.double(), torch_v.mT.double()
    else:
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    half = values[:rank_there].sqrt()
    u, v = u[:, :rank_there] * half, half[:, None] * v[:rank_there]
    if back is not None:
        v = v @ back
    left = u.reshape(b1, m // b1, rank_there)
    right = v.reshape(rank_there, b2, n // b2).transpose(0, 1)
    return _padded(left, u.new_ones(rank_there, b1, b2), right, rank)


def _padded(left: Tensor, coupling: Tensor, right: Tensor, rank: int) -> Factors:
    """The factors with components of zeros up to the rank."""
    more = rank - coupling.shape[0]
    pad = torch.nn.functional.pad
    return (
        pad(left, (0, more)).contiguous(),
        pad(coupling, (0, 0, 0, 0, 0, more)).contiguous(),
        pad(right, (0, 0, 0, more)).contiguous(),
    )


def rank_bound(m: int, n: int, blocks: tuple[int, int]) -> int:
    """r at which every matrix is a member: max(b1, b2) · min(p, q), by `latin_start` at full block rank."""
    return max(blocks) * min(m // blocks[0], n // blocks[1])


def choose_blocks(m: int, n: int) -> tuple[int, int] | None:
    """The finest grid up to 16 × 16 whose couplings b1 b2 cost at most half of what a component's vectors do.

    None where m or n has no divisor from 2 to 16 but itself.

    >>> choose_blocks(1024, 1024), choose_blocks(12, 12), choose_blocks(7, 12)
    ((16, 16), (3, 4), None)
    """
    rows, columns = ([b for b in range(2, 17) if size % b == 0 and b < size] for size in (m, n))
    grids = [(a, b) for a in rows for b in columns if 2 * a * b <= m + n]
    return max(grids, key=lambda grid: (math.prod(grid), min(grid)), default=None)
