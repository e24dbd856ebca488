"""Feed-forward networks as programs."""

from collections.abc import Sequence

import torch

from onematrix.errors import ShapeError
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.schedule import Seq, Step
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense


def mlp(
    widths: Sequence[int],
    weights: Sequence[Structure] | None = None,
    biases: Sequence[torch.Tensor | None] | None = None,
    activation: str = "relu",
    generator: torch.Generator | None = None,
) -> Program:
    """x_l = σ(W_l x_(l-1) + b_l), the last layer without σ: parts x0 … xL, one step per layer.

    widths: [inputs, hidden …, outputs]. weights: one structure per layer, Dense.random when not given.
    biases: (n_l,) each, None for no bias, zeros when not given. Raises ShapeError.

    >>> mlp([4, 8, 2]).counts().stored_numbers
    58
    """
    if len(widths) < 2:
        raise ShapeError(f"mlp: at least two widths were needed, got {list(widths)}")
    pairs = list(zip(widths[1:], widths[:-1], strict=True))
    weights = weights or [Dense.random(m, n, generator=generator) for m, n in pairs]
    biases = biases or [torch.zeros(m) for m in widths[1:]]
    parts = {f"x{i}": width for i, width in enumerate(widths)}
    steps = []
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        blocks: dict[tuple[str, str], Structure] = {(f"x{i}", f"x{i - 1}"): weight}
        if bias is not None:
            blocks[f"x{i}", ONE] = Dense(bias.reshape(-1, 1))
        last = i == len(pairs)
        steps.append(Step(BlockMatrix(blocks, parts), activations=None if last else {f"x{i}": activation}))
    return Program(Seq(*steps), ["x0"], [f"x{len(pairs)}"])
