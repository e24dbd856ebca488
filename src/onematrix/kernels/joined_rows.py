"""Matrices one below the other, without a copy where they already lie so in one tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from onematrix.structures.ordinary import is_ordinary

# What cuts rows out of a tensor and nothing else, so that the gradient of the tensor is that of its rows.
CUTS = {"SliceBackward0", "SplitBackward0", "SplitWithSizesBackward0"}
MANY = 4096  # numbers of one part from which on looking takes less time than copying


def joined_rows(parts: Sequence[Tensor]) -> Tensor:
    """The parts one below the other: the tensor they were cut from, if they are all of it in its order.

    Then gradients reach that tensor, in one piece, and not the parts.

    >>> whole = torch.zeros(128, 64)
    >>> joined_rows(whole.chunk(2)) is whole
    True
    """
    if is_ordinary(*parts) and not torch.jit.is_tracing() and parts[0].numel() >= MANY:
        whole = parts[0]._base
        if (
            whole is not None
            and is_ordinary(whole)
            and _are_all(parts, whole)
            and _same_gradient(parts, whole)
        ):
            return whole
    return torch.cat(list(parts))


def _are_all(parts: Sequence[Tensor], whole: Tensor) -> bool:
    """Whether the parts are equal numbers of rows of `whole`, from the first to the last."""
    place, count = whole.storage_offset(), parts[0].numel()
    if (
        count * len(parts) != whole.numel()
        or parts[0].shape[1:] != whole.shape[1:]
        or not whole.is_contiguous()
    ):
        return False
    for p in parts:
        if p._base is not whole or p.shape != parts[0].shape or p.storage_offset() != place:
            return False
        if p.dtype != whole.dtype or p.is_neg() != whole.is_neg() or not p.is_contiguous():
            return False
        place += count
    return True


def _same_gradient(parts: Sequence[Tensor], whole: Tensor) -> bool:
    """Whether nothing but cutting lies between the parts and `whole`, and nobody listens to their gradients."""
    if not torch.is_grad_enabled():
        return True
    if not whole.requires_grad:
        return not any(p.requires_grad for p in parts)
    for p in parts:
        if p.grad_fn is None or p.grad_fn.name() not in CUTS or p._backward_hooks or p.retains_grad:
            return False
        source = p.grad_fn.next_functions[0][0]
        if source is not whole.grad_fn and getattr(source, "variable", None) is not whole:
            return False
    return True
