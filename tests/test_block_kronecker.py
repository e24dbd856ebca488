"""The block-Kronecker family: nearest members, sizes, conversions between its named members, refusals."""

import itertools

import pytest
import torch

from onematrix.errors import BudgetError, FitError, ShapeError
from onematrix.structures import grouped_product
from onematrix.structures.base import relative_error
from onematrix.structures.block_kronecker import (
    BlockKronecker,
)
from onematrix.structures.block_projection import discarded, project, rearrange, truncate
from onematrix.structures.block_tensor_train import BlockTensorTrain
from onematrix.structures.factor_sizes import parse_factors
from onematrix.structures.family_product import Factors, random_family
from onematrix.structures.grouped_product import multiply_groups
from onematrix.structures.kronecker import Kronecker
from onematrix.structures.low_rank import LowRank
from onematrix.structures.monarch import Monarch
from onematrix.structures.tensor_train import TensorTrain
from onematrix.structures.tree import leaves, map_tensors, stored_numbers
from structure_cases import generator, normal

# alpha, beta, gamma, delta, epsilon, phi, rank
SIZES = [
    Factors(4, 1, 1, 1, 6, 1, 2),
    Factors(2, 3, 1, 3, 2, 1, 1),
    Factors(3, 2, 1, 2, 4, 1, 3),
    Factors(3, 1, 4, 1, 2, 5, 1),
    Factors(4, 1, 2, 1, 3, 2, 2),
    Factors(2, 2, 3, 2, 3, 2, 1),
    Factors(2, 3, 2, 3, 2, 2, 2),
]
sizes = pytest.mark.parametrize("f", SIZES, ids=str)


def member(f: Factors, seed: int = 0) -> BlockKronecker:
    return BlockKronecker(*(t.double() for t in random_family(f, generator(seed))))


def block_of(dense, f, i, j):
    tall, wide = f.epsilon * f.delta, f.beta * f.alpha
    return dense[i * tall : (i + 1) * tall, j * wide : (j + 1) * wide]


@sizes
def test_every_block_is_a_sum_of_kronecker_products(f):
    a = member(f)
    dense = a.to_dense()
    for i, j in itertools.product(range(f.phi), range(f.gamma)):
        block = sum(
            torch.kron(a.left[i, :, :, r, j].contiguous(), a.right[j, i, r].contiguous())
            for r in range(f.rank)
        )
        torch.testing.assert_close(block_of(dense, f, i, j), block, rtol=1e-14, atol=1e-14)
    assert (stored_numbers(a), a.multiply_adds()) == (f.numbers(), f.multiply_adds())


@sizes
def test_the_rearrangement_is_the_definition(f):
    dense = normal(*f.shape)
    r = rearrange(dense, f)
    assert r.data_ptr() == dense.data_ptr()  # a view: a large matrix is not copied
    for i, j in itertools.product(range(f.phi), range(f.gamma)):
        block = block_of(dense, f, i, j)
        for e, b, d, a in itertools.product(*map(range, (f.epsilon, f.beta, f.delta, f.alpha))):
            assert r[i, j, e, b, d, a] == block[e * f.delta + d, b * f.alpha + a]


def reference_error(dense, f):
    """Σ of the discarded σ² of every block, rearranged entry by entry."""
    total = 0.0
    for i, j in itertools.product(range(f.phi), range(f.gamma)):
        block = block_of(dense, f, i, j)
        tiles = [
            block[e * f.delta : (e + 1) * f.delta, b * f.alpha : (b + 1) * f.alpha].flatten()
            for e in range(f.epsilon)
            for b in range(f.beta)
        ]
        total += float(torch.linalg.svdvals(torch.stack(tiles))[f.rank :].square().sum())
    return total


