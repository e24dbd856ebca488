"""Dense layers that follow each other run as one call, of one sample or many, and nothing else does."""

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.kernels.dense_layers import run_dense_layers
from onematrix.networks import mlp
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.interpreter import interpret
from onematrix.programs.program import Program
from onematrix.programs.schedule import Seq, Step
from onematrix.structures.dense import Dense

FUNCTIONS = {
    "identity": lambda v: v,
    "relu": lambda v: v.clamp(min=0),
    "sigmoid": lambda v: 1 / (1 + torch.exp(-v)),
    "tanh": lambda v: (torch.exp(v) - torch.exp(-v)) / (torch.exp(v) + torch.exp(-v)),
}
SIZES = [5, 4, 6, 3, 2]
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def normal(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal(x, weights, biases, activations):
    """The definition, one product and one sum after the other."""
    for weight, bias, name in zip(weights, biases, activations, strict=True):
        x = FUNCTIONS[name]((x[:, None, :] * weight).sum(-1) + (0 if bias is None else bias))
    return x


def layers(last, dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    pairs = list(zip(SIZES[1:], SIZES[:-1], strict=True))
    weights = [torch.randn(m, n, generator=g, dtype=dtype).requires_grad_() for m, n in pairs]
    biases = [torch.randn(m, generator=g, dtype=dtype).requires_grad_() for m, _ in pairs]
    biases[1] = None
    return weights, biases, ["relu", "tanh", "sigmoid", last]


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
@pytest.mark.parametrize("last", FUNCTIONS)
def test_values_gradients_and_theirs(batch, last):
    weights, biases, names = layers(last)
    x = normal(batch, 5).requires_grad_()
    free = [x, *weights, *(b for b in biases if b is not None)]
    found = []
    for run in (run_dense_layers, literal):
        y = run(x, weights, biases, names)
        slopes = torch.autograd.grad(y.pow(3).sum(), free, create_graph=True)
        found.append([y, *slopes, *torch.autograd.grad(sum(s.pow(2).sum() for s in slopes), free)])
    for a, b in zip(*found, strict=True):  # second derivatives are sums of large numbers of both signs
        assert a.shape == b.shape
        assert float((a - b).norm()) <= 1e-12 * max(float(b.norm()), 1.0)


def test_a_vector_that_is_no_row_of_memory_and_the_input_stays():
    weights, biases, names = layers("relu")
    x = normal(5, 3).t()[:1]
    before = x.clone()
    torch.testing.assert_close(
        run_dense_layers(x, weights, biases, names), literal(x, weights, biases, names), **EXACT
    )
    assert torch.equal(x, before)


@pytest.mark.parametrize("batch", [1, 3])
def test_compiled_layers_are_one_call(batch):
    net = om.compile(mlp([5, 6, 6, 2], generator=torch.Generator().manual_seed(0)))
    assert "('relu', 'relu', 'identity')" in net.text
    net.double()
    x = normal(batch, 5).requires_grad_()
    free = [x, *net.parameters()]
    found = []
    for y in (net(x), interpret(net.program, x)):
        found.append([y, *torch.autograd.grad(y.sin().sum(), free)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_a_part_read_twice_ends_the_layers():
    parts = {"x": 5, "h": 4, "k": 4, "y": 2}
    made = {
        key: Dense(torch.nn.Parameter(torch.randn(parts[key[0]], parts[key[1]])))
        for key in (("h", "x"), ("k", "h"), ("y", "k"))
    }
    steps = [Step(BlockMatrix({key: a}, parts)) for key, a in made.items()]
    program = Program(Seq(*steps), ["x"], ["y", "h"])
    net = om.compile(program)
    assert "('identity', 'identity')" in net.text
    x = torch.randn(1, 5)
    for ours, theirs in zip(net(x), interpret(program, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_other_activations_end_the_layers():
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3))
    net = om.compile(module, torch.randn(2, 5), measure=False)
    assert "linear(" in net.text
    for batch in (1, 2):
        x = torch.randn(batch, 5)
        torch.testing.assert_close(net(x), module(x), rtol=1e-5, atol=1e-6)


def test_one_sample_under_autocast_vmap_export_and_compile():
    net = om.compile(mlp([5, 6, 2], generator=torch.Generator().manual_seed(0)))
    x = torch.randn(1, 5)
    with torch.autocast("cpu", torch.bfloat16):
        ours = net(x)
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, interpret(net.program, x), rtol=5e-2, atol=5e-2)
    many = torch.randn(4, 1, 5)
    torch.testing.assert_close(torch.func.vmap(net)(many), torch.stack([net(one) for one in many]))
    for run in (torch.export.export(net, (x,)).module(), torch.compile(net, fullgraph=True, backend="eager")):
        torch.testing.assert_close(run(x), net(x))
    assert isinstance(net.half()(x.half()), torch.Tensor)
