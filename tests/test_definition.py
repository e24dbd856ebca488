"""om.define: structures from einsums obey the laws, fit as the hand-written ones, and refuse what they must."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import onematrix as om
import test_structures_laws as laws
import test_structures_transforms as transforms
from onematrix.errors import BudgetError, FitError, FormatError, ShapeError
from onematrix.structures import STRUCTURES
from onematrix.structures.blast import Blast
from onematrix.structures.definition import define, forget
from onematrix.structures.definition_fit import factorisations, rank_bound, useful_rank
from onematrix.structures.definition_pattern import read_pattern
from onematrix.structures.definition_plan import ALL_ORDERS, apply, cheapest_order, plan
from onematrix.structures.low_rank import LowRank
from onematrix.structures.multilinear import Form
from structure_cases import generator, near, normal

PATTERNS = {
    "test_low_rank": ("i r, r j -> i j", "r"),
    "test_kronecker": ("a c, b d -> (a b) (c d)", ""),
    "test_two_factors": ("p d r g a, p e r g b -> (p e d) (g b a)", "r"),
    "test_blast": ("u[i p r], s[r i j], v[j r q] -> (i p) (j q)", "r"),
    "test_train": ("r a c, r s b d, s e f -> (a b e) (c d f)", "r s"),
    "test_rank_r": ("out[unit rank], x[high rank], y[wide rank] -> unit (high wide)", "rank"),
}
LAWS = [
    *(
        lambda a, batch=batch: laws.test_products_are_the_definition_and_leave_the_input_alone(a, batch)
        for batch in laws.BATCHES
    ),
    laws.test_the_transpose_is_the_dense_transpose_and_shares_every_tensor,
    laws.test_gradients_are_those_of_the_definition,
    laws.test_function_transforms_are_those_of_the_definition,
    laws.test_counts_are_those_of_the_tensors_and_of_the_definition,
    *(
        lambda a, dtype=dtype: laws.test_other_dtypes_work(a, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ),
    laws.test_autocast_works_and_mixed_dtypes_are_refused_without_it,
    laws.test_a_wrong_width_names_both_shapes,
    laws.test_copies_devices_and_modules,
    transforms.test_products_read_any_memory_layout,
    transforms.test_first_and_second_derivatives_by_autograd,
    transforms.test_mapping_over_inputs_and_over_weights,
    transforms.test_the_meta_device_gives_shapes,
]


@pytest.fixture(params=PATTERNS)
def defined(request):
    yield define(request.param, *PATTERNS[request.param])
    forget(request.param)


@pytest.fixture
def make():
    """`define` for one test."""
    made = []

    def define_here(name, *definition):
        made.append(name)
        return define(name, *definition)

    yield define_here
    for name in set(made) & set(STRUCTURES):
        forget(name)


def test_every_law_holds(defined, monkeypatch):
    for a in list(defined.examples(generator()))[:3]:
        for law in LAWS:
            law(a)
        transforms.test_multiply_adds_are_those_the_product_does(a, monkeypatch)
    laws.test_one_graph_under_compile_with_its_gradient(defined)
    laws.test_the_docstring_begins_with_the_definition(defined)
    assert om.list_structures()[defined.name] is defined


def test_members_are_recovered(defined):
    for a in defined.examples(generator()):
        found = defined.fit(a.to_dense(), **a.exact_size())
        near(found.structure.to_dense(), a.to_dense(), torch.float32)
        assert found.error < 1e-9
        assert found.structure.sizes == a.sizes


def test_the_matrix_is_the_sum_written_out(make):
    a = next(
        a
        for a in make("test_loops", "p r g, g r q -> (p) (g q)", "r").examples(generator())
        if a.sizes["r"] > 1
    )
    p, q, g, r = (a.sizes[axis] for axis in "pqgr")
    dense = torch.zeros(p, g * q, dtype=torch.float64)
    for i in range(p):
        for k in range(g):
            for j in range(q):
                dense[i, k * q + j] = sum(a.core0[i, s, k] * a.core1[k, s, j] for s in range(r))
    near(a.to_dense(), dense)


def test_bounds_hold_and_random_points_certify_them(defined):
    for a in defined.examples(generator()):
        assert a.certified_rank(generator(1)) == a.rank_bound() <= min(a.fixed_shape)
        numbers = sum(core.numel() for core in a.cores)
        flat = torch.func.jacfwd(
            lambda x, a=a: type(a).definition.form.expand(
                [
                    part.view(c.shape)
                    for part, c in zip(x.split([c.numel() for c in a.cores]), a.cores, strict=True)
                ]
            )
        )(torch.cat([c.reshape(-1) for c in a.cores]))
        rank = int(torch.linalg.matrix_rank(flat.reshape(-1, numbers)))
        assert a.gauge_dimension(generator(1)) == numbers - rank


def test_the_gauge_of_low_rank_is_the_invertible_matrices(make):
    a = make("test_gauge", "i r, r j -> i j", "r").random(7, 6, rank=3)
    assert a.gauge_dimension() == 9


def test_formulas_and_rates_are_those_of_the_sizes(make):
    cls = make("test_counts", *PATTERNS["test_blast"])
    a = cls.random(24, 36, sizes={"i": 2, "j": 3, "r": 4}, generator=generator())
    assert cls.stored_formula() == "i * p * r + r * i * j + j * r * q"
    for formula, value in (
        (cls.stored_formula(), sum(c.numel() for c in a.cores)),
        (a.multiply_adds_formula(), a.multiply_adds()),
    ):
        assert om.structures.sizes.evaluate_size(formula, a.sizes) == value
    by_hand = Blast(a.u, a.s, a.v)
    near(a.to_dense(), by_hand.to_dense(), torch.float32)
    assert a.multiply_adds() == by_hand.multiply_adds()
    assert list(a.learning_rate_scale().values()) == list(by_hand.learning_rate_scale().values())


@pytest.mark.parametrize("name", ["test_low_rank", "test_two_factors", "test_blast", "test_train"])
def test_random_members_keep_the_variance_and_the_budget(name, make):
    cls, g, variance = make(name, *PATTERNS[name]), generator(), []
    for _ in range(30):
        a = cls.random(64, 96, 0.4, g)
        assert sum(c.numel() for c in a.cores) <= 0.4 * 64 * 96
        variance.append(a.matmul(torch.randn(200, 96, generator=g)).var().item())
    assert 0.8 < sum(variance) / 30 < 1.2


def test_derived_fits_come_within_one_percent_of_those_by_hand(make):
    dense = normal(24, 24, seed=3)
    low = make("test_low_rank", *PATTERNS["test_low_rank"]).fit(dense, rank=5)
    assert low.error <= 1.01 * LowRank.fit(dense, rank=5).error
    kronecker = make("test_kronecker", *PATTERNS["test_kronecker"]).fit(dense, sizes={"a": 4, "c": 6})
    moved = dense.reshape(4, 6, 6, 4).permute(0, 2, 1, 3).reshape(24, 24)  # Van Loan & Pitsianis 1993
    values = torch.linalg.svdvals(moved)
    assert kronecker.error <= 1.01 * float(values[1:].norm() / values.norm())
    grid = make("test_grid", "p e r g, p r g a -> (p e) (g a)", "r").fit(
        dense, sizes={"p": 4, "g": 3, "r": 2}
    )
    tiles = torch.linalg.svdvals(dense.reshape(4, 6, 3, 8).transpose(1, 2))
    assert grid.error <= 1.01 * float(tiles[..., 2:].norm() / tiles.norm())
    blast = make("test_blast", *PATTERNS["test_blast"]).fit(dense, sizes={"i": 3, "j": 3}, rank=6)
    assert blast.error <= 1.01 * Blast.fit(dense, rank=6, blocks=(3, 3)).error


def test_weighted_fits_are_those_of_the_weighted_norm(make):
    dense, x = normal(12, 10, seed=3), normal(40, 10, seed=4) * torch.arange(1, 11)
    found = make("test_weighted", *PATTERNS["test_low_rank"]).fit(dense, rank=3, gram=x.mT @ x)
    assert found.error <= 1.001 * LowRank.fit(dense, rank=3, gram=x.mT @ x).error


def test_sizes_are_chosen_within_the_budget_and_never_one(make):
    cls = make("test_split", *PATTERNS["test_two_factors"])
    a = cls.random(64, 64, 0.5)
    assert all(size >= 2 for size in a.sizes.values())
    assert sum(c.numel() for c in a.cores) <= 2048
    assert cls.random(64, 64, 0.5, rank=3).sizes["r"] == 3
    assert om.fit(normal(8, 8), "test_split", budget=1.0).fixed_shape == (8, 8)
    errors = [
        make("test_low", *PATTERNS["test_low_rank"]).fit(normal(12, 12), b).error for b in (0.2, 0.5, 1.0)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("size", "count"), [(12, 1), (12, 2), (24, 3), (7, 2), (1, 1)])
def test_factorisations_are_all_there_are(size, count):
    least = 1 if count == 1 else 2
    every = torch.cartesian_prod(*[torch.arange(least, size + 1)] * count).reshape(-1, count)
    expected = [tuple(row.tolist()) for row in every if int(row.prod()) == size]
    assert factorisations(size, count) == sorted(expected)


def test_a_rank_above_its_use_adds_no_matrices():
    pattern = read_pattern("p d r g a, p e r g b -> (p e d) (g b a)", "r")
    sizes = {"p": 2, "d": 2, "g": 2, "a": 3, "e": 3, "b": 2, "r": 1}
    assert useful_rank(pattern, sizes, "r") == 6  # min(d a, e b)
    assert rank_bound(pattern, {**sizes, "r": 99}) == 12


def test_the_cheapest_order_is_found_and_a_long_chain_needs_no_search():
    sizes = {"i": 50, "r": 2, "s": 40, "j": 50}
    assert cheapest_order(Form(("ir", "rs", "sj"), "i", "j"), sizes) == (2, 1, 0)
    letters = "abcdefghi"
    form = Form(tuple(letters[k : k + 2] for k in range(8)), "a", "i")
    assert len(form.cores) > ALL_ORDERS
    cores = [normal(2, 2, seed=k) for k in range(8)]
    found = plan(form, tuple(tuple(c.shape) for c in cores))
    x = normal(3, 2, seed=20)
    near(apply(found, cores, x), x @ torch.linalg.multi_dot(cores).mT)
    assert found.multiply_adds() == 32


class Copies(TorchDispatchMode):
    """The largest tensor that is copied."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in ("clone", "copy_", "_reshape_copy"):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize(
    ("pattern", "ranks", "allowed"),
    [
        (*PATTERNS["test_blast"], 0),
        (*PATTERNS["test_low_rank"], 0),
        (*PATTERNS["test_kronecker"], 0),
        ("g r p a, p e g r -> (p e) (g a)", "r", 0),
        (
            "p r g a, p e r g -> (p e) (g a)",
            "r",
            96,
        ),  # the axes of its cores stand otherwise: 96 numbers each
    ],
)
def test_no_state_between_two_cores_is_copied(pattern, ranks, allowed, make, monkeypatch):
    monkeypatch.setattr(
        "onematrix.structures.grouped_product.SMALL", 0
    )  # small results are copied on purpose
    a = make("test_copies", pattern, ranks).random(8, 12, 1.0, generator())
    with Copies() as copies, torch.no_grad():
        a.matmul(torch.randn(100, 12))
    assert copies.largest <= allowed


