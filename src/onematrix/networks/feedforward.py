"""Feed-forward networks as programs."""

from collections.abc import Mapping, Sequence

import torch

from onematrix.errors import ShapeError
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Seq, Step
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity


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
            blocks[f"x{i}", ONE] = Column(bias.contiguous())
        last = i == len(pairs)
        own = {
            name: parts[name] for name in (f"x{i - 1}", f"x{i}")
        }  # of all, it would take L² time and memory
        steps.append(Step(BlockMatrix(blocks, own), activations=None if last else {f"x{i}": activation}))
    return Program(Seq(*steps), ["x0"], [f"x{len(pairs)}"])


def residual(
    width: int,
    layers: int = 2,
    inner: int | None = None,
    weights: Sequence[tuple[Structure, Structure]] | None = None,
    activation: str = "relu",
    generator: torch.Generator | None = None,
) -> Program:
    """u_l = σ(W_l h_(l-1)), h_l = h_(l-1) + V_l u_l: an identity block beside every second layer.

    weights: (W_l (m, n), V_l (n, m)) per layer. K. He et al., arXiv:1512.03385v1, eq. 1.

    >>> residual(4).counts().stored_numbers
    64
    """
    inner = inner or width
    parts = {f"h{i}": width for i in range(layers + 1)} | {f"u{i}": inner for i in range(1, layers + 1)}
    pairs = weights or [
        (Dense.random(inner, width, generator=generator), Dense.random(width, inner, generator=generator))
        for _ in range(layers)
    ]
    steps = []
    for i, (W, V) in enumerate(pairs, start=1):
        own = {name: parts[name] for name in (f"h{i - 1}", f"u{i}", f"h{i}")}
        steps.append(Step(BlockMatrix({(f"u{i}", f"h{i - 1}"): W}, own), activations={f"u{i}": activation}))
        grid: dict[tuple[str, str], Structure] = {
            (f"h{i}", f"h{i - 1}"): Identity(width),
            (f"h{i}", f"u{i}"): V,
        }
        steps.append(Step(BlockMatrix(grid, own)))
    return Program(Seq(*steps), ["h0"], [f"h{layers}"])


def dense_skips(
    widths: Sequence[int],
    weights: Mapping[tuple[int, int], Structure] | None = None,
    activation: str = "relu",
    generator: torch.Generator | None = None,
) -> Program:
    """z_l = σ(Σ_{j<l} W_lj z_j): a strictly lower triangular block matrix; one step applied depth times.

    weights: {(l, j): (n_l, n_j)}. G. Huang et al., arXiv:1608.06993v5, eq. 2.

    >>> dense_skips([2, 3, 4]).counts().stored_numbers
    26
    """
    given = dict(weights or {})
    parts = {f"z{i}": width for i, width in enumerate(widths)}
    grid: dict[tuple[str, str], Structure] = {
        (f"z{i}", f"z{j}"): given.get((i, j)) or Dense.random(widths[i], widths[j], generator=generator)
        for i in range(1, len(widths))
        for j in range(i)
    }
    step = Step(BlockMatrix(grid, parts), activations={f"z{i}": activation for i in range(1, len(widths))})
    return Program(Loop(step, times=len(widths) - 1), ["z0"], [f"z{len(widths) - 1}"])
