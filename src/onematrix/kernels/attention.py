"""torch's scaled dot product attention, written out where its kernels have no derivative."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import scaled_dot_product_attention


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale Q Kᵀ + mask) V by torch's kernel, scale 1 ÷ √d by default: (B, heads, T, d).

    Under forward-mode differentiation, which torch's kernels refuse, softmax and both products one after the other.
    A second derivative needs the kernel that has one: `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around the
    call. attn_mask: bool, true where a key is shown, or added. 2 T² d multiply-adds a head.

    >>> attend(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.eye(2).view(1, 1, 2, 2)).flatten()
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return scaled_dot_product_attention(
            queries, keys, values, attn_mask=attn_mask, is_causal=is_causal, scale=scale
        )
    return _written_out(queries, keys, values, attn_mask, is_causal, scale)


def _written_out(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> Tensor:
    scores = (queries.shape[-1] ** -0.5 if scale is None else scale) * (queries @ keys.mT)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1) @ values
