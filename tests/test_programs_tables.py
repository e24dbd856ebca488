"""The tables of activations and joins: every entry against its formula, gradients at ties, facts it declares."""

import math

import pytest
import torch
from torch.testing import assert_close

import onematrix as om
from onematrix.errors import DTypeError, ProgramError, ShapeError
from onematrix.programs import activations, joins
from onematrix.programs.activations import make_activation
from onematrix.programs.interpreter import interpret
from onematrix.programs.joins import make_join
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity
from reference_interpreter import reference

ARGUMENTS = {
    "leaky_relu": "0.25",
    "layer_norm": "1e-05",
    "rms_norm": "1e-05",
    "cast": "float32",
    "keep": "0.75",
}
WRITTEN = {n: f"{n}({ARGUMENTS[n]})" if n in ARGUMENTS else n for n in activations.RULES}
POSITIVE = ("sqrt", "rsqrt", "reciprocal")
both = pytest.mark.parametrize("literal", [False, True], ids=["plain", "literal"])
DOUBLE = torch.float64


def one_row(names, parts, activation=None, join=None):
    """z = σ(first) ∘ second …, all by identity."""
    grids = [om.BlockMatrix({("z", n): Identity(om.Part(parts[n]).features)}, parts) for n in names]
    step = om.Step(
        *grids, activations={"z": activation} if activation else {}, joins={"z": join} if join else {}
    )
    return om.Program(step, names, ["z"])


def slopes(y, free):
    """Gradients of the sum; zero where it depends on nothing, as a step function does."""
    if not y.requires_grad:
        return [torch.zeros_like(x) for x in free]
    return torch.autograd.grad(y.sum(), free, materialize_grads=True)


def check(program, *ins, literal, tolerance=1e-12):
    """Outputs and gradients equal the reference's, nan where it has nan."""
    ins = [x.clone().requires_grad_(x.is_floating_point()) for x in ins]
    free = [x for x in ins if x.requires_grad]
    ours, (theirs,) = interpret(program, *ins, literal=literal).double(), reference(program, *ins)[0]
    assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
    weights = torch.linspace(1, 2, ours.numel(), dtype=DOUBLE).reshape(ours.shape)
    for a, b in zip(slopes(weights * ours, free), slopes(weights * theirs, free), strict=True):
        assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance, equal_nan=True)
    return ours.detach()


@both
@pytest.mark.parametrize("name", activations.RULES)
def test_every_activation_is_its_formula_with_its_gradient(name, literal):
    x = torch.tensor([[-2.0, -0.5, 0.25, 0.5], [0.75, 3.0, -1.0, 2.0]], dtype=DOUBLE)
    x = x.abs() if name in POSITIVE else x
    check(one_row(["x"], {"x": (4,), "z": (4,)}, WRITTEN[name]), x, literal=literal, tolerance=1e-9)
    check(one_row(["x"], {"x": (2, 4), "z": (2, 4)}, WRITTEN[name]), x[None], literal=literal, tolerance=1e-9)


@both
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs", "sign", "keep"])
def test_kinks_have_the_gradient_the_table_declares(name, literal):
    tie = {"keep": 0.75}.get(name, 0.0)
    program = one_row(["x"], {"x": (1,), "z": (1,)}, WRITTEN[name])
    x = torch.tensor([[tie]], dtype=DOUBLE, requires_grad=True)
    (slope,) = slopes(interpret(program, x, literal=literal), [x])
    assert slope.item() == {"leaky_relu": 0.25}.get(name, 0.0)
    check(program, x.detach(), literal=literal)


@both
def test_softmax_of_masked_rows(literal):
    """−∞ hides a place; a row of −∞ has no place left: nan, as declared, and only in that row."""
    program = one_row(["x"], {"x": (2, 3), "z": (2, 3)}, "softmax")
    x = torch.tensor([[[1.0, -math.inf, 1.0], [-math.inf] * 3]], dtype=DOUBLE)
    z = check(program, x, literal=literal)
    assert z[0, 0].tolist() == [0.5, 0.0, 0.5]
    assert z[0, 1].isnan().all()


@pytest.mark.parametrize("name", activations.RULES)
def test_activations_keep_what_they_declare(name):
    rule, sigma = activations.RULES[name], make_activation(WRITTEN[name])
    zero = sigma(torch.zeros(1, 3, dtype=DOUBLE))
    if isinstance(rule.at_zero, float):
        assert zero.double().tolist() == [[rule.at_zero] * 3]
    else:
        assert rule.at_zero == "depends"
    x = torch.rand(2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) + 0.5
    if rule.degree is not None:
        assert_close(sigma(2 * x).double(), 2.0**rule.degree * sigma(x).double(), rtol=1e-6, atol=0)
    moved = x.clone()
    moved[0, 2] += 0.25
    other = sigma(moved)[0, :2] != sigma(x)[0, :2]
    assert bool(other.any()) == (rule.mixes == "last")
    assert make_activation(str(sigma)) == sigma


