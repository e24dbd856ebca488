"""Recurrences that make the products they are fed: the equation tick by tick in float64, and less memory."""

import itertools

import pytest
import torch

from onematrix.errors import DTypeError, ShapeError
from onematrix.kernels import dense_fed, dense_numba, fed_product, numba_arrays
from onematrix.kernels.dense_fed import run_fed_dense_loop
from onematrix.kernels.elementwise_code import ElementwiseLoop
from onematrix.kernels.elementwise_fed import run_fed_elementwise_loop
from onematrix.records.memory import peak_bytes
from test_kernels_dense import FUNCTIONS, gradients

EXACT = {"rtol": 1e-12, "atol": 1e-12}
# Series a, u, b; vector v; carried c: c ← sigmoid(a) c + b v, outputs c before and after the tick, and c + u.
LOOP = ElementwiseLoop(
    3,
    1,
    1,
    (("activation", 0, "sigmoid"), ("mul", 5, 4), ("mul", 2, 3), ("add", 6, 7), ("add", 8, 1)),
    outputs=(8, 9, 4),
    carry=(8,),
)


@pytest.fixture
def in_pieces(monkeypatch):
    """Products in pieces at any size, whichever kernel runs; how long each piece was."""
    lengths = []
    monkeypatch.setattr(fed_product, "LEAST", 1)
    monkeypatch.setattr(fed_product, "ROWS", 1)
    monkeypatch.setattr("onematrix.kernels.elementwise_loop.WORTHWHILE", 1)
    pieces = fed_product.FedProduct.pieces

    def counted(self, length, reverse=False):
        for start, stop, made in pieces(self, length, reverse):
            lengths.append(stop - start)
            yield start, stop, made
            made.fill_(torch.nan)  # it is valid until the next alone

    monkeypatch.setattr(fed_product.FedProduct, "pieces", counted)
    return lengths


def tensors(*shapes, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g, dtype=dtype) for shape in shapes]


def elementwise_literal(x, weights, biases, u, v, c, reverse, valid):
    ticks, outputs = x.shape[1], {}
    for t in reversed(range(ticks)) if reverse else range(ticks):
        a, b = (
            (x[:, t, None] * w).sum(-1) + (0 if k is None else k)
            for w, k in zip(weights, biases, strict=True)
        )
        new = c / (1 + torch.exp(-a)) + b * v
        mask = torch.ones(len(c), 1, dtype=torch.bool) if valid is None else valid[t, :, None]
        outputs[t] = [torch.where(mask, o, torch.zeros_like(o)) for o in (new, new + u[t], c)]
        c = torch.where(mask, new, c)
    return [torch.stack([outputs[t][k] for t in range(ticks)]) for k in range(3)], [c]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("reverse", "overlap", "selected", "bias"), [*itertools.product([False, True], repeat=4)]
)
def test_elementwise_in_pieces(batch, reverse, overlap, selected, bias, in_pieces):
    x, u, v, c, *weights = tensors((batch, 11, 5), (11, batch, 4), (4,), (batch, 4), (4, 5), (4, 5))
    biases = tensors((4,), (4,), seed=1) if bias else None
    valid = torch.rand(11, batch, generator=torch.Generator().manual_seed(2)) > 0.3 if selected else None
    ours = run_fed_elementwise_loop(
        LOOP, x, weights, biases, [None, u, None], [v], [c], reverse=reverse, valid=valid, overlap=overlap
    )
    theirs = elementwise_literal(x, weights, biases or [None] * 2, u, v, c, reverse, valid)
    torch.testing.assert_close(ours, theirs, **EXACT)
    if numba_arrays.HAS_NUMBA:
        assert in_pieces == ([2, 3, 3, 3] if reverse else [3, 3, 3, 2])


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_elementwise_of_inputs_in_any_order_of_memory(order, in_pieces):
    x, u, v, c, *weights = tensors((3, 9, 5), (9, 3, 4), (4,), (1, 4), (4, 5), (4, 5))
    back = [order.index(i) for i in range(3)]
    laid = [t.permute(order).contiguous().permute(back) for t in (x, u)]
    ours = run_fed_elementwise_loop(
        LOOP, laid[0], weights, None, [None, laid[1], None], [v], [c.expand(3, 4)]
    )
    theirs = elementwise_literal(x, weights, [None, None], u, v, c.expand(3, 4), False, None)
    torch.testing.assert_close(ours, theirs, **EXACT)
    assert len(in_pieces) > 1 or not numba_arrays.HAS_NUMBA


