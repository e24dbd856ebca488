"""Layer norm and RMS norm on the lowered program, where a network writes them out as means and roots.

x ÷ √(mean x² + ε) is the RMS norm of x; where x is itself y − mean y, it is the layer norm of y. Both take the
place of five passes over the features; they equal them up to rounding.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from onematrix.compiler.code import Var
from onematrix.compiler.products import unscaled
from onematrix.compiler.rows import Rows
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wire, WiredRow, every_row
from onematrix.structures.averaging import Mean
from onematrix.structures.base import Structure
from onematrix.structures.identity import Identity, Ones
from onematrix.structures.per_axis import PerAxis

Env = dict[str, Var]


@dataclass(frozen=True)
class Norm:
    """The row of the result, the part that is normed over its last dimension, and the rows in between."""

    result: str
    source: str
    epsilon: float
    centred: bool
    inner: tuple[str, ...]


def find_norms(program: Program, uses: Mapping[str, int]) -> dict[str, Norm]:
    """Result part → its norm."""
    every = every_row(program.wiring)
    written = Counter(row.part for row in every)
    rows = {row.part: row for row in every if written[row.part] == 1 and row.part not in program.inputs}
    finder = _Finder(program, rows, uses)
    norms = (finder.norm(row) for row in rows.values())
    return {norm.result: norm for norm in norms if norm is not None}


def emit_norm(norm: Norm, rows: Rows, env: Env) -> Var:
    """The norm; a layer norm waits for the scale and shift that may follow."""
    source = rows.value(norm.source, env)
    x = rows.text(source)
    if norm.centred and rows.uses.get(norm.result) == 1:
        return Var("", source.single, norm=(x, norm.epsilon))
    if norm.centred:
        return rows.code.let(f"layer_norm({x}, {x}.shape[-1:], eps={norm.epsilon!r})", source.single)
    return rows.code.let(
        f"torch.nn.functional.rms_norm({x}, {x}.shape[-1:], None, {norm.epsilon!r})", source.single
    )


@dataclass(frozen=True)
class _Finder:
    program: Program
    rows: Mapping[str, WiredRow]
    uses: Mapping[str, int]

    def norm(self, row: WiredRow) -> Norm | None:
        if row.join is None or row.activation is not None or row.join.name not in ("hadamard", "divide"):
            return None
        pairs = [(row.sums[0], row.sums[1])]
        if row.join.name == "hadamard":
            pairs.append((row.sums[1], row.sums[0]))
        for whole, scale in pairs:
            if len(whole) == len(scale) == 1 and whole[0].passes and self.spreads(scale[0]):
                activation = "rsqrt" if row.join.name == "hadamard" else "sqrt"
                found = self.root(row.part, whole[0].column, scale[0].column, activation)
                if found is not None:
                    return found
        return None

    def root(self, result: str, source: str, name: str, activation: str) -> Norm | None:
        """The norm of a part by the root of its mean square."""
        root = self.once(name, activation)
        if root is None:
            return None
        epsilon, wires = 0.0, []
        for wire in root.sums[0]:
            ratio, a = unscaled(self.program.structures[wire.slot])
            if wire.column == ONE and isinstance(a, Ones):
                epsilon += ratio
            else:
                wires.append(wire)
        square = self.once(wires[0].column, "square") if len(wires) == 1 and self.averages(wires[0]) else None
        if square is None or self.passed(square) != source or epsilon < 0:
            return None
        if self.program.parts[source].shape != self.program.parts[result].shape:
            return None
        return self.centred(result, source, epsilon, (name, square.part))

    def centred(self, result: str, source: str, epsilon: float, inner: tuple[str, ...]) -> Norm:
        """A layer norm where the source is something less its mean, which nothing else reads."""
        plain = Norm(result, source, epsilon, False, inner)
        row = self.rows.get(source)
        if row is None or row.join is not None or row.activation is not None or self.uses.get(source) != 2:
            return plain
        wires = {wire.passes: wire for wire in row.sums[0]}
        if len(row.sums[0]) != 2 or len(wires) != 2 or not self.spreads(wires[False], -1):
            return plain
        mean = self.once(wires[False].column, None)
        if mean is None or len(mean.sums[0]) != 1 or not self.averages(mean.sums[0][0]):
            return plain
        if mean.sums[0][0].column != wires[True].column:
            return plain
        return Norm(result, wires[True].column, epsilon, True, (*inner, source, mean.part))

    def once(self, name: str, activation: str | None) -> WiredRow | None:
        """The row of a part that is read once, with this activation and one sum."""
        row = self.rows.get(name)
        if row is None or row.join is not None or self.uses.get(name) != 1:
            return None
        found = None if row.activation is None else row.activation.name
        return row if found == activation else None

    def passed(self, row: WiredRow) -> str | None:
        wires = row.sums[0]
        return wires[0].column if len(wires) == 1 and wires[0].passes else None

    def averages(self, wire: Wire) -> bool:
        """Whether a block takes the mean over the last dimension of a part."""
        ratio, a = unscaled(self.program.structures[wire.slot])
        last = _last_axis(a)
        width = self.program.parts[wire.column].shape[-1]
        return ratio == 1 and isinstance(last, Mean) and last.columns == width and wire.column != ONE

    def spreads(self, wire: Wire, factor: float = 1.0) -> bool:
        """Whether a block repeats a part along a new last dimension."""
        ratio, a = unscaled(self.program.structures[wire.slot])
        last = _last_axis(a)
        if isinstance(a, Ones) and self.program.parts[wire.column].shape != (1,):
            return False
        return ratio == factor and isinstance(last, Ones) and last.columns == 1 and wire.column != ONE


def _last_axis(a: Structure) -> Structure | None:
    """The structure on the last axis, where the others are left alone."""
    if not isinstance(a, PerAxis):
        return a
    inner = [unscaled(term) for term in a.axes]
    plain = a.places == list(range(len(a.axes))) and all(ratio == 1 for ratio, _ in inner)
    return inner[-1][1] if plain and all(isinstance(term, Identity) for _, term in inner[:-1]) else None
