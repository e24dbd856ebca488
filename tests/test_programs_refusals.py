"""Every refusal of a program names who, what was needed, what came."""

import re
from functools import partial

import numpy
import pytest
import torch

import onematrix as om
from onematrix.errors import DTypeError, FormatError, OneMatrixError, ProgramError, ShapeError
from onematrix.networks import attention, elman, inn
from onematrix.programs.interpreter import interpret, interpret_with_state
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity


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


@pytest.mark.parametrize(
    "given",
    ["text", None, numpy.ones((2, 5, 3)), [[1.0, 2.0, 3.0]], 3, {"x": 1}],
    ids=lambda given: type(given).__name__,
)
def test_what_is_no_tensor_is_named(given):
    program, h0 = elman(3, 4), torch.ones(2, 4)
    got = type(given).__name__
    for run in (partial(interpret, program), om.Iterated(program)):
        with pytest.raises(
            OneMatrixError,
            match=rf"input 'inputs': a tensor of shape \(batch, time, 3\) was needed, got {got}; torch\.as_tensor",
        ) as caught:
            run(given, h0)
        assert (caught.value.part, caught.value.got) == ("inputs", got)
        with pytest.raises(OneMatrixError, match=rf"input 'h0': a tensor of shape \(batch, 4\) .* got {got}"):
            run(torch.ones(2, 5, 3), given)
    with pytest.raises(OneMatrixError, match=rf"state 'h_prev': a tensor of shape \(batch, 4\) .* got {got}"):
        interpret_with_state(program, torch.ones(2, 5, 3), h0, state={"h_prev": given})


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
    assert str(caught.value).endswith(
        "defined: ['one', 'x']; write it in a step before, make it an input, or take it out of the loop that writes "
        "it (outputs or carry); parts that depend on each other in a cycle need an om.Loop"
    )
    with pytest.raises(
        ProgramError,
        match=r"output 'z' is never written by the schedule; written: \['one', 'x', 'y'\]; write it in a step, or "
        r"take it out of the loop that writes it \(outputs or carry\)",
    ) as caught:
        om.Program(om.Step(om.BlockMatrix({("y", "x"): Identity(3)}, P)), ["x"], ["z"])
    assert caught.value.part == "z"
    cycle = om.BlockMatrix({("y", "z"): Identity(3), ("z", "y"): Identity(3), ("y", "x"): Identity(3)}, P)
    with pytest.raises(
        ProgramError, match=r"row 'y' reads part 'z', .*; parts .* in a cycle need an om\.Loop"
    ):
        om.Program(om.Step(cycle), ["x"], ["y"])
    assert om.Program(om.Loop(om.Step(cycle), times=3), ["x"], ["y"]).outputs == ("y",), (
        "and that is the remedy"
    )
    with pytest.raises(ProgramError, match="input 'w' is no part"):
        om.Program(om.Step(om.BlockMatrix({("y", "x"): Identity(3)}, P)), ["w"], ["y"])
    with pytest.raises(ProgramError, match="at least one output"):
        om.Program(om.Step(om.BlockMatrix({("y", "x"): Identity(3)}, P)), ["x"], [])
    text = elman(2, 3).text()
    inside = r"write it in a step of the body before, feed it \(feeds\), or carry it from the tick before \(carry\)"
    with pytest.raises(FormatError, match=f"'h_prev', which nothing has written at that point; .*; {inside}"):
        om.parse(
            "\n".join(line for line in text.splitlines() if not line.strip().startswith(("carry", "init")))
        )
    with pytest.raises(
        FormatError,
        match=r"init gives 'h_prev', which the carry does not list; carried: \[\]; list it in carry=",
    ):
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


