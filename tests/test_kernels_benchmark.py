"""The benchmark of the recurrences at its smallest size: it checks itself and prints every row."""

import importlib


def test_the_benchmark_of_recurrences_prints_its_rows(monkeypatch, request, capsys):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    monkeypatch.setattr("onematrix.records.timing.SAMPLE_SECONDS", 1e-5)
    importlib.import_module("recurrences").main(scale=32, kernel="torch")
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 28
    assert all("met" in line and "× floor" in line for line in lines)
    assert sum("+ grad" in line for line in lines) == 14
