"""Operators that only traced graphs hold, as functions that run: for the rows no program says."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import onematrix.converters.kept_whole  # noqa: F401 - registers the operators


def run_recurrence(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    mode: str,
    layers: int,
    dropout: float,
    bidirectional: bool,
    batch_first: bool,
    bias: bool,
    valid: Tensor | None = None,
) -> list[Tensor]:
    """Output and final states of a recurrent layer, by torch's own kernel.

    valid: (batch, time), the first ticks of each sample, at least one.
    """
    kernel = getattr(torch._VF, mode.lower())  # type: ignore[attr-defined]
    options = bias, layers, dropout, dropout > 0, bidirectional
    if valid is None:
        out, *last = kernel(x, _given(mode, states), weights, *options, batch_first)
        return [out, *last]
    lengths = (valid != 0).sum(1).cpu()
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    states = [s.index_select(1, packed.sorted_indices) for s in states]
    data, *last = kernel(packed.data, packed.batch_sizes, _given(mode, states), weights, *options)
    made = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    out, _ = pad_packed_sequence(made, batch_first, total_length=valid.shape[1])
    return [out, *(s.index_select(1, packed.unsorted_indices) for s in last)]


def _given(mode: str, states: Sequence[Tensor]) -> Any:
    return tuple(states) if mode == "LSTM" else states[0]


def run_scan(decay: Tensor, drive: Tensor, place: int) -> Tensor:
    """h_t = decay_t h_(t−1) + drive_t along one dimension, from 0."""
    made: list[Tensor] = []
    for a, d in zip(decay.unbind(place), drive.unbind(place), strict=True):
        made.append(a * made[-1] + d if made else d)
    return torch.stack(made, place) if made else torch.empty_like(drive)


RUNS: dict[Any, Callable[..., Any]] = {
    torch.ops.onematrix.recurrence.default: run_recurrence,
    torch.ops.onematrix.scan.default: run_scan,
}