def test_definitions_survive_saving_and_are_checked_when_read(make, tmp_path):
    a = make("test_saved", *PATTERNS["test_blast"]).random(6, 8, 1.0, generator())
    om.save(om.Linear(a, bias=True), tmp_path)
    again = om.load(tmp_path)
    x = torch.randn(3, 8, generator=generator(1))
    assert torch.equal(again(x), om.Linear(a, bias=True)(x))
    assert again.structure.pattern == str(a.definition)
    forget("test_saved")
    make("test_saved", "u[i p r], s[r i j], v[j r q] -> (p i) (j q)", "r")
    with pytest.raises(FormatError, match=r"test_saved: stored as '.*\(i p\).*', defined here as '.*\(p i\)"):
        om.load(tmp_path)


def test_a_name_is_taken_once_and_the_same_definition_twice_is_one(make):
    cls = make("test_same", "i r, r j -> i j", "r")
    assert make("test_same", "i  r,r j->(i)(j)", "r") is cls
    with pytest.raises(FormatError, match="there is already a structure called 'test_same'"):
        define("test_same", "i r, r j -> j i", "r")
    with pytest.raises(FormatError, match="there is already a structure called 'dense'"):
        define("dense", "i r, r j -> i j", "r")
    with pytest.raises(
        FormatError, match="lower-case letters, digits and underscores was needed, got 'My one'"
    ):
        define("My one", "i r, r j -> i j", "r")
    for name in ("dense", "test_nothing"):
        with pytest.raises(FormatError, match=f"'{name}' was not defined by om.define"):
            forget(name)


