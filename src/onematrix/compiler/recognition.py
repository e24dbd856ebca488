"""Recognition: the structure a matrix of fixed numbers has, found in its entries.

Only for numbers that no longer train: a diagonal matrix that trains is dense, its zeros have gradients. By
default an entry counts as what the structure says only when it is bit-equal; a tolerance is asked for. Small
matrices stay as they are but for what costs nothing; of several forms the cheapest by the cost model stands,
and none that does not beat the given one clearly.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from onematrix.compiler.costs import GAIN, nanoseconds
from onematrix.compiler.recognition_convolution import Grid, find_convolution, guess_grids
from onematrix.compiler.recognition_diagonals import find_toeplitz
from onematrix.compiler.recognition_entries import Entries, find_entries
from onematrix.compiler.recognition_kronecker import find_kronecker
from onematrix.structures.base import Structure
from onematrix.structures.compressed import CSR
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones, Zero, scale
from onematrix.structures.low_rank import LowRank
from onematrix.structures.masked import Masked
from onematrix.structures.permutation import Permutation, Selection

SPARSE = 0.1  # of the entries: below this a CSR product is faster than a dense one
LARGE = 65_536  # entries from which a sparse product is worth its overhead
SMALL = 1_024  # entries up to which a dense product is as fast as anything
DENSE = 1 << 24  # entries up to which a sparse matrix is looked at as a dense one


def recognise(
    matrix: Tensor | Structure,
    tolerance: float = 0.0,
    grids: Sequence[tuple[Grid, Grid]] = (),
    forms: bool = True,
) -> Structure:
    """The cheapest structure with these entries, the given one where there is none.

    matrix: (m, n), or a structure that stores entries one by one; others come back as they are. tolerance: largest
    difference of an entry, relative to the largest entry; 0 asks for equal bits. grids: shapes (channels, *sizes)
    of what the rows and the columns stand for; squares are guessed. forms=False: nothing beyond a permutation.
    Found: zero, multiples of the identity
    and of ones, diagonal, permutation, selection, convolution, circulant, Toeplitz, Kronecker, low rank (with a
    tolerance only), sparse, dense. Cost: a few passes over the entries; one SVD with a tolerance.

    >>> recognise(torch.diag(torch.tensor([1.0, 2.0]))).name
    'diagonal'
    """
    given = matrix if isinstance(matrix, Structure) else Dense(matrix)
    e = find_entries(given, tolerance)
    if e is None:
        return given
    if (simple := _simple(e)) is not None:
        return simple
    if not forms or e.m * e.n < SMALL or 1 in (e.m, e.n):
        return given
    found = min([given, *_forms(given, e, grids)], key=nanoseconds)
    return found if nanoseconds(found) < GAIN * nanoseconds(given) else given


def _simple(e: Entries) -> Structure | None:
    """What costs at most one number per row."""
    m, n, k = e.m, e.n, len(e)
    if not k:
        return Zero(m, n)
    first = e.values[0]
    if k == m * n and e.same(float(first)):
        return scale(Ones(m, n), Fraction(float(first)))
    if m != n or m == 1 or not torch.equal(e.rows, torch.unique(e.rows)):
        return None
    if torch.equal(e.rows, e.columns):
        if k == n and e.same(float(first)):
            return scale(Identity(n), Fraction(float(first)))
        return Diagonal(e.values.new_zeros(n).index_put((e.rows,), e.values))
    if k == n and len(torch.unique(e.columns)) == n and e.same(1.0):
        return Permutation(e.columns.contiguous())
    return None


def _forms(given: Structure, e: Entries, grids: Sequence[tuple[Grid, Grid]]) -> Iterator[Structure]:
    """Other forms of the same matrix."""
    m, n, k = e.m, e.n, len(e)
    if k == m and len(torch.unique(e.rows)) == m and e.same(1.0):
        yield Selection(e.columns.contiguous(), n)
    if 2 * k <= m * n:
        yield from _convolutions(e, grids)
    if m * n <= DENSE:
        dense = given.weight.detach() if isinstance(given, Dense) else _filled(e)
        yield from _dense_forms(dense, e.allowed)
        if not isinstance(given, Dense):
            yield Dense(dense)
    if isinstance(given, Dense | Masked) and m * n >= LARGE and k <= SPARSE * m * n:
        yield CSR.from_positions(m, n, e.rows * n + e.columns, e.values)


def _convolutions(e: Entries, grids: Sequence[tuple[Grid, Grid]]) -> Iterator[Structure]:
    found = [a for pair in dict.fromkeys(grids) if (a := find_convolution(e, *pair)) is not None]
    yield from found or [a for pair in guess_grids(e) if (a := find_convolution(e, *pair)) is not None]


def _dense_forms(dense: Tensor, allowed: float) -> Iterator[Structure]:
    if (diagonals := find_toeplitz(dense, allowed)) is not None:
        yield diagonals
    if (factors := find_kronecker(dense, allowed)) is not None:
        yield factors
    if allowed > 0 and (thin := _thin(dense, allowed)) is not None:
        yield thin


def _filled(e: Entries) -> Tensor:
    return e.values.new_zeros(e.m, e.n).index_put((e.rows, e.columns), e.values)


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
