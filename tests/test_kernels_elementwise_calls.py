"""How elementwise recurrences are called: new outputs, choice of the kernel, tracing, refusals."""

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from onematrix.errors import CompileError, DTypeError, ProgramError, ShapeError
from onematrix.kernels import elementwise_loop, numba_arrays
from onematrix.kernels.elementwise_code import ElementwiseLoop
from onematrix.kernels.elementwise_loop import run_elementwise_loop
from recurrence_cases import KERNELS, SRU, check, flat, gradients, tensors


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("ticks", [0, 4])
def test_outputs_are_new_and_may_be_changed(ticks, grad, kernel):
    """A carried value that is handed on as it is, a series that becomes one, outputs that are inputs."""
    loop = ElementwiseLoop(1, 1, 4, (("add", 0, 1),), outputs=(0, 1, 2, 6, 6), carry=(0, 3, 6, 6))
    given = tensors(loop, (ticks, 3, 4))
    copies = [t.detach().clone() for t in flat(given)]
    with torch.set_grad_enabled(grad):
        for k, out in enumerate(made := flat(run_elementwise_loop(loop, *given, kernel=kernel))):
            out.fill_(k)
    assert all((out == k).all() for k, out in enumerate(made))
    for t, c in zip(flat(given), copies, strict=True):
        assert torch.equal(t, c)


class Counted(TorchDispatchMode):
    """How often each operation of torch runs."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


# c ← tanh(c + u), a new row of it, and σ(v c′) u: tanh is carried, σ is not
LATE = ElementwiseLoop(
    1, 1, 1,
    (
        ("add", 0, 2), ("activation", 3, "tanh"), ("mul", 4, 1), ("activation", 5, "sigmoid"), ("mul", 6, 0),
        ("activation", 0, "identity"), ("activation", 4, "identity"), ("constant", 0.5),
    ),
    outputs=(7, 8, 9, 9, 4, 2, 10), carry=(4,),
)  # fmt: skip


def test_torch_computes_what_nothing_carried_needs_for_all_ticks_at_once():
    given = tensors(LATE, (9, 2, 3))
    with Counted() as counted:
        run_elementwise_loop(LATE, *given, kernel="torch")
    assert (counted.calls["tanh"], counted.calls["sigmoid"]) == (9, 1)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shared", [(), (0,)])
def test_late_values_are_right_and_new(shared, reverse, kernel):
    check(LATE, tensors(LATE, shared=shared), kernel, reverse=reverse)
    given = tensors(LATE, shared=shared)
    copies = [t.detach().clone() for t in flat(given)]
    with torch.no_grad():
        for k, out in enumerate(made := flat(run_elementwise_loop(LATE, *given, kernel=kernel))):
            out.fill_(k)
    assert all((out == k).all() for k, out in enumerate(made))
    assert all(torch.equal(t, c) for t, c in zip(flat(given), copies, strict=True))


def test_changing_a_course_before_backward_is_noticed():
    pytest.importorskip("numba")
    outputs, _ = run_elementwise_loop(SRU, *tensors(SRU), kernel="numba")
    loss = outputs[0].sum()
    outputs[0].detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_half_precision_takes_torch():
    given = tensors(SRU, (3, 2, 4), dtype=torch.bfloat16)
    assert run_elementwise_loop(SRU, *given)[0][0].dtype == torch.bfloat16


def test_the_default_is_compiled_where_it_pays(monkeypatch):
    pytest.importorskip("numba")
    calls = []
    monkeypatch.setattr(
        elementwise_loop, "run_compiled", lambda loop, tensors, *rest: calls.append(rest) or tensors
    )
    monkeypatch.setattr(elementwise_loop, "run_by_torch", lambda *rest: ([], []))
    for sizes, compiled in [((512, 1, 4), 1), ((4, 2, 4), 0)]:
        run_elementwise_loop(SRU, *tensors(SRU, sizes))
        assert len(calls) == compiled
        calls.clear()
    run_elementwise_loop(SRU, *tensors(SRU, (512, 1, 4)), kernel="torch")
    run_elementwise_loop(SRU, *tensors(SRU, (512, 1, 4), dtype=torch.bfloat16))
    monkeypatch.setattr(numba_arrays, "HAS_NUMBA", False)
    run_elementwise_loop(SRU, *tensors(SRU, (512, 1, 4)))
    assert not calls
    with pytest.raises(CompileError, match="'numba' cannot run: numba is not installed"):
        run_elementwise_loop(SRU, *tensors(SRU), kernel="numba")


class Net(torch.nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.kernel, self.v = kernel, torch.nn.Parameter(tensors(SRU)[1][0].detach())

    def forward(self, u, w, c):
        return run_elementwise_loop(SRU, [u, w.sin()], [self.v], [c], kernel=self.kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_compiles_into_one_graph(kernel):
    net, (series, _, init) = Net(kernel), tensors(SRU)
    given = [*series, *init, net.v]
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    ours, theirs = compiled(*given[:3]), net(*given[:3])
    torch.testing.assert_close(flat(ours), flat(theirs))
    torch.testing.assert_close(gradients(flat(ours), given), gradients(flat(theirs), given))
    if kernel == "numba":  # any number of ticks
        (series, _, init) = tensors(SRU, (7, 3, 4))
        torch.testing.assert_close(flat(compiled(*series, *init)), flat(net(*series, *init)))


@pytest.mark.parametrize("kernel", [None, *KERNELS])
def test_exports(kernel):
    net, (series, _, init) = Net(kernel), tensors(SRU, (4, 128, 4))  # compiled, were it no export
    given = [t.detach() for t in (*series, *init)]
    exported = torch.export.export(net, tuple(given))
    torch.testing.assert_close(flat(exported.module()(*given)), flat(net(*given)))
    assert ("onematrix" in str(exported.graph)) == (kernel == "numba")


def test_the_operators_are_sound():
    pytest.importorskip("numba")
    given = flat(tensors(SRU, (3, 2, 2)))
    valid = torch.tensor([[True, False]] * 3)
    for mask in (None, valid):
        torch.library.opcheck(
            torch.ops.onematrix.elementwise_recurrence.default,
            (SRU.text, given, mask, [3, 2, 2], False, "numba"),
        )


@pytest.mark.parametrize("shared", [(), (0,)])
def test_gradients_of_the_operator_lie_as_traced_code_is_told(shared):
    """One series with the ticks first in memory, one with the samples first, as a product's rows are."""
    pytest.importorskip("numba")
    given = [t.detach() for t in flat(tensors(SRU, (5, 3, 4), shared=shared))]
    given[1] = given[1].transpose(0, 1).contiguous().transpose(0, 1)
    whole, row = torch.ones(5, 3, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)

    def run(every):
        tensors, courses, grads = every[:4], every[4:5], every[5:]
        operator = torch.ops.onematrix.elementwise_gradients
        return operator(SRU.text, tensors, courses, grads, None, [5, 3, 4], False, "numba")

    every = [*given, whole, whole, whole, row]
    made = run(every)
    with FakeTensorMode() as mode:
        told = run([mode.from_tensor(t) for t in every])
    assert [t.stride() for t in made] == [t.stride() for t in told]
    assert made[1].stride() == given[1].stride()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("power", 0, 1), r"line 0: \('power', 0, 1\) is no instruction; there are add"),
        (("add", 0), r"\('add', 0\) is no instruction"),
        (("activation", 0, "softmax"), "is no instruction.*of identity"),
        (("activation", 0, "leaky_relu"), "is no instruction"),
        (("add", 0, 1), "line 0 may read registers 0 to 0, got 1"),
        (("add", 0, -1), "line 0 may read registers 0 to 0, got -1"),
    ],
)
def test_refused_code(line, message):
    with pytest.raises(ProgramError, match=message):
        ElementwiseLoop(1, 0, 0, (line,), (), ())


