"""Loops that are one kernel: recognised on the lowered program, before code is written.

An elementwise recurrence runs fused over all its ticks. A dense recurrence, s ← σ(a + W s), makes one product
per tick and one for the gradient of its weights. Everything else stays a loop of its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from onematrix.compiler.products import Terms, unscaled
from onematrix.compiler.rows import Rows
from onematrix.kernels.elementwise_code import ACTIVATIONS, JOINS, ElementwiseLoop
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wire, Wired, WiredLoop, WiredRow, WiredSeq, WiredStep
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity


class NoMatch(Exception):
    """The loop is not of the kind that was looked for; its text says why."""


@dataclass
class Elementwise:
    """A loop as an ElementwiseLoop: outer parts of its series, vectors as code, carried and output parts."""

    loop: ElementwiseLoop
    series: list[str]
    vectors: list[str]
    outputs: list[str]


@dataclass
class Dense1:
    """A loop as s ← σ(a + W s): the outer parts of a, blocks of W by (row, column), slices, output slices."""

    series: list[list[str]]  # per carried part
    blocks: dict[tuple[int, int], object]
    widths: list[int]
    activations: list[str]
    vectors: list[list[str]]  # constants per carried part, as code
    outputs: dict[str, int]  # output part → carried part


def rows_of(wired: Wired) -> list[WiredRow]:
    """The rows of straight-line code in order. Raises NoMatch where there is a loop."""
    if isinstance(wired, WiredStep):
        return list(wired.rows)
    if isinstance(wired, WiredSeq):
        return [row for child in wired.body for row in rows_of(child)]
    raise NoMatch("there is a loop in it")


def flat_width(part: Part) -> int:
    """n of a part of shape (n,). Raises NoMatch for any other."""
    if part.kind != "real" or part.dtype is not None or len(part.shape) != 1:
        raise NoMatch(f"a part of shape {part.shape} and kind {part.kind} is no vector of real numbers")
    (n,) = part.shape
    if not isinstance(n, int):
        raise NoMatch(f"the width {n!r} of a part is free")
    return n


def fed_series(wired: WiredLoop, program: Program) -> dict[str, str]:
    """Inner part → outer part of every feed, each a series (over, n) passed on as it is."""
    found = {}
    for row in wired.feeds:
        if len(row.sums[0]) != 1 or not row.sums[0][0].passes:
            raise NoMatch(f"the feed of {row.part!r} is not one part as it is")
        column = row.sums[0][0].column
        if program.parts[column].shape != (wired.loop.over, flat_width(program.parts[row.part])):
            raise NoMatch(f"{column!r} is not fed tick by tick")
        found[row.part] = column
    return found


def match_elementwise(wired: WiredLoop, program: Program, rows: Rows) -> Elementwise:
    """The loop as one elementwise recurrence. Raises NoMatch where it is not."""
    return _Elementwise(wired, program, rows).found()


@dataclass
class _Elementwise:
    wired: WiredLoop
    program: Program
    rows: Rows
    vectors: list[str] = field(default_factory=list)
    code: list[tuple[object, ...]] = field(default_factory=list)  # operands: ("s"|"v"|"c"|"r", number)

    def found(self) -> Elementwise:
        wired = self.wired
        if wired.loop.ticks is not None or not wired.carry or not wired.feeds:
            raise NoMatch("it has a number of ticks of its own, or nothing is carried or fed")
        series = fed_series(wired, self.program)
        carried = [row.part for row in wired.carry]
        widths = {flat_width(self.program.parts[name]) for name in [*series, *carried]}
        if len(widths) != 1:
            raise NoMatch(f"its parts have different widths {sorted(widths)}")
        (self.width,) = widths
        env: dict[str, tuple[str, int]] = {name: ("s", i) for i, name in enumerate(series)}
        env |= {name: ("c", i) for i, name in enumerate(carried)}
        for step in _steps(wired.body):
            env |= {row.part: self.row(row, env) for row in step.rows if self.rows.uses.get(row.part)}
        outputs = [(row.part, self.sum(row.sums[0], env)) for row in wired.outputs]
        for name, _ in outputs:
            if self.program.parts[name].shape != (wired.loop.length, self.width):
                raise NoMatch(f"output {name!r} is not (ticks, {self.width})")
        carry = [self.sum(row.sums[0], env) for row in wired.carry]
        counts = {"s": len(series), "v": len(self.vectors), "c": len(carried)}
        bases = {"s": 0, "v": counts["s"], "c": counts["s"] + counts["v"], "r": sum(counts.values())}

        def number(operand: object) -> object:
            return bases[operand[0]] + operand[1] if isinstance(operand, tuple) else operand

        loop = ElementwiseLoop(
            counts["s"],
            counts["v"],
            counts["c"],
            tuple(tuple(number(o) for o in line) for line in self.code),
            tuple(number(r) for _, r in outputs),  # type: ignore[misc]
            tuple(number(r) for r in carry),  # type: ignore[misc]
        )
        return Elementwise(loop, list(series.values()), self.vectors, [name for name, _ in outputs])

    def row(self, row: WiredRow, env: dict[str, tuple[str, int]]) -> tuple[str, int]:
        if flat_width(self.program.parts[row.part]) != self.width:
            raise NoMatch(f"{row.part!r} is not {self.width} wide")
        sums = [self.sum(wires, env) for wires in row.sums]
        if row.activation is not None:
            if row.activation.name not in ACTIVATIONS:
                raise NoMatch(f"activation {row.activation.name!r} of {row.part!r} is not elementwise")
            line = ("activation", sums[0], row.activation.name, *row.activation.arguments)
            sums[0] = self.line(*line)
        if row.join is None:
            return sums[0]
        if row.join.name not in JOINS:
            raise NoMatch(f"join {row.join.name!r} of {row.part!r} is not elementwise")
        return self.line(JOINS[row.join.name], sums[0], sums[1])

    def line(self, *parts: object) -> tuple[str, int]:
        self.code.append(parts)
        return ("r", len(self.code) - 1)

    def sum(self, wires: Sequence[Wire], env: dict[str, tuple[str, int]]) -> tuple[str, int]:
        total: tuple[str, int] | None = None
        number = 0.0
        for wire in wires:
            ratio, a = unscaled(self.program.structures[wire.slot])
            if wire.column == ONE:
                terms = Terms()
                if not self.rows.constant(ratio, a, wire, Part((self.width,)), terms):
                    raise NoMatch(f"a constant of structure {a.name!r} is no vector")
                number += terms.number
                for constant in terms.vectors:
                    total = self.add(total, 1.0, self.vector(constant.flat))
                continue
            if wire.column not in env or not (wire.passes or wire.plain):
                raise NoMatch(f"{wire.column!r} is no vector of this tick")
            term = env[wire.column]
            if isinstance(a, Diagonal):
                term = self.line("mul", term, self.vector(self.rows.tensor(a.vector)))
            elif not isinstance(a, Identity):
                raise NoMatch(f"the {a.name} block on {wire.column!r} mixes features at every tick")
            if total is None and number and ratio == -1:
                total, number = self.line("sub", self.line("constant", number), term), 0.0
            else:
                total = self.add(total, ratio, term)
        if total is None:
            return self.line("constant", number)
        return self.line("shift", total, number) if number else total

    def add(self, total: tuple[str, int] | None, ratio: float, term: tuple[str, int]) -> tuple[str, int]:
        if total is not None and ratio in (1, -1):
            return self.line("add" if ratio == 1 else "sub", total, term)
        if ratio != 1:
            term = self.line("scale", term, ratio)
        return term if total is None else self.line("add", total, term)

    def vector(self, text: str) -> tuple[str, int]:
        if text not in self.vectors:
            self.vectors.append(text)
        return ("v", self.vectors.index(text))


def _steps(wired: Wired) -> list[WiredStep]:
    if isinstance(wired, WiredStep):
        return [wired]
    if isinstance(wired, WiredSeq):
        return [step for child in wired.body for step in _steps(child)]
    raise NoMatch("there is a loop in it")


def match_dense(wired: WiredLoop, program: Program, rows: Rows) -> Dense1:
    """The loop as one dense recurrence. Raises NoMatch where it is not."""
    if wired.loop.valid is not None and wired.loop.ticks is not None:
        raise NoMatch("which ticks count past the end of its inputs is for the loop to say")
    series = fed_series(wired, program)
    body = {row.part: row for row in rows_of(wired.body)}
    carried = [row.part for row in wired.carry]
    made = [_passed(row) for row in wired.carry]
    if not carried or sorted(made) != sorted(body) or len(set(made)) != len(made):
        raise NoMatch("it computes other parts than those it carries")
    found = Dense1([], {}, [], [], [], {})
    for i, name in enumerate(made):
        row = body[name]
        found.widths.append(flat_width(program.parts[name]))
        found.activations.append(_activation(row))
        found.series.append([])
        found.vectors.append([])
        for wire in row.sums[0]:
            _sort_dense(wire, i, found, series, carried, program, rows)
    if not found.blocks:
        raise NoMatch("no dense block reads a carried part")
    for row in wired.outputs:
        if _passed(row) not in made:
            raise NoMatch(f"output {row.part!r} is not a carried part")
        found.outputs[row.part] = made.index(_passed(row))
        if program.parts[row.part].shape != (wired.loop.length, found.widths[found.outputs[row.part]]):
            raise NoMatch(f"output {row.part!r} is not (ticks, features)")
    return found


def _sort_dense(
    wire: Wire,
    row: int,
    found: Dense1,
    series: dict[str, str],
    carried: list[str],
    program: Program,
    rows: Rows,
) -> None:
    ratio, a = unscaled(program.structures[wire.slot])
    if wire.column == ONE:
        terms = Terms()
        if not rows.constant(ratio, a, wire, Part((found.widths[row],)), terms) or terms.number:
            raise NoMatch(f"a constant of structure {a.name!r} is no vector")
        found.vectors[row] += [constant.flat for constant in terms.vectors]
    elif ratio != 1:
        raise NoMatch(f"the block on {wire.column!r} has a factor {ratio:g}")
    elif wire.column in series and wire.passes:
        found.series[row].append(series[wire.column])
    elif wire.column in carried and wire.plain and isinstance(a, Dense):
        found.blocks[row, carried.index(wire.column)] = a.weight
    else:
        raise NoMatch(f"the {a.name} block on {wire.column!r} is not dense")


def _passed(row: WiredRow) -> str:
    if len(row.sums[0]) != 1 or not row.sums[0][0].passes:
        raise NoMatch(f"{row.part!r} is not handed on as it is")
    return row.sums[0][0].column


def _activation(row: WiredRow) -> str:
    if row.join is not None:
        raise NoMatch(f"{row.part!r} joins two sums")
    if row.activation is None:
        return "identity"
    if row.activation.arguments or (row.activation.name != "softmax" and row.activation.rule.mixes != "none"):
        raise NoMatch(
            f"activation {row.activation.name!r} of {row.part!r} is neither elementwise nor softmax"
        )
    return row.activation.name
