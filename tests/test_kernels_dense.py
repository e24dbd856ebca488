"""Dense recurrences against the equation tick by tick in float64: values, gradients, all options."""

import itertools

import pytest
import torch
from torch.nn import functional

from onematrix.errors import DTypeError, ProgramError, ShapeError
from onematrix.kernels.dense_loop import ALLOWED, run_dense_loop

FUNCTIONS = {
    "identity": lambda v: v,
    "relu": lambda v: v.clamp(min=0),
    "abs": lambda v: torch.where(v < 0, -v, v),
    "sign": torch.sign,
    "square": lambda v: v * v,
    "sqrt": lambda v: v**0.5,
    "rsqrt": lambda v: v**-0.5,
    "reciprocal": lambda v: 1 / v,
    "exp": torch.exp,
    "sigmoid": lambda v: 1 / (1 + torch.exp(-v)),
    "tanh": torch.tanh,
    "gelu": lambda v: v * 0.5 * (1 + torch.erf(v / 2**0.5)),
    "gelu_tanh": lambda v: v * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (v + 0.044715 * v**3))),
    "silu": lambda v: v / (1 + torch.exp(-v)),
    "softplus": lambda v: torch.log1p(torch.exp(v)),
    "elu": lambda v: torch.where(v > 0, v, torch.exp(v) - 1),
    "sin": torch.sin,
    "cos": torch.cos,
    "softmax": lambda v: torch.exp(v) / torch.exp(v).sum(-1, keepdim=True),
}


def literal(inputs, weight, init, activations, ticks=None, after="zero", reverse=False, valid=None):
    """The definition, one tick after the other, one slice after the other."""
    count = len(inputs) if ticks is None else ticks
    states, s = {}, init
    for t in reversed(range(count)) if reverse else range(count):
        place = min(t, len(inputs) - 1) if after == "hold" else t
        a = inputs[place] if place < len(inputs) else torch.zeros_like(init)
        total = (a + s @ weight.T).expand_as(init)
        parts, at = [], 0
        for width, name in activations:
            parts.append(FUNCTIONS[name](total[:, at : at + width]))
            at += width
        new = torch.cat(parts, -1)
        if valid is not None:
            step = valid[place] if place < len(valid) else torch.zeros(len(init), dtype=torch.bool)
            states[t] = torch.stack([n if ok else 0 * i for n, ok, i in zip(new, step, init, strict=True)])
            s = torch.stack([n if ok else old for n, ok, old in zip(new, step, s, strict=True)])
        else:
            states[t] = s = new
    return torch.stack([states[t] for t in range(count)]) if count else inputs.new_empty(0, *init.shape), s