PATTERN_FAULTS = [
    ("i i r, r j -> i j", "r", "core0 repeats axis 'i'"),
    ("i r, r j -> (i i) j", "r", "the matrix repeats axis 'i'"),
    ("i r, r j -> i (j k)", "r", "no core has axis 'k' of the matrix"),
    ("i r, r j -> i j", "", r"axis 'r' is in no side of the matrix; add it there, or to ranks='r'"),
    ("i r s, r j -> i j", "r s", "axis 's' is in one core alone and not in the matrix: it is lost"),
    ("i r, r j -> i j", "r j", "rank 'j' is an axis of the matrix"),
    ("i r, r j -> i j", "r t", "rank 't' is in no core"),
    ("u[i r], v[r s], u[s j] -> i j", "r s", r"core 'u' is used 2 times; the matrix must be linear in every"),
    ("shape[i r], v[r j] -> i j", "r", "a core cannot be called 'shape'"),
    ("matmul[i r], v[r j] -> i j", "r", "a core cannot be called 'matmul'; choose another name"),
    ("u[i r], class[r j] -> i j", "r", "a core cannot be called 'class'; choose another name"),
    ("pattern[i r], v[r j] -> i j", "r", "a core cannot be called 'pattern'"),
    (5, "r", "pattern and ranks are texts, got 5 and 'r'"),
    ("u[i r], v[r j] -> i j", 3, "pattern and ranks are texts, got .* and 3"),
    ("i r, r j", "r", r"two sides, '-> \(rows\) \(columns\)', were needed, got ''"),
    ("i r, r j -> i j k", "r", "were needed, got 'i j k'"),
    ("i r, , r j -> i j", "r", r"core 1 is ''; axes or name\[axes\] were needed"),
    ("i r, 3 j -> i j", "r", "core 1 is '3 j'"),
    (" ".join(f"a{k}" for k in range(27)) + " -> (a0) (a1)", "", "at most 26 axes are possible, got 27"),
]


