"""Recurrent layers of the smallest sizes, and those no loop of a program says: they run as torch's own."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import onematrix as om
from converter_cases import Of, check, normal, outputs_of, same
from onematrix.converters.conversion import convert
from test_converters_sequences import Packed, Recurrent, loops


@pytest.mark.parametrize("sizes", [(1, 4, 5), (3, 1, 5), (1, 1, 5), (3, 4, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_one_input_one_unit_one_tick(kind, sizes):
    """sizes: inputs, units, ticks; a series of one number per tick is a sequence like others."""
    inputs, units, time = sizes
    torch.manual_seed(0)
    module = Recurrent(kind(inputs, units, 2, bidirectional=True))
    program = check(module, normal(2, time, inputs))
    assert len(loops(program)) == (4 if time > 1 else 0)
    check(module, normal(1, 7 if time > 1 else 1, inputs), program=program, gradients=False)
    x = normal(3, time, inputs)
    for ours, theirs in zip(om.compile(program, prove=False)(x), module(x), strict=True):
        same(ours, theirs)
    check(module, normal(2, time, inputs), free={})
    packed = Packed(kind(inputs, units, bidirectional=True, batch_first=True).double(), sort=False)
    lengths = torch.tensor([time, 1, max(time - 2, 1)])
    for ours, theirs in zip(
        om.interpret(convert(packed, x, lengths), x, lengths), packed(x, lengths), strict=True
    ):
        same(ours, theirs)


@pytest.mark.parametrize("free", [None, {}], ids=["free length", "fixed length"])
def test_one_unit_meets_values_of_more(free):
    """Its outputs and final state spread as torch spreads dimensions of one."""
    layer = nn.GRU(3, 1, batch_first=True)

    def spread(x, net):
        out, last = net(x)
        return out * x + last.transpose(0, 1)

    check(Of(spread, layer), normal(2, 5, 3), free=free)


OPAQUE = ["onematrix.recurrence.default"]


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrences_no_loop_says_run_as_torchs_own(kind):
    """Over groups of samples, and over a sequence whose length is no plain name."""
    torch.manual_seed(0)
    layer = kind(4, 3, 2, bidirectional=True, batch_first=True)
    groups = Of(lambda x, net: net(x.flatten(0, 1))[0].unflatten(0, (-1, 2)), layer)
    reason = {
        f.reason for f in check(groups, normal(3, 2, 5, 4), opaque=OPAQUE, training=True).opaque().values()
    }
    assert reason == {"its batch is not a dimension of its own"}
    twice = Of(lambda x, net: net(torch.cat([x, x], 1))[0], layer)
    program = check(twice, normal(3, 5, 4), opaque=OPAQUE)
    check(twice, normal(2, 7, 4), opaque=OPAQUE, program=program)
    compiled = om.compile(program)
    same(compiled(normal(2, 9, 4)), twice(normal(2, 9, 4)))


class PackedTwice(Packed):
    """Over the sequence and the sequence again, from a state that differs between samples."""

    def forward(self, x, lengths):
        packed = pack_padded_sequence(torch.cat([x, x], 1), lengths, batch_first=True, enforce_sorted=False)
        first = x.mean(1)[:, :3].expand(4, -1, -1)
        out, last = self.layer(packed, (first, first.sin()) if isinstance(self.layer, nn.LSTM) else first)
        out, _ = pad_packed_sequence(out, batch_first=True, total_length=2 * x.shape[1])
        last = last if isinstance(last, tuple) else (last,)
        return (out, *(s.transpose(0, 1) for s in last))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_packed_recurrences_no_loop_says_run_as_torchs_own(kind):
    torch.manual_seed(0)
    module = PackedTwice(kind(4, 3, 2, bidirectional=True, batch_first=True).double())
    x, lengths = normal(3, 5, 4), torch.tensor([2, 9, 3])
    program = convert(module, x, lengths)
    assert {f.name for f in program.opaque().values()} == set(OPAQUE)
    for count in (lengths, torch.tensor([10, 1, 4])):
        given = [x.clone().requires_grad_() for _ in range(2)]
        both = [
            [t.transpose(0, 1) if t.shape[0] != 3 else t for t in outputs_of(made)]
            for made in (om.interpret(program, given[0], count), module(given[1], count))
        ]
        for ours, theirs in zip(*both, strict=True):
            same(ours, theirs)
        mine, its = (torch.autograd.grad(b[0].sin().sum(), g) for b, g in zip(both, given, strict=True))
        same(mine[0], its[0])


def test_a_scan_over_a_fixed_length_runs():
    """A loop needs a name; the row runs h_t = a_t h_(t−1) + d_t as it is, gradients too."""
    module = Of(lambda x: torch.ops.onematrix.scan(x.sigmoid(), x, 1))
    program = convert(module, normal(2, 5, 3), free={})
    assert {f.name for f in program.opaque().values()} == {"onematrix.scan.default"}
    x, y = (normal(3, 5, 3).requires_grad_() for _ in range(2))
    h, states = torch.zeros(3, 3, dtype=torch.float64), []
    for t in range(5):
        h = x[:, t].sigmoid() * h + x[:, t]
        states.append(h)
    wanted, ours = torch.stack(states, 1), om.interpret(program, y)
    same(ours, wanted)
    same(*(torch.autograd.grad(made.sin().sum(), v)[0] for made, v in ((ours, y), (wanted, x))))
