"""Flow: which rows and parts are live, how deep a step is, what a node writes."""

import pytest
import torch

import onematrix as om
from onematrix.networks import lstm, mlp
from onematrix.programs.flow import depth, live_rows, written
from onematrix.programs.interpreter import interpret
from onematrix.programs.schedule import Loop, loop_matrices, walk
from onematrix.structures.identity import Identity, scale
from onematrix.structures.tree import leaves
from random_programs import random_program

P = dict.fromkeys("abcdefgxyz", 2) | {"X": ("time", 2), "Y": ("time", 2)}
I = Identity(2)


def step(*pairs, **more):
    """A step with one identity block per (row, column)."""
    return om.Step(om.BlockMatrix(dict.fromkeys(pairs, I), P), **more)


def rows_of(found):
    return [[row.part for row in rows] for _, rows in found]


def test_rows_are_live_while_something_after_them_reads_them():
    node = om.Seq(step(("a", "x"), ("b", "x")), step(("c", "a"), ("b", "x")), step(("y", "c")))
    steps, before = live_rows(node, {"y"})
    assert rows_of(steps) == [["a"], ["c"], ["y"]]
    assert before == {"x"}
    steps, before = live_rows(node, {"y", "b", "z"})
    assert rows_of(steps) == [["a"], ["c", "b"], ["y"]]
    assert before == {"x", "z"}


def test_what_one_round_reads_of_the_last_is_live():
    loop = om.Loop(step(("a", "b"), ("b", "c"), ("d", "a")), times=3, init=om.BlockMatrix({("a", "x"): I}, P))
    steps, before = live_rows(loop, {"a"})
    assert rows_of(steps) == [["a", "b"]]
    assert before == {"c", "x"}
    steps, before = live_rows(loop, {"c"})
    assert (rows_of(steps), before) == ([[]], {"c"})


def test_a_loop_over_ticks_keeps_what_it_carries_to_what_is_live():
    def loop(**more):
        return om.Loop(
            step(("c", "a"), ("c", "x"), ("d", "b"), ("e", "x")),
            over="time",
            feeds=om.BlockMatrix({("x", "X"): I}, P),
            carry=om.BlockMatrix({("a", "c"): I, ("b", "d"): I}, P),
            outputs=om.BlockMatrix({("Y", "c"): I}, P),
            init=om.BlockMatrix({("a", "f"): I, ("b", "g"): I}, P),
            **more,
        )

    steps, before = live_rows(loop(), {"Y", "z"})
    assert rows_of(steps) == [["c"]]
    assert before == {"X", "f", "z"}
    steps, before = live_rows(loop(), {"b"})
    assert rows_of(steps) == [["d"]]
    assert before == {"g"}
    masked = om.Loop(step(("c", "a")), over="time", carry=om.BlockMatrix({("a", "c"): I}, P), valid="ok")
    assert live_rows(masked, {"a"})[1] == {"ok"}
    assert written(loop()) == {"Y", "a", "b"}
    assert written(om.Loop(step(("c", "c")), times=2, init=om.BlockMatrix({("a", "x"): I}, P))) == {"a", "c"}


@pytest.mark.parametrize("seed", range(0, 80, 20))
def test_what_is_not_live_has_no_gradient(seed):
    """Tensors that stand in dead rows alone, and inputs that are not live, do not move the outputs."""
    dead_seen = 0
    for each in range(seed, seed + 20):
        program = random_program(each)
        steps, before = live_rows(program.schedule, set(program.outputs))
        live = {id(t) for _, rows in steps for row in rows for t in tensors_of(row)}
        maps = [
            m for node in walk(program.schedule) if isinstance(node, Loop) for _, m in loop_matrices(node)
        ]
        live |= {id(t) for matrix in maps for _, block in matrix for _, t in leaves(block.structure)}
        g = torch.Generator().manual_seed(each)
        ins = [made_up(program.parts[name], g) for name in program.inputs]
        dead = [t for t in program.parameters.values() if t.is_floating_point() and id(t) not in live]
        dead += [
            x for n, x in zip(program.inputs, ins, strict=True) if n not in before and x.is_floating_point()
        ]
        out = (
            interpret(program, *ins, sizes={"rounds": 2}) if not dead else interpret_with(dead, program, ins)
        )
        total = sum(o.sum() for o in (out if isinstance(out, tuple) else (out,)) if o.is_floating_point())
        if dead and isinstance(total, torch.Tensor) and total.requires_grad:
            slopes = torch.autograd.grad(total, dead, materialize_grads=True)
            assert all(float(s.abs().sum()) == 0 for s in slopes)
        dead_seen += len(dead)
    assert dead_seen > 20


def tensors_of(row):
    return [t for blocks in row.sums for _, block in blocks for _, t in leaves(block.structure)]


def interpret_with(free, program, ins):
    for tensor in free:
        tensor.requires_grad_()
    return interpret(program, *ins, sizes={"rounds": 2})


def made_up(part, g):
    shape = (2, *part.at({"time": 3, "steps": 2}))
    if part.kind == "index":
        return torch.randint(0, part.shape[-1], shape, generator=g)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    return x > 0 if part.dtype == "bool" else x


def test_depth_is_the_longest_path_among_rows_that_do_not_hold():
    assert depth(step(("y", "x"))) == 1
    assert depth(step(("x", "x"), ("a", "x"), ("b", "a"), ("c", "b"), ("d", "x"))) == 3
    assert depth(step(("x", "x"))) == 0
    assert depth(step(("a", "b"), ("b", "a"))) is None
    assert depth(step(("a", "a"), activations={"a": "relu"})) is None
    half = om.Step(om.BlockMatrix({("a", "a"): scale(I, 0.5)}, P))
    assert depth(half) is None
    gated = om.Step(*(om.BlockMatrix({("a", c): I}, P) for c in "ab"))
    assert depth(gated) is None
    assert depth(gated, ones=["b"]) == 0


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_steps_beyond_the_depth_change_nothing(extra):
    g = torch.Generator().manual_seed(0)
    program = mlp([3, 8, 8, 2], generator=g)
    F = program.iterated().schedule.body
    assert depth(F) == 3
    x = torch.randn(2, 3, generator=g)
    deeper = om.Program(om.Loop(F, times=3 + extra), program.inputs, program.outputs)
    assert torch.equal(interpret(deeper, x), interpret(program, x))
    shallow = om.Program(om.Loop(F, times=2), program.inputs, program.outputs)
    assert not torch.equal(interpret(shallow, x), interpret(program, x))


def test_every_row_of_an_lstm_is_live():
    program = lstm(2, 3)
    steps, before = live_rows(program.schedule, {"hidden"})
    assert sorted(part for rows in rows_of(steps) for part in rows) == sorted("ifogpqch")
    assert before == set(program.inputs)
