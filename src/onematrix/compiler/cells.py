"""Loops that are exactly torch's LSTM or GRU, found on the lowered program with the products that feed them."""

from dataclasses import dataclass

from onematrix.compiler.merging import unscale
from onematrix.compiler.recurrences import NoMatch, fed_series, flat_width, rows_of
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wire, WiredLoop, WiredRow, WiredStep, outer_nodes
from onematrix.structures.algebra import Sum
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.dense import Dense
from onematrix.structures.reshaped import Reshaped


@dataclass
class Cell:
    """kind: "lstm" or "gru"; inputs: the part its series are products of; per gate the structures of its weights and
    of the constants that are its biases.

    state: carried parts in torch's order. outputs: output parts, each the hidden state of every tick.
    absorbed: outer parts whose rows the cell computes itself.
    """

    kind: str
    inputs: str
    w_ih: list[Structure]
    w_hh: list[Structure]
    b_ih: list[Structure | None]
    b_hh: list[Structure | None]
    state: list[str]
    outputs: list[str]
    absorbed: list[str]


def is_weight(a: Structure) -> bool:
    """A dense matrix of its own, or rows of one."""
    return isinstance(a, Dense) or (
        isinstance(a, Reshaped) and a.tensor.dim() == 2 and a.tensor.shape[1] == a.columns > 1
    )


def is_bias(a: Structure) -> bool:
    """A vector of numbers, entries of one, or the sum of such."""
    if isinstance(a, Sum):
        return all(is_bias(term) for term in a.terms)
    return isinstance(a, Column) or (isinstance(a, Reshaped) and a.tensor.dim() == a.columns == 1)


def find_cells(program: Program, uses: dict[str, int]) -> dict[int, Cell]:
    """id(wired loop) → the cell it is."""
    rows: dict[str, WiredRow] = {}
    found: dict[int, Cell] = {}
    for node in outer_nodes(program.wiring):
        if isinstance(node, WiredStep):
            rows |= {row.part: row for row in node.rows}
        elif isinstance(node, WiredLoop) and node.loop.over is not None:
            for match in (_Match(node, program, rows, uses).lstm, _Match(node, program, rows, uses).gru):
                try:
                    found[id(node)] = match()
                    break
                except (NoMatch, KeyError):
                    continue
    return found


