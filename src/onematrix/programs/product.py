"""One block times one part: the fast product, and the literal one the oracle uses."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.programs.part import fix_size
from onematrix.programs.run import Run
from onematrix.programs.wiring import Wire
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.embedding import Embedding
from onematrix.structures.identity import Identity


def apply_wire(wire: Wire, value: Tensor, run: Run) -> Tensor:
    """A x for x: (batch, *shape of the part read), in the shape the row needs."""
    if wire.passes:
        return value
    if wire.plain and not run.literal:
        return run.structures[wire.slot].matmul(value)
    if wire.classes is not None:
        if wire.embeds and not run.literal:
            return _shaped(_pick(run.structures[wire.slot], value), wire, run)
        value = functional.one_hot(value.long(), fix_size(wire.classes, run.sizes)).to(run.dtype)
    if wire.flattens:
        kept = value.shape[: 1 + wire.kept]
        value = value.reshape(*kept, math.prod(value.shape[1 + wire.kept :]))
    return _shaped(_product(wire, value, run), wire, run)


def _pick(structure: Structure, value: Tensor) -> Tensor:
    """The columns of a dense matrix the integers name."""
    if isinstance(structure, Embedding):
        return structure.pick(value)
    assert isinstance(structure, Dense), "only dense blocks and embeddings embed"
    return functional.embedding(value, structure.weight.mT)


def _shaped(out: Tensor, wire: Wire, run: Run) -> Tensor:
    if not wire.spread and wire.tail is None:
        return out
    tail = out.shape[-1:] if wire.tail is None else run.fix(wire.tail)
    out = out.reshape(out.shape[0], *[1] * wire.spread, *out.shape[1 : 1 + wire.kept], *tail)
    return out if wire.fills is None else out.expand(out.shape[0], *run.fix(wire.fills))


def _product(wire: Wire, x: Tensor, run: Run) -> Tensor:
    structure = run.structures[wire.slot]
    if wire.kind is Identity:
        return x
    if wire.named:
        structure = structure.at(**run.sizes)
    if not run.literal or not x.is_floating_point():
        return structure.matmul(x)
    if wire.slot not in run.dense:
        run.dense[wire.slot] = structure.to_dense(torch.float64)
    return multiply_literally(run.dense[wire.slot], x, structural=wire.kind is not Dense)


def multiply_literally(dense: Tensor, x: Tensor, structural: bool) -> Tensor:
    """Σ_j A_ij x_j. structural: zeros of A are absent blocks' zeros, so that 0·∞ never arises."""
    if not structural or bool(torch.isfinite(x).all()):
        return x @ dense.mT
    terms = torch.where(dense != 0, dense * x.unsqueeze(-2), 0.0)
    return terms.sum(-1)
