"""om.fit without a name: all structures at once, the rows no other beats, the limit of seconds, refusals."""

import itertools
import threading
import time

import pytest
import torch
from torch.testing import assert_close

import onematrix as om
from onematrix.errors import BudgetError, FitError
from onematrix.learners import fit_table, trials
from onematrix.learners.fit_table import Candidate, FitTable, mark_optimal
from onematrix.structures import STRUCTURES
from onematrix.structures.base import Fit
from structure_cases import generator


@pytest.fixture
def dense():
    return torch.randn(12, 8, generator=generator(), dtype=torch.float64)


def candidate(name, error, numbers, seconds, adds=1):
    a = STRUCTURES["diagonal"](torch.zeros(numbers))
    return Candidate(name, Fit(a, error), numbers, 0, adds, seconds)


ROWS = [
    candidate("best", 0.1, 9, 3.0),
    candidate("small", 0.3, 2, 3.0),
    candidate("quick", 0.3, 9, 1.0),
    candidate("worse", 0.4, 9, 2.0),
    candidate("noise", 0.1, 9, 2.9),
    candidate("larger", 0.3, 10, 1.0),
]


def test_rows_are_marked_that_no_other_beats():
    """The definition, written out: no other row at least as good in all three and better in one."""
    for rows in itertools.permutations(ROWS, 4):
        for row in mark_optimal(rows):
            beaten = [
                o
                for o in rows
                if o.name != row.name
                and o.error <= row.error
                and o.stored_numbers <= row.stored_numbers
                and o.seconds <= 1.1 * row.seconds
                and (
                    o.error < row.error
                    or o.stored_numbers < row.stored_numbers
                    or o.seconds * 1.1 < row.seconds
                )
            ]
            assert row.optimal == (not beaten)
    assert {row.name for row in mark_optimal(ROWS) if row.optimal} == {"best", "noise", "small", "quick"}


def test_without_times_multiply_adds_decide():
    rows = [
        candidate("a", 0.1, 4, None, 10),
        candidate("b", 0.1, 4, None, 11),
        candidate("c", 0.2, 4, None, 9),
    ]
    assert [(row.name, row.optimal) for row in mark_optimal(rows)] == [("a", True), ("b", False), ("c", True)]


def test_the_table_reads_like_a_list_and_prints(dense):
    table = om.fit(dense, budget=0.5, names=["low_rank", "csr", "circulant"], batch=3)
    assert isinstance(table, FitTable)
    assert [row.name for row in table] == [table[0].name, table[1].name] == ["csr", "low_rank"]
    assert len(table) == 2
    assert table[-1:] == (table.find("low_rank"),)
    assert table.find("circulant") is None
    assert table.optimal() == [row for row in table if row.optimal]
    assert all(row.seconds > 0 for row in table)
    assert table.dense_seconds > 0
    lines = str(table).splitlines()
    assert lines[0].startswith("2 structures for 12×8 within E = 0.5; *")
    assert "time at batch 3, one thread" in lines[0]
    assert lines[1].split()[:3] == ["structure", "error", "numbers"]
    assert lines[2].split()[lines[2].startswith("*")] == "csr"
    assert f"{table[0].error:.4g}" in lines[2]
    assert lines[-1] == f"without a row: {table.skipped['circulant']}"
    assert "circulant is square, the matrix is 12×8" in lines[-1]
    facts = table.facts()
    assert facts["rows"][1]["structure"] == "low_rank"
    assert facts["rows"][1]["error"] == table[1].error


def test_each_row_is_the_fit_of_its_structure(dense):
    table = om.fit(dense, budget=0.5, seconds=None, batch=None)
    assert {"low_rank", "monarch", "blast", "csr"} <= {row.name for row in table}
    assert [row.error for row in table] == sorted(row.error for row in table)
    for row in table:
        assert row.seconds is None
        alone = STRUCTURES[row.name].fit(dense, 0.5)
        assert row.error == pytest.approx(alone.error, abs=1e-12)
        rest = dense - row.fit.structure.to_dense()
        assert row.error == pytest.approx(float(rest.norm() / dense.norm()), rel=1e-6, abs=1e-12)
    again = om.fit(dense, budget=0.5, seconds=None, batch=None)
    assert [(r.name, r.error, r.optimal) for r in table] == [(r.name, r.error, r.optimal) for r in again]


def test_the_gram_weights_every_row(dense):
    x = torch.randn(40, 8, generator=generator(1), dtype=torch.float64) * torch.arange(1, 9)
    table = om.fit(dense, budget=0.5, gram=x.mT @ x, batch=None, names=["low_rank", "csr"])
    for row in table:
        rest = x @ (dense - row.fit.structure.to_dense()).mT
        assert row.error == pytest.approx(float(rest.norm() / (x @ dense.mT).norm()), rel=1e-8)


