"""The errata's tables are the computed ones, and the counts are those of the formulas."""

from pathlib import Path

import pytest

from onematrix.experiments.kale_tables import expected_draws, table_3, table_4, table_7
from onematrix.reports.tables import Table

PAGE = (Path(__file__).parents[1] / "docs" / "errata.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("compute", [table_3, table_4, table_7])
def test_the_page_shows_the_computed_table(compute):
    assert Table.from_rows(compute()).to_markdown() in PAGE


def test_the_tables_follow_their_formulas():
    for row in table_3():
        n = row["n"]
        assert (row["entries"], row["non-zero"]) == (1960 * n**2, 18 * n**2 + 170 * n)
        assert row["printed ÷ computed"] == pytest.approx(10, abs=0.01)
    for row in table_4():
        n = row["n"]
        assert (row["G"], row["H"]) == (6 * n**2 + 52 * n + 1, 42 * n + 1)
    for row in table_7():
        assert row["low rank"] == row["low rank, printed"]
        assert abs(row["z of printed"]) < 2
        assert abs(row["sparse, drawn here"] - row["sparse, expected"]) < 4 * row["± sd"]
        weights = sum(
            round(row["E in %"] * m * n / 100)
            for i, m in enumerate((300, 20, 10))
            for j, n in enumerate((2500, 300, 20, 10))
            if (i, j) != (2, 2)
        )
        assert row["sparse, exact"] == weights + 200 + 330


def test_the_expected_draws_are_those_of_a_simulation():
    import torch

    mean, deviation = expected_draws(0.2)
    g = torch.Generator().manual_seed(1)
    sizes = [
        (m, n)
        for i, m in enumerate((300, 20, 10))
        for j, n in enumerate((2500, 300, 20, 10))
        if (i, j) != (2, 2)
    ]
    draws = [
        1510
        + sum(len(torch.unique(torch.randint(m * n, (int(0.2 * m * n),), generator=g))) for m, n in sizes)
        for _ in range(20)
    ]
    values = torch.tensor(draws, dtype=torch.float64)
    assert abs(float(values.mean()) - mean) < 4 * deviation / 20**0.5
    assert 0.5 < float(values.std()) / deviation < 1.7