@sizes
def test_the_projection_reaches_the_singular_values_and_no_neighbour_is_nearer(f):
    dense = normal(*f.shape)
    found = BlockKronecker.fit(dense, factors=f)
    least = (reference_error(dense, f) / float(dense.square().sum())) ** 0.5
    assert found.error == pytest.approx(least, abs=1e-13)
    assert found.predicted == pytest.approx(least, abs=1e-13)
    assert found.structure.factors == f
    for seed in range(20):
        noise = generator(seed)
        size = 10.0 ** -(seed % 4)
        nudged = map_tensors(
            found.structure, lambda t, g=noise, s=size: t + s * torch.randn(t.shape, generator=g).double()
        )
        assert relative_error(nudged, dense) > found.error


@pytest.mark.parametrize("f", [*SIZES, Factors(70, 1, 2, 1, 80, 1, 9), Factors(8, 9, 1, 9, 8, 1, 5)], ids=str)
def test_the_error_by_singular_values_alone_is_that_of_the_projection(f):
    dense = normal(*f.shape)
    assert discarded(dense, f) == pytest.approx(project(dense, f)[2], rel=1e-10, abs=1e-12)


@sizes
def test_members_come_back(f):
    a = member(f)
    found = BlockKronecker.fit(a.to_dense(), factors=f)
    assert max(found.error, found.predicted) < 1e-14
    again = BlockKronecker.fit(found.structure.to_dense(), factors=f)
    torch.testing.assert_close(again.structure.to_dense(), a.to_dense(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(300, 280), (280, 300)])
def test_large_blocks_of_small_rank_are_as_exact_as_by_singular_values(shape):
    noise = normal(2, *shape)
    u, v, rest = truncate(noise, 9)
    values = torch.linalg.svdvals(noise)
    torch.testing.assert_close(rest, values[:, 9:].square().sum(-1), rtol=1e-12, atol=0)
    torch.testing.assert_close((noise - u @ v).square().sum((1, 2)), rest, rtol=1e-12, atol=0)
    scale = torch.logspace(0, -4, 9, dtype=torch.float64)
    planted = (normal(1, shape[0], 9, seed=2) * scale) @ normal(1, 9, shape[1], seed=3)
    for blocks in (planted, planted.expand(2, -1, -1).contiguous()):
        u, v, rest = truncate(blocks, 9)
        assert float((u @ v - planted).norm() / planted.norm()) < 1e-14
        assert float(rest.max().sqrt() / planted.norm()) < 1e-14
    dense = normal(288, 320)
    by_grid = Monarch.fit(dense, blocks=1, rank=5)
    assert by_grid.error == pytest.approx(LowRank.fit(dense, rank=5).error, abs=1e-13)


def test_a_projection_in_pieces_is_the_whole_one(monkeypatch):
    f = SIZES[5]
    dense = normal(*f.shape)
    whole = project(dense, f)
    monkeypatch.setattr("onematrix.structures.block_projection.CHUNK", 1)
    for one, other in zip(whole, project(dense, f), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "f",
    [
        *SIZES,
        Factors(16, 1, 1, 1, 16, 1, 3),
        Factors(2, 1, 4, 1, 2, 4, 1),
        Factors(4, 1, 2, 1, 4, 1, 1),
        Factors(5, 2, 1, 1, 2, 1, 1),
        Factors(2, 4, 1, 4, 2, 1, 1),
        Factors(2, 5, 1, 5, 2, 2, 1),
    ],
    ids=str,
)
def test_the_generic_rank_is_the_numeric_rank(f):
    assert int(torch.linalg.matrix_rank(member(f).to_dense())) == f.generic_rank()


