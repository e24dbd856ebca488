"""Gradients that can be differentiated again or mapped: those of the portable form of a kernel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def portable_gradients(
    run: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Of each tensor, the gradient of run(*tensors) whose outputs have the given gradients."""
    with torch.enable_grad():
        # Views, because one tensor may have been computed from another: differentiation stops at the views.
        leaves = [t.view_as(t) for t in tensors]
        outputs = run(*leaves)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
            )
        )
    return [next(found) if leaf.requires_grad else None for leaf in leaves]
