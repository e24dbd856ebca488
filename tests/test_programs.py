"""Programs: exact semantics on cases worked out by hand, on every builder, and every refusal."""

import copy

import pytest
import torch
from torch.testing import assert_close

import onematrix as om
from onematrix.errors import ProgramError
from onematrix.networks import elman, inn, lstm, mlp
from onematrix.networks.examples import examples
from onematrix.programs.flow import depth
from onematrix.programs.interpreter import interpret, interpret_with_state
from onematrix.programs.run import carried_parts
from onematrix.structures import STRUCTURES
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones, Zero, scale

BUILT = examples(torch.Generator().manual_seed(0))
every = pytest.mark.parametrize("name", BUILT)
NOT_CAUSAL = ("elman_reversed", "bidirectional")  # outputs depend on later inputs
RECURRENT = [n for n, p in BUILT.items() if carried_parts(p) and n not in NOT_CAUSAL and "inn" not in n]


def inputs_of(program, ticks=5, batch=2, seed=1, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, *program.parts[n].at({"time": ticks}), generator=g, dtype=torch.float64).to(dtype)
        for n in program.inputs
    ]


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def D(*rows):
    return Dense(torch.tensor(rows, dtype=torch.float64))


def run(step, outputs, literal, **state):
    names = list(state)
    program = om.Program(step, names, outputs)
    values = [torch.tensor([v], dtype=torch.float64) for v in state.values()]
    return [v[0].tolist() for v in as_tuple(interpret(program, *values, literal=literal))]


both = pytest.mark.parametrize("literal", [False, True], ids=["plain", "literal"])


@both
def test_a_step_is_simultaneous_and_what_it_does_not_write_holds(literal):
    P = {"a": 1, "b": 1, "c": 1}
    swap = om.Step(om.BlockMatrix({("a", "b"): Identity(1), ("b", "a"): Identity(1)}, P))
    assert run(swap, ["a", "b", "c"], literal, a=[1.0], b=[2.0], c=[3.0]) == [[2.0], [1.0], [3.0]]


@both
def test_a_written_row_without_blocks_is_the_activation_of_zero(literal):
    step = om.Step(om.BlockMatrix({}, {"a": 2}), activations={"a": "sigmoid"}, rows=["a"])
    assert run(step, ["a"], literal, a=[5.0, 6.0]) == [[0.5, 0.5]]


@both
def test_the_activation_acts_on_the_complete_sum_and_h_multiplies(literal):
    P = {"x": 2, "y": 2, "z": 2}
    G = om.BlockMatrix({("z", "x"): Identity(2), ("z", "y"): scale(Identity(2), -2)}, P)
    H = om.BlockMatrix({("z", "y"): Identity(2)}, P)
    step = om.Step(G, H, activations={"z": "relu"})
    assert run(step, ["z"], literal, x=[5.0, 1.0], y=[2.0, 3.0]) == [[2.0, 0.0]]  # relu(5−4)·2, relu(1−6)·3


@both
def test_absent_blocks_are_structural_zeros(literal):
    """∞ in a part no block of the row reads, or under a zero of a structure, does not reach the row."""
    P = {"x": 2, "y": 2}
    step = om.Step(om.BlockMatrix({("y", "x"): Diagonal(torch.tensor([2.0, 3.0]).double())}, P))
    assert run(step, ["y"], literal, x=[torch.inf, 1.0]) == [[torch.inf, 3.0]]
    step = om.Step(om.BlockMatrix({("y", "x"): Zero(2, 2)}, P))
    assert run(step, ["y"], literal, x=[torch.inf, torch.nan]) == [[0.0, 0.0]]


@both
@pytest.mark.parametrize(
    ("join", "expected"),
    [("hadamard", [3.0, -8.0]), ("maximum", [3.0, 4.0]), ("minimum", [1.0, -2.0]), ("divide", [1 / 3, -0.5])],
)
def test_joins_of_two_sums(join, expected, literal):
    P = {"x": 2, "y": 2, "z": 2}
    G, H = (om.BlockMatrix({("z", c): Identity(2)}, P) for c in "xy")
    step = om.Step(G, H, joins={"z": join})
    assert run(step, ["z"], literal, x=[1.0, -2.0], y=[3.0, 4.0]) == [pytest.approx(expected)]