def test_elementwise_gradients_need_all_products(in_pieces):
    x, u, v, c, *rest = (
        t.requires_grad_() for t in tensors((2, 8, 5), (8, 2, 4), (4,), (2, 4), (4, 5), (4, 5))
    )
    given = [x, u, v, c, *rest]
    ours = run_fed_elementwise_loop(LOOP, x, rest, None, [None, u, None], [v], [c])
    theirs = elementwise_literal(x, rest, [None, None], u, v, c, False, None)
    pairs = zip(*(gradients([*outputs, *final], given) for outputs, final in (ours, theirs)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert in_pieces == []


@pytest.mark.parametrize("sizes", [(0, 5), (2, 0), (1, 1)])
def test_elementwise_of_nothing(sizes, in_pieces):
    batch, ticks = sizes
    x, u, v, c, *weights = tensors((batch, ticks, 5), (ticks, batch, 4), (4,), (batch, 4), (4, 5), (4, 5))
    outputs, (final,) = run_fed_elementwise_loop(LOOP, x, weights, None, [None, u, None], [v], [c])
    assert [tuple(o.shape) for o in outputs] == [(ticks, batch, 4)] * 3
    assert final.shape == (batch, 4)


def test_products_of_one_sample_for_a_batch_of_states(in_pieces):
    """A value that is the same for all samples is fed to each of them."""
    x, u, v, c, *weights = tensors((1, 8, 5), (8, 3, 4), (4,), (3, 4), (4, 5), (4, 5))
    ours = run_fed_elementwise_loop(LOOP, x, weights, None, [None, u, None], [v], [c])
    theirs = elementwise_literal(x.expand(3, -1, -1), weights, [None, None], u, v, c, False, None)
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_elementwise_sizes_that_do_not_fit_are_named(in_pieces):
    x, u, v, c, *weights = tensors((2, 8, 5), (8, 2, 4), (4,), (2, 4), (4, 5), (3, 5))
    with pytest.raises(ShapeError, match=r"loop: series \(T, B, n\)"):
        run_fed_elementwise_loop(LOOP, x, weights, None, [None, u, None], [v], [c])


# Dense.


def dense_literal(x, weights, biases, blocks, init, activations, ticks, after, reverse):
    matrix = torch.cat([torch.cat(list(row), 1) for row in blocks])
    s, states = init, {}
    for t in reversed(range(ticks)) if reverse else range(ticks):
        row = min(t, x.shape[1] - 1)
        fed = torch.cat(
            [x[:, row] @ w.T + (0 if k is None else k) for w, k in zip(weights, biases, strict=True)], -1
        )
        total = (fed if t < x.shape[1] or after == "hold" else 0 * fed) + s @ matrix.T
        parts = torch.split(total, [width for width, _ in activations], -1)
        s = torch.cat([FUNCTIONS[name](p) for p, (_, name) in zip(parts, activations, strict=True)], -1)
        states[t] = s
    return torch.stack([states[t] for t in range(ticks)]), s


SLICES = ((3, "relu"), (4, "tanh"), (2, "gelu"))


def dense_tensors(batch, ticks, dtype=torch.float64):
    x, init = tensors((batch, ticks, 5), (batch, 9), dtype=dtype)
    sizes = (3, 4, 2)
    weights = tensors(*((m, 5) for m in sizes), seed=1, dtype=dtype)
    biases = tensors(*((m,) for m in sizes), seed=2, dtype=dtype)
    blocks = [tensors(*((m, n) for n in sizes), seed=3 + m, dtype=dtype) for m in sizes]
    return x, weights, biases, [[b / 3 for b in row] for row in blocks], init


@pytest.fixture
def by_blocks(monkeypatch):
    """No compiled loop; how often the matrix was put together."""
    calls = []
    assemble = dense_fed.assemble
    monkeypatch.setattr(dense_fed, "assemble", lambda blocks: calls.append(1) or assemble(blocks))
    monkeypatch.setattr(dense_numba, "FEW", 0)
    monkeypatch.setattr(dense_fed, "LARGE", 1)
    return calls


@pytest.mark.parametrize("read", [None, (0, 3), (3, 9), (7, 9)])
@pytest.mark.parametrize(("reverse", "zero", "bias"), [*itertools.product([False, True], repeat=3)])
@pytest.mark.parametrize(("ticks", "after"), [(None, "zero"), (1, "zero"), (6, "hold"), (6, "zero")])
def test_dense_last_state_by_blocks(read, reverse, zero, bias, ticks, after, by_blocks):
    x, weights, biases, blocks, init = dense_tensors(1, 3)
    init = torch.zeros_like(init) if zero else init
    biases = biases if bias else None
    options = {"ticks": ticks, "after": after, "reverse": reverse}
    none, last = run_fed_dense_loop(
        *(x, weights, biases, blocks, init, SLICES), **options, zero=zero, last_only=True, read=read
    )
    options["ticks"] = ticks or 3
    expected = dense_literal(x, weights, biases or [None] * 3, blocks, init, SLICES, **options)[1]
    torch.testing.assert_close(last, expected[:, slice(*(read or (None, None)))], **EXACT)
    assert none.shape == (0, 1, 9)
    assert last.is_contiguous()
    assert by_blocks == []


@pytest.mark.parametrize(("batch", "last_only"), [(4, True), (1, False), (4, False)])
@pytest.mark.parametrize("grad", [False, True])
def test_dense_with_its_matrix_put_together(batch, last_only, grad, by_blocks):
    x, weights, biases, blocks, init = dense_tensors(batch, 3)
    given = [
        t.requires_grad_(grad) for t in (x, init, *weights, *biases, *(b for row in blocks for b in row))
    ]
    ours = run_fed_dense_loop(x, weights, biases, blocks, init, SLICES, last_only=last_only)
    theirs = dense_literal(x, weights, biases, blocks, init, SLICES, 3, "zero", False)
    theirs = (theirs[0][:0], theirs[1]) if last_only else theirs
    torch.testing.assert_close(ours, theirs, **EXACT)
    if grad:
        for a, b in zip(gradients(ours, given), gradients(theirs, given), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert by_blocks == [1]


@pytest.mark.parametrize("width", [5, 20])  # x of fewer numbers than what is fed is put in the order of ticks
@pytest.mark.parametrize(("reverse", "zero", "several"), [*itertools.product([False, True], repeat=3)])
@pytest.mark.parametrize(("ticks", "after"), [(None, "zero"), (2, "zero"), (1, "zero"), (6, "hold")])
@pytest.mark.parametrize("last", ["softmax", "gelu"])
def test_dense_states_over_what_is_fed(width, reverse, zero, several, ticks, after, last, by_blocks):
    x, init, *weights = tensors((4, 3, width), (4, 9), (3, width), (6, width), (9, width))
    weights = weights[:2] if several else weights[2:]
    blocks = [[b / 3 for b in tensors((m, 3), (m, 6))] if several else tensors((9, 9)) for m in (3, 6)]
    blocks = blocks if several else blocks[:1]
    init = torch.zeros_like(init) if zero else init
    slices = ((3, "relu"), (4, "tanh"), (2, last))
    given = [t.clone() for t in (x, init, *weights, *(b for row in blocks for b in row))]
    options = {"ticks": ticks, "after": after, "reverse": reverse}
    ours = run_fed_dense_loop(x, weights, None, blocks, init, slices, **options, zero=zero)
    options["ticks"] = ticks or 3
    theirs = dense_literal(x, weights, [None] * len(weights), blocks, init, slices, **options)
    torch.testing.assert_close(ours, theirs, **EXACT)
    assert ours[0].untyped_storage().data_ptr() != ours[1].untyped_storage().data_ptr()
    after_it = (x, init, *weights, *(b for row in blocks for b in row))
    assert all(torch.equal(a, b) for a, b in zip(given, after_it, strict=True))


def test_dense_states_take_no_memory_of_their_own(by_blocks):
    x, init, w, u = tensors((8, 16, 16), (8, 32), (32, 16), (32, 32), dtype=torch.float32)
    made = peak_bytes(lambda: run_fed_dense_loop(x, [w], None, [[u]], init, ((32, "tanh"),)))
    states = 8 * 16 * 32 * 4
    assert made <= states + x.numel() * 4 + u.numel() * 4 + 2 * init.numel() * 4


def test_dense_with_selected_ticks():
    x, weights, biases, blocks, init = dense_tensors(2, 3)
    valid = torch.tensor([[True, True], [False, True], [True, False]])
    ours = run_fed_dense_loop(x, weights, biases, blocks, init, SLICES, valid=valid)[1]
    first = run_fed_dense_loop(x[:1, [0, 2]], weights, biases, blocks, init[:1], SLICES)[1]
    second = run_fed_dense_loop(x[1:, :2], weights, biases, blocks, init[1:], SLICES)[1]
    torch.testing.assert_close(ours, torch.cat([first, second]), **EXACT)


def test_dense_blocks_that_do_not_fit_are_named(by_blocks):
    x, weights, biases, blocks, init = dense_tensors(1, 3)
    gap = [blocks[0], [*blocks[1][:2], torch.zeros(4, 3).double()], blocks[2]]
    with pytest.raises(ShapeError, match="blocks that make a full matrix"):
        run_fed_dense_loop(x, weights, biases, gap, init, SLICES, last_only=True)
    oblong = [tensors((m, 4), (m, 3), (m, 2)) for m in (3, 4, 2)]
    with pytest.raises(ShapeError, match=r"got rows \[3, 4, 2\] and columns \[4, 3, 2\]"):
        run_fed_dense_loop(x, weights, biases, oblong, init, SLICES, last_only=True)
    with pytest.raises(DTypeError, match="one dtype"):
        run_fed_dense_loop(x, weights, biases, blocks, init.float(), SLICES, last_only=True)


# Memory and choice.


def test_pieces_are_of_a_quarter_of_the_ticks_or_fewer():
    def ticks(batch, length, width, height):
        x, weight = torch.empty(batch, length, width), torch.empty(height, width)
        return fed_product.FedProduct(x, [weight], None).ticks_of_a_piece()

    assert ticks(1, 512, 256, 768) == 128
    assert ticks(64, 32, 256, 768) == 8
    assert ticks(1, 256, 256, 768) == 256  # few numbers
    assert ticks(1, 300, 4096, 4096) == 150  # no piece of fewer than 128 rows
    assert ticks(2, 512, 1024, 768) == 512  # what is cut of x would be more than what is made
    assert ticks(1, 16384, 1024, 1024) == 2048  # 2^21 numbers a piece


@pytest.mark.skipif(not numba_arrays.HAS_NUMBA, reason="numba is not installed")
def test_a_quarter_of_the_products_is_held():
    x, u, v, c, *weights = tensors(
        (4, 512, 96), (512, 4, 96), (96,), (4, 96), (96, 96), (96, 96), dtype=torch.float32
    )
    given = (LOOP, x, weights, None, [None, u, None], [v], [c])
    made = peak_bytes(lambda: run_fed_elementwise_loop(*given, overlap=True))
    outputs, products = 2 * 4 * 512 * 96 * 4, 2 * 4 * 512 * 96 * 4
    assert made <= outputs + 0.45 * products
    for t in weights:
        t.requires_grad_()
    assert peak_bytes(lambda: run_fed_elementwise_loop(*given, overlap=True)) >= outputs + products


def test_a_large_matrix_is_not_copied(monkeypatch):
    assert 2896**2 < dense_fed.LARGE <= 2897**2
    monkeypatch.setattr(dense_fed, "LARGE", 900**2)
    x, init = tensors((2, 5, 128), (2, 900), dtype=torch.float32)
    weights = tensors(*[(300, 128)] * 3, dtype=torch.float32)
    blocks = [tensors(*[(300, 300)] * 3, dtype=torch.float32) for _ in range(3)]
    run = lambda x, init: run_fed_dense_loop(x, weights, None, blocks, init, ((900, "relu"),), last_only=True)  # noqa: E731
    made = peak_bytes(lambda: run(x, init))
    assert made <= 4 * (2 * 5 * 900 + 4 * 2 * 900)
