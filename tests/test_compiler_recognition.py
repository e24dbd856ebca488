"""Recognition: structures found in the entries of a matrix, bit for bit or within a tolerance."""

import math

import pytest
import torch

import onematrix as om
from onematrix.compiler.recognition import recognise
from onematrix.compiler.recognition_convolution import find_convolution, guess_grids
from onematrix.compiler.recognition_diagonals import find_toeplitz
from onematrix.compiler.recognition_entries import find_entries
from onematrix.compiler.recognition_kronecker import find_kronecker
from onematrix.programs.interpreter import interpret
from onematrix.programs.part import ONE
from onematrix.structures.circulant import Circulant
from onematrix.structures.column import Column
from onematrix.structures.compressed import CSC, CSR
from onematrix.structures.convolution import Convolution
from onematrix.structures.dense import Dense
from onematrix.structures.kronecker import Kronecker
from onematrix.structures.masked import Masked
from onematrix.structures.permutation import Selection
from onematrix.structures.toeplitz import Toeplitz
from structure_cases import near, normal


def sparse(a):
    """The same matrix by its non-zero entries."""
    dense = a.to_dense() if not isinstance(a, torch.Tensor) else a
    positions = (dense.flatten() != 0).nonzero().flatten()
    return CSR.from_positions(*dense.shape, positions, dense.flatten()[positions])


def grids(a):
    target = (a.weight.shape[0], *map(int, a.output_sizes))
    return target, (a.channels, *map(int, a.sizes))