@both
def test_select_lets_nothing_of_the_other_through(literal):
    P = {"m": om.Part((2,), dtype="bool"), "x": 2, "y": 2, "z": 2}
    step = om.Step(*(om.BlockMatrix({("z", c): Identity(2)}, P) for c in "mxy"), joins={"z": "select"})
    program = om.Program(step, ["m", "x", "y"], ["z"])
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[torch.inf, 4.0]], dtype=torch.float64, requires_grad=True)
    z = interpret(program, torch.tensor([[True, False]]), x, y, literal=literal)
    assert z.tolist() == [[1.0, 4.0]]
    gx, gy = torch.autograd.grad(z.sum(), [x, y])
    assert gx.tolist() == [[1.0, 0.0]]
    assert gy.tolist() == [[0.0, 1.0]]


@both
def test_gather_scatter_top_k_and_one_hot(literal):
    P = {
        "v": (4, 2),
        "i": om.Part((3, 4), "index"),
        "g": (3, 2),
        "s": (4, 2),
        "w": 4,
        "top": om.Part((2, 4), "index"),
        "e": (3, 2),
    }
    table = D([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0])
    steps = om.Seq(
        om.Step(
            om.BlockMatrix(
                {("g", "v"): Identity(8), ("top", "w"): Identity(4), ("e", "i"): om.Block(table, on="last")},
                P,
            ),
            om.BlockMatrix({("g", "i"): Identity(12)}, P),
            joins={"g": "gather", "top": "top_k(2)"},
        ),
        om.Step(
            om.BlockMatrix({("s", "g"): Identity(6)}, P),
            om.BlockMatrix({("s", "i"): Identity(12)}, P),
            joins={"s": "scatter(4)"},
        ),
    )
    program = om.Program(steps, ["v", "i", "w"], ["g", "s", "top", "e"])
    v = torch.arange(8, dtype=torch.float64).reshape(1, 4, 2)
    i = torch.tensor([[2, 0, 2]])
    w = torch.tensor([[0.1, 0.9, 0.3, 0.5]], dtype=torch.float64)
    g, s, top, e = interpret(program, v, i, w, literal=literal)
    assert g.tolist() == [[[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]]
    assert s.tolist() == [[[0.0, 1.0], [0.0, 0.0], [8.0, 10.0], [0.0, 0.0]]]
    assert top.tolist() == [[1, 3]]
    assert e.tolist() == [[[3.0, 7.0], [1.0, 5.0], [3.0, 7.0]]]
    hot = torch.nn.functional.one_hot(i, 4).double()
    assert_close(g, hot @ v)
    assert_close(e, hot @ table.weight.mT)


def counter(over="time", ticks=None, after="zero", reverse=False, valid=None):
    """s ← ½ s + x, reading x along time, giving every s and the last."""
    P = {"x": 1, "s": 1, "t": 1, "X": ("time", 1), "S": (ticks or "time", 1), "s0": 1}
    if valid:
        P["ok"] = om.Part(("time",), dtype="bool")
    step = om.Step(om.BlockMatrix({("t", "s"): scale(Identity(1), 0.5), ("t", "x"): Identity(1)}, P))
    loop = om.Loop(
        step,
        over=over,
        feeds=om.BlockMatrix({("x", "X"): Identity(1)}, P),
        outputs=om.BlockMatrix({("S", "t"): Identity(1)}, P),
        init=om.BlockMatrix({("s", "s0"): Identity(1)}, P),
        carry=om.BlockMatrix({("s", "t"): Identity(1)}, P),
        ticks=ticks,
        after=after,
        reverse=reverse,
        valid=valid,
    )
    return om.Program(loop, ["X", "s0", *(["ok"] if valid else [])], ["S", "s"], P)


def series(program, xs, s0, literal, *more):
    x = torch.tensor(xs, dtype=torch.float64).reshape(len(s0), -1, 1)
    out, last = interpret(
        program, x, torch.tensor(s0, dtype=torch.float64).reshape(-1, 1), *more, literal=literal
    )
    return out[..., 0].tolist(), last[:, 0].tolist()


@both
def test_a_loop_over_time_with_its_ends(literal):
    assert series(counter(), [[4.0, 2.0, 1.0]], [8.0], literal) == ([[8.0, 6.0, 4.0]], [4.0])
    out, last = series(counter(reverse=True), [[4.0, 2.0, 1.0]], [8.0], literal)
    assert out == [[6.25, 4.5, 5.0]]  # ticks run 1, 2, 4: 5, 4.5, 6.25
    assert last == [6.25]
    assert series(counter(ticks="time + 2"), [[4.0, 2.0]], [8.0], literal) == ([[8.0, 6.0, 3.0, 1.5]], [1.5])
    hold = counter(ticks="time + 2", after="hold")
    assert series(hold, [[4.0, 2.0]], [8.0], literal) == ([[8.0, 6.0, 5.0, 4.5]], [4.5])
    assert series(counter(), [[]], [8.0], literal) == ([[]], [8.0])


@both
def test_valid_holds_the_state_of_each_sample_and_its_outputs_are_zero(literal):
    ok = torch.tensor([[True, True, False], [True, False, True]])
    out, last = series(counter(valid="ok"), [[4.0, 2.0, 9.0], [4.0, torch.inf, 2.0]], [8.0, 0.0], literal, ok)
    assert out == [[8.0, 6.0, 0.0], [4.0, 0.0, 4.0]]
    assert last == [6.0, 4.0]


@both
def test_an_outer_part_without_the_dimension_is_fed_whole_and_loops_nest(literal):
    P = {
        "X": ("rows", "cols"),
        "row": om.Part(("cols",)),
        "x": 1,
        "k": 1,
        "K": 1,
        "s": 1,
        "t": 1,
        "sum": 1,
        "all": 1,
        "Y": ("rows", 1),
        "u": 1,
    }
    inner = om.Loop(
        om.Step(om.BlockMatrix({("t", "s"): Identity(1), ("t", "x"): Identity(1)}, P)),
        over="cols",
        feeds=om.BlockMatrix({("x", "row"): Identity(1)}, P),
        carry=om.BlockMatrix({("s", "t"): Identity(1)}, P),
    )
    body = om.Seq(
        inner,
        om.Step(
            om.BlockMatrix({("sum", "all"): Identity(1), ("sum", "s"): Identity(1)}, P),
            om.BlockMatrix({("sum", "k"): Identity(1)}, P),
        ),
    )
    outer = om.Loop(
        body,
        over="rows",
        feeds=om.BlockMatrix({("row", "X"): Identity("cols"), ("k", "K"): Identity(1)}, P),
        outputs=om.BlockMatrix({("Y", "sum"): Identity(1)}, P),
        carry=om.BlockMatrix({("all", "sum"): Identity(1)}, P),
    )
    program = om.Program(outer, ["X", "K"], ["Y"])
    X = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]], dtype=torch.float64)
    K = torch.tensor([[2.0]], dtype=torch.float64)
    assert interpret(program, X, K, literal=literal)[..., 0].tolist() == [[12.0, 54.0]]  # (0+6)·2, (12+15)·2
    assert om.parse(program.text(), program.parameters) == program


