"""Curves, tables and the page: what is on them, and what is refused."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from onematrix.errors import OneMatrixError
from onematrix.networks import sru
from onematrix.reports.curves import _bands, curves
from onematrix.reports.drawing import draw
from onematrix.reports.figures import LOOK
from onematrix.reports.page import Report
from onematrix.reports.structures_page import structures_page, structures_table
from onematrix.reports.tables import Link, Table, format_bytes, format_cell
from onematrix.structures import STRUCTURES


@pytest.fixture
def as_text(monkeypatch):
    """Letters of an SVG as text instead of as outlines."""
    monkeypatch.setitem(LOOK, "svg.fonttype", "none")


def test_bands_are_least_mean_and_largest_and_gaps_stay_gaps():
    runs = [([1, 2, 3], [1.0, math.nan, 5.0]), ([1, 2, 3], [3.0, math.nan, 7.0]), ([1], [2.0])]
    bands = _bands(runs)
    assert bands[0] == (1, 1.0, 2.0, 3.0)
    assert math.isnan(bands[1].middle)
    assert bands[2] == (3, 5.0, 6.0, 7.0)
    assert _bands(runs, "deviation")[2] == (3, 5.0, 6.0, 7.0)  # of 5 and 7: mean 6, deviation 1
    assert _bands([([1], [y]) for y in (0.0, 0.0, 6.0)], "deviation")[0].high == pytest.approx(2 + 8**0.5)


def test_curves_are_written_with_their_numbers_and_say_what_the_band_is(tmp_path, as_text):
    series = {"low rank": [([10, 100], [1.0, 2.0]), ([10, 100], [1.5, 2.5])], "none": []}
    svg, png = curves(series, tmp_path / "c", "stored numbers", "error in %", log_x=True, log_y=True)
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for word in ("low rank", "stored numbers", "error in %", "band: smallest to largest run. 2 runs each."):
        assert word in svg.read_text()
    assert "not drawn" not in svg.read_text()
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[0] == "series,run,stored numbers,error in %"
    assert lines[-1] == "low rank,1,100,2.5"
    (svg,) = curves(series, tmp_path / "d.svg", "x", "y", spread="deviation", title="T & t")
    assert "band: one standard deviation to each side. 2 runs each." in svg.read_text()
    assert "T &amp; t" in svg.read_text()
    assert (tmp_path / "d.csv").exists()
    assert curves(series, tmp_path / "e.svg", "x", "y", spread="deviation", title="T & t")[
        0
    ].read_bytes() == (svg.read_bytes())


def test_points_that_cannot_be_drawn_are_counted(tmp_path, as_text):
    runs = {"a": [([0, 1, 2, 3], [1.0, math.nan, math.inf, -4.0])], "b": [([1], [1])] * 2}
    (svg,) = curves(runs, tmp_path / "a.svg", "x", "y")
    assert "1 to 2 runs each. Points not drawn (nan, infinite, not positive): 2." in svg.read_text()
    (svg,) = curves(runs, tmp_path / "a.svg", "x", "y", log_y=True)
    assert "not positive): 3." in svg.read_text()
    (svg,) = curves(runs, tmp_path / "a.svg", "x", "y", log_x=True)
    assert "not positive): 3." in svg.read_text()
    (svg,) = curves({"a": runs["a"]}, tmp_path / "a.svg", "x", "y")
    assert "One run per line." in svg.read_text()
    with pytest.raises(OneMatrixError, match=r"a\.svg: none of 3 points can be drawn"):
        curves({"a": [([1, 2, -1], [math.nan, 0, 5])]}, tmp_path / "a.svg", "x", "y", log_x=True, log_y=True)


def test_curves_refuse_what_is_no_series(tmp_path):
    with pytest.raises(OneMatrixError, match="curves d: no series has a point"):
        curves({"a": [], "b": [([], [])]}, tmp_path / "d", "x", "y")
    with pytest.raises(OneMatrixError, match="'a' has 2 x and 1 y values"):
        curves({"a": [([1, 2], [1])]}, tmp_path / "d", "x", "y")
    with pytest.raises(OneMatrixError, match="a mapping name → runs was needed, got list"):
        curves([([1], [1])], tmp_path / "d", "x", "y")
    with pytest.raises(OneMatrixError, match=r"'a': a run is a pair .* got \[1, 2, 3\]"):
        curves({"a": [[1, 2, 3]]}, tmp_path / "d", "x", "y")
    with pytest.raises(OneMatrixError, match="spread 'iqr' is unknown; there are: range, deviation"):
        curves({"a": [([1], [1])]}, tmp_path / "d", "x", "y", spread="iqr")
    with pytest.raises(OneMatrixError, match=r"d\.jpg: a picture ends in \.svg, \.png"):
        curves({"a": [([1], [1])]}, tmp_path / "d.jpg", "x", "y")
    assert not list(tmp_path.iterdir())


def test_tables_in_five_forms(tmp_path):
    table = Table.from_rows(
        [{"name": "a|b", "n": 1234, "accuracy": 0.123, "E": 0.2}, {"name": "<c>", "n": None}]
    )
    assert table.columns == ("name", "n", "accuracy", "E")
    assert table.to_text().splitlines()[2].split() == ["a|b", "1,234", "12.3", "%", "20", "%"]
    assert table.to_text().splitlines()[0].startswith("name      n")
    assert table.to_csv() == "name,n,accuracy,E\na|b,1234,0.123,0.2\n<c>,,,\n"
    assert "<td>&lt;c&gt;</td>" in table.to_html()
    assert "<td class=n>1,234</td>" in table.to_html()
    assert table.to_markdown().splitlines()[1:3] == [
        "|---|---:|---:|---:|",
        "| a\\|b | 1,234 | 12.3 % | 20 % |",
    ]
    assert table.write_csv(tmp_path / "t.csv").read_text() == table.to_csv()
    from rich.console import Console

    console = Console(width=60, record=True, file=open("/dev/null", "w"))
    console.print(table.to_rich("Title"))
    shown = console.export_text()
    for word in ("Title", "a|b", "1,234", "12.3 %", "<c>"):
        assert word in shown


def test_cells_carry_their_units():
    cells = {
        ("n", 1234567): "1,234,567",
        ("index bytes", 1234): "1.2 kB",
        ("index bytes", 0): "0 B",
        ("seconds", 0.0123456): "0.01235",
        ("x", 12345.67): "12,345.7",
        ("x", np.float32(0.5)): "0.5",
        ("x", np.int64(1500)): "1,500",
        ("share", 0.4567): "45.7 %",
        ("E", 0.198333): "19.8 %",
        ("x", math.nan): "nan",
        ("E", math.inf): "inf",
        ("ok", True): "yes",
        ("ok", False): "",
        ("x", None): "",
        ("x", "text"): "text",
    }
    for (name, value), shown in cells.items():
        assert format_cell(name, value) == shown, (name, value)
    sizes = [
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (5 * 10**15, "5,000.0 TB"),
    ]
    assert [format_bytes(n) for n, _ in sizes] == [text for _, text in sizes]


def test_tables_refuse_rows_without_names_and_may_be_empty():
    with pytest.raises(OneMatrixError, match="row 1: a mapping column → value was needed, got tuple"):
        Table.from_rows([{"a": 1}, (1, 2)])
    assert Table.from_rows([]).to_markdown() == "|  |\n||"
    assert Table.from_rows([{"a": 1, "b": 2}], columns=["b"]).to_csv() == "b\n2\n"
    linked = Table.from_rows([{"block": Link("a & b", "#here")}])
    assert '<td><a href="#here">a &amp; b</a></td>' in linked.to_html()
    assert "| a & b |" in linked.to_markdown()


def loads(text):
    """What a browser would fetch from elsewhere."""
    return re.findall(r"""(?:src|href)=["']?(?!data:|#)[^"'>\s]+|<script|@import|url\((?!#)[^)]*\)""", text)


def page_with_everything(tmp_path):
    report = Report(
        "Title <1>", "Summary.\n\nSecond.", command="onematrix demo", facts={"seed": 7, "none": None}
    )
    report.add_table("Numbers", Table.from_rows([{"n": 1}]), "About & numbers")
    report.add_figure("SRU", draw(sru(4), tmp_path / "sru"), "caption")
    report.add_figure("SRU", str(draw(sru(4), tmp_path / "again.svg")[0]), "caption")
    report.add_text("Text", "words")
    report.add_check("fine", True, "0 of 3")
    return report


def test_the_page_is_whole_small_and_needs_no_network(tmp_path):
    report = page_with_everything(tmp_path)
    report.duration_seconds = 12.34
    page = report.write(tmp_path / "report.html")
    text = page.read_text()
    assert page.stat().st_size < 2_000_000
    assert not loads(text)
    assert "default-src 'none'" in text
    for word in (
        "<h1>Title &lt;1&gt;</h1>",
        "<p>Summary.</p><p>Second.</p>",
        "About &amp; numbers",
        "caption",
        "fine",
    ):
        assert word in text
    facts = re.findall(r"<tr><td>(\w+)</td><td>([^<]+)</td></tr>", text)
    assert {"command", "seed", "written", "duration", "processor", "threads", "load", "versions"} <= dict(
        facts
    ).keys()
    assert "none" not in dict(facts)
    assert dict(facts)["duration"] == "12.3 s"
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for target in [*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)]:
        assert target in ids


