"""torch's recurrent cells over sequences against their equations in float64, gate by gate."""

import pytest
import torch

from onematrix.errors import CompileError, ShapeError
from onematrix.kernels.native_recurrence import native_gru, native_lstm, native_rnn

T, B, I, H = 4, 3, 5, 2


def draw(seed, *shape):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()


def weights(gates, biases=(True, True)):
    """W_ih, W_hh, b_ih, b_hh: a list each, one tensor per gate."""
    shapes = [(H, I), (H, H), (H,), (H,)]
    lists = [[draw(10 * k + gate, *shape) for gate in range(gates)] for k, shape in enumerate(shapes)]
    return [*lists[:2], *(made if has else None for made, has in zip(lists[2:], biases, strict=True))]


def total(gate, x, h, w_ih, w_hh, b_ih, b_hh):
    """(W_ih x + b_ih, W_hh h + b_hh) of one gate."""
    fed, carried = x @ w_ih[gate].T, h @ w_hh[gate].T
    return fed + (0 if b_ih is None else b_ih[gate]), carried + (0 if b_hh is None else b_hh[gate])


def rnn_cell(x, state, parts, function):
    h = function(sum(total(0, x, state[0], *parts)))
    return h, (h,)


def lstm_cell(x, state, parts):
    h, c = state
    i, f, g, o = (sum(total(gate, x, h, *parts)) for gate in range(4))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h, (h, c)


def gru_cell(x, state, parts):
    (h,) = state
    r, z = (torch.sigmoid(sum(total(gate, x, h, *parts))) for gate in range(2))
    fed, carried = total(2, x, h, *parts)
    h = (1 - z) * torch.tanh(fed + r * carried) + z * h
    return h, (h,)


def run_cell(cell, inputs, state, *arguments, reverse=False):
    hidden = {}
    for t in reversed(range(len(inputs))) if reverse else range(len(inputs)):
        hidden[t], state = cell(inputs[t], state, *arguments)
    return torch.stack([hidden[t] for t in range(len(inputs))]), *state


def given_tensors(lists):
    return [t for made in lists if made is not None for t in made]


def compare(ours, theirs, leaves):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    found, expected = (
        torch.autograd.grad(sum((k + 1) * o.sin().sum() for k, o in enumerate(out)), leaves)
        for out in (ours, theirs)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


BIASES = [(True, True), (False, False), (True, False), (False, True)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn(nonlinearity, biases, reverse):
    x, h, lists = draw(1, T, B, I), draw(2, B, H), weights(1, biases)
    single = [None if made is None else made[0] for made in lists]
    ours = native_rnn(x, h, *single, nonlinearity, reverse=reverse)
    theirs = run_cell(rnn_cell, x, (h,), lists, getattr(torch, nonlinearity), reverse=reverse)
    compare(ours, theirs, [x, h, *given_tensors(lists)])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("biases", BIASES)
def test_lstm(biases, reverse):
    x, h, c, lists = draw(1, T, B, I), draw(2, B, H), draw(3, B, H), weights(4, biases)
    out, final = native_lstm(x, (h, c), *lists, reverse=reverse)
    compare(
        [out, *final],
        run_cell(lstm_cell, x, (h, c), lists, reverse=reverse),
        [x, h, c, *given_tensors(lists)],
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("biases", BIASES)
def test_gru(biases, reverse):
    x, h, lists = draw(1, T, B, I), draw(2, B, H), weights(3, biases)
    ours = native_gru(x, h, *lists, reverse=reverse)
    compare(ours, run_cell(gru_cell, x, (h,), lists, reverse=reverse), [x, h, *given_tensors(lists)])


def test_no_tick_hands_the_state_on():
    x, h, c = draw(1, 0, B, I), draw(2, B, H), draw(3, B, H)
    single = [made[0] for made in weights(1)]
    for hidden, final in [
        native_rnn(x, h, *single, "tanh"),
        native_gru(x, h, *weights(3)),
        (native_lstm(x, (h, c), *weights(4))[0], native_lstm(x, (h, c), *weights(4))[1][0]),
    ]:
        assert hidden.shape == (0, B, H)
        assert torch.equal(final, h)
        assert final is not h


def test_compiles_into_one_graph():
    x, h, c, lists = draw(1, T, B, I), draw(2, B, H), draw(3, B, H), weights(4)
    compiled = torch.compile(native_lstm, fullgraph=True, backend="aot_eager")
    out, final = compiled(x, (h, c), *lists)
    compare([out, *final], run_cell(lstm_cell, x, (h, c), lists), [x, h, c, *given_tensors(lists)])


def test_refusals():
    x, h, lists = draw(1, T, B, I), draw(2, B, H), weights(3)
    with pytest.raises(CompileError, match="native_rnn: nonlinearity tanh or relu needed, got 'gelu'"):
        native_rnn(x, h, *(made[0] for made in lists), "gelu")
    with pytest.raises(ShapeError, match=r"native_gru: 3 gates needed in each list, got \[3, 3, 2, 3\]"):
        native_gru(x, h, lists[0], lists[1], lists[2][:2], lists[3])
    with pytest.raises(ShapeError, match=r"native_lstm: 4 gates needed in each list, got \[3, 3, 3, 3\]"):
        native_lstm(x, (h, h), *lists)