def test_sizes_of_all_inputs_agree():
    P = {"a": ("time", 2), "b": ("2 * time + 1",), "y": ("time", 2)}
    G = om.BlockMatrix({("y", "a"): om.Block(Identity(2), on="last")}, P)
    program = om.Program(om.Step(G), ["a", "b"], ["y"])
    assert interpret(program, torch.ones(1, 3, 2), torch.ones(1, 7)).shape == (1, 3, 2)
    with pytest.raises(
        ShapeError, match=r"input 'b': 2 \* time \+ 1 = 7 was needed, got 6 in \(1, 6\)"
    ) as caught:
        interpret(program, torch.ones(1, 3, 2), torch.ones(1, 6))
    assert (caught.value.needed, caught.value.got) == (7, 6)
    with pytest.raises(ShapeError, match="input 'a': time = 4 was needed, got 3"):
        interpret(program, torch.ones(1, 3, 2), torch.ones(1, 7), sizes={"time": 4})
    loop = om.Program(om.Loop(om.Step(G), times="rounds"), ["a", "b"], ["y"])
    with pytest.raises(ShapeError, match="'rounds' is not given; known sizes:"):
        interpret(loop, torch.ones(1, 3, 2), torch.ones(1, 7))
    fewer = om.Program(om.Loop(om.Step(G), times="time - 2"), ["a", "b"], ["y"])
    with pytest.raises(ShapeError, match=r"size 'time - 2': 0 or more was needed, got -1 for \{'time': 1\}"):
        interpret(fewer, torch.ones(1, 1, 2), torch.ones(1, 3))


def test_integers_of_an_index_part_stay_in_their_range():
    P = {"i": om.Part((3, 4), "index"), "y": (3, 2)}
    block = om.Block(Dense(torch.ones(2, 4)), on="last")
    program = om.Program(om.Step(om.BlockMatrix({("y", "i"): block}, P)), ["i"], ["y"])
    for bad in (-1, 4):
        with pytest.raises(ShapeError, match=rf"input 'i': integers from 0 to 3 were needed, got {bad}"):
            interpret(program, torch.tensor([[0, bad, 3]]))
    for dtype in (torch.bool, torch.int8, torch.uint8, torch.float32):
        with pytest.raises(DTypeError, match=rf"integers were needed for an index part, got {dtype}"):
            interpret(program, torch.zeros(1, 3, dtype=dtype))
    assert interpret(program, torch.tensor([[0, 3, 3]], dtype=torch.int32)).shape == (1, 3, 2)


def test_integers_and_booleans_are_no_real_numbers():
    for dtype in (torch.int64, torch.bool, torch.int8):
        with pytest.raises(DTypeError, match=rf"input 'x': torch.float32 was needed, got {dtype}"):
            interpret(simple(), torch.ones(2, 3).to(dtype))
    P = {"m": om.Part((2,), dtype="bool"), "y": 2}
    program = om.Program(om.Step(om.BlockMatrix({("y", "m"): Identity(2)}, P)), ["m"], ["y"])
    with pytest.raises(DTypeError, match=r"input 'm': torch.bool was needed, got torch.float32"):
        interpret(program, torch.ones(1, 2))
    dense = om.Program(om.Step(om.BlockMatrix({("y", "m"): Dense(torch.ones(2, 2))}, P)), ["m"], ["y"])
    with pytest.raises(DTypeError, match=r"weights are torch.float32, input is torch.bool"):
        interpret(dense, torch.ones(1, 2, dtype=torch.bool))


def test_state_that_does_not_fit_is_named():
    program = elman(2, 3)
    x, h = torch.ones(1, 2, 2), torch.ones(1, 3)
    for state, error, fault in [
        (torch.ones(1, 4), ShapeError, r"state 'h_prev': 3 was needed, got 4 in \(1, 4\)"),
        (torch.ones(2, 3), ShapeError, r"state 'h_prev': shape \(batch = 1, 3\) was needed, got \(2, 3\)"),
        (
            torch.ones(1, 3).double(),
            DTypeError,
            "state 'h_prev': torch.float32 was needed, got torch.float64",
        ),
    ]:
        with pytest.raises(error, match=fault):
            interpret_with_state(program, x, h, state={"h_prev": state})
    twice = om.Program(om.Seq(program.schedule, program.schedule), ["inputs", "h0"], ["hidden"])
    with pytest.raises(ProgramError, match="state gives 'h_prev', which several outermost loops carry"):
        interpret_with_state(twice, x, h, state={"h_prev": h})


