"""Elementwise recurrences against their definition tick by tick in float64, by both kernels."""

import math

import pytest
import torch

from onematrix.kernels import numba_arrays
from onematrix.kernels.elementwise_code import ACTIVATIONS, ElementwiseLoop
from onematrix.kernels.elementwise_loop import run_elementwise_loop
from recurrence_cases import FUNCTIONS, KERNELS, MIXED, SRU, check, flat, gradients, literal, tensors


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_activation_in_one_loop(kernel):
    """Each of the sum of what is fed and what is carried; those of positive numbers, of its square plus ½."""
    names, numbers = list(ACTIVATIONS), {"leaky_relu": (0.1,), "keep": (0.7,)}
    assert set(names) == set(FUNCTIONS)
    code = [("add", 0, 1), ("activation", 2, "square"), ("shift", 3, 0.5), ("activation", 2, "tanh")]
    positive = ("sqrt", "rsqrt", "reciprocal")
    code += [("activation", 4 if n in positive else 2, n, *numbers.get(n, ())) for n in names]
    loop = ElementwiseLoop(1, 0, 1, tuple(code), tuple(range(6, 6 + len(names))), (5,))
    x = torch.linspace(-8, 19, 77).double().reshape(7, 1, 11).requires_grad_()
    check(loop, ([x], [], tensors(loop, (7, 1, 11))[2]), kernel, 1e-8)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shared", [(), (0,), (0, 1)])
@pytest.mark.parametrize("loop", [SRU, MIXED], ids=["sru", "mixed"])
def test_values_and_gradients(loop, shared, reverse, kernel):
    check(loop, tensors(loop, shared=shared), kernel, reverse=reverse)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("loop", [SRU, MIXED], ids=["sru", "mixed"])
def test_valid_selects(loop, reverse, kernel):
    valid = torch.arange(5)[:, None] < torch.tensor([5, 2, 0])
    check(loop, tensors(loop), kernel, reverse=reverse, valid=valid)
    if loop is SRU:
        check(loop, tensors(loop, shared=(1,)), kernel, reverse=reverse, valid=valid)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", [(0, 2, 3), (1, 1, 1), (3, 0, 2), (2, 2, 0), (9, 1, 5)])
def test_edge_sizes(sizes, kernel):
    given = tensors(SRU, sizes)
    outputs, final = run_elementwise_loop(SRU, *given, kernel=kernel)
    assert [o.shape for o in outputs] == [sizes, sizes]
    assert final[0].shape == sizes[1:]
    if math.prod(sizes):
        check(SRU, given, kernel)
    else:
        found = torch.autograd.grad(final[0].sum() + outputs[0].sum(), flat(given), materialize_grads=True)
        assert all(torch.equal(g, torch.zeros_like(g)) for g in found[:-1])
        assert torch.equal(found[-1], torch.full(sizes[1:], float(sizes[0] == 0), dtype=torch.float64))


