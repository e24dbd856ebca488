"""Hundreds of random programs: the plain and the literal interpreter equal the reference, outputs and gradients."""

import functools

import pytest
import torch
from torch.testing import assert_close

from onematrix.programs.interpreter import interpret, interpret_with_state
from onematrix.programs.run import carried_parts
from onematrix.programs.substitution import replace_structures
from onematrix.structures.tree import map_tensors
from random_programs import random_program, random_recurrence
from reference_interpreter import reference

SEEDS = range(240)
GROUPS = [SEEDS[i : i + 20] for i in range(0, len(SEEDS), 20)]
SIZES = {"rounds": 2}
groups = pytest.mark.parametrize("seeds", GROUPS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")


@functools.cache
def made(seed):
    return random_program(seed)


def inputs_of(program, seed, ticks=None, batch=None, steps=2):
    """Random, zero or tied numbers; T in 0, 1, 3; batch in 1, 2."""
    g = torch.Generator().manual_seed(seed)
    ticks = (3, 1, 3, 0)[seed % 4] if ticks is None else ticks
    ticks = max(1, ticks) if "after hold" in program.text() else ticks  # nothing can be held of no tick
    batch = 1 + seed % 2 if batch is None else batch
    values = []
    for name in program.inputs:
        part = program.parts[name]
        shape = (batch, *part.at({"time": ticks, "steps": steps}))
        if part.kind == "index":
            values.append(torch.randint(0, part.shape[-1], shape, generator=g))
        elif part.dtype == "bool":
            values.append(torch.rand(shape, generator=g) < 0.7)
        else:
            values.append(numbers(shape, seed, g))
    return values


def numbers(shape, seed, g):
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    return {0: x, 1: x, 2: x.round(), 3: 0 * x, 4: torch.ones_like(x)}[seed % 5]


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def gradients(outputs, tensors):
    total = sum((o.sin() + o).sum() for o in outputs if o.is_floating_point())
    if not isinstance(total, torch.Tensor) or not total.requires_grad:
        return [torch.zeros_like(t) for t in tensors]
    return torch.autograd.grad(total, tensors, materialize_grads=True)


@groups
def test_random_programs_mean_what_the_reference_says(seeds):
    for seed in seeds:
        program = made(seed)
        ins = inputs_of(program, seed)
        free = [x.requires_grad_() for x in ins if x.is_floating_point()]
        free += [t.requires_grad_() for t in program.parameters.values() if t.is_floating_point()]
        wanted, handed = reference(program, *ins, seed=seed, sizes=SIZES)
        slopes = gradients(wanted, free)
        for literal in (True, False):
            got, state = interpret_with_state(program, *ins, literal=literal, seed=seed, sizes=SIZES)
            for ours, theirs in zip(as_tuple(got), wanted, strict=True):
                assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda m, s=seed: f"seed {s}: {m}")
            for name, value in handed.items():
                assert_close(state[name], value, rtol=1e-9, atol=1e-9)
            for ours, theirs in zip(gradients(as_tuple(got), free), slopes, strict=True):
                assert_close(ours, theirs, rtol=1e-7, atol=1e-7, msg=lambda m, s=seed: f"seed {s}: {m}")


def in_single(program):
    """The program with its numbers in float32; ties stay ties."""
    single = {id(t): t.float() if t.is_floating_point() else t for t in program.parameters.values()}
    new = {id(s): map_tensors(s, lambda t: single[id(t)]) for s in program.structures}
    return replace_structures(program, new)


@groups
def test_random_programs_in_float32_stay_close_to_the_reference(seeds):
    """Programs without a threshold, at which a rounding error may decide: until, top_k, noise against noise."""
    for seed in seeds:
        if "until" in made(seed).text() or "top_k" in made(seed).text():
            continue
        program = in_single(made(seed))
        ins = [x.float() if x.is_floating_point() else x for x in inputs_of(program, seed)]
        got = as_tuple(interpret(program, *ins, seed=seed, sizes=SIZES))
        wanted, _ = reference(program, *ins, seed=seed, sizes=SIZES)
        for ours, theirs in zip(got, wanted, strict=True):
            assert ours.dtype == (torch.float32 if theirs.is_floating_point() else torch.int64)
            assert_close(
                ours.double(), theirs.double(), rtol=1e-4, atol=1e-4, msg=lambda m, s=seed: f"seed {s}: {m}"
            )


