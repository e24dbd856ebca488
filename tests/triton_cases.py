"""Triton kernels against their definitions: on a GPU, or in Triton's interpreter where TRITON_INTERPRET=1.

`test_kernels_triton` runs this file in a process of its own, because the interpreter is asked for before
Triton is imported.
"""

import math

import pytest
import torch

from interpreted_triton import INTERPRETED
from onematrix.errors import DTypeError
from onematrix.kernels import scan_triton
from onematrix.kernels.blast_triton import blast_product
from onematrix.kernels.elementwise_code import ACTIVATIONS, ElementwiseLoop
from onematrix.kernels.elementwise_loop import run_elementwise_loop
from onematrix.kernels.linear_scan import linear_scan
from onematrix.kernels.monarch_triton import monarch_product
from onematrix.structures.blast import Blast
from onematrix.structures.monarch import Monarch
from onematrix.structures.tree import map_tensors
from recurrence_cases import FUNCTIONS, MIXED, SRU, flat, gradients, literal, tensors
from test_kernels_scan import literal as literal_scan
from test_kernels_scan import tensors as scan_tensors

DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = torch.float16 if INTERPRETED else torch.bfloat16  # whose products the interpreter takes for integers
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
pytestmark = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="no GPU")


def moved(parts, dtype=None):
    """The same tensors on the device, as new leaves."""
    return [[t.detach().to(DEVICE, dtype or t.dtype).requires_grad_() for t in part] for part in parts]


def near(ours, theirs, tolerance, **options):
    for a, b in zip(ours, theirs, strict=True):
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() and b.isfinite().all() else 1.0
        torch.testing.assert_close(
            a.cpu().double(), b.double(), rtol=tolerance, atol=tolerance * scale, **options
        )


def weighted(outputs, given):
    """Gradients of the same weighted sum as `gradients`, on any device."""
    total = sum((o.cpu() * torch.arange(1, o.numel() + 1).reshape(o.shape).sin()).sum() for o in outputs)
    return torch.autograd.grad(total, given, materialize_grads=True)


