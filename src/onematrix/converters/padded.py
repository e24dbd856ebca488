"""Packed sequences while a module is traced: the padded batch with its lengths, samples kept apart."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from onematrix.errors import ConversionError


@dataclass(frozen=True)
class Padded:
    """What stands for a PackedSequence: data (batch, time, …) or (time, batch, …), and the lengths of the samples."""

    data: Tensor
    lengths: Tensor
    batch_first: bool

    def valid(self) -> Tensor:
        """(batch, time): True at the places a sample has."""
        ticks = torch.arange(self.data.shape[1 if self.batch_first else 0], device=self.data.device)
        return ticks[None, :] < self.lengths[:, None]


def pack(input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> Padded:
    """torch.nn.utils.rnn.pack_padded_sequence; the order of the samples stays, sorted or not."""
    return Padded(input, torch.as_tensor(lengths, dtype=torch.int64, device=input.device), batch_first)


def unpack(
    sequence: Padded, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """torch.nn.utils.rnn.pad_packed_sequence; as many places as were packed, also behind the longest sample."""
    data, mask = sequence.data, sequence.valid()
    data = data if sequence.batch_first else data.transpose(0, 1)
    if padding_value:
        data = torch.where(mask[..., None], data, padding_value)
    if isinstance(total_length, int):
        data = _lengthened(data, total_length, padding_value)
    return (data if batch_first else data.transpose(0, 1)), sequence.lengths


def _lengthened(data: Tensor, length: int, value: float) -> Tensor:
    time = data.shape[1]
    if not isinstance(time, int):
        raise ConversionError(
            f"pad_packed_sequence: total_length {length} fixes a free length; write x.shape[1] in its place, or fix "
            "the length with free={}"
        )
    return nn.functional.pad(data, (0, 0, 0, length - time), value=value)


FUNCTIONS = {rnn.pack_padded_sequence: pack, rnn.pad_packed_sequence: unpack}


@contextlib.contextmanager
def padded_sequences(module: nn.Module) -> Iterator[None]:
    """While inside, the code of the module and its parts packs and pads by the functions above."""
    spaces = {id(vars(rnn)): vars(rnn)}
    for layer in module.modules():
        space = getattr(type(layer).forward, "__globals__", {})
        spaces[id(space)] = space
    changed = [
        (space, name, value)
        for space in spaces.values()
        for name, value in space.items()
        if callable(value) and _replacement(value) is not None
    ]
    for space, name, value in changed:
        space[name] = _replacement(value)
    try:
        yield
    finally:
        for space, name, value in changed:
            space[name] = value


def _replacement(value: Any) -> Any:
    return next((ours for theirs, ours in FUNCTIONS.items() if value is theirs), None)
