"""Structures written as one einsum against those written by hand: same matrix, error of the fit, stages."""

import importlib
import math

import pytest
import torch

from onematrix.structures import STRUCTURES, definition_plan, multilinear, multilinear_fit
from onematrix.structures.definition import define, forget
from onematrix.structures.definition_fit import canonical_cores, project_cores
from onematrix.structures.definition_plan import LAYOUTS, apply, plan
from onematrix.structures.multilinear import Form, Kernel, gram_diagonal, gram_numbers
from onematrix.structures.multilinear_fit import Search, fit_form
from onematrix.structures.tree import stored_numbers
from structure_cases import generator, near, normal


@pytest.fixture
def parity(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    monkeypatch.setattr("onematrix.records.timing.SAMPLE_SECONDS", 1e-5)
    return importlib.import_module("definition_parity")


def cases(parity):
    return {case.structure: case for case in parity.CASES}


@pytest.mark.parametrize("name", ["low_rank", "kronecker", "monarch", "block_tensor_train", "blast"])
def test_definitions_are_the_structures_by_hand_and_fit_as_well(name, parity, capsys):
    case = cases(parity)[name]
    hand, derived = parity.pair(case, 64)
    forget(derived.name)
    near(derived.to_dense(), hand.to_dense(), torch.float32)
    assert derived.multiply_adds() == hand.multiply_adds()
    assert sorted(derived.learning_rate_scale().values()) == sorted(hand.learning_rate_scale().values())
    assert parity.fits(case, 64, seconds=3.0) <= parity.MOST_ERROR
    ratios = parity.products(case, 64, 8)
    lines = capsys.readouterr().out.splitlines()
    assert len(ratios) == 2
    assert len(lines) == 3
    assert all("at most" in line for line in lines)


def test_fits_of_two_cores_are_exact_whatever_the_axes():
    """Every block of the axes both cores have, cut at its own singular values."""
    form = Form(("prga", "grpe"), "pe", "ga")
    sizes = {"p": 3, "e": 5, "g": 2, "a": 4, "r": 2}
    dense = normal(15, 8)
    cores = project_cores(form, dense, sizes)
    found = form.expand(cores).reshape(15, 8)
    values = torch.linalg.svdvals(dense.reshape(3, 5, 2, 4).transpose(1, 2))
    assert float((dense - found).norm()) == pytest.approx(float(values[..., 2:].norm()), rel=1e-10)
    for _ in range(20):  # no neighbour is nearer
        near_by = form.expand([c + 1e-3 * torch.randn(c.shape, dtype=c.dtype) for c in cores]).reshape(15, 8)
        assert (dense - near_by).norm() >= (dense - found).norm()


THREE = {  # einsum of three cores, sizes of the fit by hand at 27 × 64, names of these sizes
    "tensor_train": ("u[i a r], v[r j b s], w[s k c] -> (i j k) (a b c)", {"rank": (4, 3)}),
    "block_tensor_train": ("u[c b i r a], v[i c j s r b], w[i j k s c] -> (i j k) (c b a)", {"rank": (2, 2)}),
    "canonical": ("u[q r a], v[q r b], w[q r c] -> (q) (a b c)", {"rank": 2, "modes": (4, 4, 4)}),
}


@pytest.mark.parametrize("noise", [0.05, 1.0])
@pytest.mark.parametrize("name", THREE)
def test_fits_of_three_cores_are_as_near_as_those_by_hand(name, noise):
    """A smooth matrix with noise; axes that all cores have once let the search end at the zero matrix."""
    pattern, options = THREE[name]
    x, y = torch.linspace(0, 1, 27).double(), torch.linspace(0, 1, 64).double()
    dense = torch.exp(-8 * (x[:, None] - y) ** 2) + noise * normal(27, 64)
    rank = options["rank"]
    sizes = {"a": 4, "b": 4, "c": 4}
    if name == "canonical":
        sizes |= {"q": 27, "r": rank}
    else:
        sizes |= {"i": 3, "j": 3, "k": 3, "r": rank[0], "s": rank[1]}
        options = options | {"rows": (3, 3, 3), "columns": (4, 4, 4)}
    by_hand = STRUCTURES[name].fit(dense, seconds=None, **options)
    cls = define("test_three", pattern)
    try:
        found = cls.fit(dense, sizes=sizes, seconds=None)
        assert found.error <= 1.01 * by_hand.error
    finally:
        forget("test_three")


def test_a_search_over_problems_side_by_side_is_as_good_as_over_each_alone():
    """Weight decay is measured by the share of one of them: by the norm of all it left nothing but zero."""
    dense = normal(40, 27)
    form, sizes = Form(("qra", "qrb", "qrc"), "q", "abc"), {"a": 3, "b": 3, "c": 3, "r": 2}
    search = Search(None, starts=1)

    def error(rows):
        found = form.expand(fit_form(Kernel(form), rows, sizes | {"q": len(rows)}, search=search)).flatten(1)
        return float((found - rows).norm() / rows.norm())

    assert error(dense) < 1.1 * sum(error(dense[k : k + 1]) for k in range(4)) / 4


@pytest.mark.parametrize("pattern", ["w[i j] -> (i) (j)", "w[j i] -> (i) (j)", "w[i j k] -> (k j) (i)"])
def test_every_matrix_is_a_member_of_one_core(pattern):
    dense = normal(4, 6)
    cls = define("test_one", pattern)
    try:
        for gram in (None, torch.eye(6).double() + 1):
            assert cls.fit(dense, sizes={"j": 2} if "k" in pattern else {}, gram=gram).error < 1e-14
    finally:
        forget("test_one")


def test_chains_are_split_by_successive_singular_values():
    form = Form(("iar", "rjbs", "skc"), "ijk", "abc")
    sizes = dict(zip("iajbkcrs", (2, 3, 2, 2, 3, 2, 3, 4), strict=True))
    dense = normal(12, 12)
    found = form.expand(project_cores(form, dense, sizes)).reshape(12, 12)
    by_hand = STRUCTURES["tensor_train"].fit(dense, rows=(2, 2, 3), columns=(3, 2, 2), rank=(3, 4))
    near(found, by_hand.structure.to_dense())


def test_a_rank_alone_leads_to_fewer_numbers_than_dense_where_it_can():
    cls = define("test_three", THREE["block_tensor_train"][0])
    try:
        assert stored_numbers(cls.random(64, 64, rank=2)) <= 64 * 64
    finally:
        forget("test_three")


def test_where_a_gram_is_too_large_its_diagonal_stands_for_it(monkeypatch):
    form = Form(("iar", "rjbs", "skc"), "ijk", "abc")
    sizes = dict(zip("iajbkcrs", (2, 3, 2, 2, 3, 2, 3, 4), strict=True))
    cores = [torch.randn(s, generator=generator(), dtype=torch.float64) for s in form.shapes(sizes)]
    kernel = Kernel(form)
    middle = kernel.gram(cores, 1)
    assert middle.numel() == gram_numbers(form, 1, sizes) == 12**2
    near(gram_diagonal(form, cores, 1)[..., 0], middle.diagonal(dim1=1, dim2=2))
    dense = normal(12, 12)
    whole = form.expand(fit_form(kernel, dense, sizes, search=Search(None)))
    for module in (multilinear, multilinear_fit):
        monkeypatch.setattr(module, "MOST_GRAM", 100)
    monkeypatch.setattr(kernel, "gram", lambda cores, k: (k == 1 and 1 / 0) or Kernel.gram(kernel, cores, k))
    found = form.expand(fit_form(kernel, dense, sizes, search=Search(None)))
    least = float((whole.reshape(12, 12) - dense).norm())
    assert float((found.reshape(12, 12) - dense).norm()) < 1.05 * least


def test_ranks_above_a_block_hold_zeros_and_two_rank_axes_are_one():
    cls = define("test_wide", "u[i r s], v[r s j] -> (i) (j)")
    try:
        found = cls.fit(normal(4, 3), sizes={"r": 2, "s": 3})
        assert found.error < 1e-12
        assert found.structure.sizes == {"i": 4, "r": 2, "s": 3, "j": 3}
    finally:
        forget("test_wide")


def test_weighted_fits_of_two_cores_begin_at_the_projection():
    dense, x = normal(16, 12), normal(50, 12, seed=5) * torch.arange(1, 13)
    cls = define("test_weighed", "u[i p r j], v[j i r q] -> (i p) (j q)")
    try:
        size = {"sizes": {"i": 4, "j": 3, "r": 1}}
        weighted = cls.fit(dense, gram=x.mT @ x, seconds=2.0, **size)
        by_hand = STRUCTURES["monarch"].fit(dense, blocks=(4, 3), rank=1, gram=x.mT @ x)
        assert weighted.error <= 1.01 * by_hand.error
    finally:
        forget("test_weighed")


FORMS = {
    Form(("ir", "rj"), "i", "j"): {"i": 3, "r": 2, "j": 4},
    Form(("ac", "bd"), "ab", "cd"): {"a": 2, "b": 3, "c": 4, "d": 2},
    Form(("acr", "rbd"), "ab", "cd"): {"a": 2, "b": 3, "c": 4, "d": 2, "r": 5},
    Form(("abd",), "ab", "d"): {"a": 2, "b": 3, "d": 4},
    Form(("iptj", "jitq"), "ip", "jq"): {"i": 2, "p": 3, "t": 2, "j": 3, "q": 2},
    Form(("ipr", "rij", "jrq"), "ip", "jq"): {"i": 2, "p": 3, "r": 4, "j": 3, "q": 2},
    Form(("pdrga", "perbg"), "ped", "gba"): dict(zip("pdergba", (2, 3, 2, 2, 2, 3, 2), strict=True)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_computes_the_definition(layout, monkeypatch):
    """The layout is taken wherever it can be; results small enough to be copied are not."""
    monkeypatch.setattr(definition_plan, "_copies", lambda stage, *_: float(stage.layout != layout))
    monkeypatch.setattr("onematrix.structures.grouped_product.SMALL", 0)
    used = set()
    for form, sizes in FORMS.items():
        cores = [torch.randn(s, generator=generator(2), dtype=torch.float64) for s in form.shapes(sizes)]
        found = definition_plan._lay_out(form, definition_plan.cheapest_order(form, sizes), sizes)
        used |= {stage.layout for stage in found.stages}
        n = math.prod(sizes[c] for c in form.columns)
        for batch in ((), (5,), (2, 3), (0,)):
            x = normal(*batch, n)
            near(apply(found, cores, x), x @ form.expand(cores).reshape(-1, n).mT)
    assert layout in used


def test_the_layouts_of_the_products_by_hand_are_found():
    sizes = {"i": 32, "p": 32, "t": 1, "j": 32, "q": 32}
    form = Form(("iptj", "jitq"), "ip", "jq")
    stages = plan(form, tuple(form.shapes(sizes))).stages
    assert [s.layout for s in stages] == ["new batch free", "batch new free"]
    assert stages[0].memory == "itj*"
    sizes = {"a": 32, "b": 32, "c": 32, "d": 32}
    stages = plan(kron := Form(("ac", "bd"), "ab", "cd"), tuple(kron.shapes(sizes))).stages
    assert [s.memory for s in stages] == ["*cb", "*ab"]


def test_sums_of_outer_products_begin_at_their_decomposition_in_any_order_of_axes():
    form = Form(("rabq", "cqr", "qrde"), "q", "cadbe")
    sizes = dict(zip("rabqcde", (3, 2, 2, 5, 3, 2, 2), strict=True))
    planted = [torch.randn(s, generator=generator(3), dtype=torch.float64) for s in form.shapes(sizes)]
    dense = form.expand(planted).reshape(5, -1)
    found = form.expand(canonical_cores(form, dense, sizes, Search(5.0))).reshape(5, -1)
    assert float((found - dense).norm()) < 1e-8 * float(dense.norm())
    for other in (("ir", "rj", "rk"), ("iar", "rjbs", "skc"), ("ir", "rj")):
        chain = Form(other, "i", "".join(sorted(set("".join(other)) - set("irs"))))
        wide = dict.fromkeys("iarjbskc", 2)
        count = 2 ** len(chain.columns)
        assert (canonical_cores(chain, normal(2, count), wide, Search(1.0)) is None) is (
            other != ("ir", "rj", "rk")
        )
