"""lower(program): the same meaning, outputs and gradients, at no higher cost, and the same text when lowered again."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import onematrix as om
from onematrix.compiler.pipeline import Trace, lower
from onematrix.networks import sru
from onematrix.networks.examples import examples, in_double
from onematrix.networks.recurrent import over_time
from onematrix.programs.interpreter import interpret, interpret_with_state
from onematrix.programs.schedule import Loop, walk
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, scale
from random_programs import random_program
from test_programs_random import SIZES, as_tuple, gradients, inputs_of

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = examples(torch.Generator().manual_seed(0))
network = pytest.mark.parametrize("name", sorted(NETWORKS))
SEEDS = range(10_000, 10_300)
GROUPS = [SEEDS[i : i + 30] for i in range(0, len(SEEDS), 30)]


def check_meaning(program, lowered, ins, seed=0, slopes=True):
    """Outputs and, where asked, gradients of inputs and parameters."""
    free = [x.requires_grad_() for x in ins if x.is_floating_point()]
    free += [t.requires_grad_() for t in program.parameters.values() if t.is_floating_point()]
    wanted = as_tuple(interpret(program, *ins, seed=seed, sizes=SIZES))
    got = as_tuple(interpret(lowered, *ins, seed=seed, sizes=SIZES))
    for ours, theirs in zip(got, wanted, strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True, msg=lambda m: f"seed {seed}: {m}")
    if slopes:
        pairs = zip(gradients(got, free), gradients(wanted, free), strict=True)
        for ours, theirs in pairs:
            assert_close(ours, theirs, rtol=1e-7, atol=1e-7, msg=lambda m: f"seed {seed}: {m}")


def check_random(seed, slopes=True):
    program = random_program(seed)
    lowered = lower(program)
    check_meaning(program, lowered, inputs_of(program, seed), seed, slopes)
    assert lower(lowered).text() == lowered.text(), f"seed {seed}: lowering again changes the text"
    sizes = {"time": 3, "steps": 2, "rounds": 2}
    if "times 0" not in program.text():  # what no round computes costs nothing where it stands
        before, after = program.counts(**sizes), lowered.counts(**sizes)
        assert after.multiply_adds <= before.multiply_adds, f"seed {seed}"
        assert after.work.activated <= before.work.activated, f"seed {seed}"
        assert after.stored_numbers <= before.stored_numbers, f"seed {seed}"


@network
def test_lowered_networks_cost_no_more(name):
    program = NETWORKS[name]
    sizes = dict.fromkeys(program.free_sizes(), 5)
    before, after = program.counts(**sizes), lower(program).counts(**sizes)
    assert after.multiply_adds <= before.multiply_adds
    assert after.work.activated <= before.work.activated
    assert after.work.joined <= before.work.joined
    assert after.stored_numbers <= before.stored_numbers


@pytest.mark.parametrize("seeds", GROUPS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_random_programs_keep_their_meaning(seeds):
    for seed in seeds:
        check_random(seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(20_000, 25_000, 500))
def test_five_thousand_random_programs_keep_their_meaning(start):
    for seed in range(start, start + 500):
        check_random(seed, slopes=seed % 5 == 0)


def inputs_for(program, ticks, batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = [program.parts[name].at({"time": ticks}) for name in program.inputs]
    return [torch.randn(batch, *shape, generator=g, dtype=torch.float64) for shape in shapes]


@network
@pytest.mark.parametrize("ticks", [1, 6])
def test_networks_keep_their_meaning(name, ticks):
    program = NETWORKS[name]
    check_meaning(program, lower(program, verify=True), inputs_for(program, ticks))


@network
def test_networks_lower_to_their_golden_text(name):
    """To renew after a wanted change: write lower(program).text() to the file and read the diff."""
    assert lower(NETWORKS[name]).text() == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("form", ["14", "14'", "10"])
def test_the_matrix_sru_lowers_to_its_equations(form):
    """3 dense products over the whole sequence, 2 sigmoids and 4 Hadamards per tick, nothing else."""
    n, ticks = 8, 5
    lowered = lower(in_double(sru(n, form, generator=torch.Generator().manual_seed(0))))
    rows = [row for step in lowered.steps() for row in step.rows]
    blocks = [b for row in rows for terms in row.sums for _, b in terms]
    assert sum(isinstance(b.structure, Dense) for b in blocks) == 3
    assert [str(row.activation) for row in rows if row.activation.name != "identity"] == ["sigmoid"] * 2
    assert sum(row.join is not None for row in rows) == (4 if form != "10" else 2)
    work = lowered.counts(time=ticks).work
    assert work.activated == 2 * n * ticks
    assert work.joined == (4 if form != "10" else 2) * n * ticks
    (loop,) = [node for node in walk(lowered.schedule) if isinstance(node, Loop)]
    inside = [b for step in lowered.steps() for row in step.rows for terms in row.sums for _, b in terms]
    dense_outside = [b for b in inside if isinstance(b.structure, Dense) and b.on == "last"]
    assert len(dense_outside) == 3, "each dense product is one product over all ticks"
    assert len(loop.carry.rows) == 1


@pytest.mark.parametrize("mixes", [False, True])
def test_elementwise_outputs_stay_in_an_elementwise_loop_and_their_products_leave_it(mixes):
    """c ← v c + x, h = tanh(c) c, y = W h; with mixes the state is not elementwise, and h leaves too."""
    g = torch.Generator().manual_seed(0)
    W, U = (Dense(torch.randn(3, 3, generator=g, dtype=torch.float64)) for _ in range(2))
    own = U if mixes else Diagonal(torch.randn(3, generator=g, dtype=torch.float64))
    parts = {"x": 3, "c_prev": 3, "c": 3, "t": 3, "h": 3, "y": 3}
    gate = [om.BlockMatrix({("h", name): Identity(3)}, parts) for name in ("t", "c")]
    body = om.Seq(
        om.Step(om.BlockMatrix({("c", "c_prev"): own, ("c", "x"): Identity(3)}, parts)),
        om.Step(om.BlockMatrix({("t", "c"): Identity(3)}, parts), activations={"t": "tanh"}),
        om.Step(*gate),
        om.Step(om.BlockMatrix({("y", "h"): W}, parts)),
    )
    loop = over_time(body, {"x": 3}, {"ys": ("y", 3)}, {"c_prev": ("c", 3, "c0")}, parts)
    program = om.Program(loop, ["inputs", "c0"], ["ys"])
    lowered = lower(program)
    (inner,) = [node for node in walk(lowered.schedule) if isinstance(node, Loop)]
    inside = [row for node in walk(inner.body) if isinstance(node, om.Step) for row in node.rows]
    assert sum(row.activation.name == "tanh" for row in inside) == (not mixes)
    dense = [b for row in inside for terms in row.sums for _, b in terms if isinstance(b.structure, Dense)]
    assert len(dense) == mixes, "W is one product over all ticks"
    check_meaning(program, lowered, inputs_for(program, 4))


@pytest.mark.parametrize("times", [4, 5, 9, 100])
def test_a_program_of_depth_d_iterated_d_times_or_more_costs_one_pass(times):
    g = torch.Generator().manual_seed(0)
    parts = {"x": 3, "a": 4, "b": 4, "c": 2}
    G = om.BlockMatrix(
        {
            (row, column): Dense(torch.randn(parts[row], parts[column], generator=g, dtype=torch.float64))
            for row, column in [("a", "x"), ("b", "a"), ("b", "x"), ("c", "b"), ("c", "a")]
        },
        parts,
    )
    step = om.Step(G, activations={"a": "tanh", "b": "relu", "c": "sigmoid"})
    program = om.Program(om.Loop(step, times=times), ["x"], ["c"])
    lowered = lower(program)
    assert not any(isinstance(node, Loop) for node in walk(lowered.schedule))
    assert lowered.counts().multiply_adds == program.counts().multiply_adds // times == 12 + 16 + 12 + 8 + 8
    check_meaning(program, lowered, inputs_for(program, 1))


@pytest.mark.parametrize("times", [2, "rounds"])
def test_too_few_rounds_and_a_free_number_of_rounds_stay_a_loop(times):
    parts = {"x": 2, "a": 2, "b": 2, "c": 2}
    dense = Dense(torch.eye(2, dtype=torch.float64) / 2)
    G = om.BlockMatrix({("a", "x"): dense, ("b", "a"): dense, ("c", "b"): dense}, parts)
    program = om.Program(om.Loop(om.Step(G, activations={"a": "cos"}), times=times), ["x"], ["c"])
    lowered = lower(program)
    assert sum(isinstance(node, Loop) for node in walk(lowered.schedule)) == 1
    check_meaning(program, lowered, inputs_for(program, 1))


def test_a_loop_that_feeds_back_on_itself_stays_a_loop():
    half = Dense(torch.eye(2, dtype=torch.float64) / 2)
    G = om.BlockMatrix({("z", "z"): half, ("z", "x"): half}, {"x": 2, "z": 2})
    program = om.Program(om.Loop(om.Step(G, activations={"z": "tanh"}), times=7), ["x"], ["z"])
    lowered = lower(program)
    assert any(isinstance(node, Loop) for node in walk(lowered.schedule))
    assert lowered.counts().multiply_adds == 4 + 7 * 4, "the product with the input is made once"
    check_meaning(program, lowered, inputs_for(program, 1))


def test_half_and_half_make_one_and_terms_that_cancel_stay():
    half = scale(Identity(2), 0.5)
    parts = {"x": 2, "a": 2, "b": 2, "y": 2, "z": 2}
    first = om.Step(om.BlockMatrix({("a", "x"): half, ("b", "x"): half}, parts))
    minus = scale(Identity(2), -0.5)
    second = om.Step(
        om.BlockMatrix(
            {("y", "a"): Identity(2), ("y", "b"): Identity(2), ("z", "a"): Identity(2), ("z", "x"): minus},
            parts,
        )
    )
    lowered = lower(om.Program(om.Seq(first, second), ["x"], ["y", "z"]))
    assert "y = {identity(size=2) x}" in lowered.text()
    x = torch.tensor([[1.0, torch.inf]])
    y, z = interpret(lowered, x)
    assert_close(y, x)
    assert z[0, 0] == 0
    assert z[0, 1].isnan(), "∞ − ∞ is nan before and after"


def test_noise_is_drawn_as_before():
    """A row of noise is neither moved out of its loop nor shared between ticks."""
    parts = {"x": 2, "a": 2, "b": 2, "dice": om.Part((2,), "noise"), "xs": ("time", 2), "ys": ("time", 2)}
    body = om.Step(
        om.BlockMatrix(
            {("a", "dice"): Identity(2), ("b", "x"): Identity(2), ("b", "dice"): Identity(2)}, parts
        )
    )
    loop = om.Loop(
        body,
        over="time",
        feeds=om.BlockMatrix({("x", "xs"): Identity(2)}, parts),
        outputs=om.BlockMatrix({("ys", "b"): Identity(2)}, parts),
    )
    program = om.Program(loop, ["xs"], ["ys"])
    xs = torch.zeros(1, 4, 2)
    wanted = interpret(program, xs, seed=3)
    assert_close(interpret(lower(program), xs, seed=3), wanted)
    assert len(wanted.unique()) == 8


def test_the_state_can_still_be_handed_over():
    program = NETWORKS["sru_14"]
    lowered = lower(program)
    xs, c0 = inputs_for(program, 7)
    whole, final = interpret(lowered, xs, c0)
    (first, _), state = interpret_with_state(lowered, xs[:, :3], c0)
    (second, end), _ = interpret_with_state(lowered, xs[:, 3:], c0, state=state, first_tick=3)
    assert_close(torch.cat([first, second], 1), whole)
    assert_close(end, final)
    assert set(state) == {"c_prev"}


def test_the_trace_names_what_fired():
    trace = Trace()
    lower(NETWORKS["sru_14"], trace)
    text = str(trace)
    assert "carries: carried f, not_f, c1, c2" in text
    assert "hoist: before the loop over time: " in text
    assert str(Trace()) == "no pass fired"


def test_parameters_are_the_same_objects():
    program = NETWORKS["lstm"]
    theirs = {id(t) for t in program.parameters.values()}
    assert {id(t) for t in lower(program).parameters.values()} <= theirs
