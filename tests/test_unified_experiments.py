"""The experiments unified-…: what they measure, on digits and made data; on the real sets where these are."""

import json
import os

import pytest
import torch

from onematrix.datasets.series import Series
from onematrix.datasets.text import Corpus
from onematrix.errors import DataError
from onematrix.experiments import Options, list_experiments, run
from onematrix.experiments.base import begin
from onematrix.experiments.unified import runs, sets, solver_table
from onematrix.experiments.unified.runs import (
    Measured,
    Specification,
    check_tied,
    epochs_to_reach,
    goal,
    measure,
    run_specification,
    spread,
    summarise,
)
from onematrix.experiments.unified.solvers import SOLVERS, solve_by_levels
from onematrix.experiments.unified.specifications import SPECIFICATIONS

NAMES = (
    "mnist cifar10 tiny-imagenet etth1 electricity exchange ag-news wikitext2 ptb solvers"
).split()  # fmt: skip
DIGITS = Specification("unified-digits", "digits", sets.digits, "accuracy", epochs=2)
ERRORS = Specification("made", "made", sets.digits, "mean squared error")


@pytest.fixture(scope="module")
def digits():
    return sets.digits(quick=True)


def options(folder, **changed):
    return Options(folder, quick=True, say=lambda _: None, **changed)


def test_the_experiments_are_found():
    assert {f"unified-{name}" for name in NAMES} <= set(list_experiments())


def test_a_run_on_digits_gives_table_figure_records_and_check(tmp_path):
    outcome = begin("digits", "", tmp_path)
    run_specification(DIGITS, options(tmp_path, seeds=2, steps=5), outcome)
    outcome.write()
    assert outcome.passed
    (table,) = outcome.tables.values()
    assert [row["regime"] for row in table.rows] == ["native", "tied", "untied", "triangular"]
    native, tied, untied, triangular = table.rows
    same = {key for key in native if key not in ("regime", "seconds per epoch")}
    assert {key: native[key] for key in same} == {key: tied[key] for key in same}
    # 8 × 8 to 8 channels of 4 × 4, to 16 of 2 × 2, to 10 classes: (o i k k + o) twice and the dense layer
    assert native["parameters"] == 8 * 9 + 8 + 16 * 72 + 16 + 10 * 64 + 10
    assert untied["parameters"] == untied["non-zeros"] + 8 * 16 + 16 * 4 + 10 * 64 + 10
    assert untied["non-zeros"] == native["non-zeros"] == 11 * 11 * 8 + 5 * 5 * 8 * 16
    assert triangular["non-zeros"] > 3 * untied["non-zeros"]
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert lines[0]["epochs"] == [0.0, 1.0, 2.0, 2.5]  # 128 examples, 64 a batch
    assert len({line["values"][0] for line in lines if line["seed"] == 0}) == 1  # all start alike
    assert (tmp_path / "learning.svg").stat().st_size > 1000
    assert "skipped" not in (tmp_path / "report.html").read_text()


def test_training_helps_and_epochs_are_counted(digits):
    found = measure(DIGITS, digits, "untied", seed=0, steps=40)
    assert found.epochs == list(range(21))  # 128 examples, 64 a batch
    assert found.values[-1] > found.values[0] + 0.2
    assert found.parameters == sum(p.numel() for p in DIGITS.network(digits, "untied", 0).parameters())


def test_the_check_sees_a_tied_network_that_is_another(digits, monkeypatch):
    assert check_tied(DIGITS, digits, 3)[0]
    true_form = runs.in_regime

    def wrong(network, regime, *example):
        made = true_form(network, regime, *example)
        if regime == "tied":
            made[0].tap = made[0].tap.flip(0)
        return made

    monkeypatch.setattr(runs, "in_regime", wrong)
    passed, detail = check_tied(DIGITS, digits, 3)
    assert not passed
    assert "after 3 steps in float64: " in detail


def made(regime, seed, values):
    return Measured(regime, seed, list(range(len(values))), values, 7, 0.5)


def test_goals_and_epochs_to_reach_them():
    accurate, wrong = made("native", 0, [0.1, 0.9, 0.85]), made("native", 0, [3.0, 2.0, 2.5])
    assert goal(DIGITS, accurate) == pytest.approx(0.89)
    assert goal(ERRORS, wrong) == pytest.approx(2.02)
    assert epochs_to_reach(DIGITS, accurate, 0.85) == 1
    assert epochs_to_reach(DIGITS, accurate, 0.91) is None
    assert epochs_to_reach(ERRORS, wrong, 2.5) == 1
    assert epochs_to_reach(ERRORS, wrong, 1.9) is None


