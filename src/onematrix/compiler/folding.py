"""Scales and shifts of a frozen program folded into the matrices before them: normalisation that costs nothing.

A batch norm in evaluation is y = s ∘ (x − m) + b with one fixed number per channel. Behind x = A v it is
y = (diag(s) A) v + (b − s ∘ m): the same convolution with other numbers. Up to rounding, so of frozen programs alone.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from onematrix.compiler.canonical import IDENTITY
from onematrix.compiler.constants import evaluate, fixed_values
from onematrix.compiler.graph import Graph, Row, Sum, Term, Value, scopes_of, uses_of
from onematrix.compiler.merging import unscale
from onematrix.compiler.pipeline import lower
from onematrix.compiler.reading import read_program
from onematrix.compiler.rewriting import rewrite
from onematrix.compiler.writing import write_program
from onematrix.programs.block_matrix import Block
from onematrix.programs.joins import Join
from onematrix.programs.part import Part
from onematrix.programs.program import Program
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.convolution import Convolution
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.sizes import Size


def fold_scales(program: Program) -> Program:
    """The program with fixed factors and shifts per channel multiplied into its matrices; itself where none is."""
    graph = read_program(lower(program))
    folder = _Folder(graph, program)
    found: dict[int, Value] = {}
    for value in graph.values():
        if isinstance(value, Row) and (new := folder.folded(value)) is not None:
            found[id(value)] = new
    return write_program(rewrite(graph, found)) if found else program


@dataclass(frozen=True)
class _Affine:
    """Σ ratio · A v + constant, in the shape of a part; folded: how many rows went into it."""

    terms: tuple[Term, ...]
    constant: Tensor | None
    folded: int


class _Folder:
    def __init__(self, graph: Graph, program: Program) -> None:
        self.graph, self.program, self.fixed, self.uses = graph, program, fixed_values(graph), uses_of(graph)
        self.scopes = scopes_of(graph.values())
        self.made: dict[int, _Affine | None] = {}

    def constant(self, row: Row, k: int) -> Tensor | None:
        """What the fixed terms of a sum add up to, in the shape of the row; None where there are none."""
        terms = self.constants(row.sums[k])
        if not terms:
            return None
        fixed = Row(f"{row.name}_fixed", row.part, (terms,), IDENTITY, None)
        return evaluate(self.graph, [fixed], self.program)[0]

    def constants(self, terms: Sum) -> Sum:
        return tuple(term for term in terms if id(term.value) in self.fixed)

    def folded(self, row: Row) -> Row | None:
        """The row with what was folded into it; None where nothing was."""
        if id(row) in self.fixed or not _served(row.part) or not _sums_up(row):
            return None
        if row.join is None and not any(self.inner(term, row) for term in row.sums[0]):
            return None
        found = self.sum(row, 0) if row.join is None else self.affine(row)
        if found is None or not found.folded:
            return None
        return Row(row.name, row.part, (self.written(found, row.part),), row.activation, None)

    def affine(self, value: Value) -> _Affine | None:
        """A row without activation as one sum; None where it is none."""
        if id(value) not in self.made:
            self.made[id(value)] = self.find(value) if isinstance(value, Row) else None
        return self.made[id(value)]

    def find(self, row: Row) -> _Affine | None:
        if id(row) in self.fixed or row.activation.name != "identity":
            return None
        if not (_served(row.part) and _sums_up(row)):
            return None
        if row.join is None:
            return self.sum(row, 0)
        for factor, other in ((0, 1), (1, 0)):
            if len(self.constants(row.sums[factor])) == len(row.sums[factor]) > 0:
                scale = _per_channel(self.constant(row, factor))
                if scale is None:
                    return None
                found = _scaled(self.sum(row, other), Fraction(1), scale, row.part)
                return found and replace(found, folded=found.folded + 1)
        return None

    def sum(self, row: Row, k: int) -> _Affine:
        """One sum of a row, with the rows it passes on or scales written out where nothing else reads them."""
        terms: list[Term] = []
        constant, count = self.constant(row, k), 0
        for term in row.sums[k]:
            if id(term.value) in self.fixed:
                continue
            inner = self.inner(term, row)
            if inner is None:
                terms.append(term)
                continue
            terms += inner.terms
            count += 1 + inner.folded
            if inner.constant is not None:
                constant = inner.constant if constant is None else constant + inner.constant
        return _Affine(tuple(terms), constant, count)

    def inner(self, term: Term, row: Row) -> _Affine | None:
        """The affine row a term passes on or scales, scaled; None where there is none or others read it."""
        value, part = term.value, row.part
        if self.uses.get(id(value)) != 1 or value.part.shape != part.shape:
            return None
        factors = _factors(term, part)
        if factors is None or self.scopes[id(value)] != self.scopes[id(row)]:
            return None
        found = self.affine(value)
        return found and _scaled(found, *factors, part)

    def written(self, found: _Affine, part: Part) -> Sum:
        if found.constant is None:
            return found.terms
        return (*found.terms, Term(Fraction(1), Block(_column(found.constant, part)), self.graph.one))


def _served(part: Part) -> bool:
    """Real numbers in the program's dtype, a fixed number of channels first."""
    return part.kind == "real" and part.dtype is None and all(isinstance(size, int) for size in part.shape)