def test_the_worked_example_of_E_is_right(tmp_path):
    text = Report("t", "s").to_html()
    numbers = [list(map(int, re.findall(r"<td class=n>([\d]+)</td>", row.replace(",", "")))) for row in
               re.findall(r"<tr><td>(?:dense|sparse|low-rank).*?</tr>", text, re.S)]  # fmt: skip
    columns, pointers, rank = 24_000 * 4, 301 * 4, 34
    assert numbers == [
        [300 * 400, 0, 300 * 400 * 4],
        [24_000, columns + pointers, 24_000 * 4 + columns + pointers],
        [rank * 700, 0, rank * 700 * 4],
    ]
    assert "19.8 %" in text
    assert round(100 * rank * 700 / 120_000, 1) == 19.8


def test_a_partial_page_says_so_and_failed_checks_stand_out(tmp_path):
    report = page_with_everything(tmp_path)
    report.interrupted = True
    report.add_check("broken", False, "3 of 3")
    text = report.to_html()
    assert "was interrupted" in text
    assert "✗ FAILED: broken" in text
    assert "was interrupted" not in page_with_everything(tmp_path).to_html()
    assert "Checks" not in Report("t", "s").to_html()


def test_large_pictures_and_full_pages_take_pixels(tmp_path, monkeypatch):
    paths = draw(sru(4), tmp_path / "sru")
    one = Report("t", "s")
    one.add_figure("SRU", paths)
    assert "<svg role=" in one.to_html()
    for _ in range(11):
        one.add_figure("SRU", paths)
    assert "data:image/png" in one.to_html()
    assert len(one.to_html()) < 2_000_000
    monkeypatch.setattr("onematrix.reports.embedding.LARGEST_SVG", 1000)
    report = Report("t", "s")
    report.add_figure("S & U", paths)
    assert '<img alt="S &amp; U" src="data:image/png;base64,' in report.to_html()


def test_the_page_refuses_what_it_cannot_show(tmp_path):
    report = Report("t", "s")
    with pytest.raises(OneMatrixError, match=r"figure 'A': no file .*gone\.svg; draw it"):
        report.add_figure("A", tmp_path / "gone.svg")
    with pytest.raises(
        OneMatrixError, match=r"figure 'A': an \.svg or \.png file was needed, got \['a\.gif'\]"
    ):
        report.add_figure("A", ["a.gif"])
    with pytest.raises(OneMatrixError, match="table 'T': a Table was needed, got list"):
        report.add_table("T", [{"a": 1}])
    assert report.sections == []


def test_the_structures_page_is_that_of_the_registry():
    page = Path(__file__).parents[1] / "docs" / "structures.md"
    assert page.read_text(encoding="utf-8") == structures_page(), (
        "rewrite it: python -m onematrix.reports.structures_page docs/structures.md"
    )
    rows = {row["name"]: row for row in structures_table().rows}
    defined = {name for name, cls in STRUCTURES.items() if hasattr(cls, "definition")}
    assert rows.keys() == {f"`{name}`" for name in STRUCTURES.keys() - defined}
    assert rows["`low_rank`"]["fit"] == "yes"
    assert all(row["definition"] for row in rows.values())
