"""Attention in which every query sees a band of keys around its own place: only the band is computed."""

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.errors import ShapeError
from onematrix.kernels.attention import attend

BLOCKS = (16, 32, 64, 128)  # queries taken together
OVERHEAD = 32  # keys' worth of time a query costs whatever its block, times the block's size: measured
FULL = 1.7  # a key in a block costs so many times a key of the whole product: measured


def banded_attention(
    queries: Tensor, keys: Tensor, values: Tensor, before: int, after: int = 0, scale: float | None = None
) -> Tensor:
    """softmax(scale Q Kᵀ) V where query i sees keys i − before … i + after: (…, T, e).

    queries, keys: (…, T, d); values: (…, T, e); scale: 1 ÷ √d by default. Queries are taken in blocks, each
    against the blocks of keys its band reaches into, by torch's scaled dot product attention: about
    T (before + after + 1 + two blocks) (d + e) multiply-adds instead of T² (d + e), and no (T, T) matrix. A band
    that reaches over most of the sequence runs as one masked product. Differentiable once, as torch's is.
    I. Beltagy et al., arXiv:2004.05150v2, §3.1 (sliding window).

    >>> x = torch.eye(3)[None]
    >>> banded_attention(x, x, x, before=0)[0]
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]])
    """
    _check(queries, keys, values, before, after)
    if torch.compiler.is_exporting() or (block := choose_block(queries.shape[-2], before, after)) is None:
        return masked_attention(queries, keys, values, before, after, scale)
    return _in_blocks(queries, keys, values, (before, after), scale, block)


def _check(queries: Tensor, keys: Tensor, values: Tensor, before: int, after: int) -> None:
    if before < 0 or after < 0:
        raise ShapeError(
            f"banded attention: before and after of at least 0 were needed, got {before} and {after}: a query "
            "has to see its own place",
            got=(before, after),
        )
    if keys.shape != queries.shape or values.shape[:-1] != keys.shape[:-1]:
        got = [tuple(t.shape) for t in (queries, keys, values)]
        raise ShapeError(
            f"banded attention: queries and keys (…, T, d), values (…, T, e) were needed, got {got}", got=got
        )


def choose_block(ticks: int, before: int, after: int) -> int | None:
    """Queries per block, the cheapest by the measured model; None where the whole masked product is cheaper.

    >>> choose_block(2048, 63, 0), choose_block(64, 63, 0)
    (32, None)
    """
    costs = [_keys_seen(block, before, after) * (1 + OVERHEAD / block) for block in BLOCKS]
    cost = min(costs)
    return BLOCKS[costs.index(cost)] if FULL * cost < ticks else None


def _keys_seen(block: int, before: int, after: int) -> int:
    return (1 + -(-before // block) - (-after // block)) * block


def masked_attention(
    queries: Tensor, keys: Tensor, values: Tensor, before: int, after: int = 0, scale: float | None = None
) -> Tensor:
    """The same as one product under a mask: T² (d + e) multiply-adds."""
    place = torch.arange(queries.shape[-2], device=queries.device)
    mask = _band(place[:, None], place, before, after)
    return attend(queries, keys, values, attn_mask=mask, scale=scale)


def _band(query: Tensor, key: Tensor, before: int, after: int) -> Tensor:
    distance = query - key
    return (distance <= before) & (distance >= -after)


def _in_blocks(
    queries: Tensor, keys: Tensor, values: Tensor, band: tuple[int, int], scale: float | None, block: int
) -> Tensor:
    """Query blocks as the heads of one attention over the windows of keys they reach into."""
    ticks, lead = queries.shape[-2], queries.shape[:-2]
    count = -(-ticks // block)
    reach = (-(-band[0] // block), -(-band[1] // block))  # blocks before and after
    behind = count * block - ticks
    q = functional.pad(queries, (0, 0, 0, behind)) if behind else queries
    q = q.reshape(-1, count, block, queries.shape[-1])
    k, v = (_windows(x, count, block, reach, behind) for x in (keys, values))
    mask = _mask(ticks, count, block, reach, band, queries.device)
    out = attend(q, k, v, attn_mask=mask, scale=scale)
    out = out.reshape(*lead, count * block, values.shape[-1])
    return out[..., :ticks, :] if behind else out


def _windows(x: Tensor, count: int, block: int, reach: tuple[int, int], behind: int) -> Tensor:
    """(rows, count, keys of a window, width): the blocks from reach[0] before to reach[1] after each block."""
    first, last = reach
    padded = functional.pad(x, (0, 0, first * block, behind + last * block))
    blocks = padded.reshape(-1, first + count + last, block, x.shape[-1])
    return torch.cat([blocks[:, k : k + count] for k in range(first + last + 1)], 2)


# Queries past the end see every key of their window, so that no row of the softmax is empty: an empty row has
# a nan in its gradient, which 0 does not silence.
def _mask(
    ticks: int, count: int, block: int, reach: tuple[int, int], band: tuple[int, int], device: torch.device
) -> Tensor:
    """(1, count, block, keys of a window): which key of its window each query sees."""
    start = torch.arange(count, device=device)[:, None, None] * block
    query = start + torch.arange(block, device=device)[:, None]
    key = start + torch.arange(-reach[0] * block, (1 + reach[1]) * block, device=device)
    seen = _band(query, key, *band) & (key >= 0) & (key < ticks)
    return (seen | (query >= ticks))[None]