def test_the_empty_and_the_single():
    """Batch 0 and T = 0 have results: empty outputs, the state as it was given."""
    program = elman(2, 3)
    hidden, last = interpret(program, torch.ones(0, 4, 2), torch.ones(0, 3))
    assert (hidden.shape, last.shape) == ((0, 4, 3), (0, 3))
    hidden, last = interpret(program, torch.ones(2, 0, 2), torch.ones(2, 3))
    assert hidden.shape == (2, 0, 3)
    assert torch.equal(last, torch.ones(2, 3))
    with pytest.raises(
        ShapeError, match=r"loop over time: nothing to hold, 'images' has no tick and 2 are asked"
    ):
        interpret(inn([3, 2, 2]), torch.ones(1, 0, 3))


def test_what_nothing_can_write_is_named():
    P = {"x": 3, "n": om.Part((3,), "noise"), "y": 3, "i": om.Part((2, 3), "index")}

    def step(row, column, **more):
        return om.Step(om.BlockMatrix({(row, column): Identity(om.Part(P[row].shape).features)}, P), **more)

    P = {name: om.Part((part,)) if isinstance(part, int) else part for name, part in P.items()}
    with pytest.raises(ProgramError, match="row 'n': a noise part is drawn, nothing can write it"):
        om.Program(step("n", "x"), ["x"], ["n"])
    with pytest.raises(ProgramError, match="input 'n' is a noise part, which is drawn"):
        om.Program(step("y", "n"), ["n"], ["y"])
    with pytest.raises(ProgramError, match="output 'n' is never written"):
        om.Program(step("y", "n"), ["x"], ["n"])
    with pytest.raises(ProgramError, match="row 'one': part 'one' is the constant 1"):
        om.Program(om.Step(om.BlockMatrix({("one", "one"): Identity(1)}, {"x": 1})), ["x"], ["x"])
    with pytest.raises(ProgramError, match="part 'one' is the constant 1 and cannot be an input"):
        om.Program(step("y", "x"), ["one"], ["y"])
    index = om.BlockMatrix({("i", "y"): Dense(torch.ones(6, 3))}, P)
    with pytest.raises(ProgramError, match="row 'i': an index part is written by top_k or by one identity"):
        om.Program(om.Step(index), ["y"], ["i"])
    with pytest.raises(ProgramError, match="row 'i': an index part is written by top_k or by one identity"):
        om.Program(step("i", "i", activations={"i": "relu"}), ["i"], ["i"])
    carry = om.BlockMatrix({("n", "y"): Identity(3)}, P)
    with pytest.raises(ProgramError, match="loop, carry 'n': a noise part is drawn"):
        om.Program(om.Loop(step("y", "n"), over="time", carry=carry), ["x"], ["n"])


def test_loops_that_do_not_fit_their_parts_are_named():
    P = {"X": om.Part(("time", 3)), "x": om.Part((3,)), "y": om.Part((3,)), "n": om.Part((3,), "noise")}
    P |= {"k": om.Part((2, "time"), "index"), "j": om.Part((2,), "index"), "ok": om.Part(("rows",))}
    step = om.Step(om.BlockMatrix({("y", "x"): Identity(3)}, P))

    def loop(**more):
        maps = {"feeds": {("x", "X"): Identity(3)}, "carry": {("y", "y"): Identity(3)}} | more
        made = {n: om.BlockMatrix(g, P) if isinstance(g, dict) else g for n, g in maps.items()}
        return om.Program(om.Loop(step, over="time", **made), ["X", "k", "ok"], ["y"])

    assert loop().outputs == ("y",)
    with pytest.raises(ShapeError, match=r"loop, output 'x': a dimension 'time' was needed, got \(3,\)"):
        loop(outputs={("x", "y"): Identity(3)})
    with pytest.raises(ShapeError, match=r"loop valid='ok': shape \(time,\) was needed, got \('rows',\)"):
        loop(valid="ok")
    with pytest.raises(ProgramError, match="noise part 'n' needs no feed; read it in the body"):
        loop(feeds={("x", "n"): Identity(3)})
    with pytest.raises(ShapeError, match=r"block \('x', 'X'\): dense is 3×2, the parts need 3×3"):
        loop(feeds={("x", "X"): Dense(torch.ones(3, 2))})
    with pytest.raises(ShapeError, match="feed 'j': 'time' is the classes of 'k', not its ticks"):
        loop(feeds={("x", "X"): Identity(3), ("j", "k"): Identity(2)})
    with pytest.raises(ProgramError, match="loop after='wait': 'zero' or 'hold' was needed"):
        loop(after="wait")
    with pytest.raises(ProgramError, match=r"ticks and after belong to Loop\(over=...\)"):
        om.Loop(step, times=2, ticks=3)
    with pytest.raises(ShapeError, match="loop times: sizes are integers of at least 0 or names, got -1"):
        om.Loop(step, times=-1)
    with pytest.raises(ProgramError, match=r"loop over='2 \* time': the name of a dimension"):
        om.Loop(step, over="2 * time")