def test_a_row_per_regime_with_means_over_seeds():
    measured = [
        made("native", 0, [0.1, 0.5, 0.6]),
        made("native", 1, [0.1, 0.8, 0.7]),
        made("untied", 0, [0.1, 0.595, 0.7]),
        made("untied", 1, [0.1, 0.2, 0.3]),
    ]
    native, untied = summarise(DIGITS, measured, {"native": 3, "untied": 4}).rows
    reach = "epochs to reach native's best − 1 %"
    assert (native[reach], untied[reach]) == ("1.5 (2 of 2)", "1 (1 of 2)")
    assert native["accuracy at the end"] == "65.0 % ± 7.1 %"
    assert native["best accuracy"] == "70.0 % ± 14.1 %"
    assert (untied["non-zeros"], untied["parameters"], untied["seeds"]) == (4, 7, 2)
    never = summarise(DIGITS, [measured[0], made("untied", 0, [0.1])], {"native": 3, "untied": 4}).rows[1]
    assert never[reach] == "never (0 of 1)"
    assert spread([2.0], "perplexity") == "2"


def test_an_interrupted_run_keeps_what_is_done(tmp_path, digits, monkeypatch):
    found = [made("native", 0, [0.1, 0.2]), None]
    monkeypatch.setattr(runs, "measure", lambda *_: found.pop(0))
    outcome = begin("digits", "", tmp_path)
    run_specification(DIGITS, options(tmp_path), outcome)
    assert outcome.interrupted
    assert [row["regime"] for row in outcome.tables["digits"].rows] == ["native"]


def test_a_missing_set_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEMATRIX_DATA", str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"^unified-electricity: skipped: no data\. .*electricity35\.npz"):
        run("unified-electricity", options(tmp_path / "out"))


def test_texts_keep_the_frequent_words_and_aim_at_the_next(monkeypatch):
    tokens = torch.tensor([3, 3, 3, 1, 1, 0, 2, 3, 1])  # by frequency: 3, 1, then 0 and 2 as one
    corpus = Corpus(tokens, tokens, tokens, ["a", "b", "c", "d"])
    monkeypatch.setattr(sets, "load_text", lambda name: corpus)
    found = sets.text("made", "lstm", words=3, length=4, width=4)(quick=True)
    assert found.train.x.tolist() == [[0, 0, 0, 1], [1, 2, 2, 0]]
    assert found.train.target.tolist() == [[0, 0, 1, 1], [2, 2, 0, 1]]
    assert found.build()(found.example).shape == (2, 4, 3)


def test_series_are_standardised_by_their_training_rows(monkeypatch):
    values = torch.stack([torch.arange(40.0), torch.full((40,), 5.0)], 1)  # the second never changes
    splits = {"train": (0, 20), "val": (20, 30), "test": (30, 40)}
    monkeypatch.setattr(sets, "load_series", lambda name: Series(values, ("a", "b"), splits))
    found = sets.series("made", "rnn", length=4, horizon=2, width=3)(quick=True)
    rows = (torch.arange(40.0) - 9.5) / torch.arange(20.0).std()
    assert torch.allclose(found.test.target[0, :, 0], rows[30:32])  # the first test row is the first target
    assert torch.allclose(found.train.x[0, :, 0], rows[:4])
    assert len(found.train.x) == 15
    assert not found.train.x[..., 1].any()
    assert found.build()(found.example).shape == (2, 2, 2)


def test_the_solvers_are_checked_and_a_wrong_one_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(solver_table, "TICKS", (3, 6))
    monkeypatch.setattr(solver_table, "time_call", lambda *_, **__: 0.001)
    outcome = run("unified-solvers", options(tmp_path))
    assert outcome.passed
    rows = outcome.tables["Solvers of one recurrence"].rows
    assert [(row["ticks"], row["rounds"]) for row in rows if row["solver"] == "scan"] == [(3, 2), (6, 3)]
    assert len(rows) == 2 * len(SOLVERS)
    monkeypatch.setitem(SOLVERS, "sweeps", lambda r: solve_by_levels(r) * (1 + 1e-6))
    wrong = run("unified-solvers", options(tmp_path))
    assert [name for name, passed, _ in wrong.checks if not passed] == ["sweeps equals the loop"]


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECIFICATIONS, ids=lambda spec: spec.name)
def test_the_real_sets_take_a_step_in_every_regime(spec, tmp_path):
    if "ONEMATRIX_DATA" not in os.environ:
        pytest.skip("no data")
    try:
        outcome = run(spec.name, options(tmp_path, seeds=1, steps=1))
    except DataError:
        pytest.skip("no data")
    assert outcome.passed
    rows = outcome.tables[spec.title].rows
    assert [row["regime"] for row in rows] == list(spec.regimes)
    at_end = f"{spec.metric} at the end"
    assert rows[0][at_end] == rows[1][at_end]
    assert rows[0]["parameters"] == rows[1]["parameters"] < rows[2]["parameters"]
