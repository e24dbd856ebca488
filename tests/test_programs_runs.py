"""Runs: masks of numbers, state and its scope, noise by tick, and memory that belongs to the caller."""

import pytest
import torch
from torch.testing import assert_close

import onematrix as om
from onematrix.errors import DTypeError
from onematrix.networks import elman, mlp
from onematrix.programs.interpreter import interpret, interpret_with_state
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity, Ones, Zero, scale
from reference_interpreter import reference

DOUBLE = torch.float64
both = pytest.mark.parametrize("literal", [False, True], ids=["plain", "literal"])


def summing(valid=None, ticks=None, after="zero", parts=None):
    """s ← s + x along time; outputs every s."""
    P = {"x": 1, "s": 1, "t": 1, "X": ("time", 1), "S": (ticks or "time", 1)} | (parts or {})
    loop = om.Loop(
        om.Step(om.BlockMatrix({("t", "s"): Identity(1), ("t", "x"): Identity(1)}, P)),
        over="time",
        feeds=om.BlockMatrix({("x", "X"): Identity(1)}, P),
        outputs=om.BlockMatrix({("S", "t"): Identity(1)}, P),
        carry=om.BlockMatrix({("s", "t"): Identity(1)}, P),
        valid=valid,
        ticks=ticks,
        after=after,
    )
    return om.Program(loop, ["X", *([valid] if valid else [])], ["S", "s"], P)


def numbers(*values):
    return torch.tensor(values, dtype=DOUBLE)


@both
def test_a_mask_may_hold_numbers_of_which_all_but_zero_count(literal):
    program = summing("ok", parts={"ok": ("time",)})
    X, ok = numbers(1, 2, 4, 8).reshape(1, 4, 1), numbers(1, 0.25, 0, -1)[None]
    S, s = interpret(program, X, ok, literal=literal)
    assert S.flatten().tolist() == [1, 3, 0, 11]
    assert s.item() == 11


@both
@pytest.mark.parametrize(("after", "expected"), [("zero", [1, 3, 0, 0]), ("hold", [1, 3, 5, 7])])
def test_a_mask_past_its_end_is_fed_as_everything_is(after, expected, literal):
    program = summing("ok", "time + 2", after, {"ok": om.Part(("time",), dtype="bool")})
    X, ok = numbers(1, 2).reshape(1, 2, 1), torch.tensor([[True, True]])
    assert interpret(program, X, ok, literal=literal)[0].flatten().tolist() == expected
    assert reference(program, X, ok)[0][0].flatten().tolist() == expected


