"""Fits of BLAST and of multilinear forms: exact steps, starts that bound the error, planted members."""

import time

import pytest
import torch

from onematrix.structures.base import relative_error
from onematrix.structures.blast import Blast
from onematrix.structures.blast_fit import FORM, BlastKernel, flat_start, latin_start
from onematrix.structures.descent import descend
from onematrix.structures.low_rank import LowRank
from onematrix.structures.multilinear import Form, Kernel, LeastSquares, alternate, block, gram_factor
from structure_cases import near, normal
from test_blast import member

SIZES = {"i": 2, "p": 3, "r": 4, "j": 3, "q": 2}


def point(form: Form = FORM, sizes=SIZES, seed: int = 0) -> list[torch.Tensor]:
    return [normal(*shape, seed=seed + k) for k, shape in enumerate(form.shapes(sizes))]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_objective_and_its_gradient_are_the_definition(weighted, decay):
    target, x = normal(6, 6, seed=5), normal(9, 6, seed=6)
    gram = x.mT @ x if weighted else torch.eye(6, dtype=torch.float64)
    cores = [c.requires_grad_() for c in point()]
    rest = Blast(*(c.contiguous() for c in cores)).to_dense() - target
    value = 0.5 * torch.trace(rest @ gram @ rest.mT) + 0.5 * decay * sum(c.square().sum() for c in cores)
    expected = torch.autograd.grad(value, cores)
    for kernel in (BlastKernel(), Kernel(FORM)):
        shaped = target.reshape([SIZES[c] for c in FORM.output])
        least = LeastSquares(kernel, shaped, SIZES, gram if weighted else None, decay)
        found, gradient = least.value(least.pack([c.detach() for c in cores]))
        assert found == pytest.approx(value.item())
        near(least.unpack(gradient), list(expected))


@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_gram_of_a_core_is_that_of_the_jacobian(k):
    """Hessian of ½‖A‖² in one core: block diagonal over the letters shared with the output, the same in its own."""
    cores = point()
    jacobian = torch.func.jacrev(lambda *c: FORM.expand(c), argnums=k)(*cores)
    flat = jacobian.reshape(-1, cores[k].numel())
    hessian = flat.mT @ flat
    for kernel in (Kernel(FORM), BlastKernel()):
        factor = gram_factor(kernel.gram(cores, k), 0.0)
        inverse = torch.cholesky_inverse(factor)
        least = LeastSquares(kernel, torch.zeros(2, 3, 3, 2).double(), SIZES, ridge=0.0)
        vector = normal(cores[k].numel(), seed=8)
        solved = least._solve(k, vector.view(cores[k].shape), inverse)
        near(hessian @ solved.reshape(-1), vector)
    assert set(block(FORM, k).shared + block(FORM, k).own) <= set(FORM.output)


def test_an_alternating_sweep_ends_at_the_best_of_its_last_core():
    target = normal(2, 3, 3, 2, seed=3)
    kernel = Kernel(FORM)
    cores = alternate(kernel, point(), target, 1, 0.0)
    left = [c.requires_grad_() for c in cores]
    gradient = torch.autograd.grad(0.5 * (FORM.expand(left) - target).square().sum(), left[0])[0]
    assert float(gradient.norm()) < 1e-9 * float(target.norm())
    errors = [
        float((FORM.expand(alternate(kernel, point(), target, n, 0.0)) - target).norm()) for n in range(4)
    ]
    assert errors == sorted(errors, reverse=True)


class Bowl:
    """½ xᵀ diag(d) x: minimum 0."""

    def __init__(self):
        self.curvature = torch.logspace(0, 3, 30, dtype=torch.float64)

    def value(self, x):
        return 0.5 * float((self.curvature * x * x).sum()), self.curvature * x

    def preconditioner(self, x):
        return lambda gradient: gradient / 100


def test_descent_reaches_the_minimum_and_stops_where_it_is_told():
    x, value = descend(Bowl(), torch.ones(30, dtype=torch.float64), 500)
    assert value < 1e-12
    near(x, torch.zeros_like(x), torch.float32)
    _, rough = descend(Bowl(), torch.ones(30, dtype=torch.float64), 500, enough=1.0)
    assert 1e-6 < rough <= 1.0
    start = torch.ones(30, dtype=torch.float64)
    same, _ = descend(Bowl(), start, 500, deadline=time.perf_counter() - 1)
    assert torch.equal(same, start)


