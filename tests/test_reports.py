"""Pictures, curves, tables and the page: what is on them, and what is refused."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

import onematrix as om
from onematrix.errors import OneMatrixError
from onematrix.networks import attention, inn, lstm, mlp, sru
from onematrix.reports.cells import COLOURS, colour_of, factor_label, nonzero_pattern, shrink_pattern
from onematrix.reports.curves import _bands, curves
from onematrix.reports.drawing import _panels, draw
from onematrix.reports.page import Report
from onematrix.reports.structures_page import structures_page
from onematrix.reports.tables import Table
from onematrix.structures import STRUCTURES
from onematrix.structures.identity import Identity, scale

NETWORKS = {
    "sru": sru,
    "lstm": lambda: lstm(3, 4),
    "mlp": lambda: mlp([4, 5, 3]),
    "attention": lambda: attention(4, 2),
    "inn": lambda: inn([30, 8, 4, 3], "csr", 0.3),
}


def size_of(png):
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("area", ["size", "bytes", "equal"])
def test_networks_are_drawn_as_svg_and_png(name, area, tmp_path):
    svg, png = draw(NETWORKS[name](), tmp_path / name, area=area)
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert min(size_of(png)) > 200


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_is_drawn(name, tmp_path):
    a = list(STRUCTURES[name].examples(torch.Generator().manual_seed(0)))[-1]
    (svg,) = om.draw(a, tmp_path / "a.svg")
    assert svg.stat().st_size > 500
    assert colour_of(a) in COLOURS.values()


def test_a_picture_names_every_part_with_its_size_and_every_activation(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(
        __import__("onematrix.reports.figures", fromlist=["LOOK"]).LOOK, "svg.fonttype", "none"
    )
    assert matplotlib
    (svg,) = draw(sru(5), tmp_path / "sru.svg")
    text = "".join(ElementTree.parse(svg).getroot().itertext())
    for part in ("x", "c_prev", "ones", "not_f", "Wx", "c1", "h"):
        assert f"{part}  5" in text
    assert text.count("sigmoid") == 2
    assert text.count("−1") == 2
    for word in ("identity", "dense", "diagonal", "4 × (14 rows ← σ(Gx) ∘ Hx)", "G", "H"):
        assert word in text


def test_the_panels_hold_the_blocks_of_the_equation():
    panels, _, caption = _panels(sru(5))
    assert [(p.name, len(p.blocks)) for p in panels] == [("G", 22), ("H", 14)]
    assert panels[0].rows == panels[0].columns
    assert "over time: 2 × (14 rows ← σ(Gx)), then 4 × (14 rows ← σ(Gx) ∘ Hx)" in caption
    (panel,), _, _ = _panels(inn([30, 8, 4, 3]))
    assert panel.rows == ("h1", "h2", "y")
    assert panel.columns == ("x", "h1", "h2", "y", "one")
    two, _, _ = _panels(
        om.Program(
            om.Seq(
                *(
                    om.Step(om.BlockMatrix({("a", "a"): s}, {"a": 2}))
                    for s in (Identity(2), scale(Identity(2), 2))
                )
            ),
            ["a"],
            ["a"],
        )
    )
    assert [p.name for p in two] == ["G 1", "G 2"]


@pytest.mark.parametrize("name", ["csr", "csc", "masked", "block_sparse", "permutation", "selection"])
def test_every_non_zero_of_a_small_block_has_its_own_pixel(name):
    for a in STRUCTURES[name].examples(torch.Generator().manual_seed(0)):
        pattern = nonzero_pattern(a)
        assert int((shrink_pattern(pattern, 240) == 1).sum()) == a.nonzeros()


def test_single_entries_of_a_large_block_stay_visible_and_shares_are_shares():
    pattern = np.zeros((1000, 700), dtype=bool)
    pattern[3, 5] = pattern[900, 650] = True
    small = shrink_pattern(pattern, 100)
    assert small.shape == (100, 100)
    assert sorted(small[small > 0]) == [0.25, 0.25]
    assert shrink_pattern(np.ones((1000, 700), dtype=bool), 100).min() == 1.0


def test_equal_input_gives_equal_bytes(tmp_path):
    for kind in (".svg", ".png"):
        a, b = (draw(sru(4), tmp_path / f"{n}{kind}")[0].read_bytes() for n in "ab")
        assert a == b


def test_a_drawing_page_needs_nothing_else(tmp_path):
    (page,) = draw(mlp([4, 5, 3]), tmp_path / "mlp.html", title="A & B")
    text = page.read_text()
    assert "A &amp; B" in text
    assert "x1 ← x0" in text
    assert not loads(text)


def loads(text):
    """What a browser would fetch from elsewhere."""
    return re.findall(r"""(?:src|href)=["']?(?!data:|#)[^"'>\s]+|<script|@import|url\((?!#)[^)]*\)""", text)


def test_what_cannot_be_drawn_is_named(tmp_path):
    with pytest.raises(OneMatrixError, match=r"a\.pdf: a picture ends in \.svg, \.png"):
        draw(sru(3), tmp_path / "a.pdf")
    with pytest.raises(OneMatrixError, match="area 'volume' is unknown; there are: size, bytes, equal"):
        draw(sru(3), tmp_path / "a", area="volume")
    with pytest.raises(OneMatrixError, match="a Program, BlockMatrix, Step or Structure was needed, got int"):
        draw(3, tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(OneMatrixError, match="cannot be written to"):
        draw(sru(3), tmp_path / "file" / "a.svg")


def test_factors_are_written_as_people_write_them():
    one = Identity(2)
    assert [factor_label(scale(one, f)) for f in (-1, 0.5, 0.1, 3)] == ["−1", "½", "0.1", "3"]
    assert factor_label(one) == ""


def test_bands_are_least_mean_and_largest_and_gaps_stay_gaps():
    runs = [([1, 2, 3], [1.0, math.nan, 5.0]), ([1, 2, 3], [3.0, math.nan, 7.0]), ([1], [2.0])]
    bands = _bands(runs)
    assert bands[0] == (1, 1.0, 2.0, 3.0)
    assert math.isnan(bands[1][2])
    assert bands[2] == (3, 5.0, 6.0, 7.0)


def test_curves_are_written_with_their_numbers(tmp_path):
    series = {"low rank": [([10, 100], [1.0, 2.0]), ([10, 100], [1.5, 2.5])], "none": []}
    svg, png = curves(series, tmp_path / "c", "stored numbers", "error in %", log_x=True, log_y=True)
    assert svg.exists()
    assert min(size_of(png)) > 300
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[0] == "series,run,stored numbers,error in %"
    assert lines[-1] == "low rank,1,100,2.5"
    with pytest.raises(OneMatrixError, match="no series has a point"):
        curves({"a": []}, tmp_path / "d", "x", "y")
    with pytest.raises(OneMatrixError, match="'a' has 2 x and 1 y values"):
        curves({"a": [([1, 2], [1])]}, tmp_path / "d", "x", "y")


def test_tables_in_four_forms(tmp_path):
    table = Table.from_rows(
        [{"name": "a|b", "n": 1234, "accuracy": 0.123, "E": 0.2}, {"name": "<c>", "n": None}]
    )
    assert table.columns == ("name", "n", "accuracy", "E")
    assert table.to_text().splitlines()[2].split() == ["a|b", "1,234", "12.3", "%", "20", "%"]
    assert table.to_csv() == "name,n,accuracy,E\na|b,1234,0.123,0.2\n<c>,,,\n"
    assert "&lt;c&gt;" in table.to_html()
    assert "<td class=n>1,234</td>" in table.to_html()
    assert table.to_markdown().splitlines()[1] == "|---|---:|---:|---:|"
    assert table.write_csv(tmp_path / "t.csv").read_text() == table.to_csv()


def page_with_everything(tmp_path):
    report = Report("Title <1>", "Summary.\n\nSecond.", command="onematrix demo", facts={"seed": 7})
    report.add_table("Numbers", Table.from_rows([{"n": 1}]), "About & numbers")
    report.add_figure("SRU", draw(sru(4), tmp_path / "sru"), "caption")
    report.add_figure("Again", draw(sru(4), tmp_path / "again"), "caption")
    report.add_text("Text", "words")
    report.add_check("fine", True, "0 of 3")
    return report


def test_the_page_is_whole_small_and_needs_no_network(tmp_path):
    report = page_with_everything(tmp_path)
    page = report.write(tmp_path / "report.html")
    text = page.read_text()
    assert page.stat().st_size < 2_000_000
    assert not loads(text)
    for word in (
        "Title &lt;1&gt;",
        "About &amp; numbers",
        "What E means",
        "193,204",
        "versions",
        "threads",
        "processor",
        "seed",
        "onematrix demo",
        "caption",
        "fine",
    ):
        assert word in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="#([^"]+)"', text):
        assert target in ids
    assert 24_000 * 8 + 301 * 4 == 193_204


def test_a_partial_page_says_so_and_failed_checks_stand_out(tmp_path):
    report = page_with_everything(tmp_path)
    report.interrupted = True
    report.add_check("broken", False, "3 of 3")
    text = report.to_html()
    assert "was interrupted" in text
    assert "✗ FAILED: broken" in text
    assert "was interrupted" not in page_with_everything(tmp_path).to_html()


def test_a_large_picture_is_embedded_as_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr("onematrix.reports.page.LARGEST_SVG", 1000)
    report = Report("t", "s")
    report.add_figure("SRU", draw(sru(4), tmp_path / "sru"))
    assert 'src="data:image/png;base64,' in report.to_html()


def test_the_structures_page_is_that_of_the_registry():
    from pathlib import Path

    page = Path(__file__).parents[1] / "docs" / "structures.md"
    assert page.read_text(encoding="utf-8") == structures_page(), (
        "rewrite it: python -m onematrix.reports.structures_page docs/structures.md"
    )


def test_without_matplotlib_the_remedy_is_named(monkeypatch, tmp_path):
    import builtins

    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(OneMatrixError, match=r'pip install "onematrix\[viz\]"'):
        draw(sru(3), tmp_path / "a")
