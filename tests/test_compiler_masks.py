"""Attention under masks: what is read off them, which kernel runs, and that it is the program's meaning."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import onematrix as om
from onematrix.compiler.attention import _loop_reads, find_attention
from onematrix.compiler.emit import emit
from onematrix.compiler.form import Form
from onematrix.compiler.masks import Band
from onematrix.compiler.module import Compiled
from onematrix.compiler.pipeline import lower
from onematrix.errors import CompileError
from onematrix.networks import attention, lstm
from onematrix.programs.wiring import WiredLoop, WiredSeq
from structure_cases import near, normal

INF = float("inf")
WIDTH = 8


class Attention(nn.Module):
    """Two heads; `weights` maps scores (…, T, T) to what multiplies the values."""

    def __init__(self, weights, heads=2):
        super().__init__()
        self.weights, self.heads = weights, heads
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x):
        b, t, n = x.shape
        q, k, v = (
            y.view(b, t, self.heads, n // self.heads).transpose(1, 2) for y in self.project(x).chunk(3, -1)
        )
        return (self.weights(q @ k.transpose(-1, -2), t) @ v).transpose(1, 2).reshape(b, t, n)


def distance(t):
    place = torch.arange(t)
    return place[:, None] - place


def hide(scores, shown):
    return scores.masked_fill(~shown, -INF).softmax(-1)


KNOWN = {
    "tril": (lambda s, t: hide(s, torch.ones(t, t, dtype=torch.bool).tril()), Band(None, 0)),
    "less": (lambda s, t: hide(s, distance(t) > -1), Band(None, 0)),
    "scaled before": (lambda s, t: hide(s / 2**0.5, distance(t) >= 0), Band(None, 0)),
    "scaled behind": (lambda s, t: (s.masked_fill(distance(t) < 0, -INF) * 0.5).softmax(-1), Band(None, 0)),
    "where": (lambda s, t: torch.where(distance(t) >= 0, s, -INF).softmax(-1), Band(None, 0)),
    "added": (lambda s, t: (s + torch.full((t, t), -INF).triu(1)).softmax(-1), Band(None, 0)),
    "very low": (
        lambda s, t: (s + torch.full((t, t), torch.finfo(torch.float32).min).triu(1)).softmax(-1),
        Band(None, 0),
    ),
    "band": (lambda s, t: hide(s, (distance(t) >= 0) & (distance(t) < 3)), Band(2, 0)),
    "both sides": (lambda s, t: hide(s, distance(t).abs() <= 2), None),  # an absolute value is not followed
    "two sides": (lambda s, t: hide(s, (distance(t) <= 4) & (distance(t) >= -1)), Band(4, 1)),
    "hidden by either": (
        lambda s, t: s.masked_fill((distance(t) > 3) | (distance(t) < 0), -INF).softmax(-1),
        Band(3, 0),
    ),
    "doubled": (lambda s, t: hide(s, 2 * distance(t) < 5) * 1.0, None),  # the product is read by another
    "twice": (lambda s, t: hide(hide_only(s, distance(t) < 4), distance(t) >= 0), Band(3, 0)),
    "none": (lambda s, t: s.softmax(-1), None),
}


def hide_only(scores, shown):
    return scores.masked_fill(~shown, -INF)


def found(module, ticks=6):
    """The attentions of a converted module, by result."""
    program = lower(om.convert(module, normal(2, ticks, WIDTH).float()))
    uses = dict.fromkeys(program.outputs, 1)
    for _, column, _ in program.blocks():
        uses[column] = uses.get(column, 0) + 1
    return program, [a for name, a in find_attention(program, uses).items() if name == a.result]


@pytest.mark.parametrize("name", KNOWN)
def test_bands_are_read_off_the_rows_that_compute_them(name):
    weights, band = KNOWN[name]
    _, attentions = found(Attention(weights))
    assert [a.scores.band for a in attentions if a.scores.band] == ([band] if band else [])


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("ticks", [1, 2, 5, 70, 300])
def test_masked_attention_means_the_same_at_every_length(name, ticks):
    weights, band = KNOWN[name]
    torch.manual_seed(0)
    module = Attention(weights).double()
    compiled = om.compile(module, normal(2, 6, WIDTH), measure=False, prove=ticks == 1)
    x = normal(2, ticks, WIDTH).requires_grad_()
    out, wanted = compiled(x), module(x)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
    free = [x, *module.parameters()]
    weight = normal(*wanted.shape, seed=3)
    slopes = [torch.autograd.grad((y * weight).sum(), free) for y in (out, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    if band is not None:
        assert "softmax" not in compiled.text
        assert "arange" not in compiled.text
        assert "fill" not in compiled.text
        assert ("is_causal" in compiled.text) is (band == Band(None, 0))


def test_the_mask_of_a_known_band_costs_nothing():
    compiled = om.compile(Attention(KNOWN["band"][0]), torch.zeros(2, 6, WIDTH), measure=False)
    assert "module._run" not in compiled.text
    assert not any(word in compiled.text for word in ("apply_wire", "torch.full", "expand"))
    plain = Compiled(compiled.program, compiled.lowered, Form(bands=False))
    assert "softmax" in plain.text, "a softmax under a mask nobody knows stays one"


UNKNOWN = {
    "own place hidden": lambda s, t: hide(s, distance(t) > 0),
    "beyond": lambda s, t: hide(s, (distance(t) >= 2) & (distance(t) < 5)),
    "from place 2": lambda s, t: hide(s, (distance(t) >= 0) & (torch.arange(t) >= 2)),
    "sum of places": lambda s, t: hide(s, torch.arange(t)[:, None] + torch.arange(t) < 100),
    "not so low": lambda s, t: (s + torch.full((t, t), -5.0).triu(1)).softmax(-1),
    "bias": lambda s, t: (s + distance(t)).softmax(-1),
    "anti-causal": lambda s, t: hide(s, distance(t) <= 0),
    "negative scale": lambda s, t: (s.masked_fill(distance(t) < 0, -INF) * -0.5).softmax(-1),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_masks_that_are_no_band_or_may_hide_a_whole_row_stay_as_they_are(name):
    module = Attention(UNKNOWN[name]).double()
    assert found(module.float())[1] == []
    compiled = om.compile(module.double(), normal(2, 6, WIDTH), measure=False, prove=False)
    x = normal(2, 7, WIDTH)
    torch.testing.assert_close(compiled(x), module(x), equal_nan=True, rtol=1e-9, atol=1e-9)
    assert "attend(" not in compiled.text


class Given(nn.Module):
    """Torch's attention, whose empty rows are 0, under a mask that is an input."""

    def __init__(self, added):
        super().__init__()
        self.added = added

    def forward(self, q, k, v, mask):
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask if self.added else mask > 0)


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("shape", [(4, 5), (1, 5), (4, 1)])
def test_torchs_own_attention_comes_back_under_any_mask(added, shape):
    q, k, v = (normal(2, 3, t, 4, seed=s).requires_grad_() for t, s in ((4, 1), (5, 2), (5, 3)))
    mask = normal(2, 1, *shape, seed=4)
    mask[0, :, 0] = -INF  # one query sees nothing
    module = Given(added)
    compiled = om.compile(module, q, k, v, mask, measure=False, prove=False)
    assert "attn_mask" in compiled.text
    out, wanted = compiled(q, k, v, mask), module(q, k, v, mask)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(*(torch.autograd.grad(y.sum(), (q, k, v)) for y in (out, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("queries", "keys"), [(3, 6), (6, 3), (4, 5)])
def test_causal_masks_of_other_lengths_begin_at_the_first_key(queries, keys):
    class Cross(nn.Module):
        def forward(self, q, k, v):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    q, k, v = (normal(2, 3, t, 4, seed=s) for t, s in ((queries, 1), (keys, 2), (keys, 3)))
    compiled = om.compile(Cross(), q, k, v, measure=False)
    assert "is_causal" in compiled.text
    near(compiled(q, k, v), Cross()(q, k, v))


def test_a_band_of_other_lengths_may_empty_a_row_and_is_left_alone():
    class Cross(nn.Module):
        def forward(self, q, k):
            seen = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
            return hide(q @ k.transpose(-1, -2), (seen >= 0) & (seen < 2)) @ k

    q, k = normal(2, 6, 4), normal(2, 3, 4, seed=2)
    compiled = om.compile(Cross(), q, k, measure=False, prove=False)
    assert "softmax" in compiled.text
    torch.testing.assert_close(compiled(q, k), Cross()(q, k), equal_nan=True)
    assert compiled(q, k)[:, 5].isnan().all()


def test_what_the_maps_of_a_loop_read_is_not_dropped():
    program = lower(lstm(3, 4))
    reads = _loop_reads(program.wiring)
    fed = {wire.column for loop in loops(program.wiring) for row in loop.feeds for wire in row.sums[0]}
    assert fed
    assert fed <= reads


def loops(wired):
    if isinstance(wired, WiredSeq):
        return [loop for child in wired.body for loop in loops(child)]
    return [wired] if isinstance(wired, WiredLoop) else []


def test_a_mask_that_others_read_is_still_computed():
    class Shared(nn.Module):
        def forward(self, x):
            seen = distance(x.shape[1]) >= 0
            return hide(x @ x.transpose(-1, -2), seen) @ x, seen.to(x.dtype) @ x

    x = normal(2, 6, WIDTH).float()
    compiled = om.compile(Shared(), x, measure=False)
    assert "is_causal" in compiled.text
    for ours, theirs in zip(compiled(x), Shared()(x), strict=True):
        near(ours, theirs, torch.float32)


def test_attention_without_heads_runs_as_one_head():
    class Single(nn.Module):
        def forward(self, x):
            return hide(x @ x.transpose(-1, -2), distance(x.shape[1]) >= 0) @ x

    x = normal(2, 6, WIDTH)
    compiled = om.compile(Single(), x, measure=False)
    assert ".unsqueeze(1)" in compiled.text
    near(compiled(x), Single()(x))


def test_a_fed_mask_that_may_empty_a_row_of_a_softmax_is_not_taken():
    program = attention(8, 2, mask=True)
    compiled = om.compile(program)
    assert "attend(" not in compiled.text
    mask = torch.full((1, 2, 3, 3), -INF)
    assert compiled(torch.randn(1, 3, 8), mask).isnan().all()
    assert any("scores are masked" in note for note in compiled.notes)


def test_the_proof_sees_a_band_that_is_off_by_one(monkeypatch):
    from onematrix.compiler import masks

    right = masks._band
    monkeypatch.setattr(masks, "_band", lambda seen: shifted(right(seen)))
    with pytest.raises(CompileError, match=r"proof: .* differs from the interpreter"):
        om.compile(Attention(KNOWN["band"][0]), torch.zeros(2, 6, WIDTH), measure=False)


def shifted(band):
    return band and Band(None if band.before is None else band.before - 1, band.after)


def test_emitting_without_attention_is_untouched():
    program, _ = found(Attention(KNOWN["band"][0]))
    names = [name.split(".")[-1] for name in program.parameters]
    slots = {id(t): i for i, t in enumerate(program.parameters.values())}
    text = emit(program, slots, names, form=Form(attend=False)).text
    assert "softmax" in text
    assert "attend" not in text
