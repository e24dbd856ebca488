"""The benchmark for GPUs, rehearsed at small sizes: its table, its refusals, its arithmetic."""

import importlib
import json

import pytest
import torch

from onematrix.kernels.linear_scan import linear_scan


@pytest.fixture
def gpu(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    timing = importlib.import_module("gpu_timing")
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1e-5)
    return importlib.import_module("gpu")


def test_without_a_gpu_nothing_is_measured(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="GPU: not measured: no CUDA device at hand"):
        gpu.main([])


@pytest.mark.parametrize("part", ["scans", "sparse", pytest.param("programs", marks=pytest.mark.slow)])
def test_parts_at_their_smallest_size(part, gpu, capsys, tmp_path):
    rows = gpu.main(["--rehearse", "--only", part, "--pairs", "10", "--json", str(tmp_path / "rows.json")])
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "rows.json").read_text())
    assert len(found["rows"]) == len(rows) == text.count("| ") // 10 - 1 > 1
    assert found["rates"]["copy"] > 0
    for row in rows:
        assert row.low <= row.ratio <= row.high
        assert f"| {row.name} | {row.seconds * 1e6:.1f} |  | {row.peer} |" in text
    if part == "scans" and importlib.util.find_spec("fla") is None:
        assert "flash-linear-attention: not installed on this machine" in text


@pytest.mark.slow
@pytest.mark.parametrize("part", ["recurrences", "structures"])
def test_parts_that_compile(part, gpu, capsys):
    gpu.main(["--rehearse", "--only", part, "--pairs", "10"])
    assert "torch.compile" in capsys.readouterr().out


def test_what_is_wrong_is_not_timed(gpu, monkeypatch, capsys):
    def wrong(a, b, init, kernel=None):
        return linear_scan(a, b, init) * (1 if kernel else 1.001)

    monkeypatch.setattr(gpu, "linear_scan", wrong)
    with pytest.raises(SystemExit, match=r"linear scan .*, tensor 0: relative error 1.00e-03, allowed 1e-05"):
        gpu.main(["--rehearse", "--only", "scans", "--pairs", "10"])
    assert "|" not in capsys.readouterr().out


def test_best_over_floor_is_of_the_faster_of_call_and_replay(gpu):
    row = gpu.Row("n", 4e-6, 2e-6, "p", 8e-6, None, 0.5, 0.4, 0.6, 1e-6, ["why"])
    assert row.cells() == ["n", "4.0", "2.0", "p", "8.0", "", "0.50 [0.40, 0.60]", "1.0", "2.00", "why"]
