"""Elementwise recurrences that are linear in what they carry, by a scan, against their definition."""

import pytest
import torch

from onematrix.errors import CompileError
from onematrix.kernels import elementwise_loop, elementwise_scan, triton_language
from onematrix.kernels.elementwise_code import ElementwiseLoop
from onematrix.kernels.elementwise_loop import run_elementwise_loop
from onematrix.kernels.elementwise_scan import FREE, OTHER, linear_in
from recurrence_cases import SRU, check, flat, tensors

LEAK = ElementwiseLoop(2, 0, 1, (("mul", 0, 2), ("add", 3, 1)), outputs=(4,), carry=(4,))
# f = σ(u); c ← f c + (1 − f) w; outputs c, c before, and tanh(c) r: an SRU without v
GATED = ElementwiseLoop(
    3, 1, 1,
    (
        ("activation", 0, "sigmoid"), ("sub", 4, 1), ("mul", 5, 6), ("add", 7, 1), ("activation", 8, "tanh"),
        ("mul", 9, 2), ("add", 10, 3),
    ),
    outputs=(8, 4, 11, 1), carry=(8,),
)  # fmt: skip
# Every line that keeps a value linear, on either side; a second carried value, and one that is only replaced
LINES = ElementwiseLoop(
    2, 1, 3,
    (
        ("scale", 3, -0.5), ("shift", 6, 2.0), ("divide", 7, 1), ("sub", 0, 8), ("add", 9, 3), ("mul", 10, 2),
        ("activation", 11, "identity"), ("sub", 12, 8), ("mul", 2, 4), ("add", 0, 14), ("constant", 0.3),
        ("maximum", 1, 16), ("mul", 13, 15), ("mul", 5, 3),
    ),
    outputs=(18, 13, 13, 19, 16), carry=(13, 15, 17),
)  # fmt: skip
LOOPS = {"leak": LEAK, "gated": GATED, "lines": LINES}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shared", [(), (0,)])
@pytest.mark.parametrize("name", LOOPS)
def test_values_and_gradients(name, shared, masked, reverse):
    loop = LOOPS[name]
    valid = torch.arange(5)[:, None] < torch.tensor([5, 2, 0]) if masked else None
    check(loop, tensors(loop, shared=shared, positive=name == "lines"), "scan", reverse=reverse, valid=valid)


@pytest.mark.parametrize("sizes", [(0, 2, 3), (1, 1, 1), (3, 0, 2), (2, 2, 0), (13, 1, 5)])
def test_edge_sizes(sizes):
    outputs, final = run_elementwise_loop(GATED, *tensors(GATED, sizes), kernel="scan")
    assert [o.shape for o in outputs] == [sizes] * 4
    assert final[0].shape == sizes[1:]
    if sizes[0] and sizes[1] * sizes[2]:
        check(GATED, tensors(GATED, sizes), "scan")


def test_outputs_are_new_and_may_be_changed():
    given = tensors(LINES, (4, 3, 2), positive=True)
    copies = [t.detach().clone() for t in flat(given)]
    with torch.no_grad():
        for k, out in enumerate(made := flat(run_elementwise_loop(LINES, *given, kernel="scan"))):
            out.fill_(k)
    assert all((out == k).all() for k, out in enumerate(made))
    assert all(torch.equal(t, c) for t, c in zip(flat(given), copies, strict=True))


def test_second_derivatives():
    given = flat(tensors(GATED, (4, 1, 2)))

    def run(u, w, r, v, c):
        outputs, final = run_elementwise_loop(GATED, [u, w, r], [v], [c], kernel="scan")
        return *outputs, *final

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


def test_what_is_linear_is_found():
    assert linear_in(SRU.text) is None
    assert linear_in(GATED.text) == (FREE, FREE, FREE, FREE, 0, FREE, 0, 0, 0, OTHER, OTHER, OTHER)
    for line in (("mul", 0, 0), ("divide", 0, 0), ("maximum", 0, 0), ("activation", 0, "tanh")):
        assert linear_in(ElementwiseLoop(0, 0, 1, (line,), (), (1,)).text) is None
    assert linear_in(ElementwiseLoop(0, 0, 2, (("add", 0, 1),), (), (2, 1)).text) is None
    assert linear_in(ElementwiseLoop(0, 0, 2, (), (), (1, 0)).text) is None
    with pytest.raises(
        CompileError, match="kernel 'scan' cannot run: what is carried is not linear in itself"
    ):
        run_elementwise_loop(SRU, *tensors(SRU), kernel="scan")


@pytest.mark.parametrize(
    ("sizes", "scan"), [((256, 1, 64), True), ((255, 1, 64), False), ((256, 64, 129), False)], ids=str
)
def test_long_runs_of_few_numbers_on_a_gpu_take_the_scan(sizes, scan, monkeypatch):
    monkeypatch.setattr(triton_language, "refusal", lambda like: None)
    monkeypatch.setattr(elementwise_loop, "is_ordinary", lambda *tensors: True)
    parts = [[t.detach().to("meta") for t in part] for part in tensors(LEAK, sizes)]
    assert elementwise_loop.choose(None, LEAK, flat(parts), sizes) == ("scan" if scan else "triton")
    assert elementwise_loop.choose("triton", LEAK, flat(parts), sizes) == "triton"
    assert elementwise_loop.choose(None, LEAK, [t.bfloat16() for t in flat(parts)], sizes) == "triton"
    assert not elementwise_scan.prefers_scan(SRU, sizes)


@pytest.mark.parametrize("name", LOOPS)
def test_what_valid_leaves_out_reaches_nothing(name):
    loop, valid = LOOPS[name], torch.arange(5)[:, None] < torch.tensor([5, 2, 0])
    series, vectors, init = tensors(loop, positive=True)
    with torch.no_grad():
        series[0][2:, 1], series[1][:, 2], init[0][2] = torch.inf, torch.nan, torch.inf
    outputs, final = run_elementwise_loop(loop, series, vectors, init, valid=valid, kernel="scan")
    assert all(o.isfinite().all() for o in outputs)
    assert (outputs[0][:, 2] == 0).all()
    assert (final[0][2] == torch.inf).all()
    found = torch.autograd.grad(
        sum(o.sum() for o in outputs) + final[0][:2].sum(), flat((series, vectors, init))
    )
    assert all(g.isfinite().all() for g in found)
    assert (found[0][2:, 1] == 0).all()
