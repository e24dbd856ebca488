"""Recurrent layers and transformers as programs, at any batch and length."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import onematrix as om
from converter_cases import Of, OfTwo, check, normal, same
from onematrix.converters.conversion import convert
from onematrix.errors import ConversionError
from onematrix.programs.schedule import Loop, walk


def loops(program):
    return [node for node in walk(program.schedule) if isinstance(node, Loop)]


class Recurrent(nn.Module):
    """The outputs of a recurrent layer with its final states, the batch first everywhere."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, *states):
        given = states[0] if len(states) == 1 else tuple(states) or None
        given = given if given is None else _swapped(given)
        out, last = self.layer(x if self.layer.batch_first else x.transpose(0, 1), given)
        last = last if isinstance(last, tuple) else (last,)
        out = out if self.layer.batch_first else out.transpose(0, 1)
        return (out, *(s.transpose(0, 1) for s in last))


def _swapped(states):
    if isinstance(states, tuple):
        return tuple(s.transpose(0, 1) for s in states)
    return states.transpose(0, 1)


OPTIONS = [
    dict(zip(("num_layers", "bidirectional", "bias", "batch_first"), values, strict=True))
    for values in itertools.product((1, 2), (False, True), (True, False), (True, False))
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(int(v)) for v in o.values()))
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_are_loops_of_any_length(kind, options):
    torch.manual_seed(0)
    module = Recurrent(kind(3, 4, **options))
    program = check(module, normal(2, 5, 3))
    assert len(loops(program)) == options["num_layers"] * (2 if options["bidirectional"] else 1)
    for batch, time in ((1, 1), (3, 7)):
        check(module, normal(batch, time, 3), program=program, gradients=False)


def test_relu_projections_and_states_given():
    torch.manual_seed(0)
    check(Recurrent(nn.RNN(3, 4, nonlinearity="relu", batch_first=True)), normal(2, 5, 3))
    check(Recurrent(nn.LSTM(3, 4, 2, proj_size=2, bidirectional=True, batch_first=True)), normal(2, 5, 3))
    lstm, gru = (kind(3, 4, 2, batch_first=True) for kind in (nn.LSTM, nn.GRU))
    check(Recurrent(gru), normal(2, 5, 3), normal(2, 2, 4, seed=1), free={"x": {1: "time"}})
    check(
        Recurrent(lstm),
        normal(2, 5, 3),
        normal(2, 2, 4, seed=1),
        normal(2, 2, 4, seed=2),
        free={"x": {1: "time"}},
    )


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_fixed_number_of_ticks_becomes_steps_one_after_the_other(kind):
    module = Recurrent(kind(3, 4, 2, bidirectional=True, batch_first=True))
    program = check(module, normal(2, 3, 3), free={})
    assert not loops(program)
    assert not program.free_sizes()


def test_the_loops_mean_the_same_literally():
    check(Recurrent(nn.LSTM(2, 3, bidirectional=True, batch_first=True)), normal(2, 3, 2), literal=True)
    check(Recurrent(nn.GRU(2, 3, batch_first=True)), normal(2, 3, 2), literal=True)


def test_recurrence_inside_a_network_and_its_parameters_are_shared():
    net = nn.Sequential(
        nn.Linear(3, 3), Of(lambda x, rnn: rnn(x)[0], nn.GRU(3, 4, batch_first=True)), nn.Linear(4, 2)
    )
    program = check(net, normal(2, 5, 3))
    held = {id(t) for t in program.parameters.values()}
    assert held == {id(p) for p in net.parameters()}
    assert set(program.source_names.values()) == {n for n, _ in net.named_parameters()}


