"""om.Iterated: a program as a torch module. Ties, copies, casts, names, compile, export, autocast, training."""

import copy

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.testing import assert_close

import onematrix as om
from onematrix.errors import DTypeError
from onematrix.networks import attention, elman, inn, mlp
from onematrix.programs.interpreter import interpret
from onematrix.structures.compressed import CSR
from onematrix.structures.dense import Dense
from onematrix.structures.low_rank import LowRank
from random_programs import random_program


def tied():
    """y = tanh(W tanh(W x)) + W x: one W at three places, and its transpose inside a low-rank block."""
    W = Dense(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    P = {"x": 3, "h": 3, "y": 3}
    first = om.Step(om.BlockMatrix({("h", "x"): W}, P), activations={"h": "tanh"})
    both = om.BlockMatrix({("y", "h"): W, ("y", "x"): LowRank(W.weight, W.weight)}, P)
    return om.Program(om.Seq(first, om.Step(both, activations={"y": "tanh"})), ["x"], ["y"])


def recurrent():
    """An Elman network and its inputs."""
    g = torch.Generator().manual_seed(0)
    return elman(3, 4, generator=g), (torch.randn(2, 5, 3, generator=g), torch.randn(2, 4, generator=g))


def feedforward():
    g = torch.Generator().manual_seed(0)
    return mlp([4, 5, 3], generator=g), (torch.randn(2, 4, generator=g),)


def sparse():
    g = torch.Generator().manual_seed(0)
    return inn([6, 5, 4, 3], "csr", 0.5, generator=g), (torch.randn(2, 5, 6, generator=g),)


def attentive():
    g = torch.Generator().manual_seed(0)
    return attention(6, 2, generator=g), (torch.randn(2, 5, 6, generator=g),)


CASES = {"mlp": feedforward, "elman": recurrent, "inn_csr": sparse, "attention": attentive}
cases = pytest.mark.parametrize("name", CASES)


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


@cases
def test_the_module_is_its_program(name):
    program, ins = CASES[name]()
    net = om.Iterated(program)
    for a, b in zip(as_tuple(net(*ins)), as_tuple(interpret(program, *ins)), strict=True):
        assert torch.equal(a, b)
    assert list(net.state_dict()) != []
    assert set(net.state_dict()) == set(program.parameters)
    assert net.program.text() == program.text()
    assert om.Iterated(net.program).program == net.program  # the same Parameter objects
    assert repr(program) in repr(net)


def test_ties_survive_everything():
    net = om.Iterated(tied())
    assert [n for n, _ in net.named_parameters()] == ["blocks.h.x.weight"]
    x = torch.randn(2, 3)
    for other in (copy.deepcopy(net), net.to(torch.float64).to(torch.float32), load_into(net)):
        (weight,) = other.parameters()
        assert_close(other(x), net(x))
        with torch.no_grad():
            weight.mul_(2)
        W = weight.detach()
        assert_close(other(x), torch.tanh(torch.tanh(x @ W.mT) @ W.mT + x @ W.mT @ W.mT))
        with torch.no_grad():
            weight.div_(2)
    W = torch.randn(3, 3)
    called = torch.func.functional_call(net, {"blocks.h.x.weight": W}, (x,))
    assert_close(called, torch.tanh(torch.tanh(x @ W.mT) @ W.mT + x @ W.mT @ W.mT))


def load_into(net):
    other = om.Iterated(tied())
    with torch.no_grad():
        next(other.parameters()).zero_()
    other.load_state_dict(net.state_dict())
    return other


def test_gradients_of_ties_add_up():
    net = om.Iterated(tied())
    x = torch.randn(2, 3)
    net(x).sum().backward()
    W = next(net.parameters()).detach().clone().requires_grad_()
    torch.tanh(torch.tanh(x @ W.mT) @ W.mT + x @ W.mT @ W.mT).sum().backward()
    assert_close(next(net.parameters()).grad, W.grad)


def test_parameters_given_as_parameters_stay_the_same_objects():
    layer = nn.Linear(3, 2)
    P = {"x": 3, "y": 2}
    net = om.Iterated(om.Program(om.Step(om.BlockMatrix({("y", "x"): Dense(layer.weight)}, P)), ["x"], ["y"]))
    assert next(net.parameters()) is layer.weight
    integer = om.Iterated(sparse()[0])
    assert not any(b.is_floating_point() for b in integer.buffers())
    assert len(list(integer.buffers())) > 0


NAMES = ["training", "type", "forward", "half", "_parameters", "a..b", "h.weight", "h", "h.weight.weight"]


def test_part_names_that_are_names_of_a_module_are_registered_beside_them():
    """No leaf and no room has a name nn.Module uses, and no name is both."""
    P = dict.fromkeys([*NAMES, "x", "x.weight"], 2)
    pairs = [
        *zip(NAMES, [*NAMES[1:], "x"], strict=True),
        *((name, "x.weight") for name in NAMES[:3]),
        ("h", "x"),
    ]
    blocks = {pair: Dense(torch.randn(2, 2)) for pair in pairs}
    blocks |= {("h", "x.weight"): CSR(*csr()), ("h", "one"): Dense(torch.ones(2, 1))}
    program = om.Program(om.Step(om.BlockMatrix(blocks, P)), [*NAMES, "x", "x.weight"], NAMES)
    names = list(program.parameters)
    assert len(set(names)) == len(names) == len(blocks) + 2
    rooms = {name.rsplit(".", k)[0] for name in names for k in range(1, name.count(".") + 1)}
    assert not rooms & set(names)
    assert all(word and not hasattr(nn.Module(), word) for name in names for word in name.split("."))
    net = om.Iterated(program)
    assert set(net.state_dict()) == set(names)
    ins = [torch.randn(1, 2) for _ in program.inputs]
    for a, b in zip(net(*ins), interpret(program, *ins), strict=True):
        assert torch.equal(a, b)
    assert net.train(False).training is False
    assert om.parse(program.text(), program.parameters) == program


def csr():
    return torch.tensor([1.0, 2.0]), torch.tensor([0, 1, 2]), torch.tensor([0, 1]), 2


def test_every_random_program_becomes_a_module():
    for seed in range(40):
        program = random_program(seed)
        net = om.Iterated(program)
        assert set(net.state_dict()) == set(program.parameters)
        assert net.program.text() == program.text()


@cases
def test_compiles_into_one_graph(name):
    program, ins = CASES[name]()
    net = om.Iterated(program)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    ours, theirs = as_tuple(compiled(*ins)), as_tuple(net(*ins))
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)
    sum(o.sum() for o in ours).backward()
    slopes = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    sum(o.sum() for o in theirs).backward()
    for a, p in zip(slopes, net.parameters(), strict=True):
        assert_close(a, p.grad)


