"""Whole programs as one picture: which layers are folded, which rows are put together, and what is seen."""

import importlib
import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import onematrix as om
from model_cases import Block, layered
from onematrix.errors import OneMatrixError, ProgramError
from onematrix.networks import mlp, sru
from onematrix.programs.part import ONE
from onematrix.reports.bundling import Bundle, Group, bundle_items, count_shown, parts_shown, rows_shown
from onematrix.reports.drawing import draw
from onematrix.reports.figures import LOOK
from onematrix.reports.folding import Repeat, fold_parts, match_parts, unfolded, written_parts
from onematrix.reports.model_drawing import Layout, _fixed
from onematrix.reports.model_figure import _paint
from onematrix.reports.model_picture import has_layers, model_grid

LAYER = ("inner", "act", "outer", "")


def words_of(svg):
    return "".join(ElementTree.parse(svg).getroot().itertext())


@pytest.fixture
def as_text(monkeypatch):
    """Letters of an SVG as text instead of as outlines."""
    monkeypatch.setitem(LOOK, "svg.fonttype", "none")


def folded(program):
    return fold_parts(program, written_parts(program))


def labels(items):
    return [item if isinstance(item, str) else item.label for item in items]


def every_part(items):
    """All parts items stand for, in no order: of a repeat those of all its layers."""
    return sorted(
        n for i in items for n in ([i] if isinstance(i, str) else [p for layer in i.parts for p in layer])
    )


def test_equal_layers_are_found_by_their_rows():
    program = layered()
    items = folded(program)
    assert labels(items) == ["stem", "5 × layers.*", "head"]
    assert items[1].parts[3] == ("layers.3.inner", "layers.3.act", "layers.3.outer", "layers.3")
    assert unfolded(items) == [
        "stem",
        *parts_shown("layers.0.inner"),
        "layers.0.act",
        "layers.0.outer",
        "layers.0",
        "head",
    ]
    assert every_part(items) == sorted(written_parts(program))


def test_a_layer_that_differs_stands_by_itself():
    items = folded(layered((None, None, 0.1, None, None)))
    assert labels(items) == [
        "stem", "2 × layers.*", "layers.2.inner", "layers.2.act", "layers.2.outer", "layers.2", "2 × layers.*", "head",
    ]  # fmt: skip
    assert [i.numbers for i in items if isinstance(i, Repeat)] == [("0", "1"), ("3", "4")]
    assert labels(folded(layered((None, 0.1, 0.2)))) == unfolded(folded(layered((None, 0.1, 0.2))))


def test_layers_that_alternate_are_folded_in_pairs():
    (repeat,) = [i for i in folded(layered((None, 0.1) * 3)) if isinstance(i, Repeat)]
    assert (repeat.label, repeat.times, repeat.period) == ("3 × layers.{0,1}", 3, 2)
    assert len(repeat.items) == 8


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(Block(), Block(), Block()) for _ in range(2))

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return x


def stages():
    return om.convert(Stages(), torch.zeros(2, 8))


def test_repeats_inside_of_repeats_are_folded():
    (outer,) = folded(stages())
    assert outer.label == "2 × stages.*"
    assert labels(outer.items) == ["3 × stages.0.*"]
    assert len(unfolded([outer])) == 4
    grid = model_grid(stages())
    assert [(f.label, f.first, f.last, f.depth) for f in grid.frames] == [
        ("2 × stages.*", 0, 3, 0), ("3 × stages.0.*", 0, 3, 1),
    ]  # fmt: skip
    assert grid.scope == set(written_parts(stages()))
    inner, last = "stages.0.0.inner", "stages.0.0"
    assert [(r, c) for r, c in grid.cells if r == inner] == [(inner, "x"), (inner, ONE), (inner, last)]


def test_zoom_takes_a_layer_with_the_rows_it_writes_itself():
    program = layered()
    assert match_parts(program, "layers.3.*") == [
        "layers.3.inner",
        "layers.3.act",
        "layers.3.outer",
        "layers.3",
    ]
    assert match_parts(program, "*.act") == [f"layers.{i}.act" for i in range(5)]
    with pytest.raises(
        ProgramError, match=r"zoom 'layers\.9\.\*' fits none of 22 parts; names begin with stem, lay"
    ):
        match_parts(program, "layers.9.*")


