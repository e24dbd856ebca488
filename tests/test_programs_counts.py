"""Counts of programs: against entries counted one by one and the flops torch counts."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import onematrix as om
from onematrix.errors import ShapeError
from onematrix.networks import attention, bidirectional, elman, inn, lstm, mlp
from onematrix.programs.interpreter import interpret
from onematrix.structures.algebra import Product
from onematrix.structures.base import STRUCTURES
from onematrix.structures.column import Column
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity, scale
from random_programs import random_program


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


def test_a_bias_costs_its_addition_whatever_makes_it():
    """The numbers made of `one` are those of every sample and place, which adds them: 5 places of 6 numbers."""
    W, v = dense(6, 3), torch.ones(6)
    made = Product(dense(6, 4), Column(torch.ones(4)))
    for bias in (Column(v), scale(Column(v), 0.5), made, Dense(v[:, None]), scale(Dense(v[:, None]), 3)):
        P = {"x": ("time", 3), "y": ("time", 6)}
        G = om.BlockMatrix({("y", "x"): om.Block(W, on="last"), ("y", "one"): om.Block(bias, on="last")}, P)
        program = om.Program(om.Step(G), ["x"], ["y"])
        assert program.counts(time=5).multiply_adds == 5 * (6 * 3 + 6)
        more, fewer = (flops(program, torch.randn(batch, 5, 3)) for batch in (7, 3))
        assert more - fewer == 2 * 4 * 5 * 6 * 3, "a sample more makes no bias more"
    P = {"x": 6, "y": 6, "t": 6, "X": ("time", 6)}
    loop = om.Loop(
        om.Step(om.BlockMatrix({("t", "y"): Identity(6), ("t", "x"): Identity(6)}, P)),
        over="time",
        feeds=om.BlockMatrix({("x", "X"): Identity(6), ("x", "one"): scale(Column(v), 2)}, P),
        carry=om.BlockMatrix({("y", "t"): Identity(6)}, P),
    )
    assert om.Program(loop, ["X"], ["y"]).counts(time=7).multiply_adds == 7 * 6


def test_attention_counts_are_those_torch_counts():
    program = attention(8, 2)
    with FlopCounterMode(display=False) as counter:
        interpret(program, torch.randn(1, 5, 8))
    products = 4 * 5 * 64 + 2 * 5 * 5 * 8
    biases = program.counts(time=5).multiply_adds - products - 5 * 8
    assert counter.get_total_flops() == 2 * products  # torch counts products of matrices alone
    assert biases == 4 * 5 * 8


@pytest.mark.parametrize("seed", range(30))
def test_numbers_and_bytes_are_those_of_the_table(seed):
    program = random_program(seed)
    counts = program.counts(time=3, steps=2, rounds=2)
    tensors = list(program.parameters.values())
    assert counts.stored_numbers == sum(t.numel() for t in tensors if t.is_floating_point())
    assert counts.index_bytes == sum(
        t.numel() * t.element_size() for t in tensors if not t.is_floating_point()
    )


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("on", ["all", "last"])
def test_nonzeros_are_the_entries_of_the_matrix(name, on):
    """Moved one by one, the inputs reach as many outputs as there are non-zeros; stored zeros aside."""
    for a in STRUCTURES[name].examples(torch.Generator().manual_seed(0)):
        m, n = a.fixed_shape
        P = {"x": (2, n), "y": (2, m)} if on == "last" else {"x": n, "y": m}
        program = om.Program(om.Step(om.BlockMatrix({("y", "x"): om.Block(a, on=on)}, P)), ["x"], ["y"])
        units = torch.eye(2 * n if on == "last" else n, dtype=torch.float64).reshape(
            -1, *program.parts["x"].shape
        )
        reached = int((interpret(program, units, literal=True) != 0).sum())
        counted = program.counts().nonzeros
        assert counted == reached if name in ("dense", "identity", "diagonal", "ones") else counted >= reached
        assert program.counts().work.nonzeros == counted


def flops(program, *ins, **more):
    with FlopCounterMode(display=False) as counter:
        interpret(program, *ins, **more)
    return counter.get_total_flops()


def without_bias(program):
    """The text without its blocks from `one`: torch adds a bias once per call, not once per sample."""
    text = re.sub(r" \+ (last )?column\([^)]*\) one", "", program.text())
    used = set(re.findall(r"@([\w.]+)", text))
    lines = [line for line in text.splitlines() if not line.startswith("tensor") or line.split()[1] in used]
    return om.parse("\n".join(lines), {n: program.parameters[n] for n in used})


@pytest.mark.parametrize(
    ("make", "shapes", "sizes"),
    [
        (lambda: mlp([4, 5, 3]), [(4,)], {}),
        (lambda: elman(3, 4), [(5, 3), (4,)], {"time": 5}),
        (lambda: lstm(3, 4), [(5, 3), (4,), (4,)], {"time": 5}),
        (lambda: bidirectional(3, 4), [(5, 3)], {"time": 5}),
        (lambda: attention(6, 2), [(5, 6)], {"time": 5}),
        (lambda: inn([6, 5, 4, 3]), [(5, 6)], {"time": 5}),
        (lambda: inn([6, 5, 4, 3], "low_rank", 0.5), [(5, 6)], {"time": 5}),
    ],
    ids=["mlp", "elman", "lstm", "bidirectional", "attention", "inn", "inn_low_rank"],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_multiply_adds_are_those_torch_counts(make, shapes, sizes, batch):
    program = without_bias(make())
    ins = [torch.randn(batch, *shape) for shape in shapes]
    scales = 5 * 6 if "scaled" in program.text() else 0  # torch counts products of matrices alone
    assert flops(program, *ins) == 2 * batch * (program.counts(**sizes).multiply_adds - scales)


def test_loops_count_their_rounds_and_maps():
    P = {"x": 2, "z": 3, "X": ("time", 2), "Z": ("time + 1", 3)}
    step = om.Step(
        om.BlockMatrix({("z", "z"): dense(3, 3), ("z", "x"): dense(3, 2)}, P), activations={"z": "tanh"}
    )
    for loop, rounds in ((om.Loop(step, times=4), 4), (om.Loop(step, until=0.1, at_most=7), 7)):
        work = om.Program(loop, ["x"], ["z"]).counts(time=1).work
        assert (work.multiply_adds, work.products, work.activated) == (15 * rounds, 2 * rounds, 3 * rounds)
        assert work.dense_entries == 25 * rounds
    loop = om.Loop(
        step,
        over="time",
        feeds=om.BlockMatrix({("x", "X"): dense(2, 2)}, P),
        outputs=om.BlockMatrix({("Z", "z"): dense(3, 3)}, P),
        init=om.BlockMatrix({("z", "z0"): dense(3, 5)}, P | {"z0": 5}),
        carry=om.BlockMatrix({("z", "z"): Identity(3)}, P),
        ticks="time + 1",
    )
    counts = om.Program(loop, ["X", "z0"], ["Z"]).counts(time=6)
    assert counts.multiply_adds == 15 + 7 * (15 + 4 + 9)
    assert counts.nonzeros == 9 + 6 + 4 + 9 + 15 + 3
    assert counts.blocks == 6


def test_a_feed_acts_on_what_is_left_of_its_part():
    P = {"X": ("time", 4, 2), "x": (4, 3), "z": (4, 3)}
    loop = om.Loop(
        om.Step(om.BlockMatrix({("z", "x"): Identity(12)}, P)),
        over="time",
        feeds=om.BlockMatrix({("x", "X"): om.Block(dense(3, 2), on="last")}, P),
        carry=om.BlockMatrix({("z", "z"): Identity(12)}, P),
    )
    program = om.Program(loop, ["X"], ["z"])
    assert program.counts(time=5).multiply_adds == 5 * 4 * 6
    assert flops(program, torch.randn(1, 5, 4, 2)) == 2 * 5 * 4 * 6


def test_picking_columns_by_an_index_multiplies_nothing():
    P = {"i": om.Part(("time", 9), "index"), "y": ("time", 4)}
    program = om.Program(
        om.Step(om.BlockMatrix({("y", "i"): om.Block(dense(4, 9), on="last")}, P)), ["i"], ["y"]
    )
    work = program.counts(time=3).work
    assert (work.multiply_adds, work.nonzeros, work.products) == (0, 3 * 36, 3)
    assert flops(program, torch.zeros(1, 3, dtype=torch.int64)) == 0


def test_ties_and_repeated_steps_count_once():
    W = dense(3, 3)
    P = {"x": 3, "h": 3}
    step = om.Step(om.BlockMatrix({("h", "x"): W}, P))
    other = om.Step(om.BlockMatrix({("x", "h"): W}, P))
    program = om.Program(om.Seq(step, other, step), ["x"], ["h"])
    counts = program.counts()
    assert (counts.blocks, counts.stored_numbers, counts.nonzeros, counts.multiply_adds) == (2, 9, 18, 27)
    assert om.parse(program.text(), program.parameters).counts() == counts


def test_axes_of_a_contraction_may_be_free_until_counted():
    P = {"a": ("time", 3), "b": ("time", 3), "z": ("time",)}
    G, H = (om.BlockMatrix({("z", n): om.Block(Identity(3), on="last")}, P) for n in "ab")
    program = om.Program(om.Step(G, H, joins={"z": "t d, t d -> t"}), ["a", "b"], ["z"])
    assert program.counts(time=7).multiply_adds == 21
    assert program.counts(time=0).multiply_adds == 0
    with pytest.raises(ShapeError, match=r"named sizes \['time'\] are free"):
        program.counts()


def dense(m, n):
    return Dense(torch.ones(m, n))


def test_numbers_moved_are_what_blocks_read_and_rows_write():
    assert mlp([3, 4, 2]).counts().work.moved == (3 + 1 + 4) + (4 + 1 + 2)  # input, one, row
    ticks = elman(3, 4)
    once, many = (ticks.counts(time=t).work.moved for t in (1, 5))
    tick = (many - once) / 4
    assert tick == 3 + (3 + 4 + 1 + 4) + 4 + 4  # fed; the row reads x, h and one and writes h; output; state