class Packed(nn.Module):
    """Outputs and final states of a recurrent layer over samples of their own lengths."""

    def __init__(self, layer, sort=True):
        super().__init__()
        self.layer, self.sort = layer, sort

    def forward(self, x, lengths):
        first = self.layer.batch_first
        given = x if first else x.transpose(0, 1)
        packed = pack_padded_sequence(given, lengths, batch_first=first, enforce_sorted=self.sort)
        out, last = self.layer(packed)
        out, found = pad_packed_sequence(out, batch_first=True, padding_value=0.5, total_length=x.shape[1])
        last = last if isinstance(last, tuple) else (last,)
        return (out, *(s.transpose(0, 1) for s in last), found)


@pytest.mark.parametrize("free", [None, {}], ids=["free length", "fixed length"])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "batch_first": True}, {"num_layers": 2}], ids=str
)
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_packed_batches_hold_each_sample_at_its_end(kind, options, free):
    module = Packed(kind(3, 4, **options).double(), sort=False)
    x, lengths = normal(3, 5, 3), torch.tensor([2, 5, 3])
    program = convert(module, x, lengths, free=free)
    assert program.opaque() == {}
    for count in (lengths, torch.tensor([5, 1, 4])):
        for ours, theirs in zip(om.interpret(program, x, count), module(x, count), strict=True):
            same(ours, theirs)
    mine = torch.autograd.grad(om.interpret(program, x, lengths)[0].sin().sum(), list(module.parameters()))
    its = torch.autograd.grad(module(x, lengths)[0].sin().sum(), list(module.parameters()))
    for ours, theirs in zip(mine, its, strict=True):
        same(ours, theirs)
    compiled = om.compile(program)
    for ours, theirs in zip(compiled(x, lengths), module(x, lengths), strict=True):
        same(ours, theirs)
    assert pack_padded_sequence(x, [5, 5, 5], batch_first=True).data.shape == (15, 3), "torch's own again"


class Longer(Packed):
    def forward(self, x, lengths):
        out = self.layer(pack_padded_sequence(x, lengths, batch_first=True))[0]
        return pad_packed_sequence(out, batch_first=True, padding_value=2.0, total_length=7)[0]


def test_a_total_length_beyond_the_padded_one():
    module, x, lengths = (
        Longer(nn.GRU(3, 4, batch_first=True).double()),
        normal(2, 5, 3),
        torch.tensor([5, 3]),
    )
    same(om.interpret(convert(module, x, lengths, free={}), x, lengths), module(x, lengths))
    with pytest.raises(ConversionError, match=r"total_length 7 fixes a free length; write x\.shape\[1\]"):
        convert(module, x, lengths, free={"x": {1: "time"}})


def test_sequences_packed_elsewhere_and_samples_without_a_batch_are_refused():
    with pytest.raises(ConversionError, match=r"GRU needs \(batch, time, features\) in some order, got 2"):
        convert(nn.GRU(3, 4), torch.zeros(5, 3))
    elsewhere = pack_padded_sequence(torch.zeros(2, 2, 3), [2, 2], batch_first=True)
    with pytest.raises(ConversionError, match=r"GRU reads a packed sequence made elsewhere.*and its lengths"):
        convert(Of(lambda x, net: net(elsewhere)[1][0] + x, nn.GRU(3, 4)), torch.zeros(2, 4))


def test_the_module_is_as_it_was_after_a_conversion():
    layer = nn.LSTM(3, 4, batch_first=True)
    convert(Recurrent(layer), torch.zeros(2, 5, 3))
    assert "forward" not in vars(layer)
    assert torch.equal(layer(torch.ones(2, 5, 3))[0], layer(torch.ones(2, 5, 3))[0])


LAYER = {"d_model": 8, "nhead": 2, "dim_feedforward": 12, "batch_first": True}


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_layers(norm_first, activation):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(**LAYER, norm_first=norm_first, activation=activation)
    program = check(layer, normal(2, 5, 8))
    assert program.free_sizes() == {"time"}
    for batch, time in ((1, 1), (3, 9)):
        check(layer, normal(batch, time, 8), program=program, gradients=False)


