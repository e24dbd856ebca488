"""The uniform numbers of a noise part."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def draw_uniform(seed: int, name: str, tick: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Uniform numbers on [0, 1) that depend on the seed, the part and the tick alone, float32 on the CPU.

    tick: those of the loops around, outermost first. shape: (batch, …).

    >>> bool((draw_uniform(0, "dice", (4,), (2, 3)) == draw_uniform(0, "dice", [4], (2, 3))).all())
    True
    """
    key = hashlib.sha256(f"{seed}/{name}/{tuple(tick)}".encode()).digest()[:7]
    generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
    return torch.rand(*shape, generator=generator, dtype=torch.float32, device="cpu")