@pytest.mark.parametrize("limit", [1, 4, 8, 20, 100])
def test_bundles_keep_every_part_once_and_the_limit(limit):
    program = layered([0.1 * i for i in range(1, 9)])  # eight different layers: nothing repeats
    names = written_parts(program)
    shown = bundle_items(folded(program), limit)
    assert sorted(n for item in shown for n in parts_shown(item)) == sorted(names)
    assert count_shown(shown) == len(rows_shown(shown))
    if limit >= 10:
        assert count_shown(shown) <= limit
    if limit == 100:
        assert shown == names
    else:
        assert any(isinstance(item, Bundle) for item in shown)


def test_the_largest_bundles_are_made_first_and_no_more_than_needed():
    names = ["a", "a_2", "a_3", "a_4", "b", "b_2", "c.d", "c.e"]
    assert bundle_items(names, 5) == [Bundle("a", ("a", "a_2", "a_3", "a_4")), "b", "b_2", "c.d", "c.e"]
    assert bundle_items(names, 4)[1:] == [Bundle("b", ("b", "b_2")), "c.d", "c.e"]
    assert bundle_items(names, 3)[2:] == [Bundle("c.*", ("c.d", "c.e"))]


def places_of(program):
    """(row, column, factor) of every block, from the definition."""
    return {
        (row.part, column, number > 0)
        for step in program.steps()
        for row in step.rows
        for number, blocks in enumerate(row.sums)
        for column, _ in blocks
    }


def attention():
    return om.convert(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), torch.zeros(2, 6, 16))


@pytest.mark.parametrize("make", [layered, attention], ids=["layers", "attention"])
def test_an_unfolded_grid_has_every_block_at_its_place(make):
    program = make()
    grid = model_grid(program, fold=False)
    assert [u.name for u in grid.rows] == written_parts(program)
    found = {(r, c, e.factor) for (r, c), entries in grid.cells.items() for e in entries}
    assert found == places_of(program)
    assert sum(map(len, grid.cells.values())) == len(program.blocks())
    assert [u.name for u in grid.columns][-1] == ONE
    assert grid.columns[0].name == program.inputs[0]
    assert grid.frames == ()


def test_a_folded_grid_maps_every_block_to_the_layer_that_is_shown():
    program = layered()
    grid = model_grid(program)
    assert [u.label for u in grid.rows] == ["stem", ".inner", ".act", ".outer", "layers.0", "head"]
    shown = {(r, c) for r, c in grid.cells}
    first = [re.sub(r"layers\.\d", "layers.0", name) for place in places_of(program) for name in place[:2]]
    assert shown == set(zip(first[::2], first[1::2], strict=True))
    assert ("layers.0.inner", "layers.0") in shown  # a layer reads the one before
    assert ("layers.0.inner", "stem") in shown
    assert [(f.label, f.first, f.last) for f in grid.frames] == [("5 × layers.*", 1, 4)]
    assert grid.notes == {"layers.0.act": "relu"}


def test_pairs_of_layers_read_each_other():
    grid = model_grid(layered((None, 0.1) * 3))
    read = {r: c for r, c in grid.cells if r.endswith("inner") and c not in (ONE, "stem")}
    assert read == {"layers.0.inner": "layers.1", "layers.1.inner": "layers.0"}
    assert [u.label for u in grid.rows[1:3]] == ["layers.0.inner", "layers.0.act"]


def test_a_zoomed_grid_reads_what_lies_outside():
    grid = model_grid(layered(), zoom="layers.2.*")
    assert [u.label for u in grid.rows] == [".inner", ".act", ".outer", "layers.2"]
    assert [u.name for u in grid.columns] == ["layers.1", *(u.name for u in grid.rows), ONE]
    both = model_grid(layered(), zoom="layers.*")
    assert [f.label for f in both.frames] == ["5 × layers.*"]


def test_which_programs_are_drawn_as_one_folded_matrix():
    assert has_layers(layered())
    assert not has_layers(sru(4))
    assert not has_layers(mlp([4] * 9))


def test_a_folded_picture_says_what_stands_for_what(tmp_path, as_text):
    program = layered()
    (svg,) = draw(program, tmp_path / "net.svg", title="Five layers")
    text = words_of(svg)
    for said in (
        "5 × layers.*",
        ".inner  16",
        "stem  8",
        "Five layers",
        "dense: 12 blocks, 1,320 numbers",
        "relu",
    ):
        assert said in text
    assert "layers.3" not in text
    assert "a frame holds one of equal layers" in text
    (svg,) = draw(program, tmp_path / "flat.svg", fold=False)
    assert "layers.3.inner  16" in words_of(svg)
    (svg,) = draw(program, tmp_path / "zoom.svg", zoom="layers.3.*")
    text = words_of(svg)
    assert "of them those of layers.3.*" in text
    assert "stem  8" not in text