def test_fits_run_at_once_on_the_threads_there_are(dense, monkeypatch):
    together, inside = threading.Barrier(2, timeout=20), []

    def slow(dense, budget, **options):
        together.wait()  # passes only when two fits are inside at the same time
        inside.append(torch.get_num_threads())
        return Fit(STRUCTURES["dense"](dense.clone()), 0.0)

    for name in ("low_rank", "csr"):
        monkeypatch.setattr(STRUCTURES[name], "fit", slow)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        table = om.fit(dense, names=["low_rank", "csr"], batch=None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(table) == 2
    assert inside == [1, 1], "each fit computes on one thread"


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_searches_share_the_time_and_come_last(dense, monkeypatch):
    order = []

    def exact(dense, budget, **options):
        assert options == {}
        order.append("exact")
        time.sleep(0.2)
        return Fit(STRUCTURES["dense"](dense), 0.0)

    def search(dense, budget, seconds):
        order.append(seconds)
        return Fit(STRUCTURES["dense"](dense), 0.0)

    monkeypatch.setattr(STRUCTURES["low_rank"], "fit", exact)
    monkeypatch.setattr(STRUCTURES["blast"], "fit", search)
    om.fit(dense, names=["blast", "low_rank"], seconds=10.0, batch=None)
    assert order[0] == "exact"
    assert 8.5 < order[1] < 9.8 * 0.95
    table = om.fit(dense, names=["low_rank", "blast"], seconds=0.1, batch=None)
    assert [row.name for row in table] == ["low_rank"]
    assert table.skipped["blast"] == "blast: not begun within the time limit; give more seconds="
    order.clear()
    om.fit(dense, names=["blast"], seconds=None, batch=None)
    assert order == [None]


def test_two_searches_get_half_of_the_time_each():
    limit = trials.Limit(time.perf_counter() + 10, 1, 2, threading.Lock())
    assert limit.share() == pytest.approx(4.75, abs=0.05)
    assert limit.share() == pytest.approx(9.5, abs=0.05)


def test_progress_is_told_past_its_patience(dense, monkeypatch, capsys):
    monkeypatch.setattr(trials, "PATIENCE", 0.0)
    monkeypatch.setattr(trials, "POLL", 0.02)

    def slow(dense, budget, **options):
        time.sleep(0.3)
        return Fit(STRUCTURES["dense"](dense), 0.0)

    monkeypatch.setattr(STRUCTURES["low_rank"], "fit", slow)
    om.fit(dense, names=["low_rank"], batch=None, progress=False)
    assert capsys.readouterr().err == ""
    om.fit(dense, names=["low_rank"], batch=None, progress=True)
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == "fit: 0 of 1 structures fitted in 0 s; under way: low_rank"
    assert said.out == ""


def test_timed_products_are_those_of_the_structures(dense, monkeypatch):
    seen = []
    monkeypatch.setattr(
        trials, "_medians", lambda calls: [seen.append(c()) or float(i) for i, c in enumerate(calls)]
    )
    table = om.fit(dense.float(), budget=0.5, names=["low_rank", "csr"], batch=5)
    assert table.dense_seconds == 0.0
    assert sorted(row.seconds for row in table) == [1.0, 2.0]
    x = torch.randn(5, 8, generator=generator())
    assert_close(seen[0], x @ dense.float().mT)
    for row in table:
        assert_close(seen[int(row.seconds)], row.fit.structure.matmul(x))


def test_what_cannot_be_asked_is_refused(dense):
    for seconds in (0, -1.0, float("nan")):
        with pytest.raises(FitError, match=rf"seconds must be above 0 .*got {seconds}"):
            om.fit(dense, budget=0.5, seconds=seconds)
    with pytest.raises(FitError, match=r"batch must be at least 1 .*got 0"):
        om.fit(dense, budget=0.5, batch=0)
    with pytest.raises(FitError, match="no structure is called 'lowrank'"):
        om.fit(dense, budget=0.5, names=["lowrank"])
    with pytest.raises(BudgetError, match=r"low_rank 12×8: budget 0\.01 is below the smallest member"):
        om.fit(dense, budget=0.01, names=["low_rank"])
    with pytest.raises(
        FitError, match=r"no structure has a member: .*circulant is square.*diagonal is square"
    ):
        om.fit(dense, names=["circulant", "diagonal"])
    with pytest.raises(FitError, match="1 of 96 entries are nan"):
        om.fit(torch.where(torch.arange(96).reshape(12, 8) == 5, torch.nan, dense), budget=0.5)
    table = om.fit(dense, rank=2, names=["low_rank", "csr"], batch=None)
    assert table.skipped == {"csr": "csr: its fit takes no option 'rank'"}
    with pytest.raises(TypeError, match="broken inside"):
        om.fit(dense, names=["low_rank"], rank=Broken())


class Broken(int):
    def __lt__(self, other):
        raise TypeError("broken inside")


def test_times_that_are_alike_decide_nothing():
    assert fit_table.ALIKE == 1.1
    slow, fast = candidate("a", 0.1, 4, 1.05), candidate("b", 0.1, 4, 1.0)
    assert not fast.beats(slow)
    assert not slow.beats(fast)
    assert candidate("c", 0.1, 4, 0.9).beats(slow)
