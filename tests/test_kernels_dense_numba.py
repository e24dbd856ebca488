"""The compiled dense loop of few samples against the equation, tick by tick in float64; its choice and its speed."""

import itertools
import math

import pytest
import torch

from onematrix.kernels import dense_numba, numba_arrays
from onematrix.kernels.dense_loop import run_dense_loop
from onematrix.kernels.dense_plan import DensePlan
from onematrix.kernels.dense_torch import run_dense_by_torch
from test_kernels_dense import check, gradients, literal, tensors

pytestmark = pytest.mark.skipif(not numba_arrays.HAS_NUMBA, reason="numba is not installed")
SLICES = ((3, "tanh"), (5, "relu"), (2, "sigmoid"), (1, "identity"))
WIDTH = 11


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Compiled loops at any size; how often they ran."""
    counts = {"forward": 0, "backward": 0}
    monkeypatch.setattr(dense_numba, "WORTHWHILE", 1)
    for name in counts:
        run = getattr(dense_numba, f"run_{name}")

        def counted(*given, run=run, name=name, **options):
            counts[name] += 1
            return run(*given, **options)

        monkeypatch.setattr(dense_numba, f"run_{name}", counted)
    return counts


@pytest.mark.parametrize("name", sorted(dense_numba.KINDS))
def test_each_activation(name, calls):
    check(tensors(7, 2, 6), ((6, name),))
    assert calls == {"forward": 2, "backward": 1}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("ticks", "after"), [(None, "zero"), (3, "zero"), (8, "zero"), (8, "hold"), (1, "zero")]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_slices_and_numbers_of_ticks(reverse, ticks, after, batch, calls):
    check(tensors(5, batch, WIDTH), SLICES, ticks=ticks, after=after, reverse=reverse)
    assert calls == {"forward": 2, "backward": 1}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("ticks", "shared"), [*itertools.product([1, 2, 3, 8], [False, True])])
def test_the_last_state_alone_from_zero(ticks, shared, reverse, calls):
    given = tensors(4, 2, WIDTH, shared)
    given[2] = torch.zeros_like(given[2]).requires_grad_()
    expected = literal(*given, SLICES, ticks=ticks, after="hold", reverse=reverse)[1][:, 3:10]
    options = {"ticks": ticks, "after": "hold", "reverse": reverse, "zero": True, "read": (3, 10)}
    last = run_dense_loop(*given, SLICES, last_only=True, **options)[1]
    torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients([last], given), gradients([expected], given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        last = run_dense_loop(*given, SLICES, last_only=True, **options)[1]
    torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)
    assert calls["forward"] == 2


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_inputs_in_any_order_of_memory(order):
    """A series whose samples, ticks or features lead in memory; a turned weight; an expanded first state."""
    inputs, weight, init = (t.detach() for t in tensors(6, 3, WIDTH))
    back = [order.index(i) for i in range(3)]
    laid = inputs.permute(order).contiguous().permute(back)
    turned, first = weight.t().contiguous().t(), init[:1].expand(3, -1)
    given = [t.requires_grad_() for t in (laid, turned, first)]
    ours, theirs = (f(*given, SLICES) for f in (run_dense_loop, literal))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    spread = torch.randn(3, 6, WIDTH, dtype=torch.float64).transpose(0, 1)  # a gradient with samples first
    pairs = (torch.autograd.grad((out[0] * spread).sum(), given) for out in (ours, theirs))
    torch.testing.assert_close(*pairs, rtol=1e-12, atol=1e-12)


def test_error_is_that_of_torch():
    """Over 300 ticks of 160 features, in float32: at most twice torch's own distance from float64."""
    given = [t.detach().requires_grad_() for t in tensors(300, 2, 160, dtype=torch.float32)]
    wide = [t.detach().double().requires_grad_() for t in given]
    plan = DensePlan(((160, "tanh"),), 300, "zero", False, False)
    exact = literal(*wide, ((160, "tanh"),))
    exact = [t.detach() for t in (*exact, *gradients(exact, wide))]
    made = []
    for outputs in (run_dense_loop(*given, ((160, "tanh"),)), run_dense_by_torch(*given, plan)):
        found = [*outputs, *gradients(outputs, given)]
        made.append(
            [float((a.detach().double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
        )
    for ours, torchs in zip(*made, strict=True):
        assert ours <= 2 * torchs


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", sorted(dense_numba.KINDS))
def test_what_is_infinite_or_no_number_spreads_as_in_torch(name, value):
    inputs, weight, init = (t.detach() for t in tensors(4, 1, 6))
    inputs[1, 0, 2] = value
    plan = DensePlan(((6, name),), 4, "zero", False, False)
    both = []
    for run in (lambda *t: run_dense_loop(*t, plan.activations), lambda *t: run_dense_by_torch(*t, plan)):
        given = [t.clone().requires_grad_() for t in (inputs, weight, init)]
        states, final = run(*given)
        both.append([states, final, *torch.autograd.grad(states[:2].sum(), given)])
    torch.testing.assert_close(*both, equal_nan=True)


def test_second_derivatives(calls):
    given = tensors(3, 1, 4)
    run = lambda *t: run_dense_loop(*t, ((4, "tanh"),))  # noqa: E731
    assert torch.autograd.gradgradcheck(run, given)
    assert calls["forward"] > 0


@pytest.mark.parametrize(
    ("ticks", "batch", "width", "name", "dtype", "serves"),
    [
        (64, 1, 256, "tanh", torch.float32, True),
        (4, 2, 256, "tanh", torch.float64, True),
        (3, 2, 256, "tanh", torch.float32, False),  # not worth a compilation
        (64, 3, 256, "tanh", torch.float32, False),  # torch's product is the faster one
        (64, 1, 256, "gelu", torch.float32, False),
        (64, 1, 256, "tanh", torch.bfloat16, False),
        (64, 0, 256, "tanh", torch.float32, False),
    ],
)
def test_when_it_is_chosen(ticks, batch, width, name, dtype, serves, monkeypatch):
    monkeypatch.setattr(dense_numba, "WORTHWHILE", 2048)
    plan = DensePlan(((width, name),), ticks, "zero", False, False)
    assert dense_numba.serves(torch.empty(batch, width, dtype=dtype), plan) is serves


def test_without_numba_torch_runs(monkeypatch, calls):
    monkeypatch.setattr(numba_arrays, "HAS_NUMBA", False)
    check(tensors(5, 1, WIDTH), SLICES)
    assert calls == {"forward": 0, "backward": 0}
