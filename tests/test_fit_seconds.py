"""The limit of seconds of a fit: weighted descents and searches end with it, for every structure."""

import inspect
import itertools
from types import SimpleNamespace

import pytest
import torch

import onematrix as om
from onematrix.errors import FitError
from onematrix.learners import trials
from onematrix.structures import (
    STRUCTURES,
    block_kronecker,
    canonical,
    descent,
    multilinear_fit,
    weighted_error,
)
from onematrix.structures.base import SECONDS, Fit, fittable, relative_error, takes_seconds
from structure_cases import normal

DESCENTS = {  # sizes whose weighted fit is a descent from the unweighted one
    "block_kronecker": {"factors": (2, 2, 4, 2, 2, 4), "rank": 1},
    "block_tensor_train": {"rows": (2, 4, 2), "columns": (2, 4, 2), "rank": 1},
    "butterfly": {"block": 1},
    "canonical": {"modes": (4, 4), "rank": 1},
    "kronecker": {"left": (4, 4)},
    "monarch": {"blocks": 4, "rank": 1},
    "tensor_train": {"rows": (2, 4, 2), "columns": (2, 4, 2), "rank": 2},
}


def weighted():
    target, x = normal(16, 16), normal(40, 16, seed=1) @ normal(16, 16, seed=2)
    return target, x.mT @ x


def test_every_structure_with_a_limit_is_tried_here():
    timed = {name for name in fittable() if takes_seconds(STRUCTURES[name])}
    assert {name for name in timed if not hasattr(STRUCTURES[name], "definition")} == {*DESCENTS, "blast"}
    for name in timed:
        assert inspect.signature(STRUCTURES[name]._fit).parameters["seconds"].default == SECONDS == 30.0


@pytest.mark.parametrize("seconds", [0.5, 12])
@pytest.mark.parametrize("name", DESCENTS)
def test_a_weighted_descent_ends_with_its_time(name, seconds, monkeypatch):
    """A clock that moves by one at every look: so many steps, and what they reached stands."""
    target, gram = weighted()
    fit = STRUCTURES[name].fit
    whole = fit(target, gram=gram, seconds=None, **DESCENTS[name]).error
    plain = relative_error(fit(target, **DESCENTS[name]).structure, target, gram)
    looks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(looks))
    for module in (block_kronecker, canonical, descent, multilinear_fit, weighted_error):
        monkeypatch.setattr(module, "time", clock)
    found = fit(target, gram=gram, seconds=seconds, **DESCENTS[name]).error
    assert next(looks) <= seconds + 20
    assert whole + 1e-4 < found <= plain + 1e-12


def test_every_fit_takes_a_limit_and_refuses_an_impossible_one():
    target = normal(12, 12)
    for name in fittable():
        cls = STRUCTURES[name]
        assert cls.fit(target, 1.0, seconds=1.0).error <= 1.0
        for seconds in (0, -2.0, float("nan")):
            with pytest.raises(FitError, match=rf"{name}: seconds must be above 0 .*got {seconds}"):
                cls.fit(target, 1.0, seconds=seconds)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_descents_share_the_time_of_the_table_with_searches_only_where_there_is_a_gram(monkeypatch):
    given = {}

    def noting(name):
        def fit(dense, budget, seconds=None, gram=None):
            given[name] = seconds
            return Fit(STRUCTURES["dense"](dense), 0.0)

        return fit

    names = ["blast", "kronecker", "low_rank", "monarch"]
    for name in names:
        monkeypatch.setattr(STRUCTURES[name], "fit", noting(name))
    target, gram = weighted()
    om.fit(target, names=names, seconds=12.0, batch=None)
    assert given["kronecker"] is given["monarch"] is given["low_rank"] is None
    assert given["blast"] == pytest.approx(12 * (1 - trials.RESERVE), rel=0.02)
    om.fit(target, names=names, seconds=12.0, batch=None, gram=gram)
    shares = [given[name] for name in ("blast", "kronecker", "monarch")]
    assert given["low_rank"] is None
    assert shares == pytest.approx([12 * (1 - trials.RESERVE) / turns for turns in (3, 2, 1)], rel=0.02)
