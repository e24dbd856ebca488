"""The measuring of ratios itself, and each benchmark at its smallest size."""

import importlib
import time

import pytest
import torch


@pytest.fixture
def benchmark_module(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    monkeypatch.setattr("onematrix.records.timing.SAMPLE_SECONDS", 1e-5)
    return importlib.import_module


def test_the_interval_holds_the_median_without_assumptions(benchmark_module):
    interval = benchmark_module("measure").median_interval
    assert interval(range(10)) == (1, 8)  # P(Binomial(10, ½) ≤ 1) = 11/1024: 97.9 %; ≤ 2 would give 89 %
    assert interval(range(21)) == (5, 15)
    assert interval([3, 1, 2] * 5) == (1, 3)


def test_a_ratio_is_peer_over_candidate_in_alternating_order(benchmark_module):
    order = []

    def call(name, seconds):
        order.append(name)
        time.sleep(seconds)

    ratio = benchmark_module("measure").compare(
        lambda: call("fast", 0.001), lambda: call("slow", 0.004), pairs=10, calls=1
    )
    assert order[:8] == ["fast", "slow", "slow", "fast", "fast", "slow", "slow", "fast"]
    assert 1.5 < ratio.median  # 4 on an idle machine; sleeping may take longer, never shorter
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.candidate_seconds < ratio.peer_seconds
    assert ratio.peer_seconds >= 0.004
    assert ratio.meets(ratio.low)
    assert not ratio.meets(ratio.median + 1)
    with pytest.raises(ValueError, match=r"at least 10 pairs .* got 9"):
        benchmark_module("measure").compare(print, print, pairs=9)


def test_a_wrong_result_stops_the_benchmark(benchmark_module):
    require_close = benchmark_module("measure").require_close
    require_close("y", torch.ones(3) + 1e-7, torch.ones(3).double(), 1e-6)
    with pytest.raises(SystemExit, match=r"y: relative error 1\.00e-01, allowed 1e-05; no time is reported"):
        require_close("y", torch.full((3,), 1.1), torch.ones(3), 1e-5)
    with pytest.raises(SystemExit, match="relative error nan"):
        require_close("y", torch.full((3,), torch.nan), torch.ones(3), 1e-5)


@pytest.mark.parametrize(("name", "size"), [("sparse_layer", (64, 0.1)), ("low_rank_layer", (64, 8))])
def test_each_benchmark_prints_its_rows(name, size, benchmark_module, capsys):
    benchmark_module(name).measure(*size)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].split(" ", 2)[2] for line in lines] == ["forward", "forward + backward"]
    assert all("met" in line and "× floor" in line for line in lines)


def test_the_interpreter_benchmark_checks_itself_and_prints_its_rows(benchmark_module, capsys):
    benchmark_module("interpreter").main(scale=16)
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 6
    assert all("met" in line and "× floor" in line for line in lines)


def test_dispatch_and_compiling_at_their_smallest(benchmark_module, monkeypatch, capsys):
    module = benchmark_module("dispatch")
    monkeypatch.setattr(module, "REPEATS", 1)
    module.main((3,), (2,))
    lines = capsys.readouterr().out.splitlines()
    assert "3 nodes:" in lines[-2]
    assert "2 parts:" in lines[-1]
    assert all("target" in line for line in lines[-2:])
