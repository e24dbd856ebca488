"""Programs as text: round trips, texts without tensors, faults with their line, names, damaged texts."""

import functools
import random
import re

import pytest
import torch

import onematrix as om
from onematrix.errors import FormatError
from onematrix.networks import elman, inn, mlp
from onematrix.programs.interpreter import interpret
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity, scale
from random_programs import random_program, random_recurrence

SIZES = {"time": 3, "steps": 2, "rounds": 2}


@functools.cache
def made(seed):
    return random_program(seed) if seed % 3 else random_recurrence(seed)


@pytest.mark.parametrize("seed", range(0, 180, 15))
def test_random_programs_read_back_equal(seed):
    for each in range(seed, seed + 15):
        program = made(each)
        again = om.parse(program.text(), program.parameters)
        assert again == program
        assert again.text() == program.text()
        assert program.diff(again) == ""
        assert list(again.parameters) == list(program.parameters)
        assert all(again.parameters[n] is t for n, t in program.parameters.items())
        assert again.counts(**SIZES) == program.counts(**SIZES)


@pytest.mark.parametrize("seed", range(0, 60, 15))
def test_texts_without_tensors_count_and_print(seed):
    for each in range(seed, seed + 15):
        program = made(each)
        meta = om.parse(program.text())
        assert meta.text() == program.text()
        assert all(t.is_meta for t in meta.parameters.values())
        assert meta.counts(**SIZES) == program.counts(**SIZES)
        assert meta != program or not program.parameters


def test_diff_shows_the_rows_that_changed():
    G = {("y", "x"): Identity(2)}
    one, other = (
        om.Program(om.Step(om.BlockMatrix(G, {"x": 2, "y": 2}), activations={"y": a}), ["x"], ["y"])
        for a in ("relu", "tanh")
    )
    lines = one.diff(other).splitlines()
    assert lines[:2] == ["--- before", "+++ after"]
    assert [line for line in lines[2:] if line[0] in "+-"] == [
        "-  y = relu {identity(size=2) x}",
        "+  y = tanh {identity(size=2) x}",
    ]
    assert one.diff(one) == ""


NAMES = [
    "h.weight",
    "x-1",
    "c'",
    "last",
    "by",
    "step",
    "init",
    "feed",
    "training",
    "_parameters",
    "True",
    "a..b",
    "hä",
]


def test_names_with_dots_and_words_of_the_format_read_back():
    parts = dict.fromkeys(NAMES, 2) | {"x": 2}
    blocks = {(name, "x"): Dense(torch.ones(2, 2)) for name in NAMES}
    blocks |= {(name, name): om.Block(scale(Identity(2), 0.5), on="last") for name in NAMES}
    program = om.Program(om.Step(om.BlockMatrix(blocks, parts)), ["x", *NAMES], NAMES)
    again = om.parse(program.text(), program.parameters)
    assert again == program
    ins = [torch.ones(1, 2)] * (1 + len(NAMES))
    assert all(
        torch.equal(a, b) for a, b in zip(interpret(again, *ins), interpret(program, *ins), strict=True)
    )
    loop = om.Loop(
        om.Step(om.BlockMatrix({("feed", "init"): Identity(2)}, parts)),
        times=2,
        init=om.BlockMatrix({("init", "x"): Identity(2)}, parts),
    )
    program = om.Program(loop, ["x"], ["feed"])
    assert om.parse(program.text()).text() == program.text()


def test_sizes_that_are_expressions_read_back():
    parts = {"X": ("time", 2), "f": 2, "Y": ("(time + 1) * 2", 2), "Z": ("2 * (time + 1)", 2)}
    body = om.Step(om.BlockMatrix({("f", "f"): Identity(2)}, parts))
    loop = om.Loop(
        body,
        over="time",
        feeds=om.BlockMatrix({("f", "X"): Identity(2)}, parts),
        outputs=om.BlockMatrix({("Y", "f"): Identity(2)}, parts),
        ticks="(time + 1) * 2",
        after="hold",
        reverse=True,
    )
    for schedule in (loop, om.Loop(body, times="depth + 1"), om.Loop(body, until=1e-06, at_most=7)):
        program = om.Program(schedule, ["X"], ["Y" if schedule is loop else "f"], parts)
        assert om.parse(program.text()).text() == program.text()
        assert program.free_sizes() == {"time"} | ({"depth"} if schedule.times else set())
    for until, at_most in (("1e999", 3), ("0.1", 0)):
        with pytest.raises(FormatError, match="both must be positive and finite"):
            om.parse(program.text().replace("until 1e-06 at_most 7", f"until {until} at_most {at_most}"))