@both
@pytest.mark.parametrize("name", ["hadamard", "maximum", "minimum", "divide"])
def test_joins_of_two_sums_with_ties_and_infinities(name, literal):
    program = one_row(["x", "y"], {"x": (4,), "y": (4,), "z": (4,)}, None, name)
    x = torch.tensor([[1.0, -2.0, 3.0, math.inf]], dtype=DOUBLE)
    y = torch.tensor([[2.0, -2.0, -1.0, 2.0]], dtype=DOUBLE)
    check(program, x, y, literal=literal)


@both
def test_ties_of_maximum_share_the_gradient(literal):
    program = one_row(["x", "y"], {"x": (1,), "y": (1,), "z": (1,)}, None, "maximum")
    x, y = (torch.ones(1, 1, dtype=DOUBLE, requires_grad=True) for _ in "xy")
    assert [
        g.item() for g in torch.autograd.grad(interpret(program, x, y, literal=literal).sum(), [x, y])
    ] == [0.5, 0.5]


@both
@pytest.mark.parametrize(
    ("pattern", "shapes"),
    [
        ("i, i -> i", [(3,), (3,), (3,)]),
        ("i, k -> k i", [(3,), (2,), (2, 3)]),
        ("i z, k z -> i k", [(3, 2), (4, 2), (3, 4)]),
        ("h q d, h k d -> h q k", [(2, 3, 2), (2, 4, 2), (2, 3, 4)]),
        ("i z, z, z k -> k i", [(2, 3), (3,), (3, 2), (2, 2)]),
        ("i j, j -> i", [(2, 3), (3,), (2,)]),
    ],
)
def test_contractions_are_sums_of_products(pattern, shapes, literal):
    names = list("abc")[: len(shapes) - 1]
    parts = dict(zip([*names, "z"], shapes, strict=True))
    g = torch.Generator().manual_seed(0)
    ins = [torch.randn(2, *parts[n], dtype=DOUBLE, generator=g) for n in names]
    check(one_row(names, parts, None, pattern), *ins, literal=literal)


@both
def test_top_k_takes_the_lowest_place_of_equals(literal):
    parts = {"x": om.Part((5,)), "z": om.Part((3, 5), "index")}
    step = om.Step(om.BlockMatrix({("z", "x"): Identity(5)}, parts), joins={"z": "top_k(3)"})
    x = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [0.0] * 5], dtype=DOUBLE)
    assert interpret(om.Program(step, ["x"], ["z"]), x, literal=literal).tolist() == [[1, 2, 3], [0, 1, 2]]


@both
def test_casts_round_and_are_kept_by_the_meaning(literal):
    program = one_row(["x"], {"x": (1,), "z": (1,)}, "cast(float32)")
    z = interpret(program, torch.tensor([[0.1]], dtype=DOUBLE), literal=literal)
    assert z.double().item() == torch.tensor(0.1).double().item() != 0.1


@both
def test_structural_zeros_stop_infinities_in_every_direction(literal):
    """0·∞ never arises where a block, or an entry of a sparse structure, is absent."""
    csr = om.fit(torch.diag(torch.tensor([2.0, 3.0], dtype=DOUBLE)), "csr", budget=0.5)
    parts = {"x": 2, "y": 2, "z": 2}
    for a in (csr, Diagonal(torch.tensor([2.0, 3.0], dtype=DOUBLE)), csr.transpose()):
        step = om.Step(
            om.BlockMatrix({("y", "x"): a, ("z", "one"): om.fit(torch.ones(2, 1).double(), "dense")}, parts)
        )
        x = torch.tensor([[math.inf, 1.0], [1.0, -math.inf]], dtype=DOUBLE)
        y, z = interpret(om.Program(step, ["x"], ["y", "z"]), x, literal=literal)
        assert y.tolist() == [[math.inf, 3.0], [2.0, -math.inf]]
        assert z.tolist() == [[1.0, 1.0]] * 2


@both
def test_select_is_blind_to_what_it_leaves_out(literal):
    parts = {"m": om.Part((3,), dtype="bool"), "x": 3, "y": 3, "z": 3}
    step = om.Step(*(om.BlockMatrix({("z", c): Identity(3)}, parts) for c in "mxy"), joins={"z": "select"})
    program = om.Program(step, ["m", "x", "y"], ["z"])
    mask = torch.tensor([[True, False, True]])
    x = torch.tensor([[1.0, math.inf, math.nan]], dtype=DOUBLE)
    y = torch.tensor([[math.nan, 2.0, -math.inf]], dtype=DOUBLE)
    check(program, mask, x, y, literal=literal)