def test_exponents_are_those_of_the_literature():
    d = 256
    table = {
        "dense": (Factors(alpha=d, phi=d), (0, 1, 0)),
        "low rank √d": (Factors(alpha=d, epsilon=d, rank=16), (0, 0.5, 0.5)),
        "monarch": (Factors(alpha=16, gamma=16, epsilon=16, phi=16), (0, 1, 0.5)),
        "kronecker": (Factors(alpha=16, beta=16, delta=16, epsilon=16), (0.5, 1, 0.5)),
        "train of rank √d": (Factors(alpha=16, beta=16, delta=16, epsilon=16, rank=16), (0.5, 1, 0)),
    }
    for name, (f, expected) in table.items():
        assert f.exponents() == pytest.approx(expected, abs=1e-12), name
        omega, psi, nu = f.exponents()
        sums = 1 if min(f.alpha, f.epsilon) < max(f.alpha, f.epsilon) else 2  # α + ε is twice one of them
        assert f.multiply_adds() == pytest.approx(sums * d ** (2 - nu), rel=0.01), name
        assert f.generic_rank() == pytest.approx(d**psi), name
        assert f.multiply_adds() / f.numbers() == pytest.approx(d**omega, rel=0.01), name


def test_a_gram_that_is_diagonal_in_blocks_is_met_exactly():
    f = Factors(alpha=3, gamma=2, epsilon=4, phi=2, rank=1)
    dense, x = normal(*f.shape), normal(40, 6, seed=5) * torch.tensor([1, 5, 9, 2, 0.1, 3])
    gram = x.mT @ x
    gram[:3, 3:] = gram[3:, :3] = 0
    found = Monarch.fit(dense, blocks=(2, 2), rank=1, gram=gram)
    total, left_out = 0.0, 0.0
    for i, j in itertools.product(range(2), range(2)):
        part = gram[3 * j : 3 * j + 3, 3 * j : 3 * j + 3]
        s = torch.linalg.svdvals(block_of(dense, f, i, j) @ torch.linalg.cholesky(part))
        total, left_out = total + float(s.square().sum()), left_out + float(s[1:].square().sum())
    assert found.error == pytest.approx((left_out / total) ** 0.5, abs=1e-12)
    assert found.predicted == pytest.approx(found.error, abs=1e-12)
    one = LowRank.fit(dense, rank=2, gram=gram)
    assert Monarch.fit(dense, blocks=1, rank=2, gram=gram).error == pytest.approx(one.error, abs=1e-12)


