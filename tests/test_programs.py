"""Programs: exact semantics on cases worked out by hand, on every builder, and every refusal."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import onematrix as om
from onematrix.errors import DTypeError, FormatError, ProgramError, ShapeError
from onematrix.networks import attention, elman, inn, lstm, mlp
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


def test_counts_follow_the_definition():
    counts = mlp([4, 5, 3]).counts()
    assert (counts.blocks, counts.stored_numbers, counts.nonzeros) == (4, 4 * 5 + 5 + 5 * 3 + 3, 43)
    assert counts.multiply_adds == 43
    tied = Dense(torch.ones(4, 4))
    P = {"a": 4, "b": 4, "c": 4}
    program = om.Program(
        om.Seq(
            om.Step(om.BlockMatrix({("b", "a"): tied}, P)), om.Step(om.BlockMatrix({("c", "b"): tied}, P))
        ),
        ["a"],
        ["c"],
    )
    assert program.counts().stored_numbers == 16
    assert program.counts().multiply_adds == 32
    with pytest.raises(
        ShapeError, match=r"named sizes \['time'\] are free; fix them, as in counts\(time=10\)"
    ):
        elman(2, 3).counts()
    work = elman(2, 3).counts(time=7).work
    assert work.multiply_adds == 7 * (6 + 9 + 3)
    assert work.activated == 21


def test_attention_counts_are_those_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    program = attention(8, 2)
    with FlopCounterMode(display=False) as counter:
        interpret(program, torch.randn(1, 5, 8))
    products = 4 * 5 * 64 + 2 * 5 * 5 * 8
    biases = program.counts(time=5).multiply_adds - products - 5 * 8
    assert counter.get_total_flops() == 2 * (products + 4 * 8)  # torch adds each bias once, not once per tick
    assert biases == 4 * 5 * 8


# What is refused.


def simple(**more):
    P = {"x": 3, "y": 2}
    return om.Program(om.Step(om.BlockMatrix({("y", "x"): Dense(torch.ones(2, 3))}, P)), ["x"], ["y"], **more)


def test_inputs_that_do_not_fit_are_named():
    program = simple()
    with pytest.raises(ShapeError, match=r"input 'x': 3 was needed, got 4 in \(2, 4\)") as caught:
        interpret(program, torch.ones(2, 4))
    assert (caught.value.needed, caught.value.got) == (3, 4)
    with pytest.raises(ShapeError, match=r"shape \(batch, 3\) was needed, got \(3,\)"):
        interpret(program, torch.ones(3))
    with pytest.raises(ShapeError, match=r"takes 1 inputs \(x\), got 2"):
        interpret(program, torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(DTypeError, match=r"input 'x': torch\.float32 was needed, got torch\.float64"):
        interpret(program, torch.ones(2, 3).double())
    with pytest.raises(DTypeError, match=r"torch\.float32 was needed, got torch\.int64"):
        interpret(program, torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"input 'h0': shape \(batch = 2, 4\) was needed, got \(3, 4\)"):
        interpret(elman(3, 4), torch.ones(2, 5, 3), torch.ones(3, 4))
    program = attention(4, 2, mask=True)
    with pytest.raises(ShapeError, match="input 'mask': time = 5 was needed, got 6"):
        interpret(program, torch.ones(1, 5, 4), torch.zeros(1, 2, 6, 5))
    index = om.Program(
        om.Step(om.BlockMatrix({("y", "i"): Dense(torch.ones(2, 4))}, {"i": om.Part((4,), "index"), "y": 2})),
        ["i"],
        ["y"],
    )
    with pytest.raises(DTypeError, match="input 'i': integers were needed for an index part"):
        interpret(index, torch.ones(2))
    assert interpret(simple(), torch.ones(0, 3)).shape == (0, 2)


def test_parts_and_blocks_that_do_not_fit_are_named():
    with pytest.raises(ShapeError, match=r"block \('y', 'x'\): dense is 2×3, the parts need 2×4") as caught:
        om.Step(om.BlockMatrix({("y", "x"): Dense(torch.ones(2, 3))}, {"x": 4, "y": 2}))
    assert caught.value.needed == (2, 4)
    with pytest.raises(ProgramError, match=r"there is no part 'z'; parts: x, one"):
        om.BlockMatrix({("z", "x"): Identity(3)}, {"x": 3})
    with pytest.raises(ProgramError, match="a pair"):
        om.BlockMatrix({"zx": Identity(3)}, {"x": 3})
    with pytest.raises(ProgramError, match="part 'x' is declared twice"):
        simple(parts={"x": 4})
    with pytest.raises(ProgramError, match="part name '2x'"):
        om.BlockMatrix({}, {"2x": 3})
    with pytest.raises(ShapeError, match=r"part 'one' is the constant 1 of shape \(1,\), got \(3,\)"):
        om.BlockMatrix({}, {"one": 3})
    with pytest.raises(ShapeError, match="sizes are integers of at least 1 or names, got 0"):
        om.Part((0,))
    with pytest.raises(ProgramError, match="part kind 'complex' is unknown"):
        om.Part((1,), "complex")
    with pytest.raises(DTypeError, match="part dtype 'float23'"):
        om.Part((1,), dtype="float23")
    with pytest.raises(ShapeError, match="on the last dimensions, which does not fit"):
        om.Step(
            om.BlockMatrix(
                {("y", "x"): om.Block(Identity(3), on="last")}, {"x": ("time", 3), "y": ("rows", 3)}
            )
        )
    with pytest.raises(ProgramError, match="'all' or 'last' was needed"):
        om.Block(Identity(3), on="first")


def test_steps_and_loops_that_do_not_make_sense_are_named():
    P = {"x": 3, "y": 3}
    G = om.BlockMatrix({("y", "x"): Identity(3)}, P)
    with pytest.raises(ProgramError, match="activation of part 'z': no such part; parts: x, y, one"):
        om.Step(G, activations={"z": "relu"})
    with pytest.raises(
        ProgramError, match="part 'x' has an activation, join or H row but the step does not write it"
    ):
        om.Step(G, activations={"x": "relu"})
    with pytest.raises(ProgramError, match="activation 'rleu' is unknown; there are: abs"):
        om.Step(G, activations={"y": "rleu"})
    with pytest.raises(ProgramError, match="join select combines 3 sums, the step gives 2"):
        om.Step(G, G, joins={"y": "select"})
    with pytest.raises(ProgramError, match="join 'blend' is unknown"):
        om.Step(G, G, joins={"y": "blend"})
    with pytest.raises(ProgramError, match="'d' stands on the right only"):
        om.Step(G, G, joins={"y": "a, b -> d"})
    with pytest.raises(ShapeError, match="has 2 axes, the part"):
        om.Step(G, G, joins={"y": "a b, b -> a"})
    with pytest.raises(ProgramError, match="exactly one of over=, times=, until="):
        om.Loop(om.Step(G))
    with pytest.raises(ProgramError, match="belong to Loop"):
        om.Loop(om.Step(G), times=2, reverse=True)
    with pytest.raises(ProgramError, match="at least one block matrix"):
        om.Step()
    with pytest.raises(ProgramError, match="at least one step"):
        om.Seq()
    with pytest.raises(ProgramError, match="each row once"):
        om.Step(G, rows=["y", "y"])
    with pytest.raises(ProgramError, match=r"until=-1, at_most=100: both must be positive"):
        om.Loop(om.Step(G), until=-1)


def test_reads_of_undefined_parts_and_unwritten_outputs_are_named():
    P = {"x": 3, "y": 3, "z": 3}
    G = om.BlockMatrix({("y", "z"): Identity(3)}, P)
    with pytest.raises(ProgramError, match="row 'y' reads part 'z', which nothing has written") as caught:
        om.Program(om.Step(G), ["x"], ["y"])
    assert caught.value.part == "z"
    with pytest.raises(ProgramError, match="output 'z' is never written by the schedule; written: "):
        om.Program(om.Step(om.BlockMatrix({("y", "x"): Identity(3)}, P)), ["x"], ["z"])
    with pytest.raises(ProgramError, match="input 'w' is no part"):
        om.Program(om.Step(om.BlockMatrix({("y", "x"): Identity(3)}, P)), ["w"], ["y"])
    with pytest.raises(ProgramError, match="at least one output"):
        om.Program(om.Step(om.BlockMatrix({("y", "x"): Identity(3)}, P)), ["x"], [])
    text = elman(2, 3).text()
    with pytest.raises(FormatError, match="'h_prev', which nothing has written"):
        om.parse(
            "\n".join(line for line in text.splitlines() if not line.strip().startswith(("carry", "init")))
        )
    with pytest.raises(FormatError, match="init gives 'h_prev', which the carry does not list"):
        om.parse("\n".join(line for line in text.splitlines() if not line.strip().startswith("carry")))


def test_parameters_of_two_dtypes_are_refused():
    P = {"x": 2, "y": 2, "z": 2}
    blocks = {("y", "x"): Dense(torch.ones(2, 2)), ("z", "x"): Dense(torch.ones(2, 2).double())}
    with pytest.raises(DTypeError, match=r"parameters of several dtypes: .*float64.*float32"):
        om.Program(om.Step(om.BlockMatrix(blocks, P)), ["x"], ["y"])


def test_state_for_parts_no_loop_carries_is_refused():
    with pytest.raises(
        ProgramError, match="state gives 'h', which no outermost loop carries; carried: h_prev"
    ):
        interpret_with_state(
            elman(2, 3), torch.ones(1, 2, 2), torch.ones(1, 3), state={"h": torch.ones(1, 3)}
        )


# Sequential2D.


def literal_sequential2d(blocks, xs):
    """The sum of block outputs per output, input-first lists, absent blocks adding nothing."""
    out = []
    for j in range(len(blocks)):
        terms = [blocks[i][j](xs[i]) for i in range(len(blocks)) if blocks[i][j] is not None]
        out.append(sum(terms) if terms else torch.zeros_like(xs[j]))
    return out


def test_a_sequential2d_is_its_block_matrix():
    torch.manual_seed(0)
    blocks = [
        [nn.Identity(), nn.Linear(4, 3).double(), None],
        [None, nn.Linear(3, 3).double(), nn.Linear(3, 2, bias=False).double()],
        [None, None, nn.Linear(2, 2).double()],
    ]
    G = om.BlockMatrix.from_sequential2d(blocks, names=["x", "h", "y"], sizes=[4, 3, 2])
    assert [key for key, _ in G if key[1] == "one"] == [("h", "one"), ("y", "one")]
    program = om.Program(om.Step(G), ["x", "h", "y"], ["x", "h", "y"])
    xs = [torch.randn(5, n, dtype=torch.float64, requires_grad=True) for n in (4, 3, 2)]
    kept = [x.detach().clone() for x in xs]
    ours, theirs = interpret(program, *xs), literal_sequential2d(blocks, xs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float64
        assert_close(a, b)
    assert ours[0] is not xs[0]
    assert all(torch.equal(a, b) for a, b in zip(xs, kept, strict=True))
    sum(o.sum() for o in ours).backward()
    assert blocks[1][2].weight.grad is not None


def test_a_sequential2d_that_does_not_fit_is_named():
    with pytest.raises(ShapeError, match=r"2 inputs need 2 outputs each, got \[1, 2\]"):
        om.BlockMatrix.from_sequential2d([[None], [None, None]])
    with pytest.raises(ShapeError, match=r"no block tells the size of \['x0', 'x1'\]; give sizes"):
        om.BlockMatrix.from_sequential2d([[None, None], [None, None]])
    with pytest.raises(ShapeError, match="part 'x1' is 2 wide in one block, 3 in another"):
        om.BlockMatrix.from_sequential2d([[None, torch.ones(2, 4)], [None, torch.ones(3, 3)]])
    with pytest.raises(om_errors(), match=r"blocks\[0\]\[0\] is ReLU"):
        om.BlockMatrix.from_sequential2d([[nn.ReLU()]])


def om_errors():
    from onematrix.errors import ConversionError

    return ConversionError


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
