"""Recognition of Kronecker products: every block a multiple of one block."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity
from onematrix.structures.kronecker import Kronecker
from onematrix.structures.per_axis import PerAxis

SAMPLE = 64  # places, and as many entries that are not 0, a pair of sizes is judged by first


def find_kronecker(dense: Tensor, allowed: float = 0.0) -> Structure | None:
    """B ⊗ C with entries that differ from these by at most `allowed`; None where there is none.

    Every pair of sizes that divide the shape is tried, outer products of two vectors excepted. With allowed = 0
    the products of the entries of B and C, as they are rounded, must be these bits; such factors are found where
    one of them has a power of two (a one, say) at its largest entry. I ⊗ C and B ⊗ I run as C and B along one
    axis. Cost: SAMPLE entries per pair of sizes, and a few passes over all for those that survive.
    """
    m, n = dense.shape
    pivot = int(dense.abs().argmax())
    i, j = divmod(pivot, n)
    rows, columns = _sample(dense)
    for m2, n2 in _sizes(m, n):
        if _plausible(dense, (i, j), (m2, n2), rows, columns, allowed):
            blocks = dense.reshape(m // m2, m2, n // n2, n2)
            found = _split(blocks, i // m2, i % m2, j // n2, j % n2, allowed)
            if found is not None:
                return found
    return None


def _sample(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Places to look at first: as many anywhere as with an entry that is not 0."""
    draw = torch.Generator().manual_seed(0)
    flat = dense.reshape(-1)
    used = flat.nonzero().flatten()
    anywhere = torch.randint(len(flat), (SAMPLE,), generator=draw)
    some = used[torch.randint(len(used), (SAMPLE,), generator=draw)]
    places = torch.cat([anywhere, some])
    return places // dense.shape[1], places % dense.shape[1]


def _sizes(m: int, n: int) -> Iterator[tuple[int, int]]:
    """Shapes of C, smallest first, so that B ⊗ C costs least where several fit."""
    pairs = [(a, b) for a in _divisors(m) for b in _divisors(n) if 1 < a * b < m * n]
    pairs = [(a, b) for a, b in pairs if (a, b) not in ((1, n), (m, 1))]
    yield from sorted(pairs, key=lambda p: p[0] * p[1] + (m // p[0]) * (n // p[1]))


def _divisors(size: int) -> list[int]:
    return [d for d in range(1, size + 1) if size % d == 0]


def _plausible(
    dense: Tensor,
    pivot: tuple[int, int],
    size: tuple[int, int],
    rows: Tensor,
    columns: Tensor,
    allowed: float,
) -> bool:
    """A[i, j] A[pivot] = (entry of the block of i, j at the pivot's place) (entry of the pivot's block), nearly."""
    (i, j), (m2, n2) = pivot, size
    top = dense[i, j].double()
    outer = dense[rows - rows % m2 + i % m2, columns - columns % n2 + j % n2].double()
    inner = dense[i - i % m2 + rows % m2, j - j % n2 + columns % n2].double()
    slack = 4 * allowed + 8 * torch.finfo(dense.dtype).eps * float(top.abs())
    return bool(((dense[rows, columns].double() - outer * inner / top).abs() <= slack).all())


def _split(blocks: Tensor, a: int, b: int, c: int, d: int, allowed: float) -> Structure | None:
    """B and C from the block (a, c) and its entry (b, d), the largest; blocks: (m1, m2, n1, n2)."""
    found = None
    for left, right in _candidates(blocks, blocks[:, b, :, d], blocks[a, :, c, :], blocks[a, b, c, d]):
        made = left[:, None, :, None] * right[None, :, None, :]
        if bool(((made - blocks).abs() <= allowed).all()):
            found = _along(left.contiguous(), right.contiguous())
            if isinstance(found, PerAxis):
                return found
    return found


# Products of floating-point numbers are rounded, so the factors come back bit for bit only where a factor has a
# power of two at the pivot: then that factor is its own multiples, exactly. The other is their ratio, or, where
# both were rounded, the median of the ratios over all blocks, most of which are not off by a unit.
def _candidates(blocks: Tensor, left: Tensor, right: Tensor, top: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield left / top, right
    yield left, right / top
    unit = 2.0 ** math.floor(math.log2(abs(float(top))))
    yield left / unit, _ratios(blocks, left / unit)
    yield _ratios(blocks.permute(1, 0, 3, 2), right / unit), right / unit


def _ratios(blocks: Tensor, factor: Tensor) -> Tensor:
    """The median over the blocks of block ÷ factor, where the factor is not 0; blocks: (m1, m2, n1, n2)."""
    m1, m2, n1, n2 = blocks.shape
    used = (factor != 0).reshape(-1)
    ratios = (
        blocks.permute(0, 2, 1, 3).reshape(m1 * n1, m2, n2)[used] / factor.reshape(-1)[used][:, None, None]
    )
    return ratios.median(0).values


def _along(left: Tensor, right: Tensor) -> Structure:
    if _is_identity(left):
        return PerAxis((Identity(len(left)), Dense(right)))
    if _is_identity(right):
        return PerAxis((Dense(left), Identity(len(right))))
    return Kronecker(left, right)


def _is_identity(a: Tensor) -> bool:
    return a.shape[0] == a.shape[1] and torch.equal(a, torch.eye(len(a), dtype=a.dtype))