def test_refused_loops():
    with pytest.raises(ProgramError, match="1 carried values need as many carry registers, got 2"):
        ElementwiseLoop(1, 0, 1, (), (), (0, 1))
    with pytest.raises(ProgramError, match="outputs and carry may read registers 0 to 1, got 2"):
        ElementwiseLoop(1, 0, 1, (), (2,), (0,))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"series": [torch.ones(5, 3, 4)]}, ShapeError, r"\(2, 1, 1\) series, .* needed, got \(1, 1, 1\)"),
        (
            {"series": [torch.ones(5, 3, 4), torch.ones(5, 2, 4)]},
            ShapeError,
            r"got \[\(5, 3, 4\), \(5, 2, 4\)",
        ),
        ({"vectors": [torch.ones(1, 4)]}, ShapeError, r"vectors \(n,\).*\(1, 4\)"),
        ({"vectors": [torch.ones(3)]}, ShapeError, r"vectors \(n,\).*\(3,\)"),
        ({"init": [torch.ones(2, 4)]}, ShapeError, r"carried values \(B, n\).*\(2, 4\)"),
        ({"valid": torch.ones(3, 5).bool()}, ShapeError, r"valid \(T, B\) .*\(3, 5\)"),
        ({"init": [torch.ones(3, 4).double()]}, DTypeError, r"one floating-point dtype .* 'torch.float64'\]"),
        ({"valid": torch.ones(5, 3)}, DTypeError, "valid has to be torch.bool, got torch.float32"),
        ({"kernel": "cuda"}, CompileError, "kernel 'cuda' is unknown; there are: torch, numba"),
    ],
)
def test_refused_tensors(change, error, message):
    arguments = {
        "series": [torch.ones(5, 3, 4), torch.ones(5, 3, 4)],
        "vectors": [torch.ones(4)],
        "init": [torch.ones(3, 4)],
    }
    with pytest.raises(error, match=message):
        run_elementwise_loop(SRU, **(arguments | change))


def test_the_compiled_kernel_says_why_it_cannot_run():
    pytest.importorskip("numba")
    given = [[t.detach().bfloat16() for t in part] for part in tensors(SRU)]
    with pytest.raises(CompileError, match="'numba' cannot run: float32 or float64 is needed, got bfloat16"):
        run_elementwise_loop(SRU, *given, kernel="numba")
    given = [[t.detach().to("meta") for t in part] for part in tensors(SRU)]
    with pytest.raises(CompileError, match="tensors on a CPU are needed, got meta"):
        run_elementwise_loop(SRU, *given, kernel="numba")
