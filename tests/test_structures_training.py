"""Structures trained from scratch: one step alike at every width, and one rate nearly as good as groups."""

import importlib
import os

import pytest
import torch

from onematrix.errors import DataError
from onematrix.experiments import structures_mnist
from onematrix.experiments.base import Options, run
from onematrix.structures import STRUCTURES
from onematrix.structures.base import randomisable
from onematrix.structures.deviations import core_deviations
from onematrix.structures.tree import stored_numbers
from structure_cases import generator

# Powers of the width by which a step falls short where a number acts at several places, from 1/√places.
SHARED = {"kronecker": -0.25, "tensor_train": -0.25, "circulant": -0.5, "toeplitz": -0.5, "diagonal": -1.0}


@pytest.fixture
def width_test(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    return importlib.import_module("width_test")


def test_every_structure_that_can_be_drawn_is_tested_or_named(width_test):
    tested = {name for name, _ in width_test.CASES.values()}
    defined = {name for name in STRUCTURES if hasattr(STRUCTURES[name], "definition")}
    assert tested | set(width_test.NO_NUMBERS) == set(randomisable()) - defined
    assert set(width_test.EXCEPTIONS) == set(SHARED)
    for name in width_test.NO_NUMBERS:
        assert stored_numbers(STRUCTURES[name].random(4, 4, generator=generator())) == 0


def test_one_step_changes_outputs_alike_at_every_width(width_test):
    for case, (name, _) in width_test.CASES.items():
        grown = width_test.exponent((256, 1024), [width_test.change(case, n, seeds=2) for n in (256, 1024)])
        assert abs(grown - SHARED.get(name, 0.0)) < width_test.FLAT, f"{case}: {grown:+.2f}"


def test_the_rate_matters_to_the_width_test(width_test, monkeypatch):
    """Without rates of their own the cores of a block tensor train hardly move when wide."""
    monkeypatch.setattr(width_test, "parameter_groups", lambda layer, lr: list(layer.parameters()))
    changes = [width_test.change("block_tensor_train r = 1", n, seeds=1) for n in (256, 1024)]
    assert width_test.exponent((256, 1024), changes) < -0.4
    assert width_test.verdict("block_tensor_train r = 1", -0.4) == "NOT flat"


def test_the_benchmark_names_its_exceptions(width_test, monkeypatch, capsys):
    monkeypatch.setattr(
        width_test, "CASES", {k: width_test.CASES[k] for k in ("kronecker", "monarch √n blocks, t = 1")}
    )
    monkeypatch.setattr(width_test, "SEEDS", 1)
    width_test.main((64, 1024))
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0].endswith("exception: every number acts at √n places")
    assert rows[1].endswith("flat")


def test_deviations_keep_the_variance_and_need_one_rate():
    inputs = [7, 32, 2]
    sizes = core_deviations(inputs)
    assert torch.tensor(sizes).prod() == pytest.approx(torch.tensor([f**-0.5 for f in inputs]).prod())
    rates = [
        size * f**0.5 / f for size, f in zip(sizes, inputs, strict=True)
    ]  # the larger for its size ÷ inputs
    assert rates == pytest.approx([rates[0]] * 3)
    assert core_deviations([9]) == pytest.approx([1 / 3])


def test_the_experiment_runs_at_its_smallest_size(tmp_path):
    options = Options(tmp_path, quick=True, steps=2, say=lambda _: None)
    outcome = run("structures-mnist", options)
    trained, small = (
        outcome.tables[t].rows for t in ("Trained from scratch", "Compressed without retraining")
    )
    assert [row["hidden layer"] for row in trained] == list(structures_mnist.TRAINED)
    assert {row["structure"] for row in small} == set(structures_mnist.FITTED)
    assert all(0 <= row["accuracy, weighted fit"] <= 1 and row["E"] <= row["budget"] for row in small)
    errors = {(row["structure"], row["budget"]): row["relative error"] for row in small}
    assert all(errors[name, 0.5] < errors[name, 0.25] for name in structures_mnist.FITTED)
    assert outcome.passed
    assert (tmp_path / "errors.svg").exists()


def test_the_checks_of_the_experiment_can_fail():
    rates = ("own rates", "one rate 0.001", "one rate 0.003")
    good, behind, low = (0.975, 0.97, 0.974), (0.96, 0.97, 0.95), (0.975, 0.97, 0.972)

    def verdicts(values):
        row = {f"accuracy, {what}": value for what, value in zip(rates, values, strict=True)}
        rows = [{"hidden layer": name, **row} for name in structures_mnist.BALANCED]
        return [passed for _, passed, _ in structures_mnist.check_trained(rows)]

    count = len(structures_mnist.CHECKED)
    assert all(verdicts(good))
    assert verdicts(behind) == [False] * count + [True] * len(structures_mnist.BALANCED) + [False]
    assert verdicts(low) == [True] * count + [False] * len(structures_mnist.BALANCED) + [True]
    row = {"structure": "blast", "relative error": 0.37, "accuracy": 0.98, "accuracy, weighted fit": 0.983}
    rows = [row | {"budget": budget} for budget in (0.5, 0.25)]
    assert [p for _, p, _ in structures_mnist.check_compressed(rows, 0.985)] == [True, True]
    rows[0]["relative error"] = 0.39
    assert [p for _, p, _ in structures_mnist.check_compressed(rows, 0.9851)] == [False, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", ["low-rank r = 32", "BLAST b = 16, E = 1/4", "block tensor train r = 1", "Monarch b = 4, E = 1/2"]
)
def test_one_plain_rate_comes_within_a_fifth_of_a_point(row):
    if "ONEMATRIX_DATA" not in os.environ:
        pytest.skip("no data")
    try:
        data = structures_mnist.load()
    except DataError:
        pytest.skip("no data")
    train, rate = structures_mnist.train_row, structures_mnist.RATE
    grouped = train(row, data, rate, grouped=True)
    plain = max(train(row, data, each, grouped=False) for each in structures_mnist.PLAIN[1:])
    assert plain >= grouped - structures_mnist.WITHIN
    assert grouped >= structures_mnist.FLOOR
