"""What a call of compiled code does beside its products: nothing that grows with the program, no interpreter."""

from collections import Counter

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.compiler.code import SPACE
from onematrix.compiler.module import Compiled
from onematrix.networks import mlp
from onematrix.networks.examples import examples
from onematrix.structures.tree import map_tensors
from test_compiler_module import random_numbers, same

NETWORKS = examples(torch.Generator().manual_seed(0))
INTERPRETED = {"fixed_point"}  # a loop until it stands still
STRUCTURES = om.list_structures()


class Heads(nn.Module):
    """Attention whose queries, keys and values are thirds of one product."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.inner(x).chunk(3, -1)
        return self.outer(torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v)


class Words(nn.Module):
    def __init__(self, padding=None):
        super().__init__()
        self.table, self.out = nn.Embedding(11, 8, padding), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.table(x)))


MODULES = {
    "heads": (Heads(), torch.randn(3, 5, 8)),
    "words": (Words(), torch.arange(12).reshape(2, 6) % 11),
    "padded words": (Words(padding=3), torch.arange(12).reshape(2, 6) % 11),
}


@pytest.fixture
def no_interpreter(monkeypatch):
    """Whatever asks the interpreter, or for all tensors of the module, fails."""

    def never(*_, **__):
        raise AssertionError("a call asked for the whole program")

    monkeypatch.setattr(Compiled, "_run", never)
    monkeypatch.setattr(Compiled, "_slots", never)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - INTERPRETED))
def test_calls_of_networks_never_ask_for_the_whole_program(name, no_interpreter):
    module = om.compile(NETWORKS[name], prove=False)
    module(*random_numbers(module.program))


@pytest.mark.parametrize("name", MODULES)
def test_calls_of_modules_never_ask_for_the_whole_program(name, no_interpreter):
    module, x = MODULES[name]
    compiled = om.compile(module, x, measure=False, prove=False)
    same(compiled(x), module(x), rtol=1e-5, atol=1e-6)
    theirs = torch.autograd.grad(module(x).sin().sum(), list(module.parameters()))
    ours = torch.autograd.grad(compiled(x).sin().sum(), list(module.parameters()))
    same(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["kronecker", "csr", "monarch", "toeplitz"])
def test_structures_are_rebuilt_from_their_own_tensors(name, monkeypatch):
    """One call for each, over as many tensors as it has, whatever the depth."""
    sizes = Counter()
    plain = SPACE["rebuild"]

    def counted(plan, tensors):
        sizes[len(tensors)] += 1
        return plain(plan, tensors)

    monkeypatch.setitem(SPACE, "rebuild", counted)
    g = torch.Generator().manual_seed(0)
    found = []
    for depth in (2, 6):
        made = [STRUCTURES[name].random(16, 16, budget=0.5, generator=g) for _ in range(depth)]
        layers = [map_tensors(a, lambda t: t.float() if t.is_floating_point() else t) for a in made]
        module = om.compile(mlp([16] * (depth + 1), layers, [None] * depth), prove=False)
        sizes.clear()
        module(torch.randn(3, 16))
        found.append(dict(sizes))
    (tensors,) = found[0]
    assert found == [{tensors: 2}, {tensors: 6}]
    assert tensors <= 4