@groups
def test_random_programs_take_an_empty_batch(seeds):
    for seed in seeds[::4]:
        program = made(seed)
        ins = inputs_of(program, seed, batch=0)
        one = inputs_of(program, seed, batch=1)
        for literal in (False, True):
            empty, single = (
                as_tuple(interpret(program, *x, sizes=SIZES, literal=literal)) for x in (ins, one)
            )
            for none, some in zip(empty, single, strict=True):
                assert none.shape == (0, *some.shape[1:])
                assert none.dtype == some.dtype


@groups
def test_samples_do_not_see_each_other(seeds):
    """A batch is its samples one by one, for programs that draw nothing."""
    for seed in seeds[::4]:
        program = made(seed)
        if "dice}" in program.text() or "dice " in program.text().split("step", 1)[1]:
            continue
        ins = inputs_of(program, seed, batch=3)
        whole = as_tuple(interpret(program, *ins, sizes=SIZES))
        single = [as_tuple(interpret(program, *(x[i : i + 1] for x in ins), sizes=SIZES)) for i in range(3)]
        for k, value in enumerate(whole):
            assert_close(torch.cat([out[k] for out in single]), value, rtol=1e-10, atol=1e-10)


@groups
@pytest.mark.parametrize("literal", [False, True], ids=["plain", "literal"])
def test_ticks_may_be_split_and_the_state_handed_over(seeds, literal):
    """T₁ + T₂ ticks = T₁ ticks, hand over, T₂ ticks; from the end where the loop runs backwards."""
    for seed in seeds[::2]:
        program = random_recurrence(seed)
        ins, total = inputs_of(program, seed, ticks=4), 4
        whole, last = interpret_with_state(program, *ins, sizes=SIZES, literal=literal, seed=seed)
        assert sorted(last) == sorted(carried_parts(program))
        for cut in (0, 1, 3, 4):
            halves = [(0, cut), (cut, total)]
            state, outputs = None, {}
            for low, high in reversed(halves) if program.schedule.reverse else halves:
                some = [
                    cut_ticks(program, name, x, low, high)
                    for name, x in zip(program.inputs, ins, strict=True)
                ]
                got, state = interpret_with_state(
                    program, *some, state=state, sizes=SIZES, literal=literal, seed=seed, first_tick=low
                )
                outputs[low, high] = dict(zip(program.outputs, as_tuple(got), strict=True))
            for name, value in zip(program.outputs, as_tuple(whole), strict=True):
                if "time" in program.parts[name].shape:
                    joined = torch.cat([outputs[half][name] for half in halves], 1)
                    assert_close(
                        joined, value, rtol=1e-12, atol=1e-12, msg=lambda m, s=seed: f"seed {s}: {m}"
                    )
            for name, value in last.items():
                assert_close(
                    state[name], value, rtol=1e-12, atol=1e-12, msg=lambda m, s=seed: f"seed {s}: {m}"
                )


def cut_ticks(program, name, x, low, high):
    return x[:, low:high] if "time" in program.parts[name].shape else x


def test_random_programs_use_every_feature():
    """The generator means something only while it makes all of these."""
    text = "\n".join(made(seed).text() for seed in SEEDS)
    needed = [
        "loop over",
        "loop times",
        "loop until",
        "times rounds",
        "reverse",
        "valid ok",
        "after hold",
        "ticks (2)",
    ]
    needed += [
        "by select",
        "by maximum",
        "by minimum",
        "by hadamard",
        "gather",
        "scatter(4)",
        "top_k(2)",
        "->",
    ]
    needed += [
        "last ",
        "dice",
        " i}",
        "init ",
        "(inner=",
        "low_rank(",
        "csr(",
        "masked(",
        "transposed(",
        "{}",
    ]
    assert [word for word in needed if word not in text] == []
    assert max(line.count("  ") for line in text.splitlines() if "loop" in line) >= 3  # loops in loops
    assert any(program.structures for program in map(made, SEEDS))
    tied = [p for p in map(made, SEEDS) if len(p.structures) < len({id(b) for *_, b in p.blocks()})]
    assert len(tied) > 20
