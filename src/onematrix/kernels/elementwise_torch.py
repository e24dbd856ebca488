"""The portable elementwise recurrence: torch operations tick by tick, on any device, of any derivative."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from onematrix.kernels.elementwise_code import ElementwiseLoop, run_code

Sizes = tuple[int, int, int]  # ticks T, batch B, features n


def run_by_torch(
    loop: ElementwiseLoop,
    series: Sequence[Tensor],
    vectors: Sequence[Tensor],
    init: Sequence[Tensor],
    sizes: Sizes,
    reverse: bool = False,
    valid: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs (T, B, n) and final carried values (B, n) of the loop, differentiable by autograd."""
    like = next(iter((*series, *vectors, *init)))
    ticks = sizes[0]
    # Indexing series[t] would make every tick's gradient a whole (T, B, n); unbind collects them in one.
    fed = list(zip(*(s.unbind(0) for s in series), strict=True)) if series else [()] * ticks
    masks = None if valid is None else valid.unsqueeze(-1).unbind(0)
    state, stacks = list(init), [[like] * ticks for _ in loop.outputs]
    for t in reversed(range(ticks)) if reverse else range(ticks):
        given = [*fed[t], *vectors, *state]
        registers = run_code(loop.code, given if masks is None else _chosen(given, masks[t]), like)
        outputs, new = [registers[r] for r in loop.outputs], [registers[r] for r in loop.carry]
        if masks is not None:
            outputs = _chosen(outputs, masks[t])
            new = [torch.where(masks[t], v, old) for v, old in zip(new, state, strict=True)]
        state = new
        for stack, value in zip(stacks, outputs, strict=True):
            stack[t] = value
    return [_stack(s, like, sizes) for s in stacks], _owned(loop, state, sizes)


def _chosen(values: Iterable[Tensor], mask: Tensor) -> list[Tensor]:
    """The values where the mask holds, else 0.

    Applied to all that enters a tick: its gradient is a selection too, so an infinite derivative inside
    a sample that is not selected ends here.
    """
    return [torch.where(mask, v, 0.0) for v in values]


def _stack(values: list[Tensor], like: Tensor, sizes: Sizes) -> Tensor:
    if not values:
        return like.new_empty(sizes)
    return torch.stack([v if v.shape == sizes[1:] else v.expand(sizes[1:]) for v in values])


def _owned(loop: ElementwiseLoop, state: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    """The carried values in full shape, in memory that neither the caller nor another of them has."""
    sources = [loop.source(register) for register in loop.carry]
    final = []
    for k, value in enumerate(state):
        borrowed = sizes[0] == 0 or sources[k] < loop.given or sources[k] in sources[:k]
        full = value if value.shape == sizes[1:] else value.expand(sizes[1:])
        final.append(full.clone() if borrowed or full is not value else full)
    return final