@pytest.mark.parametrize(("pattern", "ranks", "message"), PATTERN_FAULTS)
def test_patterns_without_a_meaning_are_refused(pattern, ranks, message):
    with pytest.raises(FormatError, match=message):
        define("test_refused", pattern, ranks)
    assert "test_refused" not in STRUCTURES


def test_sizes_without_a_member_are_refused(make):
    cls = make("test_sizes", *PATTERNS["test_two_factors"])
    dense = normal(8, 8)
    for options, error, message in (
        ({"rank": 0}, FitError, "rank must be at least 1, got 0"),
        ({"sizes": {"z": 2}}, FitError, "there is no axis 'z'; axes: p d r g a e b"),
        ({"sizes": {"p": 0}}, FitError, "the size of axis 'p' must be at least 1, got 0"),
        (
            {"sizes": {"p": 3}},
            FitError,
            r"8 is no product of 3 sizes \(p e d\) of at least 2 with \{'p': 3\}",
        ),
        ({"budget": 0.4}, BudgetError, r"smallest member \(32 numbers, E = 0\.5\); ask for budget=0\.5 or"),
    ):
        with pytest.raises(error, match=message):
            cls.fit(dense, **options)
    with pytest.raises(FitError, match=r"7 is no product of 3 sizes \(p e d\) of at least 2; pad the matrix"):
        cls.fit(normal(7, 8), 0.5)
    assert cls.fit(normal(7, 8), sizes={"p": 7, "e": 1, "d": 1}, rank=1).error <= 1
    pair = make("test_pair", *PATTERNS["test_low_rank"])
    with pytest.raises(FitError, match="the smallest member stores 3 numbers, more than the 2 of dense"):
        pair.fit(normal(1, 2))
    with pytest.raises(FitError, match=r"a Jacobian of 65536 × 16384 entries is too large"):
        pair.random(256, 256, rank=32).gauge_dimension()


def test_cores_that_disagree_are_refused(make):
    cls = make("test_cores", *PATTERNS["test_low_rank"])
    with pytest.raises(ShapeError, match=r"test_cores\.core1: axis r is 3 here and 2 in a core before"):
        cls(torch.ones(4, 2), torch.ones(3, 5))
    with pytest.raises(ShapeError, match=r"test_cores\.core0: axes i r were needed, got shape \(4,\)"):
        cls(torch.ones(4), torch.ones(3, 5))
