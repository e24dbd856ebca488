"""Recognition: the structure a dense matrix of fixed numbers has, found in its entries.

Only for numbers that no longer train: a diagonal matrix that trains is dense, its zeros have gradients. By
default an entry counts as what the structure says only when it is bit-equal; a tolerance is asked for.
"""

from fractions import Fraction

import torch
from torch import Tensor

from onematrix.structures.base import Structure
from onematrix.structures.compressed import CSR
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones, Zero, scale
from onematrix.structures.low_rank import LowRank
from onematrix.structures.permutation import Permutation

SPARSE = 0.1  # of the entries: below this a CSR product is faster than a dense one
LARGE = 65_536  # entries from which a sparse product is worth its overhead


def recognise(dense: Tensor, tolerance: float = 0.0) -> Structure:
    """The cheapest structure with these entries, Dense where there is none.

    dense: (m, n). tolerance: largest difference of an entry, relative to the largest entry; 0 asks for equal
    bits. Found: zero, multiples of the identity and of ones, diagonal, permutation, low rank (with a tolerance
    only: a rank is never bit-equal), sparse. Cost: a few passes over the entries; one SVD with a tolerance.

    >>> recognise(torch.diag(torch.tensor([1.0, 2.0]))).name
    'diagonal'
    """
    m, n = dense.shape
    allowed = tolerance * float(dense.abs().max()) if dense.numel() else 0.0

    def same(other: Tensor) -> bool:
        return bool(((dense - other).abs() <= allowed).all())

    if same(torch.zeros_like(dense)):
        return Zero(m, n)
    first = dense.flatten()[0]
    if n == 1 or m == 1:
        return (
            scale(Ones(m, n), _ratio(first)) if same(torch.full_like(dense, float(first))) else Dense(dense)
        )
    if m == n:
        vector = dense.diagonal()
        if same(torch.diag(vector)):
            constant = bool(((vector - first).abs() <= allowed).all())
            return scale(Identity(n), _ratio(first)) if constant else Diagonal(vector.contiguous())
        if (order := _order(dense)) is not None:
            return Permutation(order)
    if same(torch.full_like(dense, float(first))):
        return scale(Ones(m, n), _ratio(first))
    if tolerance > 0 and (thin := _thin(dense, allowed)) is not None:
        return thin
    nonzeros = int((dense != 0).sum())
    if dense.numel() >= LARGE and nonzeros <= SPARSE * dense.numel():
        positions = (dense.flatten() != 0).nonzero().flatten()
        return CSR.from_positions(m, n, positions, dense.flatten()[positions])
    return Dense(dense)


def _ratio(number: Tensor) -> Fraction:
    return Fraction(float(number))


def _order(dense: Tensor) -> Tensor | None:
    """order with A[i, order[i]] = 1, where A is a permutation matrix."""
    if not bool(((dense == 0) | (dense == 1)).all()):
        return None
    if not (bool((dense.sum(0) == 1).all()) and bool((dense.sum(1) == 1).all())):
        return None
    return dense.argmax(1)


def _thin(dense: Tensor, allowed: float) -> LowRank | None:
    """The smallest low-rank form within the tolerance that needs at most half the numbers."""
    m, n = dense.shape
    left, values, right = torch.linalg.svd(dense.double(), full_matrices=False)
    for rank in range(1, m * n // (2 * (m + n)) + 1):
        if float(values[rank - 1]) == 0 or rank == len(values):
            break
        if float(values[rank]) > allowed * max(m, n):
            continue
        root = values[:rank].sqrt()
        u, v = (left[:, :rank] * root), root[:, None] * right[:rank]
        if bool(((u @ v - dense.double()).abs() <= allowed).all()):
            return LowRank(u.to(dense.dtype).contiguous(), v.to(dense.dtype).contiguous())
    return None
