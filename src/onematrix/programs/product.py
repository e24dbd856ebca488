"""One block times one part: the fast product, and the literal one the oracle uses."""

from typing import Protocol

import torch
from torch import Tensor

from onematrix.programs.block_matrix import Block, leading
from onematrix.programs.part import Part
from onematrix.programs.program import Program
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity
from onematrix.structures.sizes import Size


class Setting(Protocol):
    """What a product needs to know of the run it belongs to."""

    program: Program
    structures: dict[int, Structure]
    dtype: torch.dtype
    sizes: dict[str, int]
    literal: bool
    dense: dict[int, Tensor]


def apply_block(
    block: Block, value: Tensor, column: str, target: str | None, run: Setting, peeled: Size | None = None
) -> Tensor:
    """A x in the shape of the target part, or in its own shape when there is none.

    peeled: a dimension the target part does not have here (inside a loop over it).
    """
    source = run.program.parts[column]
    structure = run.structures[id(block.structure)]
    if source.kind == "index":
        return _shaped(_from_index(block, structure, value, source, run), target, run, peeled)
    if isinstance(structure, Identity) and value.dtype != run.dtype:
        return value  # booleans and integers pass as they are
    if value.dim() == 2 and target is not None and _is_plain(run.program.parts[target], peeled):
        return _product(block, structure, value, run)
    width = structure.at(**run.sizes).fixed_shape[1] if run.sizes else structure.fixed_shape[1]
    if block.on == "all" or value.dim() == 2:
        flat = value.reshape(value.shape[0], -1) if value.shape[0] else value.reshape(0, width)
        out = _product(block, structure, flat, run)
        if isinstance(structure, Identity) and target is None:
            return value
        if block.on == "last" and target is not None:  # a vector, the same at every place of the target
            before = leading(run.program.parts[target], structure.shape[0]) or ()
            shape = run.program.parts[target].at(run.sizes)[len(before) :]
            return out.reshape(out.shape[0], *[1] * len(before), *shape)
        return _shaped(out, target, run, peeled)
    before = len(leading(source, structure.shape[1]) or ())
    shape = value.shape[: 1 + before]
    out = _product(block, structure, value.reshape(*shape, width), run)
    if isinstance(structure, Identity) and target is None:
        return value
    return _shaped(out, target, run, peeled)


def _is_plain(part: Part, peeled: Size | None) -> bool:
    return len(part.shape) - (peeled is not None and peeled in part.shape) <= 1


def _shaped(value: Tensor, target: str | None, run: Setting, peeled: Size | None) -> Tensor:
    if target is None:
        return value
    part = run.program.parts[target]
    if peeled is not None:
        part = part.peel(peeled) or part
    return value.reshape(value.shape[0], *part.at(run.sizes))


def _product(block: Block, structure: Structure, x: Tensor, run: Setting) -> Tensor:
    if run.sizes and (structure.sizes_are_free or structure.composite):
        structure = structure.at(**run.sizes)
    if not run.literal:
        return structure.matmul(x)
    key = id(block.structure)
    if key not in run.dense:
        run.dense[key] = structure.to_dense(torch.float64)
    return multiply_literally(run.dense[key], x, structural=not isinstance(structure, Dense))


def multiply_literally(dense: Tensor, x: Tensor, structural: bool) -> Tensor:
    """Σ_j A_ij x_j. structural: zeros of A are absent blocks' zeros, so that 0·∞ never arises."""
    if not structural or bool(torch.isfinite(x).all()):
        return x @ dense.mT
    terms = torch.where(dense != 0, dense * x.unsqueeze(-2), 0.0)
    return terms.sum(-1)


def _from_index(block: Block, structure: Structure, value: Tensor, source: Part, run: Setting) -> Tensor:
    """A times one-hot vectors: the columns of A the integers name."""
    classes = structure.fixed_shape[1]
    if isinstance(structure, Dense) and not run.literal:
        return structure.weight.mT[value]
    hot = torch.nn.functional.one_hot(value.long(), classes).to(run.dtype)
    return _product(block, structure, hot, run)