class _Match:
    def __init__(
        self, node: WiredLoop, program: Program, outer: dict[str, WiredRow], uses: dict[str, int]
    ) -> None:
        self.node, self.program, self.outer, self.uses = node, program, outer, uses

    def prepare(self, carried: int) -> None:
        loop = self.node.loop
        if loop.valid is not None or loop.ticks is not None or len(self.node.carry) != carried:
            raise NoMatch
        self.series = fed_series(self.node, self.program)
        self.rows = {row.part: row for row in rows_of(self.node.body)}
        self.next = {row.part: self.passed(row.sums[0]) for row in self.node.carry}
        self.widths = {flat_width(self.program.parts[name]) for name in self.rows}
        if len(self.widths) != 1:
            raise NoMatch

    # What a sum is.

    def passed(self, wires: tuple[Wire, ...]) -> str:
        """The one part a sum passes on."""
        if len(wires) != 1 or not wires[0].passes:
            raise NoMatch
        return wires[0].column

    def structure(self, wire: Wire) -> Structure:
        ratio, a = unscale(self.program.structures[wire.slot])
        if ratio != 1:
            raise NoMatch
        return a

    def hadamard(self, name: str, activation: str | None = None) -> tuple[tuple[Wire, ...], tuple[Wire, ...]]:
        """The two sums of σ(a) ∘ b."""
        row = self.rows[name]
        got = None if row.activation is None else row.activation.name
        if row.join is None or row.join.name != "hadamard" or got != activation:
            raise NoMatch
        return row.sums[0], row.sums[1]

    def gate(self, name: str, activation: str, hidden: str) -> tuple[str, Structure]:
        """(outer series, weight of the hidden state) of σ(series + U h)."""
        row = self.rows[name]
        if row.join is not None or row.activation is None or row.activation.name != activation:
            raise NoMatch
        return self.affine(row.sums[0], hidden)

    def affine(self, wires: tuple[Wire, ...], hidden: str) -> tuple[str, Structure]:
        fed = [w.column for w in wires if w.passes]
        dense = [w for w in wires if not w.passes]
        if len(fed) != 1 or len(dense) != 1 or dense[0].column != hidden or not dense[0].plain:
            raise NoMatch
        a = self.structure(dense[0])
        if not is_weight(a):
            raise NoMatch
        return self.series[fed[0]], a

    def product(self, series: str) -> tuple[str, Structure, Structure | None]:
        """(inputs, weight, bias) of an outer series W x + b that only this loop reads."""
        row = self.outer[series]
        if self.uses.get(series) != 1 or row.join is not None or row.activation is not None:
            raise NoMatch
        weight: Structure | None = None
        bias: Structure | None = None
        inputs = None
        for wire in row.sums[0]:
            a = self.structure(wire)
            if wire.column == ONE and is_bias(a) and bias is None:
                bias = a
            elif is_weight(a) and wire.plain and wire.column != ONE and weight is None:
                weight, inputs = a, wire.column
            else:
                raise NoMatch
        if inputs is None or weight is None or len(self.program.parts[inputs].shape) != 2:
            raise NoMatch
        return inputs, weight, bias

    def cell(
        self,
        kind: str,
        gates: list[tuple[str, Structure]],
        b_hh: list[Structure | None],
        state: list[str],
        new: str,
    ) -> Cell:
        products = [self.product(series) for series, _ in gates]
        if len({inputs for inputs, _, _ in products}) != 1 or len({s for s, _ in gates}) != len(gates):
            raise NoMatch
        outputs = []
        for row in self.node.outputs:
            if self.passed(row.sums[0]) != new:
                raise NoMatch
            (width,) = self.widths
            if self.program.parts[row.part].shape != (self.node.loop.length, width):
                raise NoMatch
            outputs.append(row.part)
        return Cell(
            kind,
            products[0][0],
            [w for _, w, _ in products],
            [u for _, u in gates],
            [b for _, _, b in products],
            b_hh,
            state,
            outputs,
            [series for series, _ in gates],
        )

    def lstm(self) -> Cell:
        """c ← f ∘ c + i ∘ g; h ← tanh(c) ∘ o; gates σ(series + U h)."""
        self.prepare(2)
        for hidden, old in (list(self.next), list(reversed(self.next))):
            h, c = self.next[hidden], self.next[old]
            try:
                inner, outer = self.hadamard(h, "tanh")
            except NoMatch:
                continue
            if self.passed(inner) == c:
                return self._lstm(hidden, old, h, c, self.passed(outer))
        raise NoMatch

    def _lstm(self, hidden: str, old: str, h: str, c: str, o: str) -> Cell:
        row = self.rows[c]
        if row.join is not None or row.activation is not None or len(row.sums[0]) != 2:
            raise NoMatch
        pairs = [
            {self.passed(a), self.passed(b)}
            for a, b in (self.hadamard(w.column) for w in row.sums[0] if w.passes)
        ]
        if len(pairs) != 2:
            raise NoMatch
        forget, write = pairs if old in pairs[0] else reversed(pairs)
        (f,) = forget - {old}
        i, g = sorted(write, key=lambda name: self.rows[name].activation != self.rows[f].activation)
        gates = [
            self.gate(n, s, hidden) for n, s in ((i, "sigmoid"), (f, "sigmoid"), (g, "tanh"), (o, "sigmoid"))
        ]
        if len(self.rows) != 8:
            raise NoMatch
        return self.cell("lstm", gates, [None] * 4, [hidden, old], h)

    def gru(self) -> Cell:
        """n = tanh(series + r ∘ (U h + c)), h ← n + z ∘ (h − n)."""
        self.prepare(1)
        ((hidden, h),) = self.next.items()
        row = self.rows[h]
        if row.join is not None or row.activation is not None or len(self.rows) != 6:
            raise NoMatch
        n, d = (w.column for w in row.sums[0] if w.passes)
        if self.rows[n].join is not None:
            n, d = d, n
        gate, rest = self.hadamard(d)
        z = self.passed(gate)
        ratios = {w.column: unscale(self.program.structures[w.slot])[0] for w in rest}
        if ratios != {hidden: 1, n: -1}:
            raise NoMatch
        if self.rows[n].activation is None or self.rows[n].activation.name != "tanh":  # type: ignore[union-attr]
            raise NoMatch
        fed = [w.column for w in self.rows[n].sums[0] if w.passes and w.column in self.series]
        (m,) = (w.column for w in self.rows[n].sums[0] if w.passes and w.column not in self.series)
        if len(fed) != 1 or len(self.rows[n].sums[0]) != 2:
            raise NoMatch
        inner, outer = self.hadamard(m)
        r = self.passed(inner)
        dense = [w for w in outer if w.column == hidden]
        biases = [self.structure(w) for w in outer if w.column == ONE]
        if len(dense) != 1 or len(dense) + len(biases) != len(outer) or len(biases) > 1:
            raise NoMatch
        a = self.structure(dense[0])
        bias = biases[0] if biases and is_bias(biases[0]) else None
        if not is_weight(a) or (biases and bias is None):
            raise NoMatch
        gates = [self.gate(r, "sigmoid", hidden), self.gate(z, "sigmoid", hidden)]
        gates.append((self.series[fed[0]], a))
        return self.cell("gru", gates, [None, None, bias], [hidden], h)
