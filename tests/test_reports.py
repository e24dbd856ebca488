"""Pictures of programs and structures: what is on them, and what is refused."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

import onematrix as om
from onematrix.errors import OneMatrixError
from onematrix.networks import attention, inn, lstm, mlp, sru
from onematrix.programs.part import ONE, Part
from onematrix.reports.cells import Box, draw_cell, factor_label
from onematrix.reports.drawing import _picture, draw
from onematrix.reports.figures import LOOK, new_figure
from onematrix.reports.grid import AREAS, Panel, _shrink, lengths
from onematrix.reports.palette import COLOURS, colour_of, colour_of_name
from onematrix.reports.panels import describe_schedule, make_panels
from onematrix.reports.patterns import nonzero_pattern, shrink_pattern, shrink_values
from onematrix.structures import STRUCTURES
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity, scale
from onematrix.structures.tree import stored_bytes, stored_numbers

NETWORKS = {
    "sru": sru,
    "lstm": lambda: lstm(3, 4),
    "attention": lambda: attention(4, 2),
    "inn": lambda: inn([30, 8, 4, 3], "csr", 0.3),
}
PATTERNED = ("csr", "csc", "masked", "block_sparse", "permutation", "selection")


def examples(name):
    return list(STRUCTURES[name].examples(torch.Generator().manual_seed(0)))


def size_of(png):
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def words_of(svg):
    return "".join(ElementTree.parse(svg).getroot().itertext())


@pytest.fixture
def as_text(monkeypatch):
    """Letters of an SVG as text instead of as outlines."""
    monkeypatch.setitem(LOOK, "svg.fonttype", "none")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("area", AREAS)
def test_networks_are_drawn_as_svg_and_png_of_one_size(name, area, tmp_path):
    svg, png = draw(NETWORKS[name](), tmp_path / name, area=area)
    root = ElementTree.parse(svg).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    inches = [float(root.attrib[side].removesuffix("pt")) / 72 for side in ("width", "height")]
    assert [side / 150 for side in size_of(png)] == pytest.approx(inches, abs=0.05)


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_is_drawn_by_its_values_and_as_a_block(name, tmp_path, as_text):
    for a in examples(name)[-2:]:
        (svg,) = om.draw(a, tmp_path / "a.svg")
        m, n = a.fixed_shape
        text = words_of(svg)
        assert f"{name} {m}×{n}: {stored_numbers(a):,} numbers, E = " in text
        kept = int(np.count_nonzero(a.to_dense().numpy()))
        assert f"{kept:,} of {m * n:,} entries are not zero" in text
        (svg,) = draw(om.BlockMatrix({("y", "x"): a}, {"x": n, "y": m}), tmp_path / "b.svg")
        assert f"y  {m}" in words_of(svg)
        assert f"x  {n}" in words_of(svg)


def test_a_picture_names_every_part_with_its_size_and_every_activation(tmp_path, as_text):
    (svg,) = draw(sru(5), tmp_path / "sru.svg")
    text = words_of(svg)
    for part in ("x", "c_prev", "ones", "not_f", "Wx", "c1", "h"):
        assert text.count(f"{part}  5") >= 4  # at the left and on top, of G and of H
    assert text.count("sigmoid") == 2
    assert text.count("−1") == 2
    for word in ("identity: 29 blocks, 0", "dense: 3 blocks, 75", "diagonal: 4 blocks, 20"):
        assert word in text
    assert "over time: 2 × (14 rows ← σ(Gx)), then 4 × (14 rows ← σ(Gx) ∘ Hx); fed: x from inputs" in text
    assert "Sides grow with the square root of a part's size" in " ".join(text.split())


def test_a_block_tells_its_numbers_to_the_pointer(tmp_path):
    (svg,) = draw(inn([30, 8, 4, 3], "csr", 0.3), tmp_path / "inn.svg")
    assert re.search(
        r'<g id="block-0-0-0" [^>]*><title>G: h1 ← x, csr 8×30, 72 numbers, E = 30 %, ', svg.read_text()
    )
    assert svg.read_text().count("<title>") == 15


def test_the_panels_hold_the_blocks_of_the_equation():
    panels = _picture(sru(5), "size", "").panels
    assert [(p.name, len(p.blocks)) for p in panels] == [("G", 22), ("H", 14)]
    assert panels[0].rows == panels[0].columns
    (panel,) = _picture(inn([30, 8, 4, 3]), "size", "").panels
    assert panel.rows == ("h1", "h2", "y")
    assert panel.columns == ("x", "h1", "h2", "y", "one")
    assert panel.notes == {"h1": "relu", "h2": "relu"}
    joins = {p.name: p.notes for p in _picture(attention(4, 2), "size", "").panels}
    assert joins["G"] == {"scores": "softmax"}
    assert joins["H"]["products"] == '"q h d, k h d -> h q k"'


def step(structure, activation="identity", names=("a", "a")):
    return om.Step(om.BlockMatrix({names: structure}, {"a": 2, "b": 2}), activations={names[0]: activation})


def test_steps_share_a_panel_only_where_their_rows_mean_the_same():
    one, equal = Identity(2), Identity(2)
    tensor = torch.eye(2)

    def names(*steps):
        return [panel.name for panel in make_panels(steps)]

    assert names(step(one), step(equal)) == ["G"]
    assert names(step(Dense(tensor)), step(Dense(tensor))) == ["G"]
    assert names(step(Dense(tensor)), step(Dense(tensor.clone()))) == ["G 1", "G 2"]
    assert names(step(one), step(scale(one, 2))) == ["G 1", "G 2"]
    assert names(step(one), step(one, "relu")) == ["G 1", "G 2"]
    assert names(step(one), step(one, names=("a", "b"))) == ["G 1", "G 2"]
    assert names(step(one), step(one, names=("b", "a"))) == ["G"]
    more = om.Step(om.BlockMatrix({("a", "a"): one, ("a", "b"): one}, {"a": 2, "b": 2}))
    assert names(more, step(one)) == names(step(one), more) == ["G 1", "G 2"]


def test_the_schedule_is_said_in_words():
    a, b = step(Identity(2)), step(Identity(2), names=("b", "a"))
    assert describe_schedule(om.Seq(a, a, b)) == "2 × (a ← σ(Gx)), then b ← σ(Gx)"
    assert describe_schedule(om.Loop(a, times=3)) == "3 × (a ← σ(Gx))"
    assert describe_schedule(om.Loop(a, until=0.1)) == "until still: (a ← σ(Gx))"
    assert describe_schedule(om.Seq(*[a, b] * 5)) == "10 steps: a ← σ(Gx), …, b ← σ(Gx)"
    assert "over time, backwards: " in describe_schedule(om.Loop(a, over="time", reverse=True))
    assert describe_schedule(inn([30, 8, 4, 3]).schedule).startswith(
        "over time (time + 3 ticks): h1, h2, y ←"
    )


@pytest.mark.parametrize("name", PATTERNED)
def test_every_non_zero_of_a_small_block_has_its_own_dot(name):
    for a in examples(name):
        pattern = nonzero_pattern(a)
        axes = new_figure(2, 2).add_subplot()
        draw_cell(axes, a, Box(0, 0, 1, 1), Box(0, 0, 1, 1))
        dots = sum(int((image.get_array()[..., 3] == 1).sum()) for image in axes.images)
        assert dots == (0 if pattern.all() else a.nonzeros())
        assert np.array_equal(shrink_pattern(pattern, 240), pattern)


def test_low_rank_blocks_show_their_factors_and_rank():
    a = STRUCTURES["low_rank"].random(40, 20, 0.3)
    axes = new_figure(2, 2).add_subplot()
    draw_cell(axes, a, Box(0, 0, 2, 4), Box(0, 0, 2, 4))
    left, top = axes.patches[1:]
    assert left.get_width() == pytest.approx(1.94 * a.rank / 20)
    assert top.get_height() == pytest.approx(3.94 * a.rank / 40)
    assert [text.get_text() for text in axes.texts] == [f"rank {a.rank}"]


def test_single_entries_of_a_large_block_stay_visible_and_shares_are_shares():
    pattern = np.zeros((1000, 700), dtype=bool)
    pattern[3, 5] = pattern[900, 650] = True
    small = shrink_pattern(pattern, 100)
    assert small.shape == (100, 100)
    assert sorted(small[small > 0]) == [0.25, 0.25]
    assert shrink_pattern(np.ones((1000, 700), dtype=bool), 100).min() == 1.0
    half = np.indices((64, 64)).sum(0) % 2 == 0
    assert (shrink_pattern(half, 32) == 0.5).all()


def test_a_pixel_shows_the_largest_magnitude_with_its_sign():
    values = np.array([[1.0, -3.0, 0.0, 0.0], [2.0, 0.5, 0.0, 0.0]])
    assert shrink_values(np.vstack([values, values]), 2).tolist() == [[-3.0, 0.0], [-3.0, 0.0]]
    values[0, 3] = np.inf
    assert np.isnan(shrink_values(values, 2)[0, 1])
    assert shrink_values(values[:, :3], 9).tolist() == values[:, :3].tolist()


def test_sides_are_compressed_and_small_parts_stay_readable():
    parts = {"x": Part((2500,)), "h": Part((100,)), "y": Part((1,)), ONE: Part((1,))}
    panel = Panel("G", ("h", "y"), ("x", "h", ONE), {}, {}, crowd=4)
    side = lengths(panel, parts, "size")
    assert side["x"] == pytest.approx(0.8 * 2.0)
    assert side["h"] == pytest.approx(0.8 * (0.35 + 1.65 * 0.2))
    assert side["y"] >= 0.3 > side[ONE]
    assert len({s for name, s in lengths(panel, parts, "equal").items() if name != ONE}) == 1


def test_areas_are_proportional_to_stored_bytes():
    cell = Box(0, 0, 1.036, 1.036)
    a, b = (STRUCTURES["csr"].random(40, 40, e) for e in (0.4, 0.1))
    most = stored_bytes(a)
    large, small = _shrink(a, cell, most), _shrink(b, cell, most)
    assert large.width * large.height == pytest.approx(1.0)
    assert small.width * small.height == pytest.approx(stored_bytes(b) / most)
    dot = _shrink(Identity(3), cell, most)
    assert dot.width * dot.height == pytest.approx(0.01)


# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB: ordinary, protanope, deuteranope.
VISIONS = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
    ]
)
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour):
    """CIE 1976 L*a*b* of a colour in the three visions, (3, 3)."""
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    x = np.clip(VISIONS @ linear, 0, 1) @ XYZ.T / [0.9505, 1, 1.089]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


def test_colours_are_told_apart_by_colour_blind_readers():
    for a, b in itertools.combinations(COLOURS, 2):
        least = np.linalg.norm(lab(COLOURS[a]) - lab(COLOURS[b]), axis=-1).min()
        assert least > 8, f"{a} and {b} differ by {least:.1f}"


def test_every_kind_has_a_colour_and_a_factor_does_not_change_it():
    for name in STRUCTURES:
        assert re.fullmatch(r"#[0-9A-F]{6}", colour_of(examples(name)[-1]))
    assert colour_of(scale(Identity(2), -1)) == colour_of(Identity(2)) == COLOURS["identity"]
    assert colour_of_name("toeplitz") == colour_of_name("toeplitz") != colour_of_name("circulant")


def test_equal_input_gives_equal_bytes(tmp_path):
    a, b = Dense(torch.ones(3, 2)), Dense(torch.ones(3, 2))
    for kind in (".svg", ".png", ".html"):
        assert len({draw(sru(4), tmp_path / f"{n}{kind}")[0].read_bytes() for n in "ab"}) == 1
        assert (
            draw(a, tmp_path / f"c{kind}")[0].read_bytes() == draw(b, tmp_path / f"d{kind}")[0].read_bytes()
        )


def test_a_drawing_page_needs_nothing_else_and_its_rows_point_at_blocks(tmp_path):
    (page,) = draw(mlp([4, 5, 3]), tmp_path / "mlp.html", title="A & B")
    text = page.read_text()
    assert "<h1>A &amp; B</h1>" in text
    for word in ("x1 ← x0", "5 × 4", "x1 ← one"):
        assert word in text
    targets = re.findall(r'<a href="#([^"]+)"', text)
    assert len(targets) == 4
    assert all(f'<g id="{target}" pointer-events="all"><title>' in text for target in targets)
    assert not re.findall(r"""(?:src|href)=["']?(?!data:|#)[^"'>\s]+|<script|@import|url\((?!#)""", text)


def test_long_programs_are_drawn_whole(tmp_path, as_text):
    (svg,) = draw(mlp([40] * 31), tmp_path / "deep.svg", title="Thirty parts")
    text = words_of(svg)
    assert all(f"x{i}  40" in text for i in range(31))
    assert "30 steps: x1 ← σ(Gx), …, x30 ← σ(Gx)" in text
    assert "Thirty parts" in text


def test_structures_without_entries_at_hand_are_drawn_filled(tmp_path, as_text, monkeypatch):
    monkeypatch.setattr("onematrix.reports.patterns.LARGEST", 10)
    (svg,) = draw(STRUCTURES["csr"].random(8, 8, 0.2), tmp_path / "a.svg")
    assert "csr 8×8: " in words_of(svg)
    assert "csr: 1 block, 13 numbers" in words_of(svg)
    meta = Dense(torch.empty(300_000, 300_000, device="meta"))
    (svg,) = draw(meta, tmp_path / "meta.svg")
    assert "dense: 1 block, 90,000,000,000 numbers" in words_of(svg)


def test_what_cannot_be_drawn_is_named(tmp_path):
    with pytest.raises(OneMatrixError, match=r"a\.pdf: a picture ends in \.svg, \.png"):
        draw(sru(3), tmp_path / "a.pdf")
    with pytest.raises(OneMatrixError, match="area 'volume' is unknown; there are: size, bytes, equal"):
        draw(sru(3), tmp_path / "a", area="volume")
    with pytest.raises(OneMatrixError, match="a Program, BlockMatrix, Step or Structure was needed, got int"):
        draw(3, tmp_path / "a")
    with pytest.raises(OneMatrixError, match="a path for the picture was needed, got int 7"):
        draw(sru(3), 7)
    with pytest.raises(OneMatrixError, match="at least one block was needed, got none"):
        draw(om.BlockMatrix({}, {"x": 3}), tmp_path / "a")
    (tmp_path / "file").write_text("")
    for kind in (".svg", ".html"):
        with pytest.raises(OneMatrixError, match="cannot be written to"):
            draw(sru(3), tmp_path / "file" / f"a{kind}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_factors_are_written_as_people_write_them():
    one = Identity(2)
    assert [factor_label(scale(one, f)) for f in (-1, 0.5, 0.1, 3)] == ["−1", "½", "0.1", "3"]
    assert factor_label(one) == ""


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
