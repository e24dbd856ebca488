"""The uniform numbers of a noise part as one operator, which traced code keeps as it is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from onematrix.programs.noise import draw_uniform


def draw_noise(
    seed: int,
    name: str,
    tick: Sequence[int],
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Uniform numbers on [0, 1) that depend on the seed, the part and the tick alone, as `Run.draw` draws them.

    tick: those of the loops around, outermost first. shape: (batch, …). Traced code draws when it runs, so that
    another seed needs no other graph.

    >>> draw_noise(0, "dice", (), (1, 2), torch.float32, torch.device("cpu")).shape
    torch.Size([1, 2])
    """
    if torch.compiler.is_compiling():
        made: Tensor = torch.ops.onematrix.noise(seed, name, list(tick), list(shape))
        return made.to(device, dtype)
    return draw_uniform(seed, name, tick, shape).to(device, dtype)


@torch.library.custom_op("onematrix::noise", mutates_args=())
def _noise(seed: int, name: str, tick: Sequence[int], shape: Sequence[int]) -> Tensor:
    return draw_uniform(seed, name, tick, shape)


@_noise.register_fake
def _(seed: int, name: str, tick: Sequence[int], shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")
