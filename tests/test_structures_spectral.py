"""Circulant and Toeplitz matrices: what the laws of all structures do not say. References are dense."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from onematrix.errors import BudgetError, FitError, ShapeError
from onematrix.structures.circulant import Circulant
from onematrix.structures.spectral import fast_size, spectral_multiply_adds
from onematrix.structures.toeplitz import Toeplitz
from structure_cases import near, normal


def circulant_basis(n):
    """The n matrices of ones on one wrapped diagonal."""
    made = torch.zeros(n, n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            made[(i - j) % n, i, j] = 1
    return made


def toeplitz_basis(m, n):
    made = torch.zeros(m + n - 1, m, n, dtype=torch.float64)
    for i in range(m):
        for j in range(n):
            made[i - j + n - 1, i, j] = 1
    return made


def best(basis, target, gram):
    """The member nearest to the target by dense least squares, errors weighted by a root of the gram."""
    values, vectors = torch.linalg.eigh(gram)
    root = vectors * values.clamp(min=0).sqrt()
    design = (basis @ root).flatten(1).T
    return torch.linalg.lstsq(design, (target @ root).flatten()[:, None], driver="gelsd").solution[:, 0]


@pytest.mark.parametrize(("m", "n"), [(1, 1), (6, 6), (7, 7), (5, 3), (3, 8)])
@pytest.mark.parametrize("weighted", [False, True])
def test_fits_are_the_least_squares_over_the_diagonals(m, n, weighted):
    target, x = normal(m, n), normal(3 * n, n, seed=2)
    gram = x.mT @ x if weighted else torch.eye(n, dtype=torch.float64)
    given = gram if weighted else None
    found = Toeplitz.fit(target, gram=given).structure
    near(found.diagonals, best(toeplitz_basis(m, n), target, gram), torch.float32)
    if m == n:
        near(Circulant.fit(target, gram=given).structure.column, best(circulant_basis(n), target, gram))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_a_circulant_solves_and_knows_its_determinant(n):
    a, y = Circulant(normal(n)), normal(3, n, seed=2)
    near(a.solve(y), torch.linalg.solve(a.to_dense(), y.mT).mT, torch.float32)
    near(a.logdet(), torch.linalg.slogdet(a.to_dense()).logabsdet)


def test_a_toeplitz_matrix_that_wraps_is_circulant():
    column = normal(5)
    wrapped = Toeplitz(torch.cat([column[1:], column]), 5)
    near(wrapped.to_dense(), Circulant(column).to_dense())
    x = normal(4, 5, seed=2)
    near(wrapped.matmul(x), Circulant(column).matmul(x))


class Transforms(TorchDispatchMode):
    """Sizes of the FFTs done and numbers of complex products."""

    def __init__(self):
        super().__init__()
        self.sizes, self.products = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("_fft_r2c", "_fft_c2r"):
            rows, real = (args[0], args[0].shape[-1]) if name == "_fft_r2c" else (out, out.shape[-1])
            self.sizes += [real] * (rows.numel() // real)
        elif name == "mul" and out.is_complex():
            self.products += out.numel()
        return out


@pytest.mark.parametrize(
    "a", [Circulant(normal(64)), Toeplitz(normal(97), 40)], ids=["circulant", "toeplitz"]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_work_is_two_ffts_a_vector_and_one_of_the_weights(a, batch):
    with Transforms() as seen:
        a.matmul(normal(batch, a.shape[1]))
    size = 64 if isinstance(a, Circulant) else 100
    assert seen.sizes == [size] * (2 * batch + 1)
    assert seen.products == batch * (size // 2 + 1)
    flops = 2 * 2.5 * size * math.log2(size)
    assert 1 <= a.multiply_adds() / (flops / 2 + 4 * (size // 2 + 1)) < 1.2


def test_multiply_adds_grow_as_n_log_n():
    counts = [Circulant(normal(2**k)).multiply_adds() for k in range(6, 14)]
    assert all(2 < after / before < 2.4 for before, after in itertools.pairwise(counts))
    assert Circulant(normal(1024)).multiply_adds() < 1024**2 / 30
    assert spectral_multiply_adds(1) >= 1


@pytest.mark.parametrize("least", [1, 2, 7, 11, 17, 97, 1023, 1025, 6000, 8191])
def test_fast_sizes_are_the_smallest_without_large_factors(least):
    size = least
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            break
        size += 1
    assert fast_size(least) == size


def test_values_that_cannot_be_are_refused():
    with pytest.raises(ShapeError, match=r"circulant\.column: one dimension of length 1.*got \(2, 2\)"):
        Circulant(normal(2, 2))
    with pytest.raises(ShapeError, match=r"at least 4 numbers was needed for 4 rows, got \(3,\)"):
        Toeplitz(normal(3), 4)
    with pytest.raises(BudgetError, match=r"circulant 8×8: budget 0\.1 is below .*one number per row: 8"):
        Circulant.fit(normal(8, 8), 0.1)
    with pytest.raises(
        BudgetError, match=r"toeplitz 8×6: budget 0\.1 is below .*one number per diagonal: 13"
    ):
        Toeplitz.fit(normal(8, 6), 0.1)
    with pytest.raises(FitError, match="circulant is square, the matrix is 3×4"):
        Circulant.fit(normal(3, 4))
    for cls in (Circulant, Toeplitz):
        with pytest.raises(BudgetError, match=rf"{cls.name} 32×32: budget 0\.01 is below"):
            cls.random(32, 32, 0.01)