@pytest.mark.parametrize(
    ("text", "error", "fault"),
    [
        ("rleu", ProgramError, "activation 'rleu' is unknown"),
        ("layer_norm", ProgramError, r"layer_norm takes 1 arguments, got \(\)"),
        ("relu(2)", ProgramError, r"relu takes 0 arguments, got \(2.0,\)"),
        ("layer_norm(small)", ProgramError, r"layer_norm\(small\): a finite number was needed"),
        ("leaky_relu(inf)", ProgramError, r"leaky_relu\(inf\): a finite number was needed"),
        ("keep(1.5)", ProgramError, r"keep\(1.5\): a probability in \(0, 1\] was needed"),
        ("cast(float23)", DTypeError, r"cast\(float23\): a torch dtype such as float64 was needed"),
        ("relu relu", ProgramError, "a name such as relu or layer_norm"),
    ],
)
def test_activations_that_do_not_exist_are_named(text, error, fault):
    with pytest.raises(error, match=fault):
        make_activation(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("blend", "join 'blend' is unknown; there are: divide, gather"),
        ("top_k", "top_k takes 1 argument, got None"),
        ("maximum(2)", "maximum takes 0 argument, got 2"),
        ("a, b -> a -> b", "one '->' was needed"),
        ("a -> a", "two or more operands"),
        ("a, -> a", "two or more operands"),
        ("a, b -> c", "'c' stands on the right only"),
        ("top k", "a name, a name with an integer, or"),
    ],
)
def test_joins_that_do_not_exist_are_named(text, fault):
    with pytest.raises(ProgramError, match=fault):
        make_join(text)


@pytest.mark.parametrize(
    ("join", "shapes", "kinds", "error", "fault"),
    [
        (
            "gather",
            [(4, 2), (3, 5), (3, 2)],
            "rir",
            ShapeError,
            r"gather of \(4, 2\) by an index part \(3, 5\)",
        ),
        (
            "gather",
            [(4, 2), (3, 4), (4, 2)],
            "rir",
            ShapeError,
            r"gather gives \(3, 2\), the part is \(4, 2\)",
        ),
        ("gather", [(4, 2), (3, 4), (3, 2)], "rrr", ProgramError, "one identity block from an index part"),
        ("gather", [(4, 2), (2, 3, 4), (3, 2)], "rir", ProgramError, "one identity block from an index part"),
        (
            "scatter(4)",
            [(2, 2), (3, 4), (4, 2)],
            "rir",
            ShapeError,
            r"scatter\(4\) of \(2, 2\) by an index part",
        ),
        (
            "scatter(5)",
            [(3, 2), (3, 4), (5, 2)],
            "rir",
            ShapeError,
            r"scatter\(5\) of \(3, 2\) by an index part",
        ),
        (
            "top_k(2)",
            [(4,), (2, 4)],
            "rr",
            ProgramError,
            r"top_k\(2\) of \(4,\) needs an index part \(2, 4\)",
        ),
        ("top_k(5)", [(4,), (5, 4)], "ri", ProgramError, r"needs an index part \(5, 4\) with 1 ≤ k ≤ n"),
        ("top_k(2)", [(4,), (3, 4)], "ri", ShapeError, r"top_k\(2\) gives \(2, 4\), the part is \(3, 4\)"),
        ("a b, b -> a", [(4, 2), (3,), (4,)], "rrr", ShapeError, "axis 'b' of .* is 2 and 3"),
        ("a, b -> a b", [(4,), (3,), (4,)], "rrr", ShapeError, "'a b' of .* has 2 axes, the part"),
    ],
)
def test_joins_that_do_not_fit_their_parts_are_named(join, shapes, kinds, error, fault):
    names = [*"ab"[: len(shapes) - 1], "z"]
    made = {
        n: om.Part(s, "index" if k == "i" else "real") for n, s, k in zip(names, shapes, kinds, strict=True)
    }
    grids = [om.BlockMatrix({("z", n): Identity(made[n].features)}, made) for n in names[:-1]]
    with pytest.raises(error, match=fault):
        om.Program(om.Step(*grids, joins={"z": join}), names[:-1], ["z"])


def test_the_tables_are_closed():
    assert set(joins.RULES) == {
        "hadamard",
        "maximum",
        "minimum",
        "divide",
        "select",
        "gather",
        "scatter",
        "top_k",
    }
    assert len(activations.RULES) == 25
