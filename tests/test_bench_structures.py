"""onematrix bench structures: rows are checked before they are timed; tables, break-even points, chart, files."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from onematrix.cli.main import app
from onematrix.errors import VerificationError
from onematrix.experiments import structure_bench as bench
from onematrix.experiments.structure_bench import CASES, Case, Line, break_even, crosses, grid
from onematrix.structures.dense import Dense
from structure_cases import generator


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEMATRIX_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("n", [16, 64])
def test_every_case_draws_the_size_it_names(case, n):
    a = case.draw(n)
    assert a.shape == (n, n)
    assert torch.equal(a.to_dense(), case.draw(n).to_dense()), "always the same numbers"


def test_a_wrong_product_is_not_timed(monkeypatch):
    right = Dense(torch.randn(4, 4, generator=generator()))

    class Wrong:
        name = "wrong"

        def to_dense(self):
            return right.to_dense()

        def matmul(self, x):
            return right.matmul(x) * 1.01

    case = Case("low_rank", "r=1", lambda n: {"rank": 1})
    monkeypatch.setattr(Case, "draw", lambda self, n: Wrong())
    monkeypatch.setattr(bench, "CASES", (case,))
    with pytest.raises(
        VerificationError, match=r"low_rank r=1, n = 4, batch 2: relative error 1\.00e-02, allowed 1e-04"
    ):
        list(bench.measure_structures([4], [2], 10))


def test_ratios_are_seconds_over_dense(monkeypatch):
    asked = []

    def compare(candidate, peer, pairs, calls):
        asked.append((candidate().shape, peer().shape, pairs, calls))
        return bench.Ratio(4.0, 2.0, 5.0, 1.0, 3.0, pairs)

    monkeypatch.setattr(bench, "compare", compare)
    (line,) = bench.measure_structures([16], [3], 12, "kronecker", 7)
    assert asked == [((3, 16), (3, 16), 12, 7)] * 2
    assert (line.ratio, line.low, line.high, line.chosen) == (0.25, 0.2, 0.5, 0.25)
    assert line.dense_milliseconds == 3000.0
    assert (line.n, line.batch, line.case) == (16, 3, "kronecker √n ⊗ √n")


def lines():
    base = Line("a", 8, 1, 1.0, 4.0, 3.0, 5.0, "dense", 1.1, 1.0)
    return [
        base,
        replace(base, batch=16, ratio=0.25, chosen=0.25, form="own"),
        replace(base, n=4),
        replace(base, case="b", ratio=0.5),
    ]


def test_tables_have_a_row_per_size_and_batch():
    assert [dict(row) for row in grid(lines()).rows] == [
        {"n": 4, "batch": 1, "a": "4.00"},
        {"n": 8, "batch": 1, "a": "4.00", "b": "0.50"},
        {"n": 8, "batch": 16, "a": "0.25"},
    ]
    assert grid(lines(), chosen=True).rows[1]["a"] == "1.10"
    assert [dict(row) for row in break_even(lines()).rows] == [
        {"structure": "a", "n = 8": "4", "n = 4": "never"},
        {"structure": "b", "n = 8": "1"},
    ]
    assert "own   4.00 [3.00, 5.00]   chosen   1.10 (dense)" in str(lines()[0])


@pytest.mark.parametrize(
    ("points", "batch"),
    [
        ([(1, 2.0), (4, 0.5)], 2.0),
        ([(4, 0.5), (1, 2.0)], 2.0),
        ([(1, 0.9), (4, 0.5)], 1.0),
        ([(1, 0.5), (4, 1.5)], None),
        ([(1, 0.5), (4, 2.0), (16, 0.5)], 8.0),
        ([(1, 1.0), (2, 0.5)], 1.0),
    ],
)
def test_break_even_is_where_the_ratio_stays_below_one(points, batch):
    assert crosses(points) == batch


def test_the_verb_writes_its_tables_and_chart(tmp_path):
    arguments = [
        "bench",
        "structures",
        "--quick",
        "--only",
        "low_rank",
        "--pairs",
        "10",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "batch from which the own product is faster" in result.output
    facts = json.loads((tmp_path / "structures.json").read_text())
    sizes = [(n, b) for n in bench.QUICK_SIZES for b in bench.QUICK_BATCHES]
    assert [(row["n"], row["batch"]) for row in facts["rows"]] == sizes
    for row in facts["rows"]:
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert row["form"] in ("own", "dense")
    assert (tmp_path / "structures.svg").exists()
    assert (tmp_path / "structures.png").exists()


def test_the_verb_prints_json_alone(tmp_path):
    arguments = ["bench", "structures", "--quick", "--only", "none such", "--json", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"] == []
    assert "no structure's name contains 'none such'" in CliRunner().invoke(app, arguments[:5]).output
    assert (
        "Example: onematrix bench structures"
        in CliRunner().invoke(app, ["bench", "structures", "--help"]).output
    )
