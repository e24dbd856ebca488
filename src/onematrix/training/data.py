"""What is trained on: anything with a length that gives a batch for indices; the order hangs on the seed."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from onematrix.errors import ShapeError, TrainingError

Inputs = Tensor | tuple[Tensor, ...]


@runtime_checkable
class Data(Protocol):
    """Examples 0 … len − 1. `batch(indices)` must give the same values for the same indices every time.

    Inputs are a tensor or a tuple of tensors (the arguments of the module), batch first; the target likewise.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and target of these examples; indices: (b,) int64."""
        ...


@dataclass(frozen=True, eq=False)
class Examples:
    """Data held in tensors: x (N, …), or a tuple of such, and target (N, …).

    >>> data = Examples(torch.arange(6).reshape(3, 2), torch.tensor([0, 1, 0]))
    >>> data.batch(torch.tensor([2]))
    (tensor([[4, 5]]), tensor([0]))
    """

    x: Inputs
    target: Tensor

    def __post_init__(self) -> None:
        lengths = [len(part) for part in (*as_tuple(self.x), self.target)]
        if len(set(lengths)) != 1:
            raise ShapeError(
                f"Examples: inputs and target need the same length, got {', '.join(map(str, lengths))}",
                lengths=lengths,
            )

    def __len__(self) -> int:
        return len(self.target)

    def batch(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        if isinstance(self.x, tuple):
            return tuple(part[indices] for part in self.x), self.target[indices]
        return self.x[indices], self.target[indices]


def as_tuple(x: Inputs) -> tuple[Tensor, ...]:
    """The arguments of the module as a tuple."""
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def batch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the examples in an epoch: a permutation of 0 … count − 1 that (seed, epoch) alone decide.

    >>> batch_order(5, seed=0, epoch=1).equal(batch_order(5, seed=0, epoch=1))
    True
    """
    # seed + epoch would give run 0 at epoch 1 the order of run 1 at epoch 0; SeedSequence mixes the pair.
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed))


def check_data(who: str, data: object) -> Data:
    """The data unchanged. Raises TrainingError unless it follows the protocol and has an example."""
    if not isinstance(data, Data):
        raise TrainingError(
            f"{who}: data with __len__ and batch(indices) was needed, got {type(data).__name__}; "
            "wrap tensors as Examples(x, target)",
            got=type(data).__name__,
        )
    if len(data) < 1:
        raise TrainingError(f"{who}: at least 1 example was needed, got a data set of length 0", got=0)
    return data


def draw_batch(data: Data, indices: Tensor, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """One batch on the device. Raises TrainingError unless `data.batch` gives (x, target)."""
    drawn = data.batch(indices)
    if not isinstance(drawn, Sequence) or len(drawn) != 2:
        got = f"{len(drawn)} values" if isinstance(drawn, Sequence) else type(drawn).__name__
        raise TrainingError(f"{type(data).__name__}.batch: a pair (x, target) was needed, got {got}", got=got)
    x, target = drawn
    return tuple(part.to(device) for part in as_tuple(x)), target.to(device)


def fingerprint(data: Data, count: int = 8) -> str:
    """Length and CRC-32 of the first examples: enough to refuse another data set of the same length."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # data that draws noise from torch gives the same values each time
        x, target = draw_batch(data, torch.arange(min(count, len(data))), torch.device("cpu"))
    crc = 0
    for part in (*x, target):
        crc = crc_of(part, crc)
    return f"{len(data)} examples, crc32 {crc:08x}"


def crc_of(tensor: Tensor, crc: int = 0) -> int:
    """CRC-32 of a tensor's bytes, continued from `crc`."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(flat.numpy().data, crc) if len(flat) else crc