def test_decoder_layers_read_two_lengths():
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(**LAYER)
    program = check(layer, normal(2, 5, 8), normal(2, 7, 8))
    assert program.free_sizes() == {"time", "time_2"}
    for time, other in ((1, 6), (6, 1), (4, 4)):
        check(layer, normal(3, time, 8), normal(3, other, 8), program=program, gradients=False)


def test_encoder_and_decoder_with_a_causal_mask():
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    masked = OfTwo(lambda x, y, net: net(x, y, tgt_mask=mask, tgt_is_causal=True), model)
    program = check(masked, normal(2, 6, 8), normal(2, 5, 8), free={"x": {1: "time"}})
    check(masked, normal(1, 3, 8), normal(1, 5, 8), program=program, gradients=False)


def test_attention_returns_its_weights():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=False)
    check(Of(lambda x, net: net(x, x, x), layer), normal(2, 5, 8))
    apart = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
    check(Of(lambda x, net: net(x, x[..., :6], x[..., 2:6])[0], apart), normal(2, 5, 8))


def test_heads_are_never_a_matrix_of_scores_in_memory_twice():
    """q k and the mixture are contractions of parts, nothing else is of size time × time but scores and weights."""
    program = convert(nn.MultiheadAttention(8, 2, batch_first=True), *[torch.zeros(2, 5, 8)] * 3)
    patterns = [row.join.pattern for step in program.steps() for row in step.rows if row.join is not None]
    assert len([p for p in patterns if p]) >= 2
    square = [n for n, p in program.parts.items() if len({"time", "time_2"} & set(p.shape)) == 2]
    assert len(square) <= 4


def test_streaming_a_converted_layer_equals_the_whole():
    layer = nn.GRU(3, 4, batch_first=True).double()
    program = convert(Recurrent(layer), normal(2, 5, 3))
    from onematrix.programs.interpreter import interpret_with_state

    x = normal(2, 6, 3)
    (first, _), state = interpret_with_state(program, x[:, :2])
    (second, last), _ = interpret_with_state(program, x[:, 2:], state=state)
    whole, final = om.interpret(program, x)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, final, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("queries", "keys"), [(1, 4), (4, 1), (1, 1), (3, 4), (4, 3)])
def test_causal_attention_of_few_places(queries, keys):
    module = OfTwo(lambda q, k, _: F.scaled_dot_product_attention(q, k, k, is_causal=True), nn.Identity())
    q, k = normal(2, 3, queries, 8), normal(2, 3, keys, 8)
    same(om.interpret(convert(module, q, k), q, k), F.scaled_dot_product_attention(q, k, k, is_causal=True))


def test_a_contraction_of_three_keeps_the_batch_free():
    module = Of(lambda x, net: torch.einsum("bta,ca,a->btc", x, net.weight, net.weight[0]), nn.Linear(4, 5))
    program = check(module.double(), normal(2, 3, 4))
    assert program.free_sizes() == {"time"}
    assert torch.backends.opt_einsum.enabled


@pytest.mark.parametrize("options", [{}, {"bias": False, "bidirectional": True}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize(
    ("kind", "call"), [(nn.LSTM, "native_lstm"), (nn.GRU, "native_gru"), (nn.RNN, "dense")]
)
def test_converted_recurrences_run_as_torchs_own_kernels(kind, call, options):
    layer = Recurrent(kind(3, 4, batch_first=True, **options)).double()
    x = normal(2, 5, 3)
    compiled = om.compile(convert(layer, x))
    kernels = [v.__name__ for v in compiled._emitted[False].constants.values() if hasattr(v, "__name__")]
    assert any(call in name for name in kernels), kernels
    assert "for t" not in compiled.text, "no tick is written out"
    for length in (5, 9):
        given = normal(2, length, 3)
        for ours, theirs in zip(compiled(given), layer(given), strict=True):
            same(ours, theirs)
    mine, its = (
        torch.autograd.grad(f(x)[0].sin().sum(), list(layer.parameters())) for f in (compiled, layer)
    )
    for ours, theirs in zip(mine, its, strict=True):
        same(ours, theirs)