@cases
def test_exports_and_the_saved_export_runs(name, tmp_path):
    program, ins = CASES[name]()
    net = om.Iterated(program)
    torch.export.save(torch.export.export(net, ins), tmp_path / "net.pt2")
    again = torch.export.load(tmp_path / "net.pt2").module()
    for a, b in zip(as_tuple(again(*ins)), as_tuple(net(*ins)), strict=True):
        assert_close(a, b)


@cases
def test_safetensors_saves_and_loads_it(name, tmp_path):
    program, ins = CASES[name]()
    net = om.Iterated(program)
    save_model(net, str(tmp_path / "net.safetensors"))
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    load_model(other, str(tmp_path / "net.safetensors"))
    for a, b in zip(as_tuple(other(*ins)), as_tuple(net(*ins)), strict=True):
        assert torch.equal(a, b)


@cases
def test_autocast_computes_in_bfloat16(name):
    program, ins = CASES[name]()
    net = om.Iterated(program)
    with torch.autocast("cpu", torch.bfloat16):
        low = as_tuple(net(*ins))
    for a, b in zip(low, as_tuple(net(*ins)), strict=True):
        assert_close(a.float(), b, atol=0.1, rtol=0.1)
    assert any(not torch.equal(a.float(), b) for a, b in zip(low, as_tuple(net(*ins)), strict=True))
    sum(o.float().sum() for o in low).backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())


def test_trains_with_adamw():
    program, _ = recurrent()
    net = om.Iterated(program)
    g = torch.Generator().manual_seed(1)
    x, h = torch.randn(16, 5, 3, generator=g), torch.zeros(16, 4)
    target = x.cumsum(1).mean(-1, keepdim=True).tanh()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (net(x, h)[0].mean(-1, keepdim=True) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_state_streams_through_the_module():
    program, (x, h) = recurrent()
    net = om.Iterated(program)
    (whole, last), _ = net.forward_with_state(x, h)
    (first, _), state = net.forward_with_state(x[:, :2], h)
    (second, end), _ = net.forward_with_state(x[:, 2:], h, state=state)
    assert_close(torch.cat([first, second], 1), whole)
    assert_close(end, last)


def test_double_precision_and_other_dtypes_follow_the_module():
    program, (x, h) = recurrent()
    net = om.Iterated(program).double()
    assert net(x.double(), h.double())[0].dtype == torch.float64
    with pytest.raises(DTypeError, match=r"input 'inputs': torch.float64 was needed, got torch.float32"):
        net(x, h)