def tensors(ticks=5, batch=3, n=4, shared=False, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    made = (
        torch.randn(ticks, 1 if shared else batch, n, generator=g, dtype=dtype),
        torch.randn(n, n, generator=g, dtype=dtype) / n**0.5,
        torch.randn(batch, n, generator=g, dtype=dtype),
    )
    return [t.requires_grad_() for t in made]


def gradients(outputs, given):
    """Of a sum with a weight for each number, none of them 0 or equal."""
    total = sum((o * torch.arange(1, o.numel() + 1).reshape(o.shape).sin()).sum() for o in outputs)
    return torch.autograd.grad(total, given, materialize_grads=True)


def check(given, activations, tolerance=1e-12, **options):
    ours = run_dense_loop(*given, activations, **options)
    theirs = literal(*given, activations, **options)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for a, b in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        for a, b in zip(run_dense_loop(*given, activations, **options), theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ALLOWED)
def test_each_activation(name):
    given = tensors(3)
    if name in ("exp", "square"):  # stay where three ticks of these are no astronomical numbers
        given = [(t.detach() / 4).requires_grad_() for t in given]
    if "sqrt" in name or name == "reciprocal":  # stay where these are real and finite
        given = [t.detach().abs().add(0.5).requires_grad_() for t in given]
    check(given, ((4, name),), 1e-11)


def test_the_table_is_that_of_the_elementwise_activations():
    assert set(ALLOWED) == set(FUNCTIONS)


@pytest.mark.parametrize(
    "activations",
    [
        ((1, "tanh"), (3, "relu")),
        ((2, "softmax"), (2, "sigmoid")),
        ((2, "gelu"), (1, "softmax"), (1, "identity")),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_slices(activations, reverse):
    check(tensors(), activations, reverse=reverse)


@pytest.mark.parametrize(
    ("shared", "ticks", "after", "reverse"),
    [*itertools.product([False, True], [None, 3, 8], ["zero", "hold"], [False, True])],
)
def test_ticks_beyond_the_inputs(shared, ticks, after, reverse):
    check(tensors(shared=shared), ((2, "tanh"), (2, "relu")), ticks=ticks, after=after, reverse=reverse)


@pytest.mark.parametrize(("ticks", "batch", "n"), [(0, 2, 3), (1, 1, 1), (3, 0, 2), (2, 2, 0)])
def test_edge_sizes(ticks, batch, n):
    check(tensors(ticks, batch, n), ((n, "tanh"),))


@pytest.mark.parametrize("reverse", [False, True])
def test_last_only(reverse):
    given, activations = tensors(), ((4, "tanh"),)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            none, last = run_dense_loop(*given, activations, last_only=True, reverse=reverse)
            expected = literal(*given, activations, reverse=reverse)[1]
        assert none.shape == (0, 3, 4)
        torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)
        if grad:
            torch.testing.assert_close(gradients([last], given), gradients([expected], given))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ticks", [None, 7])
def test_valid_selects(reverse, ticks):
    valid = torch.arange(5)[:, None] < torch.tensor([5, 2, 0])
    check(tensors(), ((4, "tanh"),), valid=valid, reverse=reverse, ticks=ticks)


def test_what_valid_leaves_out_reaches_nothing():
    inputs, weight, init = tensors()
    valid = torch.arange(5)[:, None] < torch.tensor([5, 2, 0])
    with torch.no_grad():
        inputs[2:, 1], inputs[:, 2], init[2] = torch.inf, torch.nan, torch.inf
    states, final = run_dense_loop(inputs, weight, init, ((4, "square"),), valid=valid)
    assert states.isfinite().all()
    assert (final[2] == torch.inf).all()
    found = torch.autograd.grad(states.sum() + final[:2].sum(), (inputs, weight, init))
    assert all(g.isfinite().all() for g in found)
    assert (found[0][2:, 1] == 0).all()


def test_float32_is_close_to_float64():
    given = tensors(20, 6, 16, dtype=torch.float32)
    wide = [t.double() for t in given]
    ours, theirs = (f(*g, ((16, "tanh"),)) for f, g in ((run_dense_loop, given), (literal, wide)))
    torch.testing.assert_close(ours[0].double(), theirs[0], rtol=1e-5, atol=1e-5)


def test_derivatives_of_every_kind():
    given = tensors(3, 2, 2)

    def run(*t):
        return run_dense_loop(*t, ((1, "tanh"), (1, "silu")))

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)
    assert torch.autograd.gradcheck(run, given, check_forward_ad=True, check_batched_grad=True)
    tangents = [torch.ones_like(t) for t in given]
    values = [t.detach() for t in given]
    for a, b in zip(
        torch.func.jvp(run, tuple(values), tuple(tangents))[1],
        torch.func.jvp(lambda *t: literal(*t, ((1, "tanh"), (1, "silu"))), tuple(values), tuple(tangents))[1],
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    many = torch.stack([values[0], 2 * values[0]])
    mapped = torch.func.vmap(lambda a: run(a, *values[1:])[0])(many)
    torch.testing.assert_close(mapped, torch.stack([run(a, *values[1:])[0] for a in many]))


def test_inputs_computed_from_each_other_have_the_right_second_derivative():
    w = tensors(3, 2, 2)[1].detach().requires_grad_()

    def derivatives(run):
        final = run((w * w).unsqueeze(0), w, w, ((2, "tanh"),))[1]
        first = torch.autograd.grad(final.sum(), w, create_graph=True)[0]
        return first, torch.autograd.grad(first.square().sum(), w)[0]

    torch.testing.assert_close(derivatives(run_dense_loop), derivatives(literal))


def test_the_callers_tensors_stay_as_they_are_and_outputs_are_new():
    given = [t.detach() for t in tensors()]
    copies = [t.clone() for t in given]
    for ticks in (0, 5):
        for out in run_dense_loop(*given, ((4, "relu"),), ticks=ticks):
            out.fill_(7)
    for t, c in zip(given, copies, strict=True):
        assert torch.equal(t, c)


def test_changing_the_states_before_backward_is_noticed():
    states, _ = run_dense_loop(*tensors(), ((4, "tanh"),))
    loss = states.sum()
    states.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.slow
def test_compiles_into_one_graph():
    given = tensors(3, 2, 4)
    compiled = torch.compile(
        lambda *t: run_dense_loop(*t, ((4, "tanh"),)), fullgraph=True, backend="aot_eager"
    )
    for a, b in zip(compiled(*given), literal(*given, ((4, "tanh"),)), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(
        gradients(compiled(*given), given), gradients(literal(*given, ((4, "tanh"),)), given)
    )


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(tensors()[1].detach())

    def forward(self, x, h):
        return run_dense_loop(functional.relu(x), self.weight, h, ((4, "tanh"),))


def test_exports():
    x, _, h = (t.detach() for t in tensors())
    exported = torch.export.export(Net(), (x, h)).module()
    torch.testing.assert_close(exported(x, h), Net()(x, h))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": torch.ones(5, 2, 4)}, ShapeError, r"got \[\(5, 2, 4\), \(4, 4\), \(3, 4\)\]"),
        ({"weight": torch.ones(4, 3)}, ShapeError, r"weight \(n, n\).*\(4, 3\)"),
        ({"init": torch.ones(4)}, ShapeError, r"init \(B, n\).*\(4,\)\]"),
        ({"valid": torch.ones(2, 3).bool()}, ShapeError, r"valid \(T, B\) needed.*\(2, 3\)"),
        ({"init": torch.ones(3, 4).double()}, DTypeError, "one dtype needed, .* init torch.float64"),
        ({"valid": torch.ones(5, 3)}, DTypeError, "valid has to be torch.bool, got torch.float32"),
        ({"activations": ((4, "layer_norm"),)}, ProgramError, "activation 'layer_norm' is none of identity"),
        ({"activations": ((3, "relu"),)}, ShapeError, r"of 4 features needed, got widths \[3\]"),
        ({"activations": ((5, "relu"), (-1, "relu"))}, ShapeError, r"got widths \[5, -1\]"),
        ({"after": "last"}, ProgramError, "'zero' or 'hold' needed, got 'last'"),
        ({"ticks": -1}, ShapeError, "ticks ≥ 0 needed, got -1"),
        ({"inputs": torch.ones(0, 3, 4), "ticks": 2, "after": "hold"}, ShapeError, "no tick and 2 are asked"),
    ],
)
def test_refusals(change, error, message):
    arguments = {
        "inputs": torch.ones(5, 3, 4),
        "weight": torch.ones(4, 4),
        "init": torch.ones(3, 4),
        "activations": ((4, "relu"),),
    }
    with pytest.raises(error, match=message):
        run_dense_loop(**(arguments | change))