CONVOLUTIONS = {
    "same": Convolution(normal(16, 8, 3, 3), 9, 9, padding="1 1 1 1"),
    "valid": Convolution(normal(2, 3, 2, 4), 7, 9),
    "strided": Convolution(normal(4, 3, 3, 3), 11, 8, stride="2 3", padding="1 1 1 1"),
    "stride beyond the kernel": Convolution(normal(2, 2, 2), 30, stride="5"),
    "dilated": Convolution(normal(3, 2, 3, 2), 10, 9, dilation="2 3", padding="2 2 1 1"),
    "grouped": Convolution(normal(6, 2, 3, 3), 6, 7, padding="1 1 1 1", groups=3),
    "depthwise": Convolution(normal(8, 1, 3, 3), 8, 8, padding="1 1 1 1", groups=8),
    "one by one": Convolution(normal(5, 4, 1, 1), 6, 6),
    "uneven padding": Convolution(normal(3, 2, 3), 12, padding="2 0"),
    "causal": Convolution(normal(1, 1, 5), 40, padding="4 0"),
    "cut behind": Convolution(normal(2, 2, 3), 12, padding="1 -3"),
    "cut in front": Convolution(normal(2, 2, 3), 12, padding="-2 1"),
    "cube": Convolution(normal(2, 2, 2, 3, 2), 4, 5, 3, padding="1 0 1 1 0 0"),
    "single place": Convolution(normal(3, 2, 4), 4),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("tolerance", [0.0, 1e-6])
def test_convolutions_are_found_with_their_geometry(name, tolerance):
    a = CONVOLUTIONS[name]
    dense = a.to_dense()
    found = find_convolution(find_entries(Dense(dense), tolerance), *grids(a))
    assert found is not None
    assert found.shape == a.shape
    assert torch.equal(found.to_dense(), dense) if not tolerance else torch.allclose(found.to_dense(), dense)
    assert found.groups == a.groups
    assert found.weight.numel() <= a.weight.numel() * (2 if name == "cut in front" else 1)
    x = normal(3, a.shape[1], seed=2)
    near(found.matmul(x), x @ dense.mT)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_one_entry_that_differs_is_no_convolution(name):
    a = CONVOLUTIONS[name]
    dense = a.to_dense()
    i, j = dense.nonzero()[len(dense.nonzero()) // 2]
    shared = int((dense == dense[i, j]).sum())
    for change in (1e-9, -float(dense[i, j])):  # another number; an entry that is absent
        other = dense.clone()
        other[i, j] += change
        if shared > 1:
            assert find_convolution(find_entries(Dense(other)), *grids(a)) is None
    nearly = dense.clone()
    nearly[i, j] += 1e-9
    assert find_convolution(find_entries(Dense(nearly), 1e-6), *grids(a)) is not None


def test_taps_that_are_zero_are_no_obstacle():
    weight = normal(4, 2, 3, 3)
    weight[0, 1], weight[2, 0, 1, 1], weight[:, :, 0, :] = 0, 0, 0
    a = Convolution(weight, 6, 6, padding="1 1 1 1")
    found = find_convolution(find_entries(sparse(a)), *grids(a))
    assert torch.equal(found.to_dense(), a.to_dense())


def test_a_random_matrix_on_a_grid_is_none():
    dense = normal(72, 72) * (normal(72, 72, seed=3) > 1)
    assert find_convolution(find_entries(Dense(dense)), (2, 6, 6), (2, 6, 6)) is None
    assert find_convolution(find_entries(Dense(dense)), (2, 36), (2, 6, 6)) is None
    assert find_convolution(find_entries(Dense(dense)), (2, 6, 5), (2, 6, 6)) is None


def test_grids_of_squares_are_guessed_between_flat_parts():
    a = Convolution(normal(32, 16, 3, 3), 12, 12, stride="2 2", padding="1 1 1 1")
    e = find_entries(sparse(a))
    assert ((32, 6, 6), (16, 12, 12)) in list(guess_grids(e))
    found = recognise(sparse(a))
    assert found.name == "convolution"
    assert torch.equal(found.to_dense(), a.to_dense())


def test_the_convolution_of_a_sparse_matrix_too_large_to_be_dense_is_found():
    kernel = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    a = Convolution(kernel, 28, 28, padding="1 1 1 1")
    assert a.shape == (12544, 6272)
    found = recognise(wide_csr(a), grids=[((16, 28, 28), (8, 28, 28))])
    assert found.name == "convolution"
    assert torch.equal(found.weight, kernel)
    assert found.padding == "1 1 1 1"


def wide_csr(a):
    """The compressed rows of a 2-d convolution of stride 1, place by place."""
    o, c, k, _ = a.weight.shape
    h, w, p = int(a.height), int(a.width), a.paddings[0][0]
    oc, ci, ky, kx, y, x = torch.meshgrid(*(torch.arange(s) for s in (o, c, k, k, h, w)), indexing="ij")
    yy, xx = y + ky - p, x + kx - p
    inside = (yy >= 0) & (yy < h) & (xx >= 0) & (xx < w)
    rows, columns = (oc * h + y) * w + x, (ci * h + yy) * w + xx
    positions = (rows * (c * h * w) + columns)[inside]
    order = positions.argsort()
    return CSR.from_positions(o * h * w, c * h * w, positions[order], a.weight[oc, ci, ky, kx][inside][order])


@pytest.mark.parametrize(
    ("a", "kind"),
    [
        (Circulant(normal(40)), Circulant),
        (Toeplitz(normal(70), 30), Toeplitz),
        (Toeplitz(normal(70), 41), Toeplitz),
        (Toeplitz(normal(79), 40), Toeplitz),
        (Toeplitz(normal(7), 1), Toeplitz),
    ],
)
def test_one_number_per_diagonal_is_found(a, kind):
    dense = a.to_dense()
    found = find_toeplitz(dense)
    assert type(found) is kind
    assert torch.equal(found.to_dense(), dense)
    other = dense.clone()
    other[-1, -1] += 1e-9
    if min(dense.shape) > 1:
        assert find_toeplitz(other) is None
        assert type(find_toeplitz(other, 1e-6)) is kind
        assert find_toeplitz(other, 1e-12) is None


def test_a_matrix_whose_diagonals_drift_within_the_tolerance_is_not_toeplitz():
    drift = torch.arange(50.0).double() * 1e-6
    dense = Toeplitz(normal(99), 50).to_dense() + drift[:, None]
    assert find_toeplitz(dense, 2e-6) is None


SHAPES = [(6, 5, 4, 7), (8, 8, 16, 16), (1, 6, 5, 2), (7, 3, 1, 4), (12, 12, 2, 2)]


@pytest.mark.parametrize("sizes", SHAPES)
def test_kronecker_products_are_found(sizes):
    m1, n1, m2, n2 = sizes
    left, right = normal(m1, n1), normal(m2, n2, seed=2)
    right[0, 0] = 4.0  # the largest: a power of two divides it, so that the factors come back bit for bit
    dense = Kronecker(left, right).to_dense()
    found = find_kronecker(dense)
    assert found is not None
    assert torch.equal(found.to_dense(), dense)
    other = dense.clone()
    other[0, 0] += 1e-9
    assert find_kronecker(other) is None
    x = normal(3, n1 * n2, seed=5)
    near(found.matmul(x), x @ dense.mT)


def test_kronecker_products_of_any_numbers_are_found_with_a_tolerance():
    a = Kronecker(normal(9, 7), normal(5, 6, seed=2))
    found = find_kronecker(a.to_dense(), 1e-12)
    near(found.to_dense(), a.to_dense())
    assert find_kronecker(normal(24, 24), 1e-3) is None


def test_blocks_that_repeat_run_along_one_axis():
    block = normal(8, 6)
    for dense in (torch.block_diag(*[block] * 9), torch.kron(block, torch.eye(9, dtype=torch.float64))):
        found = find_kronecker(dense)
        assert found.name == "per_axis"
        assert torch.equal(found.to_dense(), dense)
        assert found.multiply_adds() == 9 * 8 * 6
    assert recognise(torch.block_diag(*[normal(32, 32)] * 8)).name == "per_axis"


def test_outer_products_are_left_to_low_rank():
    assert find_kronecker(torch.outer(normal(13), normal(11, seed=2))) is None


PAYS = [
    (Circulant(normal(1024)).to_dense(), "circulant"),
    (Toeplitz(normal(1999), 1000).to_dense(), "toeplitz"),
    (
        Toeplitz(torch.cat([torch.zeros(1020), normal(7), torch.zeros(1020)]).double(), 1024).to_dense(),
        "csr",  # one channel by so few taps
    ),
    (Circulant(normal(48)).to_dense(), "dense"),  # an FFT of 48 costs more than the product
    (torch.eye(2048).double()[torch.arange(600) * 3 % 2048], "selection"),
    (normal(64, 64), "dense"),
    (torch.kron(normal(16, 16).round(decimals=1), torch.eye(64).double()), "per_axis"),
]


@pytest.mark.parametrize(("dense", "name"), PAYS)
def test_a_form_stands_where_it_pays(dense, name):
    found = recognise(dense)
    assert found.name == name
    assert torch.equal(found.to_dense(), dense)


@pytest.mark.parametrize("kind", [CSR, CSC, Masked])
def test_sparse_matrices_are_looked_at_by_their_entries(kind):
    diagonal = kind.fit(torch.diag(normal(9)), nonzeros=9).structure
    assert recognise(diagonal).name == "diagonal"
    full = kind.fit(normal(70, 60), nonzeros=4200).structure
    assert recognise(full).name == "dense"
    few = kind.fit(normal(400, 400), nonzeros=900).structure
    assert recognise(few).name == ("csc" if kind is CSC else "csr")


def test_entries_named_twice_add_up_and_those_within_the_tolerance_are_none():
    pointers, columns = torch.tensor([0, 3, 3]), torch.tensor([1, 1, 0])
    e = find_entries(CSR(torch.tensor([1.0, 2.0, 1e-9]), pointers, columns, 2), 1e-6)
    assert (e.rows.tolist(), e.columns.tolist(), e.values.tolist()) == ([0], [1], [3.0])
    assert e.allowed == pytest.approx(3e-6)
    assert find_entries(Selection(torch.tensor([0]), 2)) is None
    assert math.isclose(e.sample(1).values.sum(), 3.0)


# In a whole program.


def program_of(blocks, parts, **options):
    return om.Program(om.Step(om.BlockMatrix(blocks, parts), **options), ["x"], ["y"])


def frozen_and_source(program, x, tolerance=0.0):
    module = om.compile(program, measure=False)
    frozen = module.freeze(tolerance)
    near(frozen(x), interpret(program, x, literal=True), torch.float32)
    free = x.clone().requires_grad_()
    weight = normal(*frozen(x).shape, seed=9)
    slopes = [torch.autograd.grad((f(free) * weight).sum(), free)[0] for f in (frozen, module)]
    near(*slopes, torch.float32)
    return frozen


def test_a_sparse_block_between_images_runs_as_torchs_convolution_with_its_bias():
    a = Convolution(normal(16, 8, 3, 3), 14, 14, padding="1 1 1 1")
    bias = normal(16).repeat_interleave(196)
    parts = {"x": (8, 14, 14), "y": (16, 14, 14)}
    blocks = {("y", "x"): sparse(a), ("y", ONE): Column(bias)}
    frozen = frozen_and_source(program_of(blocks, parts, activations={"y": "relu"}), normal(3, 8, 14, 14))
    assert "torch.conv2d(" in frozen.text
    assert "None, [1, 1]" not in frozen.text, "the bias is the convolution's"
    changing = Column(bias + torch.arange(16 * 196.0))
    frozen = frozen_and_source(program_of(blocks | {("y", ONE): changing}, parts), normal(3, 8, 14, 14))
    assert "None, [1, 1]" in frozen.text


def test_what_trains_is_left_as_it_is():
    a = sparse(Convolution(normal(16, 8, 3, 3), 14, 14, padding="1 1 1 1"))
    module = om.compile(program_of({("y", "x"): a}, {"x": (8, 14, 14), "y": (16, 14, 14)}), prove=False)
    assert "csr" in module.lowered.text()
    assert "conv" not in module.text


def test_blocks_on_the_last_dimensions_and_flat_parts_are_looked_at_too():
    a = Convolution(normal(16, 8, 3, 3), 14, 14, padding="1 1 1 1")
    for shape, on in (((2, 8, 14, 14), "last"), ((8 * 196,), "all")):
        parts = {"x": shape, "y": (2, 16, 14, 14) if len(shape) > 1 else (16 * 196,)}
        program = program_of({("y", "x"): om.Block(sparse(a), on=on)}, parts)
        frozen = frozen_and_source(program, normal(2, *shape))
        assert "convolution" in frozen.lowered.text()


def test_recurrent_weights_stay_dense():
    W = Dense(Circulant(normal(600)).to_dense())
    for looped in (False, True):
        step = om.Step(om.BlockMatrix({("y", "x"): W}, {"x": 600, "y": 600}))
        node = om.Loop(step, times=2) if looped else step
        text = om.compile(om.Program(node, ["x"], ["y"])).freeze().lowered.text()
        assert ("circulant" in text) is not looped


def test_a_tolerance_reaches_the_blocks():
    a = Circulant(normal(600)).to_dense() + 1e-9 * normal(600, 600, seed=4)
    program = program_of({("y", "x"): Dense(a)}, {"x": 600, "y": 600})
    assert "dense" in om.compile(program).freeze().lowered.text()
    assert "circulant" in frozen_and_source(program, normal(2, 600), 1e-6).lowered.text()