def test_maps_of_a_loop_read_back_whatever_the_order_of_their_blocks():
    """The table of tensors follows the text, row by row, not the order in which blocks were given."""
    parts = dict.fromkeys("abxy", 2)
    starts = {key: Dense(torch.randn(2, 2)) for key in (("a", "x"), ("b", "x"), ("a", "y"))}
    loop = om.Loop(
        om.Step(om.BlockMatrix({("a", "b"): Identity(2), ("b", "a"): Identity(2)}, parts)),
        times=2,
        init=om.BlockMatrix(starts, parts),
    )
    program = om.Program(loop, ["x", "y"], ["a"])
    assert list(program.parameters) == ["blocks.a.x.weight", "blocks.a.y.weight", "blocks.b.x.weight"]
    assert om.parse(program.text(), program.parameters) == program


TEXT = """program 1
inputs x
outputs y

part x [3]
part y [2] real
tensor w float32 [2, 3]
step 1
  y = relu {dense(weight=@w) x}
"""
TEXT = TEXT.replace(" real", "")


def test_the_sample_text_is_right():
    assert om.parse(TEXT).text() == TEXT.replace("\n\n", "\n").replace(
        "w float", "blocks.y.x.weight float"
    ).replace("@w", "@blocks.y.x.weight")


@pytest.mark.parametrize(
    ("old", "new", "line", "fault"),
    [
        ("program 1", "program 2", 1, "'program 1' was needed"),
        ("inputs x\n", "", 2, "a line starting with 'inputs' was needed"),
        ("part x [3]", "part x (3)", 5, r"'part name \[sizes\] kind dtype' was needed"),
        ("part y [2]", "part x [2]", 6, "each name once"),
        ("part x [3]", "part x [0]", 5, "sizes are integers of at least 1 or names, got 0"),
        ("part x [3]", "part x [3 +]", 5, "is no expression of names"),
        ("part x [3]", "part x [3] real", 5, "part dtype 'real' is no torch dtype"),
        ("float32", "float31", 7, r"'tensor name dtype \[sizes\]' was needed"),
        ("[2, 3]", "[2, -3]", 7, r"'tensor name dtype \[sizes\]' was needed"),
        ("[2, 3]", "[2, 999999999999999]", 7, "at most 281474976710656 numbers were needed"),
        ("[2, 3]", "[2, 4]", 8, r"block \('y', 'x'\): dense is 2×4, the parts need 2×3"),
        ("step 1", "step one", 8, "'step' and its number of block matrices was needed"),
        ("step 1", "leap 1", 8, "a step, seq or loop indented by 0 was needed"),
        ("relu", "rleu", 8, "activation 'rleu' is unknown"),
        ("dense(", "danse(", 9, "no structure is called 'danse'; there are: .*block_diagonal"),
        ("weight=", "wight=", 9, "dense: .*wight"),
        ("@w", "@v", 9, "tensor 'v' is not in the table"),
        ("@w", "3", 9, "dense.*"),
        ("@w)", "@w) +", 9, r"word was needed, got '\+'"),
        ("x}", "z}", 8, "there is no part 'z'"),
        ("x}", "x} {}", 9, "1 sums at most were needed, got 2"),
        ("x}", "x + dense(weight=@w) x}", 9, "part 'x' is read twice in one sum"),
        ("x}", "x", 9, "'row = activation"),
        ("x}", "$}", 9, r"cannot read ' ?\$"),
        ("  y", " y", 9, "the schedule ended before this line"),
        ("y = relu", "y = relu {dense(weight=@w) x}\n  y =", 8, "a step writes each row once"),
        ("inputs x", "inputs z", 2, "input 'z' is no part"),
        ("outputs y", "outputs x y y", 2, "outputs must differ"),
    ],
)
def test_faults_are_named_with_their_line(old, new, line, fault):
    assert old in TEXT
    with pytest.raises(FormatError, match=rf"program text, line {line}: .*{fault}") as caught:
        om.parse(TEXT.replace(old, new, 1))
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("loop over time", "loop over", "'loop over …', 'loop times …' or 'loop until"),
        ("loop over time", "loop times time +", "is no expression of names"),
        ("loop over time", "loop until 0.1e at_most 3", "could not convert string to float"),
        ("loop over time", "loop over 2time", "the name of a dimension, such as 'time', was needed"),
        ("feed x = ", "feed x = relu ", "feed: one sum without activation or join was needed"),
        ("feed x = ", "feed x = {identity(size=2) h_prev} ", "feed: one sum without activation or join"),
        ("  feed x = ", "  feed x = {identity(size=2) inputs}\n  feed x = ", "each row once"),
        ("carry h_prev", "carry h_perv", "there is no part 'h_perv'"),
        (
            "output hidden = {identity(size=3) h}",
            "output h_prev = {identity(size=3) h}",
            "a dimension 'time' was needed",
        ),
        ("    h = tanh", "   h = tanh", "the schedule ended before this line"),
        ("  step 1", "step 1", "a step, seq or loop indented by 2 was needed"),
    ],
)
def test_faults_of_loops_are_named(old, new, fault):
    text = elman(2, 3).text()
    assert old in text
    with pytest.raises(FormatError, match=fault) as caught:
        om.parse(text.replace(old, new, 1))
    assert 1 <= caught.value.line <= len(text.splitlines()) + 1


