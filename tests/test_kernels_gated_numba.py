"""The compiled LSTM and GRU of few samples against the equations, tick by tick in float64; their choice and memory."""

import itertools
import math

import pytest
import torch

from onematrix.kernels import gated_states, numba_arrays
from onematrix.kernels.native_recurrence import native_gru, native_lstm
from onematrix.records.memory import peak_bytes
from test_kernels_native import BIASES, gru_cell, lstm_cell, run_cell

pytestmark = pytest.mark.skipif(not numba_arrays.HAS_NUMBA, reason="numba is not installed")
KINDS = ["lstm", "gru"]
CELLS = {"lstm": lstm_cell, "gru": gru_cell}
EVER, NEVER, TICKS = "own products", "torch", "torch's products"
ways = pytest.mark.parametrize(("kind", "way"), [("lstm", EVER), ("gru", EVER), ("gru", TICKS)])


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Compiled loops at any size; how often they ran."""
    choose(monkeypatch, EVER)
    counts = {"forward": 0, "backward": 0}
    for kind, name in itertools.product(KINDS, counts):
        table = getattr(gated_states, name.upper())

        def counted(*given, run=table[kind], name=name):
            counts[name] += 1
            return run(*given)

        monkeypatch.setitem(table, kind, counted)
    return counts


def choose(monkeypatch, way):
    numbers = (10**9, 10**9) if way == EVER else (0, 0)
    monkeypatch.setattr(gated_states, "FEW", numbers)
    monkeypatch.setattr(gated_states, "FEW_OF_ONEDNN", numbers)
    monkeypatch.setattr(gated_states, "MANY", (1, 1, 1) if way == TICKS else (10**9, 1, 1))
    monkeypatch.setattr(gated_states, "WORTHWHILE", dict.fromkeys(KINDS, 1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def tensors(kind, ticks=5, batch=2, n=4, width=3, biases=(True, True), dtype=torch.float64):
    """The inputs, the state, and the four lists of weights."""
    g = torch.Generator().manual_seed(0)
    gates = gated_states.GATES[kind]

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    shapes = [(n, width), (n, n), (n,), (n,)]
    lists = [[draw(*shape) for _ in range(gates)] for shape in shapes]
    lists[2:] = [made if has else None for made, has in zip(lists[2:], biases, strict=True)]
    lists[1] = [(w.detach() / n**0.5).requires_grad_() for w in lists[1]]
    return draw(ticks, batch, width), tuple(draw(batch, n) for _ in range(1 + (kind == "lstm"))), lists


def run(kind, x, state, lists, reverse=False):
    """All hidden states and the final state, one after the other."""
    if kind == "lstm":
        out, final = native_lstm(x, state, *lists, reverse=reverse)
        return [out, *final]
    return list(native_gru(x, state[0], *lists, reverse=reverse))


def literal(kind, x, state, lists, reverse=False):
    return list(run_cell(CELLS[kind], x, state, lists, reverse=reverse))


def leaves(x, state, lists):
    return [x, *state, *(t for made in lists if made is not None for t in made)]


def gradients(outputs, wanted):
    """Of a sum with a weight for each number, none of them 0 or equal."""
    total = sum((o * torch.arange(1, o.numel() + 1).reshape(o.shape).sin()).sum() for o in outputs)
    return torch.autograd.grad(total, wanted, retain_graph=True, materialize_grads=True)


def same(ours, theirs, tolerance=1e-12, **options):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, **options)


def check(kind, given, reverse=False):
    ours, theirs = run(kind, *given, reverse), literal(kind, *given, reverse)
    same(ours, theirs)
    same(gradients(ours, leaves(*given)), gradients(theirs, leaves(*given)))
    with torch.no_grad():
        same(run(kind, *given, reverse), theirs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("biases", BIASES)
@ways
def test_values_and_gradients(kind, way, biases, reverse, calls, monkeypatch):
    choose(monkeypatch, way)
    for ticks, batch, n in [(1, 1, 1), (1, 3, 4), (2, 2, 1), (6, 1, 7), (5, 2, 8), (4, 5, 6), (9, 3, 33)]:
        check(kind, tensors(kind, ticks, batch, n, biases=biases), reverse)
    assert calls == {"forward": 14, "backward": 7}


@ways
def test_gradients_of_some_outputs_alone(kind, way, calls, monkeypatch):
    choose(monkeypatch, way)
    given = tensors(kind)
    pairs = list(zip(run(kind, *given), literal(kind, *given), strict=True))
    for ours, theirs in pairs:
        same(*(gradients([o], leaves(*given)) for o in (ours, theirs)))
        same(*(gradients([o[..., 1:]], leaves(*given)) for o in (ours, theirs)))  # twice over one graph
    assert calls == {"forward": 1, "backward": 2 * len(pairs)}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_some_tensors_alone(kind, calls):
    x, state, lists = tensors(kind)
    every = leaves(x, state, lists)
    for wanted in every:
        for t in every:
            t.requires_grad_(t is wanted)
        ours, theirs = (f(kind, x, state, lists) for f in (run, literal))
        same(gradients(ours, [wanted]), gradients(theirs, [wanted]))
    assert calls["backward"] == len(every)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
@ways
def test_tensors_in_any_order_of_memory(kind, way, order, calls, monkeypatch):
    """A series whose samples, ticks or features lead in memory; turned weights; an expanded first state."""
    choose(monkeypatch, way)
    x, state, lists = tensors(kind, 6, 3, 4)
    back = [order.index(i) for i in range(3)]
    laid = x.detach().permute(order).contiguous().permute(back).requires_grad_()
    first = tuple(s.detach()[:1].expand(3, -1).requires_grad_() for s in state)
    turned = [w.detach().t().contiguous().t().requires_grad_() for w in lists[1]]
    given = (laid, first, [lists[0], turned, *lists[2:]])
    ours, theirs = (f(kind, *given) for f in (run, literal))
    same(ours, theirs)
    spread = torch.randn(3, 6, 4, dtype=torch.float64).transpose(0, 1)  # a gradient with samples first
    same(*(torch.autograd.grad((out[0] * spread).sum(), leaves(*given)) for out in (ours, theirs)))
    assert calls == {"forward": 1, "backward": 1}


@ways
@pytest.mark.parametrize("batch", [1, 2])
def test_error_is_that_of_torch(kind, way, batch, monkeypatch):
    """Over 200 ticks of 96 features, in float32: at most twice torch's own distance from float64."""
    given = tensors(kind, 200, batch, 96, dtype=torch.float32)
    wide = _mapped(given, lambda t: t.detach().double().requires_grad_())
    exact = literal(kind, *wide)
    exact = [t.detach() for t in (*exact, *gradients(exact, leaves(*wide)))]
    made = []
    for one in (way, NEVER):
        choose(monkeypatch, one)
        outputs = run(kind, *given)
        found = [*outputs, *gradients(outputs, leaves(*given))]
        made.append([float((a.detach() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)])
    for ours, torchs in zip(*made, strict=True):
        assert ours <= 2 * torchs


def _mapped(given, function):
    x, state, lists = given
    return (
        function(x),
        tuple(map(function, state)),
        [None if made is None else list(map(function, made)) for made in lists],
    )


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", ["inputs", "state", "weight"])
@ways
def test_what_is_infinite_or_no_number_spreads_as_in_torch(kind, way, place, value, monkeypatch):
    given = _mapped(tensors(kind, 4, 1, 6), torch.Tensor.detach)
    {"inputs": given[0][1], "state": given[1][-1], "weight": given[2][1][-1]}[place][0, 2] = value
    both = []
    for one in (way, NEVER):
        choose(monkeypatch, one)
        drawn = _mapped(given, lambda t: t.clone().requires_grad_())
        outputs = run(kind, *drawn)
        both.append([*outputs, *torch.autograd.grad(outputs[0][:2].sum(), leaves(*drawn))])
    same(*both, equal_nan=True)


@ways
def test_large_numbers_saturate(kind, way, monkeypatch):
    choose(monkeypatch, way)
    check(kind, _mapped(tensors(kind, 3, 2, 4), lambda t: (t.detach() * 300).requires_grad_()))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("biases", [(True, True), (False, False)])
@ways
def test_second_derivatives(kind, way, biases, reverse, calls, monkeypatch):
    choose(monkeypatch, way)
    x, state, lists = tensors(kind, 3, 1, 2, 2, biases)
    count = len(state)

    def of(x, *t):
        w_ih, w_hh = t[count], t[count + 1]
        gates = [None if made is None else list(made) for made in lists]
        return run(kind, x, t[:count], [[w_ih, *gates[0][1:]], [*gates[1][:-1], w_hh], *gates[2:]], reverse)

    assert torch.autograd.gradgradcheck(of, (x, *state, lists[0][0], lists[1][-1]))
    assert calls["forward"] > 0


@pytest.mark.parametrize(("ticks", "batch"), [(0, 2), (3, 0), (0, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_do(kind, ticks, batch, calls):
    given = tensors(kind, ticks, batch)
    out, *final = run(kind, *given)
    assert out.shape == (ticks, batch, 4)
    same(final, given[1])
    assert all(a is not b for a, b in zip(final, given[1], strict=True))
    assert calls["forward"] == 0


@pytest.mark.parametrize(
    ("kind", "ticks", "batch", "n", "dtype", "threads", "chosen"),
    [  # chosen: without gradients, with them
        ("gru", 64, 4, 256, torch.float32, 2, (True, True)),
        ("gru", 64, 8, 256, torch.float64, 2, (False, True)),
        ("gru", 64, 9, 256, torch.float32, 2, (False, False)),
        ("gru", 64, 4, 256, torch.float32, 1, (True, True)),
        ("gru", 64, 16, 256, torch.float32, 1, (True, True)),
        ("gru", 64, 17, 256, torch.float32, 2, (False, False)),
        ("gru", 64, 17, 256, torch.float32, 1, (True, True)),  # by torch's products
        ("gru", 64, 300, 63, torch.float32, 1, (False, False)),
        ("gru", 7, 1, 256, torch.float32, 1, (False, False)),  # not worth a compilation
        ("gru", 8, 1, 256, torch.float32, 1, (True, True)),
        ("lstm", 64, 2, 64, torch.float32, 2, (False, True)),
        ("lstm", 64, 3, 64, torch.float32, 2, (False, False)),
        ("lstm", 64, 1, 256, torch.float32, 1, (False, True)),
        ("lstm", 64, 1, 257, torch.float32, 1, (False, False)),
        ("lstm", 31, 1, 256, torch.float64, 1, (False, False)),
        ("lstm", 64, 4, 256, torch.float64, 2, (True, True)),
        ("gru", 64, 1, 256, torch.bfloat16, 1, (False, False)),
    ],
)
def test_when_it_is_chosen(kind, ticks, batch, n, dtype, threads, chosen, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    gates = gated_states.GATES[kind]
    x, h = torch.empty(ticks, batch, 8, dtype=dtype), torch.empty(batch, n, dtype=dtype)
    state = (h, h) if kind == "lstm" else (h,)
    weights = [torch.empty(gates * n, 8, dtype=dtype), torch.empty(gates * n, n, dtype=dtype)]
    without = gated_states.serves(kind, x, state, weights)
    weights[1].requires_grad_()
    assert (without, gated_states.serves(kind, x, state, weights)) == chosen


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_dtypes_that_do_not_fit_are_left_to_torch(kind, calls):
    x, state, lists = tensors(kind)
    shorter = [w[:, :2] for w in lists[0]]
    single = [w.detach().float() for w in lists[1]]
    for given in [
        (x, state, [shorter, *lists[1:]]),
        (x, state, [lists[0], single, *lists[2:]]),
        (x, tuple(s[:1] for s in state), lists),
        (x.float(), state, lists),
    ]:
        with pytest.raises((RuntimeError, ValueError)):
            run(kind, *given)
    assert calls["forward"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_without_numba_torch_runs(kind, monkeypatch, calls):
    monkeypatch.setattr(numba_arrays, "HAS_NUMBA", False)
    check(kind, tensors(kind))
    assert calls == {"forward": 0, "backward": 0}


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_go_on_as_before(kind, calls):
    x, state, lists = _mapped(tensors(kind, 3, 2, 2), torch.Tensor.detach)
    expected = literal(kind, x, state, lists)
    of = lambda x: run(kind, x, state, lists)  # noqa: E731
    many = torch.stack([x, x + 1])
    for k, part in enumerate(torch.func.vmap(lambda x: tuple(of(x)))(many)):
        same([part[0]], [expected[k]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = run(kind, x.float(), *_mapped((x, state, lists), torch.Tensor.float)[1:])
    same([low[0].double()], [expected[0]], 0.05)
    assert all(t.is_meta for t in run(kind, *_mapped((x, state, lists), lambda t: t.to("meta"))))
    traced = torch.jit.trace(lambda x: tuple(of(x)), (x,), check_trace=False)
    same(traced(x + 1), literal(kind, x + 1, state, lists))
    assert calls["forward"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_goes_on_as_before(kind, calls):
    given = _mapped(tensors(kind, 3, 2, 2), torch.Tensor.detach)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(given[0], torch.ones_like(given[0]))
        found = torch.autograd.forward_ad.unpack_dual(run(kind, dual, *given[1:])[0]).tangent
        wanted = torch.autograd.forward_ad.unpack_dual(literal(kind, dual, *given[1:])[0]).tangent
    same([found], [wanted])
    assert calls["forward"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_mapped_gradients(kind, calls):
    """Many vectors at once through one graph, as Jacobians are computed."""
    x, state, lists = tensors(kind, 3, 1, 2)
    both = []
    for f in (run, literal):
        out = f(kind, x, state, lists)[0]
        seeds = torch.eye(out.numel(), dtype=out.dtype).reshape(-1, *out.shape)
        both.append(torch.autograd.grad(out, leaves(x, state, lists), seeds, is_grads_batched=True))
    same(*both)
    assert calls == {"forward": 1, "backward": 0}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiles_and_exports(kind, calls):
    x, state, lists = tensors(kind, 3, 2, 4)
    compiled = torch.compile(lambda x: run(kind, x, state, lists), fullgraph=True, backend="aot_eager")
    ours, theirs = compiled(x), literal(kind, x, state, lists)
    same(ours, theirs)
    same(gradients(ours, [x]), gradients(theirs, [x]))

    x, *others = _mapped((x, state, lists), torch.Tensor.detach)

    class Net(torch.nn.Module):
        def forward(self, x):
            return run(kind, x, *others)

    same(torch.export.export(Net(), (x,)).module()(x), theirs)
    assert calls["forward"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_tensors_stay_as_they_are_and_outputs_are_new(kind):
    given = _mapped(tensors(kind), torch.Tensor.detach)
    copies = _mapped(given, torch.Tensor.clone)
    for out in run(kind, *given):
        out.fill_(7)
    same(leaves(*given), leaves(*copies), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_changing_the_states_before_backward_is_noticed(kind):
    out = run(kind, *tensors(kind))[0]
    loss = out.sum()
    out.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@ways
def test_memory_is_at_most_that_of_torchs_cell(kind, way, dtype, monkeypatch):
    given = tensors(kind, 64, *((16, 64) if way == TICKS else (2, 32)), 32, dtype=dtype)
    peaks = []
    for one in (way, NEVER):
        choose(monkeypatch, one)
        with torch.no_grad():
            without = peak_bytes(lambda: run(kind, *given))
        peaks.append((without, peak_bytes(lambda: gradients(run(kind, *given), leaves(*given)))))
    assert peaks[0][0] <= peaks[1][0]
    assert peaks[0][1] <= 1.05 * peaks[1][1]