def test_state_belongs_to_the_outermost_loop_alone():
    """An inner loop that carries a part of the same name starts at zero in every tick, whatever is handed over."""
    P = {"X": ("time", "rows", 1), "R": ("rows", 1), "x": 1, "s": 1, "t": 1, "old": 1, "S": ("time", 1)}
    P |= {"kept": 1}
    inner = om.Loop(
        om.Step(om.BlockMatrix({("t", "s"): Identity(1), ("t", "x"): Identity(1)}, P)),
        over="rows",
        feeds=om.BlockMatrix({("x", "R"): Identity(1)}, P),
        carry=om.BlockMatrix({("s", "t"): Identity(1)}, P),
    )
    keep = om.Step(om.BlockMatrix({("kept", "s"): scale(Identity(1), 0.5)}, P))
    add = om.Step(om.BlockMatrix({("s", "s"): Identity(1), ("s", "kept"): Identity(1)}, P))
    outer = om.Loop(
        om.Seq(keep, inner, add),
        over="time",
        feeds=om.BlockMatrix({("R", "X"): om.Block(Identity(1), on="last")}, P),
        carry=om.BlockMatrix({("s", "s"): Identity(1)}, P),
        outputs=om.BlockMatrix({("S", "s"): Identity(1)}, P),
    )
    program = om.Program(outer, ["X"], ["S"])
    X = torch.randn(2, 4, 3, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    whole, last = interpret_with_state(program, X)
    assert_close(whole, reference(program, X)[0][0])
    first, state = interpret_with_state(program, X[:, :2])
    second, end = interpret_with_state(program, X[:, 2:], state=state)
    assert_close(torch.cat([first, second], 1), whole)
    assert_close(end["s"], last["s"])


def test_outputs_that_all_samples_share_are_still_one_per_sample():
    G = om.BlockMatrix({("y", "one"): Dense(torch.ones(2, 1))}, {"x": 2, "y": 2})
    program = om.Program(om.Step(G), ["x"], ["y"])
    y = interpret(program, torch.zeros(3, 2))
    y[0].add_(1)
    assert y.tolist() == [[2, 2], [1, 1], [1, 1]]
    assert program.parameters["blocks.y.one.weight"].tolist() == [[1], [1]]
    P = {"x": 2, "y": (3, 2)}
    spread = om.Step(om.BlockMatrix({("y", "x"): om.Block(Dense(torch.eye(2)), on="last")}, P))
    y = interpret(om.Program(spread, ["x"], ["y"]), torch.zeros(1, 2))
    y[0, 0].add_(1)
    assert y.tolist() == [[[1, 1], [0, 0], [0, 0]]]


def test_neither_outputs_nor_state_are_the_callers_memory():
    P = {"x": (2, 3), "y": 6, "z": (2, 3)}
    G = om.BlockMatrix({("y", "x"): Identity(6), ("z", "x"): Identity(6)}, P)
    x = torch.zeros(2, 2, 3)
    for out in interpret(om.Program(om.Step(G), ["x"], ["y", "z", "x"]), x):
        out.add_(1)
    assert x.abs().sum() == 0
    h = torch.zeros(1, 3)
    (_, last), state = interpret_with_state(elman(2, 3), torch.zeros(1, 0, 2), h)
    for value in (last, state["h_prev"]):
        value.add_(1)
    assert h.abs().sum() == 0


def test_noise_follows_the_place_of_the_tick_in_the_whole_sequence():
    P = {"n": om.Part((2,), "noise"), "x": 2, "y": 2, "X": ("time", 2), "Y": ("time", 2)}
    loop = om.Loop(
        om.Step(om.BlockMatrix({("y", "n"): Identity(2), ("y", "x"): Identity(2)}, P)),
        over="time",
        feeds=om.BlockMatrix({("x", "X"): Identity(2)}, P),
        outputs=om.BlockMatrix({("Y", "y"): Identity(2)}, P),
    )
    program = om.Program(loop, ["X"], ["Y"])
    X = torch.zeros(3, 5, 2)
    whole = interpret(program, X, seed=7)
    late, _ = interpret_with_state(program, X[:, 2:], seed=7, first_tick=2)
    assert torch.equal(late, whole[:, 2:])
    again, _ = interpret_with_state(program, X[:, 2:], seed=7)
    assert torch.equal(again, whole[:, :3])
    assert_close(whole.double(), reference(program, X, seed=7)[0][0])


def test_noise_is_drawn_on_the_cpu_whatever_the_default_device_is():
    P = {"n": om.Part((2,), "noise"), "x": 2, "y": 2}
    program = om.Program(om.Step(om.BlockMatrix({("y", "n"): Identity(2)}, P)), ["x"], ["y"], P)
    drawn = interpret(program, torch.zeros(3, 2), seed=7)
    with torch.device("meta"):
        assert torch.equal(interpret(program, torch.zeros(3, 2, device="cpu"), seed=7), drawn)


def test_runs_on_meta_tell_shapes_and_faults():
    """Autocast knows no device "meta": a dtype that does not fit is named there too."""
    program = mlp([4, 8, 2], generator=torch.Generator().manual_seed(0))
    net, x = om.Iterated(program).to("meta"), torch.zeros(3, 4, device="meta")
    assert net(x).shape == (3, 2)
    assert net(x).is_meta
    with pytest.raises(DTypeError, match=r"input 'x0': torch\.float32 was needed, got torch\.float64"):
        net(x.double())
    with pytest.raises(DTypeError, match=r"dense: weights are torch\.float32, input is torch\.float64"):
        Dense(torch.zeros(2, 4, device="meta")).matmul(x.double())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(DTypeError, match="input 'x0'"):
        net(x.double())


def test_weights_decide_the_dtype_then_free_inputs():
    P = {"m": om.Part((2,), dtype="float32"), "x": 2, "y": 2}
    program = om.Program(om.Step(om.BlockMatrix({("y", "x"): Identity(2)}, P)), ["m", "x"], ["y"])
    m, x = torch.ones(1, 2), torch.ones(1, 2, dtype=DOUBLE)
    assert interpret(program, m, x).dtype == DOUBLE
    zero = om.Step(om.BlockMatrix({}, {"x": 2, "y": 2}), rows=["y"])
    assert interpret(om.Program(zero, ["x"], ["y"]), x).dtype == DOUBLE
    assert interpret(om.Program(zero, ["x"], ["y"]), x.float()).dtype == torch.float32


@both
def test_sums_of_a_contraction_may_add_shapes_that_end_alike(literal):
    """A vector of each sample, and a bias of all, are added at every place of a sequence, whatever the sizes."""
    P = {"x": ("time", 2), "v": 2, "w": 3, "k": 2, "z": ("time",)}
    bias, map_w = Dense(numbers([1.0], [2.0])), Dense(numbers([1.0, 2, 3], [4, 5, 6]))
    first = {"x": om.Block(Identity(2), on="last"), "v": Identity(2), "w": map_w, "one": bias}
    G = om.BlockMatrix({("z", column): block for column, block in first.items()}, P)
    H = om.BlockMatrix({("z", "k"): Identity(2)}, P)
    program = om.Program(om.Step(G, H, joins={"z": "t d, d -> t"}), ["x", "v", "w", "k"], ["z"])
    g = torch.Generator().manual_seed(0)
    for batch, ticks in ((2, 2), (3, 4), (1, 0)):
        shapes = [(batch, ticks, 2), (batch, 2), (batch, 3), (batch, 2)]
        ins = [torch.randn(shape, generator=g, dtype=DOUBLE) for shape in shapes]
        assert_close(interpret(program, *ins, literal=literal), reference(program, *ins)[0][0])
    assert om.parse(program.text(), program.parameters) == program


@both
def test_structures_of_free_size_take_it_from_the_inputs(literal):
    P = {"x": ("time",), "total": 1, "back": ("time",), "zero": ("2 * time",)}
    blocks = {("total", "x"): Ones(1, "time"), ("back", "x"): Ones("time", "time")}
    blocks |= {("zero", "x"): Zero("2 * time", "time"), ("back", "one"): scale(Ones("time", 1), -0.5)}
    program = om.Program(om.Step(om.BlockMatrix(blocks, P)), ["x"], ["total", "back", "zero"])
    for x in (numbers(1, 2, 4)[None], numbers(5)[None]):
        total, back, zero = interpret(program, x, literal=literal)
        assert total.tolist() == [[x.sum().item()]]
        assert back.tolist() == [[x.sum().item() - 0.5] * x.shape[1]]
        assert zero.tolist() == [[0.0] * 2 * x.shape[1]]
    assert om.parse(program.text(), program.parameters) == program


@pytest.mark.parametrize("ticks", [0, 2])
def test_parts_of_a_dtype_of_their_own_keep_it_and_are_double_to_the_oracle(ticks):
    single = {"x": 1, "t": om.Part((1,), dtype="float32"), "s": om.Part((1,), dtype="float32")}
    P = single | {"X": ("time", 1), "S": om.Part(("time", 1), dtype="float32")}
    loop = om.Loop(
        om.Step(om.BlockMatrix({("t", "x"): Identity(1)}, P), activations={"t": "cast(float32)"}),
        over="time",
        feeds=om.BlockMatrix({("x", "X"): Identity(1)}, P),
        outputs=om.BlockMatrix({("S", "t"): Identity(1)}, P),
        carry=om.BlockMatrix({("s", "t"): Identity(1)}, P),
    )
    program = om.Program(loop, ["X"], ["S", "s"])
    X = torch.full((1, ticks, 1), 0.1, dtype=DOUBLE)
    for literal, kind in ((False, torch.float32), (True, DOUBLE)):
        S, s = interpret(program, X, literal=literal)
        assert (S.dtype, s.dtype) == (kind, kind)
        assert s.item() == (torch.tensor(0.1).item() if ticks else 0)