@pytest.mark.parametrize(
    ("cls", "size"),
    [
        (Monarch, {"blocks": 2, "rank": 1}),
        (Kronecker, {"left": (2, 3)}),
        (TensorTrain, {"rows": (2, 4), "columns": (3, 3), "rank": 2}),
        (BlockKronecker, {"factors": (3, 1, 3, 2, 2, 2, 1)}),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_any_gram_makes_the_weighted_error_smaller_than_the_projection_does(cls, size):
    n = 9 if cls is not Monarch else 10
    dense, x = normal(8, n), normal(40, n, seed=5) @ normal(n, n, seed=6)
    gram = x.mT @ x
    plain, found = cls.fit(dense, **size), cls.fit(dense, gram=gram, **size)
    by_inputs = float(((dense - found.structure.to_dense()) @ x.mT).norm() / (dense @ x.mT).norm())
    assert found.error == pytest.approx(by_inputs, rel=1e-9)
    assert found.error < relative_error(plain.structure, dense, gram) - 1e-3
    assert found.predicted is None
    for path, core in leaves(found.structure):  # no core alone can be made better: least squares, written out

        def dense_of(t, core=core):
            return map_tensors(found.structure, lambda old: t if old is core else old).to_dense() @ x.mT

        jacobian = torch.func.jacrev(dense_of)(core).flatten(2).flatten(0, 1)
        rest = (dense @ x.mT).flatten()
        best = rest - jacobian @ torch.linalg.lstsq(jacobian, rest, driver="gelsd").solution
        assert found.error - float(best.norm() / rest.norm()) < 1e-6, path


@pytest.mark.parametrize("cls", [Monarch, Kronecker, TensorTrain, BlockTensorTrain, BlockKronecker])
def test_single_precision_and_zero(cls):
    dense = normal(12, 8).float()
    found = cls.fit(dense, 0.6)
    assert all(t.dtype == torch.float32 for _, t in leaves(found.structure))
    assert found.error == pytest.approx(relative_error(found.structure, dense), abs=1e-7)
    nothing = cls.fit(torch.zeros(12, 8), 0.6)
    assert (nothing.error, nothing.predicted) == (0.0, 0.0)
    weighted = cls.fit(torch.zeros(12, 8), 0.6, gram=torch.eye(8) + 1)
    assert weighted.error == 0.0


def test_the_best_grid_within_the_budget_is_taken():
    planted = Monarch.random(24, 36, generator=generator(4), blocks=4, rank=1)
    found = Monarch.fit(planted.to_dense().double(), 0.28)
    assert found.structure.factors.phi == 4
    assert found.error < 1e-7
    grid = Monarch.random(64, 64, 0.25, generator())
    assert (grid.factors.phi, grid.factors.rank) == (8, 1)
    large = normal(256, 256)
    errors = [
        Monarch.fit(large, blocks=b, rank=r).error for b, r in ((2, 16), (4, 8), (8, 4), (16, 2), (32, 1))
    ]
    assert Monarch.fit(large, 0.25).error <= min(errors) + 1e-12


@pytest.mark.parametrize("rank", [1, 4])
def test_learning_rates_are_those_of_the_table(rank):
    d, root = 256, 16
    train = BlockTensorTrain.random(d, d, rank=rank, rows=(root, root), columns=(root, root))
    assert train.learning_rate_scale() == {
        "cores.0.weight": root / 2,
        "cores.1.weight": root / (2 * rank),
    }
    plain = TensorTrain.random(d, d, rank=rank, rows=(root, root), columns=(root, root))
    assert plain.learning_rate_scale() == {"cores.0.weight": root / (2 * rank), "cores.1.weight": root / 2}
    assert Monarch.random(d, d, blocks=4, rank=64).learning_rate_scale() == {"left": 0.5, "right": 2}
    assert Monarch.random(d, d, blocks=4, rank=16).learning_rate_scale() == {"left": 2, "right": 2}
    assert Kronecker.random(d, d, left=(root, root)).learning_rate_scale() == {"left": 8, "right": 8}


@pytest.mark.parametrize("view", ["plain", "transposed", "across"])
def test_grouped_products_and_their_derivatives(view, monkeypatch):
    monkeypatch.setattr(grouped_product, "FEW", 0)
    monkeypatch.setattr(grouped_product, "SMALL", 0)  # small results are copied into order instead
    matrices, x = normal(3, 4, 5).requires_grad_(), normal(3, 5, 2, seed=2)
    if view == "transposed":
        x = x.mT.contiguous().mT
    if view == "across":
        x = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    x.requires_grad_()
    y = multiply_groups(matrices, x)
    assert y.is_contiguous()
    assert torch.equal(y, torch.bmm(matrices, x).transpose(0, 1))
    assert torch.autograd.gradcheck(multiply_groups, (matrices, x), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(multiply_groups, (matrices, x))
    gradient = torch.autograd.grad(y.square().sum(), x)[0]
    assert gradient.stride() == x.stride(), "a gradient in another memory order costs a copy later"


REFUSED = [
    (lambda: Factors(alpha=3, epsilon=2).exponents(), r"square member larger than 1×1 was needed, got 2×3"),
    (lambda: Factors().exponents(), "larger than 1×1 was needed, got 1×1"),
    (
        lambda: BlockKronecker(normal(1, 2, 1, 2, 1), normal(1, 1, 3, 1, 2)),
        r"got \(1, 2, 1, 2, 1\) and \(1, 1, 3, 1, 2\)",
    ),
    (lambda: BlockKronecker(normal(2, 2), normal(2, 2)), r"were needed, got \(2, 2\) and \(2, 2\)"),
    (lambda: Monarch(normal(2, 3, 1, 4), normal(4, 3, 1, 2)), r"monarch.*\(2, 3, 1, 4\) and \(4, 3, 1, 2\)"),
    (lambda: Kronecker(normal(2), normal(2, 2)), r"kronecker.*got \(2,\) and \(2, 2\)"),
    (lambda: parse_factors("monarch", "2 x"), "positive integers with spaces between were needed, got '2 x'"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_values_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ShapeError, match=message):
        make()


UNFIT = [
    (
        Monarch,
        (7, 9),
        {"budget": 0.9},
        r"rows 7 is prime \(the next sizes that split: 8, 9\); columns 9 = 3·3",
    ),
    (Monarch, (7, 9), {"budget": 0.9}, r"accept a factor of 1 with blocks=\(b1, b2\)"),
    (Kronecker, (12, 13), {"budget": 0.9}, "rows 12 = 2·6, 3·4; columns 13 is prime"),
    (Kronecker, (1, 12), {"budget": 0.9}, "rows 1 is one"),
    (BlockTensorTrain, (12, 13), {"budget": 0.9}, r"with rows=\(m1, m2\), columns=\(n1, n2\)"),
    (BlockKronecker, (11, 12), {"budget": 0.9}, "rows 11 is prime.*factors=\\(alpha"),
    (Monarch, (6, 9), {"blocks": 2}, r"columns=\(2, 4\) multiply to 8, the size is 9; usable: 9 = 3·3"),
    (Monarch, (6, 9), {"blocks": (4, 3)}, r"rows=\(4, 1\) multiply to 4, the size is 6; usable: 6 = 2·3"),
    (Kronecker, (6, 9), {"left": (4, 3)}, r"multiply to 4, the size is 6"),
    (Kronecker, (6, 9), {"left": (2, 2)}, r"multiply to 8, the size is 9"),
    (
        BlockKronecker,
        (6, 9),
        {"factors": (3, 3, 1, 2, 2, 1)},
        r"rows=\(1, 2, 2\) multiply to 4, the size is 6",
    ),
    (Monarch, (6, 9), {"rank": 0}, "monarch: rank must be at least 1, got 0"),
    (TensorTrain, (6, 9), {"rank": 0}, "tensor_train: rank must be at least 1, got 0"),
    (
        Monarch,
        (4, 2),
        {},
        r"monarch 4×2: rank 1 in a 2×2 grid of blocks 2×1 stores 12 numbers, more than the 8",
    ),
]


@pytest.mark.parametrize(("cls", "shape", "size", "message"), UNFIT)
def test_sizes_that_do_not_fit_are_refused_with_those_that_do(cls, shape, size, message):
    with pytest.raises(FitError, match=message):
        cls.fit(normal(*shape), **size)
    with pytest.raises(FitError, match=message):
        cls.random(*shape, **size)


@pytest.mark.parametrize(
    ("cls", "smallest"),
    [(Monarch, 0.3334), (Kronecker, 0.1667), (TensorTrain, 0.1667), (BlockTensorTrain, 0.3334)],
)
def test_a_budget_below_the_smallest_member_names_it_and_the_remedy_works(cls, smallest):
    with pytest.raises(BudgetError, match=rf"ask for budget={smallest} or more") as caught:
        cls.fit(normal(12, 12), 0.05)
    assert caught.value.smallest == smallest
    assert stored_numbers(cls.fit(normal(12, 12), smallest).structure) <= smallest * 144


def test_explicit_factors_of_one_are_accepted():
    assert Monarch.fit(normal(7, 9), blocks=(1, 3), rank=2).structure.fixed_shape == (7, 9)
    assert Kronecker.fit(normal(7, 9), left=(7, 1)).structure.fixed_shape == (7, 9)
    assert Monarch.fit(normal(6, 9), blocks=3, rank=2).error < 1e-13
