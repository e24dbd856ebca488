"""Structures written as one einsum against those written by hand: same matrix, error of the fit, stages."""

import importlib
import math

import pytest
import torch

from onematrix.structures import STRUCTURES, definition_plan
from onematrix.structures.definition import define, forget
from onematrix.structures.definition_fit import project_pair
from onematrix.structures.definition_plan import LAYOUTS, apply, plan
from onematrix.structures.multilinear import Form
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
    cores = project_pair(form, dense, sizes)
    found = form.expand(cores).reshape(15, 8)
    values = torch.linalg.svdvals(dense.reshape(3, 5, 2, 4).transpose(1, 2))
    assert float((dense - found).norm()) == pytest.approx(float(values[..., 2:].norm()), rel=1e-10)
    for _ in range(20):  # no neighbour is nearer
        near_by = form.expand([c + 1e-3 * torch.randn(c.shape, dtype=c.dtype) for c in cores]).reshape(15, 8)
        assert (dense - near_by).norm() >= (dense - found).norm()


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