def test_tensors_that_do_not_fit_the_text_are_named():
    good = {"w": torch.ones(2, 3)}
    assert om.parse(TEXT, good).parameters["blocks.y.x.weight"] is good["w"]
    for tensors, fault in [
        ({}, r"tensor 'w': torch.float32 \[2, 3\] was needed, none was given"),
        ({"w": torch.ones(3, 2)}, r"torch.float32 \[2, 3\] was needed, got torch.float32 \[3, 2\]"),
        ({"w": torch.ones(2, 3).double()}, r"got torch.float64 \[2, 3\]"),
        (good | {"v": torch.ones(1)}, "tensors v are given, the text does not name them"),
    ]:
        with pytest.raises(FormatError, match=fault):
            om.parse(TEXT, tensors)


@pytest.mark.parametrize(
    "text", ["", "\n\n", "program", "program 1", "program 1\ninputs x\noutputs x", "\0", "seq"]
)
def test_stumps_are_refused(text):
    with pytest.raises(FormatError, match="program text, line"):
        om.parse(text)


def test_deep_nesting_is_refused():
    seqs = "\n".join("  " * i + "seq" for i in range(2000))
    with pytest.raises(FormatError, match="line"):
        om.parse("program 1\ninputs x\noutputs x\npart x [1]\n" + seqs)
    nested = "transposed(inner=" * 2000 + "identity(size=3)" + ")" * 2000
    with pytest.raises(FormatError, match="line"):
        om.parse(TEXT.replace("dense(weight=@w)", nested))


def damage(text, rng):
    """One token left out, doubled, swapped with another or replaced; or a line lost, or its indentation."""
    kind = rng.choice(["drop", "double", "swap", "other", "line", "indent", "character"])
    if kind in ("line", "indent"):
        lines = text.splitlines(keepends=True)
        i = rng.randrange(len(lines))
        lines[i] = "" if kind == "line" else lines[i][1:] if rng.random() < 0.5 else " " + lines[i]
        return "".join(lines)
    if kind == "character":
        i = rng.randrange(len(text))
        return text[:i] + rng.choice("{}()[]=,+@\"'0-9. \n\tλ²") + text[i + 1 :]
    tokens = re.findall(r"\w+|\s+|[^\w\s]", text)
    i, j = (rng.choice([k for k, t in enumerate(tokens) if t.strip()]) for _ in range(2))
    if kind == "swap":
        tokens[i], tokens[j] = tokens[j], tokens[i]
    else:
        tokens[i] = {"drop": "", "double": tokens[i] * 2, "other": tokens[j]}[kind]
    return "".join(tokens)


@pytest.mark.parametrize("seed", range(6))
def test_damaged_texts_are_refused_or_mean_something(seed):
    """Whatever is damaged: a program whose text reads back, or a FormatError; never another exception."""
    rng = random.Random(seed)
    sources = [made(s) for s in range(seed, 60, 6)] + [
        elman(2, 3),
        mlp([2, 3, 2]),
        inn([4, 3, 2], "csr", 0.5),
    ]
    refused = 0
    for program in sources * 8:
        text = damage(program.text(), rng)
        given = rng.choice([None, program.parameters])
        try:
            again = om.parse(text, given)
        except FormatError:
            refused += 1
        else:
            assert om.parse(again.text(), None if given is None else again.parameters).text() == again.text()
    assert refused > len(sources) * 4