@both
def test_loops_by_number_start_at_zero_or_init_and_until_holds_each_sample(literal):
    P = {"x": 1, "z": 1}
    step = om.Step(om.BlockMatrix({("z", "z"): scale(Identity(1), 0.5), ("z", "x"): Identity(1)}, P))
    three = om.Program(om.Loop(step, times=3), ["x"], ["z"])
    one = torch.tensor([[1.0]], dtype=torch.float64)
    assert interpret(three, one, literal=literal).item() == 1.75
    from_x = om.Loop(step, times=2, init=om.BlockMatrix({("z", "x"): scale(Identity(1), 8)}, P))
    assert interpret(om.Program(from_x, ["x"], ["z"]), one, literal=literal).item() == 3.5
    named = om.Program(om.Loop(step, times="rounds"), ["x"], ["z"])
    assert interpret(named, one, literal=literal, sizes={"rounds": 2}).item() == 1.5
    until = om.Program(om.Loop(step, until=0.3, at_most=50), ["x"], ["z"])
    z = interpret(until, torch.tensor([[1.0], [4.0], [0.0]], dtype=torch.float64), literal=literal)
    assert z[:, 0].tolist() == [1.75, 7.75, 0.0]  # changes 1, .5, .25 and 4, 2, 1, .5, .25 and 0
    at_most = om.Program(om.Loop(step, until=1e-9, at_most=2), ["x"], ["z"])
    assert interpret(at_most, one, literal=literal).item() == 1.5


def test_noise_depends_on_seed_part_and_tick_alone():
    P = {"n": om.Part((4,), "noise"), "x": 4, "y": 4, "X": ("time", 4), "Y": ("time", 4)}
    drop = om.Step(
        om.BlockMatrix({("y", "n"): Identity(4)}, P),
        om.BlockMatrix({("y", "x"): Identity(4)}, P),
        activations={"y": "keep(0.75)"},
    )
    loop = om.Loop(
        drop,
        over="time",
        feeds=om.BlockMatrix({("x", "X"): Identity(4)}, P),
        outputs=om.BlockMatrix({("Y", "y"): Identity(4)}, P),
    )
    program = om.Program(loop, ["X"], ["Y"])
    x = torch.ones(50, 6, 4)
    y = interpret(program, x, seed=1)
    assert torch.equal(y, interpret(program, x, seed=1))
    assert_close(y.double(), interpret(program, x, seed=1, literal=True), atol=1e-6, rtol=0)
    assert not torch.equal(y, interpret(program, x, seed=2))
    assert not torch.equal(y[:, 0], y[:, 1])
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert 0.7 < float((y > 0).float().mean()) < 0.8


