"""Tied, untied and triangular forms of native networks: the same function at the start, the right matrices."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from onematrix.errors import OneMatrixError, ShapeError
from onematrix.experiments.unified.attention import FreeAttention, SelfAttention
from onematrix.experiments.unified.convolution import FreeConvolution, TiedConvolution
from onematrix.experiments.unified.networks import (
    Forecaster,
    LanguageModel,
    TextClassifier,
    image_network,
)
from onematrix.experiments.unified.regimes import count_nonzeros, in_regime
from onematrix.structures.tree import stored_numbers

CONVOLUTIONS = {
    "same": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated, uneven": {"kernel_size": (2, 3), "padding": (0, 2), "stride": (1, 2), "dilation": (1, 2)},
    "grouped": {"kernel_size": 2, "groups": 2, "bias": False},
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(*shape, words=11):
    return torch.randint(1, words, shape, generator=torch.Generator().manual_seed(3))


def cases():
    """Name → (native network, inputs, target, whether it has a triangular form)."""
    torch.manual_seed(0)
    padded = tokens(6, 5)
    padded[0, 2:] = padded[1] = 0
    return {
        "convolutions": (image_network(2, 8, 3, (3, 4)), draw(6, 2, 8, 8), tokens(6, words=3), True),
        "rnn": (Forecaster("rnn", 2, 6, 2, 5), draw(6, 6, 2), draw(6, 2, 2, seed=1), True),
        "lstm": (LanguageModel("lstm", 11, 5, 4), tokens(6, 5), tokens(6, 5), True),
        "attention": (LanguageModel("attention", 11, 5, 4), tokens(6, 5), tokens(6, 5), True),
        "attention both ways": (TextClassifier(11, 5, 4, 3), padded, tokens(6, words=3), False),
    }


def loss(outputs, target):
    if target.is_floating_point():
        return (outputs - target).square().mean()
    return functional.cross_entropy(outputs.flatten(0, -2), target.flatten())


@pytest.mark.parametrize("regime", ["native", "tied", "untied", "triangular"])
@pytest.mark.parametrize("name", cases())
def test_every_regime_starts_as_the_native_network(name, regime):
    network, x, _, triangular = cases()[name]
    network = network.double()
    if regime == "triangular" and not triangular:
        with pytest.raises(ShapeError, match="only causal attention has one; use the regime 'untied'"):
            in_regime(network, regime, x)
        return
    assert_close(in_regime(network, regime, x)(x), network(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", cases())
def test_tied_training_follows_the_native_trajectory(name, optimizer):
    network, x, target, _ = cases()[name]
    native = in_regime(network.double(), "native", x)
    tied = in_regime(network, "tied", x)
    start = {name: p.detach().clone() for name, p in native.named_parameters()}
    makers = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
        "adam": lambda p: torch.optim.Adam(p, lr=2e-3),
    }
    steppers = [(net, makers[optimizer](net.parameters())) for net in (native, tied)]
    for step in range(200):
        batch = torch.arange(step, step + 3) % len(x)
        for net, stepper in steppers:
            stepper.zero_grad()
            loss(net(x[batch]), target[batch]).backward()
            stepper.step()
    found = dict(tied.named_parameters())
    assert found.keys() == start.keys()
    for key, parameter in native.named_parameters():
        assert_close(found[key], parameter, rtol=0, atol=1e-13)
    assert max((p - start[key]).abs().max() for key, p in native.named_parameters()) > 1e-2


def matrix_of(layer, shape):
    """The matrix of a linear map on flattened inputs, and its value at zero, by unit vectors."""
    units = torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        at_zero = layer(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        return (layer(units).flatten(1) - at_zero).T, at_zero


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_matrices_are_those_of_the_native_layer(options):
    shape, native = torch.Size((4, 6, 5)), nn.Conv2d(4, 6, **options).double()
    needed, bias = matrix_of(native, shape)
    tied, untied, upper = TiedConvolution(native, (6, 5)), *(
        FreeConvolution(native, (6, 5), regime) for regime in ("untied", "triangular")
    )  # fmt: skip
    for layer in (tied, untied, upper):
        got, at_zero = matrix_of(layer, shape)
        assert_close(got, needed, rtol=1e-13, atol=1e-14)
        assert_close(at_zero, bias)
    count = int((needed != 0).sum())
    assert stored_numbers(untied.matrix.structure) == count == len(tied.tap)
    a = upper.matrix.structure
    free = (type(a)(torch.ones_like(a.values), a.positions, a.rows, a.columns).to_dense()).bool()
    assert stored_numbers(a) == int(free.sum()) > count
    assert not (needed.bool() & ~free).any()
    assert_close(free, _triangle(native, shape, needed.shape[0]))


def _triangle(native, shape, rows):
    """Entries whose input stands at or after the output in the padded frame, read row by row."""
    (_, height, width), (above, left) = shape, native.padding
    places = torch.zeros(rows, shape.numel(), dtype=torch.bool)
    wide = width + 2 * left
    _, down, across = native(torch.zeros(1, *shape, dtype=torch.float64))[0].shape
    for row in range(rows):
        i, j = row // across % down, row % across
        output = i * native.stride[0] * wide + j * native.stride[1]
        for column in range(shape.numel()):
            y, x = column // width % height, column % width
            places[row, column] = (y + above) * wide + x + left >= output
    return places


def test_the_gradient_of_a_tied_kernel_is_the_sum_over_its_entries():
    native = nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
    x, target = draw(4, 2, 5, 5), draw(4, 3, 5, 5, seed=1)
    tied, untied = TiedConvolution(native, (5, 5)), FreeConvolution(native, (5, 5), "untied")
    by_entry = torch.autograd.grad((untied(x) - target).square().sum(), untied.matrix.values)[0]
    needed = torch.autograd.grad((native(x) - target).square().sum(), native.weight)[0]
    got = by_entry.new_zeros(native.weight.numel()).index_add(0, tied.tap, by_entry)
    assert_close(got.view(needed.shape), needed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("regime", ["untied", "triangular"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM])
def test_free_recurrences_obey_their_equation(kind, regime):
    """With free numbers everywhere the states solve h = f(N h + M x + b), N strictly block lower triangular."""
    ticks, inputs, hidden = 5, 2, 3
    net = in_regime(kind(inputs, hidden, batch_first=True).double(), "native", draw(2, ticks, inputs))
    holder = in_regime(nn.Sequential(net), regime, draw(2, ticks, inputs))[0]
    for number, parameter in enumerate(holder.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    x = draw(2, ticks, inputs, seed=2)
    h = holder(x)[0]
    n, m = holder.memory.structure.to_dense(), holder.inputs.structure.to_dense()
    tiles = n.view(ticks, -1, ticks, hidden).abs().sum((1, 3)) > 0
    needed = torch.ones(ticks, ticks).tril(-1).bool()
    assert tiles.equal(needed if regime == "triangular" else needed.triu(-1))
    a = (h.flatten(1) @ n.T + x.flatten(1) @ m.T + holder.inputs.bias).view(2, ticks, -1)
    if kind is nn.RNN:
        assert_close(h, a.tanh(), rtol=1e-12, atol=1e-13)
        return
    c = torch.zeros(2, hidden, dtype=torch.float64)
    for t in range(ticks):
        i, f, g, o = a[:, t].chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        assert_close(h[:, t], o.sigmoid() * c.tanh(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("regime", ["untied", "triangular"])
def test_free_attention_is_causal_and_free_at_every_position(regime):
    attention = FreeAttention(SelfAttention(4, 2, causal=True).double(), 3, regime)
    for number, parameter in enumerate(attention.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    x = draw(1, 3, 4).requires_grad_()
    for i, row in enumerate(attention(x)[0]):
        reached = torch.autograd.grad(row.sum(), x, retain_graph=True)[0][0].abs().sum(1) > 0
        assert reached.tolist() == [j <= i for j in range(3)]
    count = 3 if regime == "untied" else 6
    assert stored_numbers(attention.query.matrix.structure) == count * 16


@pytest.mark.parametrize("name", cases())
def test_nonzeros_are_those_of_the_matrices(name):
    network, x, _, triangular = cases()[name]
    network = network.double()
    for regime in ("untied", "triangular") if triangular else ("untied",):
        free = in_regime(network, regime, x)
        parameters = dict(free.named_parameters())
        stored = sum(p.numel() for key, p in parameters.items() if key.endswith(("values", "tiles")))
        assert count_nonzeros(network, regime, x) == stored
    assert count_nonzeros(network, "tied", x) == count_nonzeros(network, "untied", x)


def test_the_native_network_is_left_alone_and_unknown_regimes_are_refused():
    network, x, _, _ = cases()["convolutions"]
    before = {name: p.clone() for name, p in network.named_parameters()}
    free = in_regime(network, "untied", x.float())
    free(x.float()).sum().backward()
    assert all(p.grad is None and p.equal(before[name]) for name, p in network.named_parameters())
    with pytest.raises(OneMatrixError, match="native, tied, untied, triangular was needed, got 'banded'"):
        in_regime(network, "banded", x)