def test_pictures_are_png_and_pages_and_equal_bytes(tmp_path):
    program = layered()
    for kind in (".svg", ".png", ".html"):
        assert len({draw(program, tmp_path / f"{n}{kind}")[0].read_bytes() for n in "ab"}) == 1
    page = (tmp_path / "a.html").read_text()
    targets = re.findall(r'<a href="#([^"]+)"', page)
    assert len(targets) == len(model_grid(program).cells)
    assert all(f'<g id="{target}" pointer-events="all"><title>' in page for target in targets)
    assert "layers.0.inner ← layers.0" in page
    for area in ("bytes", "equal"):
        assert draw(program, tmp_path / f"{area}.png", area=area)[0].stat().st_size > 5000


def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch):
    with pytest.raises(OneMatrixError, match=r"zoom='a\.\*' names parts of a program, got BlockMatrix"):
        draw(
            om.BlockMatrix({("y", "x"): om.list_structures()["identity"](3)}, {"x": 3, "y": 3}),
            tmp_path / "a",
            zoom="a.*",
        )
    monkeypatch.setattr("onematrix.reports.model_picture.MOST", 20)
    with pytest.raises(
        ProgramError, match="22 rows do not fit into one picture, 20 do; use fold=True, or zoom="
    ):
        draw(layered(), tmp_path / "a.svg", fold=False)
    assert list(tmp_path.iterdir()) == []


def deep():
    """About 500 parts of 20 different layers."""
    return layered([0.001 * (i + 1) for i in range(120)])


@pytest.mark.parametrize(
    "make", [layered, attention, deep, stages, lambda: sru(4)], ids=["5", "25", "480", "frames", "sru"]
)
def test_no_label_lies_on_another_and_none_is_tiny(make):
    """Boxes of the letters as matplotlib sets them, in pixels; the turned labels of columns stand apart by rows."""
    program = make()
    grid = model_grid(program)
    figure = _paint(program, grid, "size", "A title", "A caption")
    renderer = figure.canvas.get_renderer()
    axes = figure.axes[0]
    level = [t for t in axes.texts if t.get_rotation() == 0 and t.get_text()]
    boxes = [t.get_window_extent(renderer).padded(-0.5) for t in level]
    for a, b in combinations(range(len(boxes)), 2):
        assert not boxes[a].overlaps(boxes[b]), f"{level[a].get_text()!r} lies on {level[b].get_text()!r}"
    assert all(t.get_fontsize() >= 6 for t in axes.texts)
    layout = Layout(grid, program.parts, "size")
    columns = sorted(layout.left[u.name] + layout.side[u.name] / 2 for u in grid.columns)
    gaps = [b - a for a, b in pairwise(columns)]
    assert min(gaps) * 0.77 >= 8 / 72  # apart by the height of a letter, across a turn of 50 degrees
    assert len(grid.rows) <= 44
    assert max(figure.get_size_inches()) < 22


def test_blocks_of_bundles_are_small_and_where_their_rows_stand():
    program = deep()
    grid = model_grid(program)
    bundle = next(u for u in grid.rows if not u.single)
    entries = grid.cells[bundle.name, bundle.name]
    inside = {(r, c) for r, c, _ in places_of(program) if r in bundle.parts and c in bundle.parts}
    assert {(bundle.parts[e.row], bundle.parts[e.column]) for e in entries} == inside
    assert isinstance(bundle_items(folded(layered()), 2)[1], Group)


def test_blocks_of_sizes_that_are_free_are_drawn_as_if_they_were_small():
    window = om.list_structures()["window"]
    assert _fixed(window("time", "time + 1", 0, 1)).shape == (8, 9)
    far = window("time - 16", "time", 16, 1)
    assert _fixed(far).shape == ("time - 16", "time")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_large_models_meet_their_targets(name, request, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    import subprocess
    import sys

    script = request.config.rootpath / "benchmarks" / "model_sizes.py"
    line = [sys.executable, str(script), "--here", name]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" met\n") == 2
    assert "not met" not in done.stdout, done.stdout


@pytest.mark.filterwarnings("ignore")
def test_the_benchmark_prints_its_rows(request, monkeypatch, capsys):
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    module = importlib.import_module("model_sizes")
    assert module.measure_gpt2(2, n_embd=16, n_head=2, vocab_size=60)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["GPT-2 0 M"] * 2
    assert all(line.endswith(" met") and "≤" in line for line in lines)