@every
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_literal_equals_plain_outputs_and_gradients(name, batch):
    program = BUILT[name]
    ins = [x.requires_grad_() for x in inputs_of(program, batch=batch)]
    tensors = [t.requires_grad_() for t in program.parameters.values() if t.is_floating_point()]
    grads, outputs = [], []
    for literal in (False, True):
        out = as_tuple(interpret(program, *ins, literal=literal))
        outputs.append(out)
        total = sum((o.sin() + o).sum() for o in out)
        grads.append(torch.autograd.grad(total, ins + tensors, materialize_grads=True))
    for t in tensors:
        t.requires_grad_(False)
    for ours, theirs in zip((*outputs[0], *grads[0]), (*outputs[1], *grads[1]), strict=True):
        assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    for out, part in zip(outputs[0], program.outputs, strict=True):
        assert out.shape == (batch, *program.parts[part].at({"time": 5}))


@every
def test_the_text_reads_back_to_an_equal_program(name):
    program = BUILT[name]
    again = om.parse(program.text(), program.parameters)
    assert again == program
    assert again.text() == program.text()
    assert program.diff(again) == ""
    meta = om.parse(program.text())
    assert meta.counts(time=5) == program.counts(time=5)
    assert all(t.device.type == "meta" for t in meta.parameters.values())


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_ticks_may_be_split_and_the_state_handed_over(name, cut):
    program = BUILT[name]
    ins = inputs_of(program)
    whole, state = interpret_with_state(program, *ins)
    first, handed = interpret_with_state(program, ins[0][:, :cut], *ins[1:])
    assert set(handed) == set(carried_parts(program))
    second, last = interpret_with_state(program, ins[0][:, cut:], *ins[1:], state=handed)
    assert_close(
        torch.cat([as_tuple(first)[0], as_tuple(second)[0]], 1), as_tuple(whole)[0], atol=1e-13, rtol=0
    )
    for part, value in state.items():
        assert_close(last[part], value, atol=1e-13, rtol=0)


def test_ticks_of_a_reversed_loop_split_from_the_end():
    program = BUILT["elman_reversed"]
    x, h = inputs_of(program)
    whole, _ = interpret(program, x, h)
    late, handed = interpret_with_state(program, x[:, 3:], h)
    early, _ = interpret_with_state(program, x[:, :3], h, state=handed)
    assert_close(torch.cat([early[0], late[0]], 1), whole, atol=1e-13, rtol=0)


def test_the_ticks_of_an_iterated_network_split_without_the_extra_ones():
    """With after="zero" and the blank ticks fed as zeros, the state hands over exactly."""
    program = inn([6, 5, 4, 3], after="zero")
    x = torch.randn(2, 5, 6)
    whole = interpret(program, x)
    text = program.text().replace("over time ticks (time + 3)", "over time")
    bare = om.parse(text, program.parameters)
    padded = torch.cat([x, torch.zeros(2, 3, 6)], 1)
    _, state = interpret_with_state(bare, padded[:, :4])
    out, _ = interpret_with_state(bare, padded[:, 4:], state=state)
    assert_close(out, whole)


def test_the_iterated_form_is_one_matrix_applied_depth_times():
    program = mlp([4, 5, 3, 2])
    literal = program.iterated()
    x = torch.randn(3, 4)
    assert_close(interpret(literal, x), interpret(program, x))
    assert depth(literal.steps()[0]) == 3
    with pytest.raises(ProgramError, match="the schedule has loops"):
        elman(2, 3).iterated()


def test_every_structure_may_stand_in_a_program():
    for name, cls in STRUCTURES.items():
        a = next(iter(cls.examples(torch.Generator().manual_seed(0))))
        m, n = a.fixed_shape
        program = om.Program(om.Step(om.BlockMatrix({("y", "x"): a}, {"x": n, "y": m})), ["x"], ["y"])
        assert om.parse(program.text(), program.parameters) == program, name
        x = torch.randn(2, n, dtype=torch.float64)
        assert_close(interpret(program, x), interpret(program, x, literal=True))


def test_programs_are_values():
    program = lstm(3, 4)
    assert program == program
    assert program != lstm(3, 4)
    assert copy.copy(program) == program
    ones = om.Program(om.Step(om.BlockMatrix({("y", "one"): Ones(3, 1)}, {"y": 3, "x": 1})), ["x"], ["y"])
    assert interpret(ones, torch.zeros(4, 1)).shape == (4, 3)
