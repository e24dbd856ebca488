"""The portable elementwise recurrence: torch operations tick by tick, on any device, of any derivative."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from onematrix.kernels.elementwise_code import ElementwiseLoop, run_code, run_line

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
    """Outputs (T, B, n) and final carried values (B, n) of the loop, differentiable by autograd.

    What no carried value needs is computed for all ticks at once, unless samples are selected.
    """
    if valid is not None:
        return _run_selected(loop, series, vectors, init, sizes, reverse, valid)
    like, state = next(iter((*series, *vectors, *init))), list(init)
    stacks = {r: [like] * sizes[0] for r in loop.read}
    # Indexing series[t] would make every tick's gradient a whole (T, B, n); unbind collects them in one.
    fed = list(zip(*(s.unbind(0) for s in series), strict=True)) if series else [()] * sizes[0]
    for t in _order(sizes[0], reverse):
        registers = dict(enumerate([*fed[t], *vectors, *state]))
        _run_lines(loop, loop.early, registers, like)
        state = [registers[r] for r in loop.carry]
        for r, stack in stacks.items():
            stack[t] = registers[r]
    whole = dict(enumerate([*series, *vectors])) | {r: _stack(s, like, sizes) for r, s in stacks.items()}
    late = [r for r in range(loop.given, loop.given + len(loop.code)) if r not in loop.early]
    _run_lines(loop, late, whole, like)
    return _new_outputs(loop, whole, sizes), _owned(loop, state, sizes)


def _run_lines(
    loop: ElementwiseLoop, lines: Iterable[int], registers: dict[int, Tensor], like: Tensor
) -> None:
    for register in lines:
        registers[register] = run_line(loop.code[register - loop.given], registers, like)


def _new_outputs(loop: ElementwiseLoop, whole: dict[int, Tensor], sizes: Sizes) -> list[Tensor]:
    """In full shape, in memory that neither the caller nor another of them has."""
    sources, outputs = [loop.source(r) for r in loop.outputs], []
    for k, register in enumerate(loop.outputs):
        borrowed = sources[k] < loop.series + loop.vectors or sources[k] in sources[:k]
        outputs.append(_full(whole[register], sizes, borrowed))
    return outputs


def _full(value: Tensor, shape: tuple[int, ...], borrowed: bool) -> Tensor:
    full = value if value.shape == shape else value.expand(shape)
    return full.clone() if borrowed or full is not value else full


def _order(ticks: int, reverse: bool) -> range:
    return range(ticks - 1, -1, -1) if reverse else range(ticks)


def _run_selected(
    loop: ElementwiseLoop,
    series: Sequence[Tensor],
    vectors: Sequence[Tensor],
    init: Sequence[Tensor],
    sizes: Sizes,
    reverse: bool,
    valid: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    like = next(iter((*series, *vectors, *init)))
    fed = list(zip(*(s.unbind(0) for s in series), strict=True)) if series else [()] * sizes[0]
    masks = valid.unsqueeze(-1).unbind(0)
    state, stacks = list(init), [[like] * sizes[0] for _ in loop.outputs]
    for t in _order(sizes[0], reverse):
        registers = run_code(loop.code, _chosen([*fed[t], *vectors, *state], masks[t]), like)
        new = [registers[r] for r in loop.carry]
        state = [torch.where(masks[t], v, old) for v, old in zip(new, state, strict=True)]
        for stack, value in zip(stacks, _chosen([registers[r] for r in loop.outputs], masks[t]), strict=True):
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
        final.append(_full(value, sizes[1:], borrowed))
    return final