@pytest.mark.parametrize("blocks", [(2, 3), (3, 2), (4, 4), (1, 2)])
def test_the_latin_start_is_the_best_block_low_rank_matrix(blocks):
    dense, (b1, b2) = normal(12, 12, seed=2), blocks
    found = Blast(*latin_start(dense, blocks, 2 * max(blocks) + 1)).to_dense()
    for i in range(b1):
        for j in range(b2):
            rows, columns = slice(i * 12 // b1, (i + 1) * 12 // b1), slice(j * 12 // b2, (j + 1) * 12 // b2)
            left, values, right = torch.linalg.svd(dense[rows, columns], full_matrices=False)
            near(found[rows, columns], left[:, :2] * values[:2] @ right[:2])


def test_the_flat_start_is_the_best_low_rank_matrix_in_either_norm():
    dense, x = normal(12, 8, seed=2), normal(20, 8, seed=3) * torch.arange(1, 9)
    for gram in (None, x.mT @ x):
        flat = Blast(*flat_start(dense, (3, 2), 3, gram))
        near(flat.to_dense(), LowRank.fit(dense, rank=3, gram=gram).structure.to_dense(), torch.float32)
        assert flat.rank == 3
    assert Blast(*flat_start(dense, (3, 2), 11)).rank == 11  # above min(m, n): the rest are zeros


def test_a_fit_is_never_worse_than_its_starts_and_a_block_low_rank_target_is_exact():
    dense = normal(16, 16, seed=4)
    found = Blast.fit(dense, rank=8, blocks=(4, 4), starts=0)
    bounds = [Blast(*latin_start(dense, (4, 4), 8)), Blast(*flat_start(dense, (4, 4), 8))]
    assert found.error <= min(relative_error(b, dense) for b in bounds)
    better = Blast.fit(dense, rank=8, blocks=(4, 4), starts=2)
    assert better.error < 0.9 * min(relative_error(b, dense) for b in bounds)
    target = Blast(*latin_start(dense, (4, 4), 8)).to_dense()
    assert Blast.fit(target, rank=8, blocks=(4, 4)).error < 1e-12


@pytest.mark.parametrize("size", [(24, 2, 36, 6, 4), (64, 8, 64, 8, 12), (48, 3, 64, 8, 10)])
def test_planted_members_are_recovered_above_the_block_size_too(size):
    a = member(*size)
    found = Blast.fit(a.to_dense(), **a.exact_size())
    assert found.error <= 1e-5


def test_fits_are_reproducible_and_keep_the_dtype_of_the_matrix():
    dense = normal(12, 18, seed=4, dtype=torch.float32)
    one, two = (Blast.fit(dense, rank=3, blocks=(2, 3), seconds=None, starts=2) for _ in range(2))
    assert torch.equal(one.structure.to_dense(), two.structure.to_dense())
    assert one.structure.left.dtype == torch.float32
    assert one.error == pytest.approx(relative_error(one.structure, dense))
    zero = Blast.fit(torch.zeros(12, 18), rank=3, blocks=(2, 3))
    assert (zero.error, float(zero.structure.to_dense().abs().sum())) == (0.0, 0.0)


def test_the_weighted_fit_is_the_better_in_its_norm_and_a_deadline_is_kept():
    dense, x = normal(24, 24, seed=5), normal(60, 24, seed=6) * torch.linspace(0.1, 4, 24)
    gram = x.mT @ x
    plain = Blast.fit(dense, rank=6, blocks=(3, 3), starts=1).structure
    weighted = Blast.fit(dense, rank=6, blocks=(3, 3), gram=gram, starts=1)
    assert weighted.error < relative_error(plain, dense, gram) - 0.01
    assert weighted.error < LowRank.fit(dense, rank=6, gram=gram).error
    begin = time.perf_counter()
    Blast.fit(normal(64, 64, seed=7), rank=12, blocks=(8, 8), seconds=0.5)
    assert time.perf_counter() - begin < 3  # a stage looks at the clock at every step


@pytest.mark.slow
def test_noise_is_fitted_to_the_error_and_in_the_time_of_the_target():
    dense = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    assert Blast.fit(dense, rank=48, blocks=(16, 16), seconds=5).error <= 0.373
    assert Blast.fit(dense, rank=48, blocks=(16, 16), seconds=20).error <= 0.366