def test_ties_infinities_and_nan_are_those_of_torch():
    """The compiled loops against torch's own functions, in float32, on all pairs of these numbers."""
    pytest.importorskip("numba")
    special = [0.0, -0.0, 1.0, -1.0, 3.0, -2.5, 1e-30, -1e-30, 90.0, -90.0, math.inf, -math.inf, math.nan]
    first, second = torch.cartesian_prod(torch.tensor(special), torch.tensor(special)).T.reshape(2, -1, 1, 13)
    # Left out are gelu, of which torch's vector code gives nan at infinity and its scalar code does not, and
    # what is arithmetic alone. Every line has operands of its own, so that no gradient meets another.
    names = ("relu", "abs", "sign", "sqrt", "rsqrt", "exp", "sigmoid", "tanh", "silu", "softplus", "elu")
    joins, singles = ("divide", "maximum", "minimum"), len(names) + 1
    count = singles + 2 * len(joins)
    code = [("activation", k, name) for k, name in enumerate(names)]
    code += [("activation", len(names), "leaky_relu", 0.25)]
    code += [(name, singles + 2 * k, singles + 2 * k + 1) for k, name in enumerate(joins)]
    loop = ElementwiseLoop(count, 0, 0, tuple(code), tuple(range(count, count + len(code))), ())
    # Tick by tick: past 16 numbers torch takes vector code, whose gradient of elu at nan is another.
    cut = {"numba": [slice(0, 13)], "torch": [slice(t, t + 1) for t in range(13)]}
    results = []
    for kernel, places in cut.items():
        seconds = range(singles + 1, count, 2)
        series = [(second if k in seconds else first).clone().requires_grad_() for k in range(count)]
        runs = [run_elementwise_loop(loop, [s[t] for s in series], [], [], kernel=kernel)[0] for t in places]
        outputs = [torch.cat(ticks) for ticks in zip(*runs, strict=True)]
        total = sum((3 * o).sum() for o in outputs)
        results.append((outputs, torch.autograd.grad(total, series, materialize_grads=True)))
    (ours, found), (theirs, expected) = results
    for line, a, b in zip(code, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, msg=lambda m, line=line: f"{line}: {m}")
        if line[0] not in ("maximum", "minimum"):  # either zero may come of 0 and −0
            signs = [o.signbit()[~b.isnan()] for o in (a, b)]
            assert torch.equal(*signs), line
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(a, b, equal_nan=True, msg=lambda m, k=k: f"gradient of operand {k}: {m}")


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_valid_leaves_out_reaches_nothing(kernel):
    valid = torch.arange(5)[:, None] < torch.tensor([5, 2, 0])
    series, vectors, init = tensors(SRU)
    with torch.no_grad():
        series[0][2:, 1], series[1][:, 2], init[0][2] = torch.inf, torch.nan, torch.inf
    outputs, final = run_elementwise_loop(SRU, series, vectors, init, valid=valid, kernel=kernel)
    assert all(o.isfinite().all() for o in outputs)
    assert (outputs[0][:, 2] == 0).all()
    assert (final[0][2] == torch.inf).all()
    found = torch.autograd.grad(outputs[0].sum() + final[0][:2].sum(), flat((series, vectors, init)))
    assert all(g.isfinite().all() for g in found)
    assert (found[0][2:, 1] == 0).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_in_any_layout(kernel):
    """Slices of one wide product, a transposed series, one expanded over the batch, and a gradient of one number."""
    g = torch.Generator().manual_seed(1)
    merged = torch.randn(5, 3, 12, generator=g, dtype=torch.float64)
    other = torch.randn(4, 3, 5, generator=g, dtype=torch.float64).permute(2, 1, 0)
    for series in ([merged[..., 2:6], other], [merged[:, :1, 4:8].expand(5, 3, 4), merged[..., ::3]]):
        leaves = [s.requires_grad_() if s.is_leaf else s.detach().requires_grad_() for s in series]
        _, vectors, init = tensors(SRU)
        check(SRU, (leaves, vectors, [init[0].T.contiguous().T]), kernel)
        ours, theirs = (
            run_elementwise_loop(SRU, leaves, vectors, init, kernel=kernel),
            literal(SRU, leaves, vectors, init),
        )
        for a, b in zip(*(torch.autograd.grad(o[0][0].sum(), leaves) for o in (ours, theirs)), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_gradient_alone(kernel):
    """One output or final value at a time, and one input at a time."""
    given = tensors(SRU)
    expected = flat(literal(SRU, *given))
    for place, wanted in enumerate(expected):
        ours = flat(run_elementwise_loop(SRU, *given, kernel=kernel))
        torch.testing.assert_close(
            torch.autograd.grad(ours[place].sum(), flat(given), materialize_grads=True),
            torch.autograd.grad(wanted.sum(), flat(given), materialize_grads=True, retain_graph=True),
        )
    for place, leaf in enumerate(flat(given)):
        u, w, v, c = (t if k == place else t.detach() for k, t in enumerate(flat(given)))
        ours = flat(run_elementwise_loop(SRU, [u, w], [v], [c], kernel=kernel))
        assert all(o.requires_grad for o in ours)
        torch.testing.assert_close(gradients(ours, [leaf]), gradients(flat(literal(SRU, *given)), [leaf]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_derivatives_of_every_kind(kernel):
    given = flat(tensors(SRU, (3, 2, 2)))

    def run(u, w, v, c):
        return tuple(flat(run_elementwise_loop(SRU, [u, w], [v], [c], kernel=kernel)))

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)
    assert torch.autograd.gradcheck(run, given, check_forward_ad=True, check_batched_grad=True)
    values = [t.detach() for t in given]
    many = torch.stack([values[0], 2 * values[0]])
    mapped = torch.func.vmap(lambda u: run(u, *values[1:])[0])(many)
    torch.testing.assert_close(mapped, torch.stack([run(u, *values[1:])[0] for u in many]))
    jacobian = torch.func.jacrev(lambda u: run(u, *values[1:])[0].sum(0))(values[0])
    expected = torch.autograd.functional.jacobian(lambda u: run(u, *values[1:])[0].sum(0), values[0])
    torch.testing.assert_close(jacobian, expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_computed_from_each_other_have_the_right_second_derivative(kernel):
    u = tensors(SRU)[0][0]

    def derivatives(run):
        final = run(SRU, [u, u.sin()], [u[0, 0]], [u[1]])[1][0]
        first = torch.autograd.grad(final.sum(), u, create_graph=True)[0]
        return first, torch.autograd.grad(first.square().sum(), u)[0]

    ours = derivatives(lambda *given: run_elementwise_loop(*given, kernel=kernel))
    torch.testing.assert_close(ours, derivatives(literal))


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_is_close_to_float64(kernel):
    given = tensors(SRU, (40, 3, 33), dtype=torch.float32)
    wide = [[t.double() for t in part] for part in given]
    ours, theirs = run_elementwise_loop(SRU, *given, kernel=kernel), literal(SRU, *wide)
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-6)
    for a, b in zip(gradients(flat(ours), flat(given)), gradients(flat(theirs), flat(given)), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(12))
def test_random_loops(seed):
    """Random code; one in six by the compiled loops too, which take a second or two to be made."""
    g = torch.Generator().manual_seed(seed)

    def pick(high):
        return int(torch.randint(high, (), generator=g))

    code = []
    for k in range(8):
        i, j = pick(5 + k), pick(5 + k)
        line = ("activation", i, ("tanh", "sigmoid", "relu", "sin", "abs")[pick(5)])
        code.append(
            (("add", i, j), ("sub", i, j), ("mul", i, j), ("maximum", i, j), ("scale", i, -0.5), line)[
                pick(6)
            ]
        )
    code += [("activation", pick(13), "tanh"), ("activation", pick(14), "sigmoid")]
    loop = ElementwiseLoop(2, 1, 2, tuple(code), tuple(pick(15) for _ in range(3)), (13, 14))
    options = {
        "reverse": bool(seed % 2),
        "valid": torch.rand(4, 3, generator=g) < 0.7 if seed % 3 == 0 else None,
    }
    given = tensors(loop, (4, 3, 2), shared=(0,) if seed % 5 == 0 else (), seed=seed)
    for kernel in ("torch", "numba") if seed % 6 == 0 and numba_arrays.HAS_NUMBA else ("torch",):
        check(loop, given, kernel, **options)