def test_what_a_tick_leaves_undefined_is_undefined_in_the_next_round():
    """An outer part a loop's body writes is undefined after it, in the second round of a loop around it too."""
    P = {"x": 3, "t": 3, "y": 3, "X": ("time", 3), "z": 3}
    I = Identity(3)
    inner = om.Loop(
        om.Step(om.BlockMatrix({("x", "t"): I, ("y", "t"): I}, P)),
        over="time",
        feeds=om.BlockMatrix({("t", "X"): I}, P),
        carry=om.BlockMatrix({("y", "y"): I}, P),
    )
    reads = om.Step(om.BlockMatrix({("z", "x"): I}, P))
    assert om.Program(om.Seq(reads, inner), ["X", "x"], ["z"]).outputs == ("z",)
    with pytest.raises(ProgramError, match="row 'z' reads part 'x', which nothing has written"):
        om.Program(om.Seq(inner, reads), ["X", "x"], ["z"])
    with pytest.raises(ProgramError, match="row 'z' reads part 'x', which nothing has written"):
        om.Program(om.Loop(om.Seq(reads, inner), times=2), ["X", "x"], ["z"])


def test_iterated_refuses_what_has_no_single_matrix():
    P = {"x": 3, "y": 3}
    I = Identity(3)
    forth, back = om.Step(om.BlockMatrix({("y", "x"): I}, P)), om.Step(om.BlockMatrix({("x", "y"): I}, P))
    with pytest.raises(ProgramError, match=r"iterated: a part is written by several steps: \['y', 'y'\]"):
        om.Program(om.Seq(forth, forth), ["x"], ["y"]).iterated()
    with pytest.raises(
        ProgramError, match=r"iterated: \['x'\] are inputs and written; give the rows other names"
    ):
        om.Program(om.Seq(forth, back), ["x"], ["y"]).iterated()


def test_sizes_of_parts_are_sizes():
    for size, fault in [
        ("time +", "is no expression"),
        ("a b", "is no expression"),
        ("x // 0", "is no expression"),
    ]:
        with pytest.raises(ShapeError, match=rf"part shape \('{re.escape(size)}', 2\): .*{fault}"):
            om.Part((size, 2))
    for size in (True, 1.5, None, -3):
        with pytest.raises(ShapeError, match=f"integers of at least 1 or names, got {size!r}"):
            om.Part((size,))
    with pytest.raises(ShapeError, match="a part needs at least one dimension"):
        om.Part(())
    assert om.Part((" 8 ", " time ")).shape == (8, "time")
    with pytest.raises(ProgramError, match="part name 'a b'"):
        simple(parts={"a b": 3})


def test_sums_of_a_join_that_have_no_shape_are_named():
    P = {"x": 3, "y": 3, "z": (3, 3)}
    I = Identity(3)
    empty, full = om.BlockMatrix({}, P), om.BlockMatrix({("z", "x"): I}, P)
    with pytest.raises(ProgramError, match=r"row 'z': a sum of .* has no block, so it has no shape"):
        om.Step(empty, full, joins={"z": "a, b -> a b"}, rows=["z"])
    P |= {"w": (2, 3), "v": 3}
    mixed = om.BlockMatrix({("z", "x"): I, ("z", "w"): Dense(torch.ones(2, 6))}, P)
    with pytest.raises(ShapeError, match=r"row 'z': sum 1 of .* adds shapes \(3,\) and \(2,\)"):
        om.Program(om.Step(mixed, full, joins={"z": "a, b -> a b"}), ["x", "w"], ["z"])
