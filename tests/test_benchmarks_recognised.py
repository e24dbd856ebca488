"""The benchmark of what recognition gains, at its smallest size."""

import importlib

import pytest


@pytest.fixture
def recognised(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    monkeypatch.setattr("onematrix.records.timing.SAMPLE_SECONDS", 1e-5)
    return importlib.import_module("recognised")


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("long_convolution", {"channels": 2, "ticks": 64}),
        ("convolution_of_any_length", {"channels": 2, "taps": 601, "lengths": (4, 700)}),
        ("banded_attention", {"ticks": 256, "band": 16}),
        ("masks_in_buffers", {"ticks": 256, "band": 16}),
        ("convolution_as_csr", {"side": 14, "batch": 2}),
    ],
)
def test_every_case_checks_itself_and_prints_both_directions(recognised, case, options, capsys):
    getattr(recognised, case)(**options, calls=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (2 if case in ("long_convolution", "banded_attention") else 4)
    assert all("× floor" in line and "met" in line for line in lines)


def test_the_entries_of_a_convolution_are_its_matrix(recognised):
    import torch

    from onematrix.structures.convolution import Convolution

    a = Convolution(torch.randn(3, 2, 3, 3), 5, 5, padding="1 1 1 1")
    assert torch.equal(recognised.by_entries(a, together=7).to_dense(), a.to_dense().float())