def _sums_up(row: Row) -> bool:
    """Whether it is a sum, or a sum times another."""
    return row.join is None or (isinstance(row.join, Join) and row.join.name == "hadamard")


def _per_channel(table: Tensor | None) -> Tensor | None:
    """The number of each channel (the first dimension), where the others repeat it."""
    if table is None:
        return None
    flat = table.reshape(table.shape[0], -1)
    return flat[:, 0].contiguous() if torch.equal(flat, flat[:, :1].expand_as(flat)) else None


def _factors(term: Term, part: Part) -> tuple[Fraction, Tensor | None] | None:
    """A ratio and a factor per channel (None: 1), if that is all a term multiplies its value by."""
    ratio, a = _whole(term, part)
    if isinstance(a, Identity):
        return ratio, None
    if isinstance(a, PerAxis) and _scales_channels(a, part.shape[0]):
        return ratio, a.axes[0].vector.detach()  # type: ignore[attr-defined]
    if isinstance(a, Diagonal):
        channels = part.shape[0]
        assert isinstance(channels, int), "served parts have fixed shapes"
        scale = _per_channel(a.vector.detach().reshape(channels, -1))
        return None if scale is None else (ratio, scale)
    return None


def _whole(term: Term, part: Part) -> tuple[Fraction, Structure | None]:
    """A ratio and the matrix a term multiplies the whole of its value by; None where it acts on its last axes."""
    ratio, a = (Fraction(1), Identity(part.features)) if term.block is None else unscale(term.block.structure)
    if isinstance(a, Identity):
        return ratio * term.ratio, Identity(part.features)
    acts = term.block is None or term.block.on == "all" or len(part.shape) == 1
    return ratio * term.ratio, a if acts else None


def _scales_channels(a: PerAxis, channels: Size) -> bool:
    first, *rest = a.axes
    plain = not a.order and all(isinstance(axis, Identity) for axis in rest)
    return plain and isinstance(first, Diagonal) and len(first.vector) == channels


def _scaled(found: _Affine, ratio: Fraction, scale: Tensor | None, part: Part) -> _Affine | None:
    """ratio · diag(scale) times it, channel by channel; None where a structure has no form for that."""
    terms, constant = found.terms, found.constant
    if scale is not None:
        scaled = [_scaled_term(term, scale, part) for term in terms]
        terms = tuple(term for term in scaled if term is not None)
        if len(terms) < len(scaled):
            return None
        if constant is not None:
            constant = constant * scale.to(constant).view(-1, *[1] * (constant.dim() - 1))
    if ratio != 1:
        terms = tuple(replace(term, ratio=term.ratio * ratio) for term in terms)
        constant = None if constant is None else constant * float(ratio)
    return _Affine(terms, constant, found.folded)


def _scaled_term(term: Term, scale: Tensor, part: Part) -> Term | None:
    ratio, a = _whole(term, part)
    scaled = None if a is None else _scaled_structure(a, scale, part)
    return None if scaled is None else Term(ratio, Block(scaled), term.value)


def _scaled_structure(a: Structure, scale: Tensor, part: Part) -> Structure | None:
    """diag(scale) A, of the same kind."""
    rest = part.features // part.shape[0] if part.shape[0] else 1  # type: ignore[operator]
    if isinstance(a, Convolution) and len(a.weight) == len(scale):
        weight = a.weight.detach()
        return replace(a, weight=weight * scale.to(weight).view(-1, *[1] * (weight.dim() - 1)))
    if isinstance(a, Dense):
        weight = a.weight.detach()
        return Dense(weight * scale.to(weight).repeat_interleave(rest)[:, None])
    if isinstance(a, Identity):
        return Diagonal(scale) if len(part.shape) == 1 else PerAxis((Diagonal(scale), Identity(rest)))
    if isinstance(a, PerAxis) and _scales_channels(a, part.shape[0]):
        return PerAxis((Diagonal(a.axes[0].vector.detach() * scale), *a.axes[1:]))  # type: ignore[attr-defined]
    return None


def _column(constant: Tensor, part: Part) -> Structure:
    """A constant as a block on `one`."""
    channels = _per_channel(constant)
    if channels is None or constant.dim() == 1:
        return Column(constant.flatten().contiguous())
    return PerAxis((Column(channels), Ones(constant[0].numel(), 1)))
