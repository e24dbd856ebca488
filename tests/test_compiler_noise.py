"""Noise in compiled code: drawn as the interpreter draws it, also traced, exported and in parts of a sequence."""

import copy

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.compiler.module import Compiled
from onematrix.kernels.noise import draw_noise
from onematrix.networks.recurrent import over_time
from onematrix.programs.interpreter import interpret, interpret_with_state
from onematrix.programs.run import Run
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity
from test_compiler_module import same


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.drop, self.outer = nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4)

    def forward(self, x):
        return self.outer(self.drop(torch.relu(self.inner(x))))


def dropped():
    torch.manual_seed(0)
    return om.compile(Dropped(), torch.randn(5, 8), measure=False), torch.randn(5, 8)


def shaken():
    """c ← a c + x + dice, another throw at every tick."""
    parts = {"x": 3, "c_prev": 3, "c": 3, "dice": om.Part((3,), "noise")}
    terms = {
        ("c", "c_prev"): Diagonal(torch.full((3,), 0.5)),
        ("c", "x"): Identity(3),
        ("c", "dice"): Identity(3),
    }
    body = om.Step(om.BlockMatrix(terms, parts))
    return om.Program(
        over_time(body, {"x": 3}, {"cs": ("c", 3)}, {"c_prev": ("c", 3, "c0")}, parts),
        ["inputs", "c0"],
        ["cs"],
    )


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_dropout_is_drawn_as_by_the_interpreter(seed):
    module, x = dropped()
    wanted = interpret(module.program, x, seed=seed)
    assert (wanted != interpret(module.program, x, seed=seed + 1)).any()
    state = torch.get_rng_state()
    same(module(x, seed=seed), wanted, rtol=1e-6, atol=1e-6)
    same(module.freeze()(x, seed=seed), wanted, rtol=1e-6, atol=1e-6)
    same(copy.deepcopy(module).double()(x.double(), seed=seed).float(), wanted, rtol=1e-5, atol=1e-5)
    exported = torch.export.export(module, (x,), {"seed": seed}).module()
    same(exported(x, seed=seed), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is left alone"


def test_one_graph_draws_for_every_seed():
    module, x = dropped()
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    traced = torch.compile(module, fullgraph=True, backend=count)
    for seed in range(12):
        same(traced(x, seed=seed), interpret(module.program, x, seed=seed), rtol=1e-6, atol=1e-6)
    assert len(graphs) <= 3, "0, 1 and any seed"


def test_a_draw_does_not_ask_for_the_whole_program(monkeypatch):
    module, x = dropped()

    def never(*_, **__):
        raise AssertionError("a call asked for the whole program")

    monkeypatch.setattr(Compiled, "_run", never)
    assert module(x).shape == (5, 4)


def test_ticks_draw_by_their_place_in_the_whole_sequence():
    program = shaken()
    module = om.compile(program)
    xs, c0 = torch.randn(2, 5, 3), torch.zeros(2, 3)
    whole = interpret(program, xs, c0, seed=3)
    same(module(xs, c0, seed=3), whole, rtol=1e-6, atol=1e-6)
    first, state = module.forward_with_state(xs[:, :2], c0, seed=3)
    second, _ = module.forward_with_state(xs[:, 2:], c0, state=state, seed=3, first_tick=2)
    same(torch.cat([first, second], 1), whole, rtol=1e-6, atol=1e-6)
    again, _ = interpret_with_state(program, xs[:, 2:], c0, seed=3, first_tick=2)
    same(module.forward_with_state(xs[:, 2:], c0, seed=3, first_tick=2)[0], again, rtol=1e-6, atol=1e-6)
    torch._dynamo.reset()
    traced = torch.compile(module, fullgraph=True, backend="eager")
    same(traced(xs, c0, seed=3), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tick", [(), (4,), (1, 0)])
def test_the_numbers_are_those_of_a_run(tick):
    program = shaken()
    run = Run(program, (), 2, torch.float32, torch.device("cpu"), {"time": 5}, False, 7, 0, {})
    ours = draw_noise(7, "dice", tick, (2, 3), torch.float32, torch.device("cpu"))
    assert torch.equal(ours, run.draw("dice", tick))
    assert 0 <= ours.min() <= ours.max() < 1
    made = torch.ops.onematrix.noise(7, "dice", list(tick), [2, 3])
    assert torch.equal(ours, made)
