"""Banded attention against the softmax written out over the keys each query sees, in float64."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from onematrix.errors import ShapeError
from onematrix.kernels.banded_attention import (
    _in_blocks,
    _mask,
    banded_attention,
    choose_block,
    masked_attention,
)
from structure_cases import normal


def literal(q, k, v, before, after, scale):
    """One query after the other."""
    rows = []
    ticks = q.shape[-2]
    for i in range(ticks):
        seen = slice(max(0, i - before), min(ticks, i + after + 1))
        scores = (k[..., seen, :] @ q[..., i, :, None])[..., 0] * scale
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        rows.append((weights[..., None] * v[..., seen, :]).sum(-2))
    return torch.stack(rows, -2)


def inputs(lead, ticks, d, e):
    return [normal(*lead, ticks, width, seed=s).requires_grad_() for s, width in ((1, d), (2, d), (3, e))]


CASES = [  # leading sizes, ticks, d, e, before, after
    ((2, 3), 50, 4, 5, 7, 0),
    ((2,), 64, 4, 4, 0, 9),
    ((), 33, 3, 2, 5, 5),
    ((1, 2), 200, 4, 4, 20, 33),
    ((2, 1), 16, 2, 2, 0, 0),
    ((1, 1), 1, 2, 3, 4, 0),
    ((2, 2), 17, 2, 2, 40, 40),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("block", [None, 1, 4, 16, 64])
def test_outputs_and_gradients_are_the_definition(case, block):
    lead, ticks, d, e, before, after = case
    q, k, v = inputs(lead, ticks, d, e)
    scale = 0.7
    if block is None:
        out = banded_attention(q, k, v, before, after, scale)
    else:
        out = _in_blocks(q, k, v, (before, after), scale, block)
    wanted = literal(q, k, v, before, after, scale)
    assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    weight = normal(*wanted.shape, seed=4)
    for ours, theirs in zip(
        *(torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (out, wanted)), strict=True
    ):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_masked_product_is_the_same():
    q, k, v = inputs((2, 2), 40, 4, 4)
    assert_close(masked_attention(q, k, v, 6, 2), banded_attention(q, k, v, 6, 2))
    assert_close(banded_attention(q, k, v, 6, 2), literal(q, k, v, 6, 2, 0.5), rtol=1e-10, atol=1e-10)


def test_large_scores_and_large_values_beyond_the_band_reach_nothing():
    q, k, v = (t.detach() for t in inputs((1,), 300, 4, 4))
    expected = banded_attention(q, k, v, 3)
    other_k, other_v = k.clone(), v.clone()
    other_k[:, 200:], other_v[:, 200:] = 1e30, torch.inf
    assert torch.equal(banded_attention(q, other_k, other_v, 3)[:, :192], expected[:, :192])


@pytest.mark.parametrize("lead", [(0, 2), (2, 0)])
def test_no_samples_and_no_heads(lead):
    q, k, v = inputs(lead, 200, 4, 3)
    out = banded_attention(q, k, v, 5)
    assert out.shape == (*lead, 200, 3)


def test_no_ticks():
    q, k, v = inputs((2, 2), 0, 4, 3)
    assert banded_attention(q, k, v, 5).shape == (2, 2, 0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes(dtype):
    q, k, v = (t.detach().to(dtype) for t in inputs((2, 2), 150, 8, 8))
    out = banded_attention(q, k, v, 9)
    assert out.dtype == dtype
    wanted = literal(*(t.double() for t in (q, k, v)), 9, 0, 8**-0.5)
    assert_close(out.double(), wanted, rtol=0, atol=2e-6 if dtype == torch.float32 else 3e-2)


def test_one_graph_under_compile():
    torch._dynamo.reset()
    q, k, v = inputs((1, 2), 150, 4, 4)
    compiled = torch.compile(lambda *t: banded_attention(*t, 9), fullgraph=True, backend="aot_eager")
    assert_close(compiled(q, k, v), banded_attention(q, k, v, 9))


def test_only_the_band_is_multiplied_out():
    q, k, v = (t.detach() for t in inputs((1, 1), 2048, 8, 8))
    block = choose_block(2048, 63, 0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        banded_attention(q, k, v, 63)
    keys = block * (1 + -(-63 // block))
    assert counter.get_total_flops() == 2 * 2048 * keys * (8 + 8)
    assert keys <= 128
    assert choose_block(100, 63, 0) is None


def test_bands_that_hide_a_querys_own_place_are_refused():
    q, k, v = inputs((1,), 8, 2, 2)
    with pytest.raises(ShapeError, match="at least 0 were needed, got -1 and 3"):
        banded_attention(q, k, v, -1, 3)
    with pytest.raises(ShapeError, match=r"got \[\(1, 8, 2\), \(1, 7, 2\), \(1, 8, 2\)\]"):
        banded_attention(q, k[:, 1:], v, 1)


@pytest.mark.parametrize(("ticks", "block", "band"), [(33, 16, (3, 0)), (17, 16, (0, 5)), (50, 64, (2, 2))])
def test_no_query_sees_nothing_past_the_end_either(ticks, block, band):
    """Kernels differ in the gradient of an empty row."""
    reach = tuple(-(-side // block) for side in band)
    mask = _mask(ticks, -(-ticks // block), block, reach, band, torch.device("cpu"))
    assert bool(mask.any(-1).all())
