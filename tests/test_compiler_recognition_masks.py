"""Masks held in buffers: found once frozen, and attention under them means what the masked module means."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import onematrix as om
from onematrix.compiler.form import Form
from onematrix.compiler.frozen import freeze
from onematrix.compiler.masks import Band
from onematrix.compiler.module import Compiled
from onematrix.compiler.recognition_masks import find_band
from structure_cases import normal

TICKS = 256  # long enough for a short band to gain
LOW = torch.finfo(torch.float64).min


def distance(queries=TICKS, keys=TICKS):
    return torch.arange(queries)[:, None] - torch.arange(keys)


def additive(shown, low=-torch.inf):
    return torch.zeros(shown.shape, dtype=torch.float64).masked_fill(~shown, low)


class Held(nn.Module):
    """Attention under a mask that is a buffer; `scored` maps scores and mask to weights."""

    def __init__(self, mask, scored):
        super().__init__()
        self.register_buffer("mask", mask)
        self.scored = scored

    def forward(self, q, k, v):
        return self.scored(q @ k.transpose(-1, -2) / 2, self.mask) @ v


class Kernel(Held):
    """The same by torch's function, which takes the mask itself."""

    def forward(self, q, k, v):
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)


def add(s, m):
    return (s + m).softmax(-1)


def hide(s, m):
    return s.masked_fill(m, -torch.inf).softmax(-1)


def hide_zeros(s, m):
    return s.masked_fill(m[:, :, :TICKS, :TICKS] == 0, -torch.inf).softmax(-1)


def hide_others(s, m):
    return hide(s, ~m)


CAUSAL, SHORT, SIDES = distance() >= 0, (distance() >= 0) & (distance() < 8), distance().abs() <= 5
HOLE = SHORT.clone()
HOLE[90, 88] = False
CASES = {
    "causal, added": (Held, additive(CAUSAL), add, "is_causal"),
    "causal, added, very low": (Held, additive(CAUSAL, LOW), add, "is_causal"),
    "causal, heads, added": (Held, additive(CAUSAL).expand(1, 3, TICKS, TICKS).clone(), add, "is_causal"),
    "causal, hidden": (Held, ~CAUSAL, hide, "is_causal"),
    "causal, longer, of numbers": (Held, torch.ones(1, 1, 300, 300).double().tril(), hide_zeros, "is_causal"),
    "causal, kernel": (Kernel, CAUSAL, None, "is_causal"),
    "band, added": (Held, additive(SHORT), add, "7, 0, "),
    "band, hidden": (Held, ~SHORT, hide, "7, 0, "),
    "band, kernel": (Kernel, SHORT, None, "7, 0, "),
    "band, kernel, added": (Kernel, additive(SHORT), None, "7, 0, "),
    "both sides, added": (Held, additive(SIDES), add, "5, 5, "),
    "a hole, added": (Held, additive(HOLE), add, None),
    "a hole, kernel": (Kernel, HOLE, None, None),
    "a hole, turned round": (Held, HOLE, hide_others, None),
    "two numbers, added": (Held, additive(SHORT).masked_fill(distance() == 200, -5.0), add, None),
    "not low enough": (Held, additive(CAUSAL, -50.0), add, None),
    "anti-causal": (Held, additive(distance() <= 0), add, None),
    "without its own place": (Held, additive((distance() > 0) | (distance() == -1)), add, None),
    "everything": (Held, torch.zeros(TICKS, TICKS, dtype=torch.float64), add, None),
    "a band that is most of it": (Held, additive(distance().abs() < 180), add, None),
}


@pytest.mark.parametrize("name", CASES)
def test_fixed_masks_are_bands_once_frozen(name):
    kind, mask, scored, marks = CASES[name]
    module = kind(mask, scored).eval()
    inputs = [normal(2, 3, TICKS, 4).requires_grad_() for _ in range(3)]
    compiled = om.compile(module, *inputs, measure=False, prove=False)
    frozen = compiled.freeze()
    known = any(text in frozen.text for text in ("is_causal", "7, 0, ", "5, 5, "))
    assert known is (marks is not None)
    assert marks is None or marks in frozen.text
    assert "is_causal" not in compiled.text, "a buffer may change before it is frozen"
    assert ("blocks.mask.one.tensor" in frozen.state_dict()) is (marks is None)
    wanted, got = module(*inputs), frozen(*inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    slopes = [torch.autograd.grad(y.sin().sum(), inputs) for y in (got, wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-8)


def test_queries_before_a_longer_row_of_keys_are_causal_too():
    module = Held(additive(distance(5, 9) >= 0), add)
    inputs = [normal(1, 2, 5, 4), normal(1, 2, 9, 4), normal(1, 2, 9, 4)]
    frozen = om.compile(module, *inputs, measure=False).freeze()
    assert "is_causal" in frozen.text
    torch.testing.assert_close(frozen(*inputs), module(*inputs), rtol=1e-9, atol=1e-9)


def test_masks_stay_numbers_where_bands_were_refused():
    inputs = [normal(1, 2, TICKS, 4) for _ in range(3)]
    compiled = om.compile(Held(additive(CAUSAL), add), *inputs, measure=False, prove=False)
    frozen = freeze(Compiled(compiled.program, compiled.lowered, Form(bands=False)))
    assert "is_causal" not in frozen.text
    torch.testing.assert_close(frozen(*inputs), compiled(*inputs), rtol=1e-9, atol=1e-9)


def test_weights_train_on_under_a_mask_that_is_known():
    """Parameters of the module keep their names; only the mask is gone."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Held(additive(CAUSAL).float(), add)
            self.project = nn.Linear(4, 12)

        def forward(self, x):
            return self.inner(*self.project(x).chunk(3, -1))

    module, x = Layer(), torch.randn(2, TICKS, 4)
    compiled = om.compile(module, x, measure=False, prove=False)
    frozen = compiled.freeze()
    assert "is_causal" in frozen.text
    assert set(compiled.state_dict()) - set(frozen.state_dict()) == {"blocks.inner.mask.one.tensor"}
    torch.testing.assert_close(frozen(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shown", "band"),
    [
        (CAUSAL, Band(None, 0)),
        (SHORT, Band(7, 0)),
        ((distance() >= 0) & (distance() < TICKS - 1), Band(TICKS - 2, 0)),
        (distance(4, 7) >= -1, Band(None, 1)),
        (HOLE, None),
        (~CAUSAL, None),
        (torch.zeros(3, 3, dtype=torch.bool), None),
        (torch.stack([CAUSAL, SHORT]), None),
        (torch.stack([SHORT, SHORT]), Band(7, 0)),
    ],
)
def test_the_band_of_a_mask(shown, band):
    assert find_band(shown) == band