def check(loop, given, dtype=torch.float64, **options):
    """Outputs, final values and gradients of the kernel against the definition in float64."""
    given = moved(given, dtype)
    wide = [[t.detach().double().cpu().requires_grad_() for t in part] for part in given]
    ours, theirs = flat(run_elementwise_loop(loop, *given, kernel="triton", **options)), None
    placed = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    theirs = flat(literal(loop, *wide, **placed))
    assert all(o.dtype == dtype for o in ours)
    near(ours, theirs, TOLERANCE[dtype])
    near(weighted(ours, flat(given)), gradients(theirs, flat(wide)), TOLERANCE[dtype])
    with torch.no_grad():
        near(flat(run_elementwise_loop(loop, *given, kernel="triton", **options)), theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shared", [(), (0,), (0, 1)])
@pytest.mark.parametrize("loop", [SRU, MIXED], ids=["sru", "mixed"])
def test_elementwise_values_and_gradients(loop, shared, reverse):
    check(loop, tensors(loop, (9, 3, 4) if loop is SRU else (5, 2, 3), shared=shared), reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_elementwise_in_the_dtypes_that_ship(dtype):
    """Numbers of the dtype, computed in float32; carried from tick to tick in the dtype."""
    given = [[t.detach().to(dtype).double() for t in part] for part in tensors(SRU, (5, 2, 35))]
    check(SRU, given, dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("loop", [SRU, MIXED], ids=["sru", "mixed"])
def test_elementwise_valid_selects(loop, reverse):
    valid = torch.arange(5)[:, None] < torch.tensor([5, 2, 0])
    check(loop, tensors(loop), reverse=reverse, valid=valid.to(DEVICE))


def test_elementwise_what_valid_leaves_out_reaches_nothing():
    valid = (torch.arange(5)[:, None] < torch.tensor([5, 2, 0])).to(DEVICE)
    series, vectors, init = moved(tensors(SRU))
    with torch.no_grad():
        series[0][2:, 1], series[1][:, 2], init[0][2] = torch.inf, torch.nan, torch.inf
    outputs, final = run_elementwise_loop(SRU, series, vectors, init, valid=valid, kernel="triton")
    assert all(o.isfinite().all() for o in outputs)
    assert (outputs[0][:, 2] == 0).all()
    assert (final[0][2] == torch.inf).all()
    found = torch.autograd.grad(outputs[0].sum() + final[0][:2].sum(), flat((series, vectors, init)))
    assert all(g.isfinite().all() for g in found)
    assert (found[0][2:, 1] == 0).all()


@pytest.mark.parametrize("sizes", [(0, 2, 3), (1, 1, 1), (3, 0, 2), (2, 2, 0), (17, 1, 33)])
def test_elementwise_edge_sizes(sizes):
    given = moved(tensors(SRU, sizes))
    outputs, final = run_elementwise_loop(SRU, *given, kernel="triton")
    assert [o.shape for o in outputs] == [sizes, sizes]
    if math.prod(sizes):
        check(SRU, given)
        return
    found = torch.autograd.grad(final[0].sum() + outputs[0].sum(), flat(given), materialize_grads=True)
    assert all(not g.any() for g in found[:-1])
    assert (found[-1] == float(sizes[0] == 0)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_elementwise_every_activation_in_one_loop(dtype):
    """Each of the sum of what is fed and what is carried; those of positive numbers, of its square plus ½."""
    names, numbers = list(ACTIVATIONS), {"leaky_relu": (0.1,), "keep": (0.7,)}
    assert set(names) == set(FUNCTIONS)
    code = [("add", 0, 1), ("activation", 2, "square"), ("shift", 3, 0.5), ("activation", 2, "tanh")]
    code += [("scale", 2, 0.5)]  # of softplus and its like the argument stays where float32 has its digits
    positive = ("sqrt", "rsqrt", "reciprocal")
    code += [("activation", 4 if n in positive else 6, n, *numbers.get(n, ())) for n in names]
    loop = ElementwiseLoop(1, 0, 1, tuple(code), tuple(range(7, 7 + len(names))), (5,))
    x = torch.linspace(-9, 12, 66).double().reshape(3, 1, 22)
    check(loop, ([x], [], tensors(loop, (3, 1, 22))[2]), dtype)


def test_elementwise_ties_infinities_and_nan_are_those_of_torch():
    special = [0.0, -0.0, 1.0, -1.0, 3.0, -2.5, 1e-30, -1e-30, 90.0, -90.0, math.inf, -math.inf, math.nan]
    first, second = torch.cartesian_prod(torch.tensor(special), torch.tensor(special)).T.reshape(2, -1, 1, 13)
    names = ("relu", "abs", "sign", "sqrt", "rsqrt", "exp", "sigmoid", "tanh", "silu", "softplus", "elu")
    joins, singles = ("divide", "maximum", "minimum"), len(names)
    count = singles + 2 * len(joins)
    code = [("activation", k, name) for k, name in enumerate(names)]
    code += [(name, singles + 2 * k, singles + 2 * k + 1) for k, name in enumerate(joins)]
    loop = ElementwiseLoop(count, 0, 0, tuple(code), tuple(range(count, count + len(code))), ())
    # Tick by tick: past 16 numbers torch takes vector code, whose gradient of elu at nan is another.
    cut = {"triton": [slice(0, 13)], "torch": [slice(t, t + 1) for t in range(13)]}
    results = []
    for kernel, places in cut.items():
        seconds = range(singles + 1, count, 2)
        series = [(second if k in seconds else first).to(DEVICE).requires_grad_() for k in range(count)]
        series = [s.detach().clone().requires_grad_() for s in series]
        runs = [run_elementwise_loop(loop, [s[t] for s in series], [], [], kernel=kernel)[0] for t in places]
        outputs = [torch.cat(ticks) for ticks in zip(*runs, strict=True)]
        total = sum((3 * o).sum() for o in outputs)
        results.append((outputs, torch.autograd.grad(total, series, materialize_grads=True)))
    (ours, found), (theirs, expected) = results
    near([*ours, *found], [t.detach().cpu() for t in (*theirs, *expected)], 1e-5, equal_nan=True)


def test_elementwise_inputs_in_any_layout():
    """Slices of one wide product, batch-first series, one expanded over the batch, a transposed state."""
    g = torch.Generator().manual_seed(1)
    merged = torch.randn(5, 3, 12, generator=g, dtype=torch.float64).to(DEVICE)
    other = torch.randn(3, 5, 4, generator=g, dtype=torch.float64).to(DEVICE).transpose(0, 1)
    _, (vector,), (init,) = moved(tensors(SRU))
    for series in ([merged[..., 2:6], other], [merged[:, :1, 4:8].expand(5, 3, 4), merged[..., ::3]]):
        given = series, [vector], [init.T.contiguous().T]
        ours = flat(run_elementwise_loop(SRU, *given, kernel="triton"))
        theirs = flat(literal(SRU, *([t.detach().cpu() for t in part] for part in given)))
        near(ours, theirs, 1e-11)


def test_elementwise_each_gradient_alone():
    given = moved(tensors(SRU))
    wide = [[t.detach().cpu().requires_grad_() for t in part] for part in given]
    expected = flat(literal(SRU, *wide))
    for place, wanted in enumerate(expected):
        out = flat(run_elementwise_loop(SRU, *given, kernel="triton"))[place]
        ours = torch.autograd.grad(out.sum(), flat(given), materialize_grads=True)
        theirs = torch.autograd.grad(wanted.sum(), flat(wide), materialize_grads=True, retain_graph=True)
        near(ours, theirs, 1e-11)
    for place in range(4):
        u, w, v, c = (t if k == place else t.detach() for k, t in enumerate(flat(given)))
        found = weighted(
            flat(run_elementwise_loop(SRU, [u, w], [v], [c], kernel="triton")), [(u, w, v, c)[place]]
        )
        near(found, gradients(flat(literal(SRU, *wide)), [flat(wide)[place]]), 1e-11)


def test_elementwise_second_derivatives():
    u = moved(tensors(SRU, (3, 2, 2)))[0][0]

    def derivatives(kernel):
        final = run_elementwise_loop(SRU, [u, u.sin()], [u[0, 0]], [u[1]], kernel=kernel)[1][0]
        first = torch.autograd.grad(final.sum(), u, create_graph=True)[0]
        return first, torch.autograd.grad(first.square().sum(), u)[0]

    near(derivatives("triton"), [t.detach().cpu() for t in derivatives("torch")], 1e-10)


def test_elementwise_a_run_may_be_cut_between_any_two_ticks():
    (u, w), vectors, init = moved(tensors(SRU, (11, 2, 3)), torch.bfloat16)
    whole, (end,) = run_elementwise_loop(SRU, [u, w], vectors, init, kernel="triton")
    _, half = run_elementwise_loop(SRU, [u[:4], w[:4]], vectors, init, kernel="triton")
    rest, (last,) = run_elementwise_loop(SRU, [u[4:], w[4:]], vectors, half, kernel="triton")
    assert torch.equal(last, end)
    assert torch.equal(rest[0], whole[0][4:])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("ticks", "length"), [(0, None), (1, None), (9, None), (9, 8), (25, 8), (40, 16)])
def test_scan_values_and_gradients(ticks, length, reverse, monkeypatch):
    if length:
        monkeypatch.setattr(scan_triton, "chunk_length", lambda *sizes: length)
    wide = scan_tensors(ticks, 2, 35 if ticks == 9 else 3)
    (given,) = moved([wide])
    ours, theirs = linear_scan(*given, reverse, kernel="triton"), literal_scan(*wide, reverse)
    near([ours], [theirs], 1e-11)
    near(weighted([ours], given), gradients([theirs], wide), 1e-10)


def test_scan_factors_of_any_size_keep_their_digits():
    a, b, init = (t.detach() for t in scan_tensors(150, 1, 4))
    a = 0.5 * torch.tanh(a)
    a[100:110] = 0
    ours = linear_scan(*(t.float().to(DEVICE) for t in (a, b, init)), kernel="triton")
    near([ours], [literal_scan(a, b, init)], 1e-5)
    half = linear_scan(*(t.bfloat16().to(DEVICE) for t in (a, b, init)), kernel="triton")
    near([half], [literal_scan(*(t.bfloat16().double() for t in (a, b, init)))], 1e-2)


def dense_gradients(a_of, wide, x, back):
    y = x @ a_of(*wide).to_dense().mT
    return [y, *torch.autograd.grad(y, [x, *wide], back)]


def check_product(run, a, dtype, batch):
    """Output and every gradient of a product against the literal definition in float64."""
    g = torch.Generator().manual_seed(2)
    parts = [t.to(DEVICE, dtype) for t in vars(a).values() if isinstance(t, torch.Tensor)]
    x, back = (torch.randn(*batch, n, generator=g).to(DEVICE, dtype) for n in a.shape[::-1])
    given = [t.requires_grad_() for t in (x, *parts)]
    y = run(type(a)(*given[1:]), given[0])
    ours = [y, *torch.autograd.grad(y, given, back)]
    wide = [t.detach().double().cpu().requires_grad_() for t in given]
    theirs = dense_gradients(type(a), wide[1:], wide[0], back.double().cpu())
    near(ours, theirs, TOLERANCE[dtype])
    with torch.no_grad():
        near([run(type(a)(*given[1:]), given[0])], theirs[:1], TOLERANCE[dtype])


CUT = [Blast.random(20, 21, generator=torch.Generator().manual_seed(3), rank=18, blocks=(2, 3))]


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "a",
    [*Blast.examples(torch.Generator().manual_seed(0)), *CUT],
    ids=lambda a: f"{len(a.left)}x{len(a.right)}-{a.rank}",
)
def test_blast(a, fused, dtype):
    check_product(lambda a, x: blast_product(a, x, kernel="triton", fused=fused), a, dtype, (2, 3))


GRID = [Monarch.random(21, 20, generator=torch.Generator().manual_seed(3), rank=3, blocks=(3, 2))]


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize(
    "a",
    [*Monarch.examples(torch.Generator().manual_seed(0)), *GRID],
    ids=lambda a: "by".join(map(str, a.shape)),
)
def test_monarch(a, dtype):
    check_product(lambda a, x: monarch_product(a, x, kernel="triton"), a, dtype, (17,))


@pytest.mark.parametrize("cls", [Blast, Monarch])
def test_products_of_nothing_and_second_derivatives(cls):
    run = blast_product if cls is Blast else monarch_product
    a = list(cls.examples(torch.Generator().manual_seed(0)))[1]
    parts = [t.float().to(DEVICE).requires_grad_() for t in vars(a).values() if isinstance(t, torch.Tensor)]
    nothing = torch.zeros(0, a.shape[1], device=DEVICE, requires_grad=True)
    out = run(cls(*parts), nothing, kernel="triton")
    assert out.shape == (0, a.shape[0])
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), [nothing, *parts]))
    x = torch.randn(4, a.shape[1]).to(DEVICE).requires_grad_()

    def second(kernel):
        y = run(cls(*parts), x.T.contiguous().T, kernel=kernel)
        first = torch.autograd.grad(y.square().sum(), [x, *parts], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), [x, *parts])

    near(second("triton"), [t.cpu() for t in second("torch")], 1e-4)


def test_products_under_autocast_and_of_other_dtypes_are_those_of_the_structure():
    a = map_tensors(CUT[0], lambda t: t.float().to(DEVICE))
    x = torch.randn(4, 21).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        ours, theirs = blast_product(a, x, kernel="triton"), a.matmul(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)
    with pytest.raises(DTypeError, match="float32"):
        blast_product(a, x.to(HALF), kernel="triton")


class Net(torch.nn.Module):
    def forward(self, u, w, v, c):
        outputs, final = run_elementwise_loop(SRU, [u, w], [v], [c], kernel="triton")
        return *outputs, *final


def test_elementwise_compiles_into_one_graph_of_sound_operators():
    given = flat(moved(tensors(SRU, (3, 2, 3))))
    compiled = torch.compile(Net(), fullgraph=True, backend="aot_eager")
    ours, theirs = compiled(*given), Net()(*given)
    near(ours, [t.cpu() for t in theirs], 1e-12)
    near(weighted(ours, given), [g.cpu() for g in weighted(theirs, given)], 1e-12)
    arguments = (SRU.text, given, None, [3, 2, 3], True, "triton")
    torch.library.opcheck(torch.ops.onematrix.elementwise_recurrence.default, arguments)
