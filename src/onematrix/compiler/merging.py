"""Merging: dense products of one value over all ticks, as one product with the weights one above the other.

Chosen where a value has a free dimension (time, tokens), so that many rows share the concatenated weight; where
there are few rows in a call after all, the products run apart (`kernels.merged_product`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from onematrix.compiler.code import Code
from onematrix.kernels.merged_product import merged_product
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wire, every_row
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Scaled


@dataclass(frozen=True)
class Member:
    """One product of a merge: its wire, its weight, and the bias added with it (None: none)."""

    wire: Wire
    weight: object
    size: int
    bias: object | None


@dataclass(frozen=True)
class Merge:
    """Products of one part that are one product."""

    column: str
    members: tuple[Member, ...]


def plan_merges(program: Program) -> tuple[dict[int, Merge], set[int]]:
    """id(wire) → its merge, and the ids of the wires of biases that are added with them."""
    groups: dict[tuple[str, int, bool], list[Member]] = {}
    biases: dict[int, Wire] = {}
    for row in every_row(program.wiring, loops=False):
        own = row.join is not None and row.join.keeps_operand_shapes
        if own or not any(isinstance(size, str) for size in program.parts[row.part].shape):
            continue
        for wires in row.sums:
            for wire in wires:
                member = member_of(wire, wires, program, biases)
                if member is not None:
                    groups.setdefault((wire.column, wire.kept, wire.flattens), []).append(member)
    found: dict[int, Merge] = {}
    taken: set[int] = set()
    for (column, _, _), members in groups.items():
        if len(members) > 1:
            merge = Merge(column, tuple(members))
            found |= {id(m.wire): merge for m in members}
            taken |= {id(biases[id(m.wire)]) for m in members if id(m.wire) in biases}
    return found, taken


def operand_texts(
    code: Code, tensor: Callable[[object], str], members: Sequence[Member]
) -> tuple[list[str], list[str]]:
    """The weights of products of one value, and their biases where any has one."""
    weights = [tensor(m.weight) for m in members]
    if all(m.bias is None for m in members):
        return weights, []
    return weights, [
        code.first(f"{w}.new_zeros({m.size})") if m.bias is None else tensor(m.bias)
        for m, w in zip(members, weights, strict=True)
    ]


def merged_text(code: Code, x: str, weights: Sequence[str], vectors: Sequence[str], fixed: bool) -> str:
    """The product of x with all weights; fixed: they stay as they are and are put together once."""
    whole, bias = f"[{', '.join(weights)}]", f"[{', '.join(vectors)}]"
    if not fixed:
        return f"{code.constant(merged_product)}({x}, {whole}, {bias if vectors else None})"
    texts = [code.first(f"torch.cat({given})") for given in (bias, whole) if given != "[]"]
    return f"linear({', '.join([x, *reversed(texts)])})"


def member_of(
    wire: Wire, wires: tuple[Wire, ...], program: Program, biases: dict[int, Wire]
) -> Member | None:
    """The product a wire of a sum is, its bias with it, whose wire is put among `biases`; None where it is none."""
    ratio, a = unscale(program.structures[wire.slot])
    if (
        wire.column == ONE
        or wire.classes is not None
        or wire.named
        or wire.spread
        or not isinstance(a, Dense)
    ):
        return None
    if sum(isinstance(unscale(program.structures[w.slot])[1], Dense) for w in wires if w.column != ONE) > 1:
        return None
    size = a.weight.shape[0]
    for other in wires:
        inner_ratio, b = unscale(program.structures[other.slot])
        fits = other.column == ONE and isinstance(b, Column) and inner_ratio == ratio
        if (
            fits
            and isinstance(b, Column)
            and len(b.vector) == size
            and _tail(other, size) == _tail(wire, size)
        ):
            biases[id(wire)] = other
            return Member(wire, a.weight, size, b.vector)
    return Member(wire, a.weight, size, None)


def _tail(wire: Wire, size: int) -> tuple[object, ...]:
    return (size,) if wire.tail is None else wire.tail


def unscale(a: Structure) -> tuple[Fraction, Structure]:
    """(ratio, A) of a scaled structure."""
    ratio = Fraction(1)
    while isinstance(a, Scaled):
        ratio, a = ratio * Fraction(a.numerator, a.denominator), a.inner
    return ratio, a


Merges = Mapping[int, Merge]
