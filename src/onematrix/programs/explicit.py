"""The explicit matrix of the affine part of a program: A and b of y = A x + b, sparse from end to end."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import sparse  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional

from onematrix.errors import ProgramError, ShapeError
from onematrix.programs.affine import (
    Affine,
    Broken,
    Value,
    added,
    constant,
    contracted,
    copied,
    multiplied,
    picked,
    places_of,
    scaled,
)
from onematrix.programs.coordinates import Matrix, coordinates
from onematrix.programs.joins import Join
from onematrix.programs.opaque import Opaque
from onematrix.programs.part import ONE, fix_size
from onematrix.programs.product import apply_wire
from onematrix.programs.program import Program
from onematrix.programs.run import Run
from onematrix.programs.wiring import Wire, Wired, WiredLoop, WiredRow, WiredSeq, WiredStep
from onematrix.structures.compressed import CSR
from onematrix.structures.tree import with_dtype

Values = dict[str, Value]
COPIES = ("gather", "take", "select")


def explicit_matrix(
    program: Program, output: str | None, input: str | None, sizes: Mapping[str, int]
) -> Matrix:
    """A with rows of the output parts (None: all outputs) and columns of the input parts (None: all inputs), as
    scipy's csr_array in float64. An input may be any part outside loops: it counts as given. input "one": the
    constant column b. Index parts count as one-hot vectors, integer inputs as the one-hot part made of them.
    Raises ProgramError (unknown part; the row where the path stops being affine, and why), ShapeError (sizes).
    """
    if missing := sorted(program.free_sizes() - set(sizes)):
        remedy = ", ".join(f"{name}=8" for name in missing)
        raise ShapeError(
            f"explicit matrix: the sizes {', '.join(missing)} are free; give them by name, "
            f"as in program.to_dense({remedy})",
            missing=missing,
        )
    outputs = program.outputs if output is None else (output,)
    walk = _Walk(program, input, dict(sizes))
    state = walk.run()
    rows = [walk.rows(name, state) for name in outputs]
    whole = sparse.csr_array(sparse.vstack(rows, format="csr"))
    columns = [c for n in walk.chosen for c in range(*walk.columns[n])]
    picked_columns: Matrix = whole[:, columns]
    return picked_columns


def to_csr(program: Program, output: str | None, input: str | None, sizes: Mapping[str, int]) -> CSR:
    """The same as a structure."""
    matrix = explicit_matrix(program, output, input, sizes)
    matrix.sort_indices()
    pointers = torch.from_numpy(matrix.indptr.astype(np.int64))
    indices = torch.from_numpy(matrix.indices.astype(np.int64))
    return CSR(torch.from_numpy(matrix.data.copy()), pointers, indices, matrix.shape[1])


class _Walk:
    """One pass over the schedule in which every part is a constant, an affine value, or broken."""

    def __init__(self, program: Program, input: str | None, sizes: dict[str, int]) -> None:
        self.program = program
        doubled = [with_dtype(s, torch.float64) for s in program.structures]
        device = next((t.device for t in program.parameters.values()), torch.device("cpu"))
        self.run_ = Run(program, doubled, 1, torch.float64, device, sizes, False, 0, 0, {})
        self.sparse: dict[int, Matrix] = {}
        self.stands = _one_hot_parts(program)
        self.cut = {n: self.stands.get(n, n) for n in (*program.inputs, *([input] if input else []))}
        self._check(input)
        self.columns: dict[str, tuple[int, int]] = {}
        first = 0
        for name in dict.fromkeys(self.cut.values()):
            if name != ONE:
                self.columns[name] = (first, first + math.prod(self.shape(name)))
                first = self.columns[name][1]
        self.columns[ONE] = (first, first + 1)
        self.width = first + 1
        chosen = program.inputs if input is None else (input,)
        self.chosen = [self.stands.get(n, n) for n in chosen]

    def _check(self, input: str | None) -> None:
        if input is not None and input not in self.program.parts:
            raise ProgramError(
                f"explicit matrix: input {input!r} is no part; parts: {', '.join(self.program.parts)}"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """With the classes of an index part."""
        return self.run_.fix(self.program.parts[name].shape)

    def variable(self, name: str) -> Affine:
        first, last = self.columns[name]
        return Affine(self.shape(name), sparse.eye_array(last - first, self.width, k=first, format="csr"))

    def run(self) -> Values:
        state: Values = {ONE: torch.ones(1, 1, dtype=torch.float64, device=self.run_.device)}
        for name in self.program.inputs:
            state[name] = self._input(name)
        self.cuts = {n for n in self.columns if n != ONE and n not in self.program.inputs}
        self.node(self.program.wiring, state, True)
        return state

    def _input(self, name: str) -> Value:
        part = self.program.parts[name]
        if name in self.stands:
            return Broken(name, "integers are no vector")
        whole = part.dtype is not None and not getattr(torch, part.dtype).is_floating_point
        if part.kind != "index" and whole:
            return Broken(name, f"it is an input of {part.dtype}, which no one-hot part stands for")
        return self.variable(name)

    def rows(self, name: str, state: Values) -> Matrix:
        if name not in state:
            raise ProgramError(
                f"explicit matrix: output {name!r} has no value after the schedule; there are: {', '.join(state)}"
            )
        value = state[name]
        if isinstance(value, Broken):
            raise ProgramError(
                f"explicit matrix of {name!r}: row {value.row!r} is not linear ({value.reason}); choose output= "
                f"before that row, or input= behind it",
                row=value.row,
            )
        if isinstance(value, Tensor):
            if self.program.parts[name].kind == "index":
                value = functional.one_hot(value.long(), self.shape(name)[-1])
            return constant(value, self.width).matrix
        return value.matrix

    # The schedule, as the interpreter walks it.

    def node(self, node: Wired, state: Values, outer: bool) -> None:
        if isinstance(node, WiredStep):
            new = [(row.part, self.row(row, state)) for row in node.rows]
            state.update(new)
            if outer:
                state.update({n: self.variable(n) for n, _ in new if n in self.cuts})
        elif isinstance(node, WiredSeq):
            for child in node.body:
                self.node(child, state, outer)
        elif node.loop.over is not None:
            self.over(node, state)
        elif node.loop.times is not None:
            self.times(node, state)
        else:
            state.update({n: Broken(n, "a loop until it stands still") for n in node.written})

    def times(self, node: WiredLoop, state: Values) -> None:
        given = self.map(node.init, state)
        state.update({name: self.run_.zeros(name) for name in node.written} | given)
        for _ in range(fix_size(node.loop.times or 0, self.run_.sizes)):
            self.node(node.body, state, False)

    def over(self, node: WiredLoop, state: Values) -> None:
        loop, one = node.loop, {ONE: state[ONE]}
        ticks = fix_size(loop.length, self.run_.sizes)
        given = self.map(node.init, state)
        carried = {r.part: given.get(r.part, self.run_.zeros(r.part)) for r in node.carry}
        names = {w.column for r in node.feeds for w in r.sums[0]} - {ONE}
        fed = {name: self.ticks(name, node, ticks, state[name]) for name in names}
        valid = None if loop.valid is None else self.ticks(loop.valid, node, ticks, state[loop.valid])
        collected: dict[str, list[Value]] = {row.part: [] for row in node.outputs}
        for t in reversed(range(ticks)) if loop.reverse else range(ticks):
            inner: Values = {**one, **carried}
            inner |= self.map(node.feeds, {**one, **{name: series[t] for name, series in fed.items()}})
            self.node(node.body, inner, False)
            outputs, new = self.map(node.outputs, inner), self.map(node.carry, inner)
            if valid is not None:
                outputs = {n: self.held(n, valid[t], v, None) for n, v in outputs.items()}
                new = {n: self.held(n, valid[t], v, carried[n]) for n, v in new.items()}
            for name, value in outputs.items():
                collected[name].append(value)
            carried = new
        state.update(carried)
        for name, values in collected.items():
            state[name] = self.stacked(values[::-1] if loop.reverse else values, name, node)

    def held(self, name: str, counts: Value, new: Value, old: Value | None) -> Value:
        if not isinstance(counts, Tensor):
            return Broken(name, "which ticks count depends on the inputs")
        if bool((counts != 0).all()):
            return new
        return self.run_.zeros(name) if old is None else old

    def map(self, rows: Sequence[WiredRow], state: Values) -> Values:
        return {row.part: self.sum(row.sums[0], row, state) for row in rows}

    def ticks(self, name: str, node: WiredLoop, ticks: int, value: Value) -> list[Value]:
        loop, part = node.loop, self.program.parts[name]
        if loop.over not in part.shape or isinstance(value, Broken):
            return [value] * ticks
        place = part.shape.index(loop.over)
        count = self.run_.fix((loop.over,))[0]
        series = [_tick(value, place, t) for t in range(min(ticks, count))]
        if ticks > count:
            series += [self._past(series, part.peel(loop.over), loop.after)] * (ticks - count)
        return series

    def _past(self, series: Sequence[Value], part: object, after: str) -> Value:
        last = series[-1]
        if after == "hold":
            return last
        shape = last.shape[1:] if isinstance(last, Tensor) else getattr(last, "shape", ())
        return torch.zeros(1, *shape, dtype=torch.float64)

    def stacked(self, values: Sequence[Value], name: str, node: WiredLoop) -> Value:
        if broken := [v for v in values if isinstance(v, Broken)]:
            return broken[0]
        if not values:
            return self.run_.zeros(name)
        place = self.program.parts[name].shape.index(node.loop.length)
        if all(isinstance(v, Tensor) for v in values):
            stacked = torch.stack([v for v in values if isinstance(v, Tensor)], 1 + place)
            return stacked.reshape(1, *self.run_.shape_of(name))
        whole = [v if isinstance(v, Affine) else constant(v, self.width) for v in values]  # type: ignore[arg-type]
        count, shape = len(whole), whole[0].shape
        matrix = sparse.vstack([v.matrix for v in whole], format="csr")
        order = np.moveaxis(places_of((count, *shape)), 0, place)
        return Affine(self.shape(name), picked(Affine((), matrix), order).matrix)

    # Rows.

    def row(self, row: WiredRow, state: Values) -> Value:
        if self._stands(row) is not None:
            return self.variable(row.part)
        sums = [self.sum(wires, row, state) for wires in row.sums]
        for value in sums:
            if isinstance(value, Broken):
                return value
        first = self.activated(row, sums[0])
        if isinstance(first, Broken) or row.join is None:
            return first
        return self.joined(row.part, row.join, [first, *sums[1:]])

    def _stands(self, row: WiredRow) -> str | None:
        reads = {w.column for w in row.sums[0]}
        return next((n for n, part in self.stands.items() if part == row.part and reads == {n}), None)

    def activated(self, row: WiredRow, value: Value) -> Value:
        act = row.activation
        if act is None or isinstance(value, Broken):
            return value
        if isinstance(value, Tensor):
            return _wide(act(value))
        if act.name in ("fill", "positions"):
            return _wide(act(torch.zeros(1, *value.shape, dtype=torch.float64)))
        if act.name == "plus":
            return added(
                [value, constant(torch.full((1, *value.shape), float(act.arguments[0])), self.width)]
            )
        if act.name == "times":
            return scaled(value, torch.full((1, *value.shape), float(act.arguments[0])))
        floats = act.name == "cast" and getattr(torch, str(act.arguments[0])).is_floating_point
        if act.name in ("identity", "stop") or floats:
            return value
        return Broken(row.part, f"its activation is {act}")

    def joined(self, part: str, join: Join | Opaque, sums: Sequence[Value]) -> Value:
        free = [i for i, v in enumerate(sums) if not isinstance(v, Tensor)]
        if not free:
            return _wide(join(*sums))  # type: ignore[arg-type]
        operands: list[Affine | Tensor] = [v for v in sums if not isinstance(v, Broken)]
        if isinstance(join, Opaque):
            return Broken(part, "an opaque function")
        if join.pattern is not None and len(free) == 1:
            return contracted(join.pattern, operands)
        if (
            join.name in ("hadamard", "divide")
            and len(free) == 1
            and (join.name == "hadamard" or free == [0])
        ):
            value, other = operands[free[0]], operands[1 - free[0]]
            factor = other if join.name == "hadamard" else 1 / other  # type: ignore[operator]
            return scaled(value, factor)  # type: ignore[arg-type]
        index = 0 if join.name == "select" else 1
        if join.name in COPIES and index not in free:
            mask = operands[index]
            data = [v if i == index else self._data(v) for i, v in enumerate(operands)]
            data[index] = mask if join.name != "select" else mask != 0  # type: ignore[assignment]
            return copied(join, data)
        many = " of values that all depend on the inputs" if len(free) > 1 else ""
        return Broken(part, f"its join is {join}{many}")

    def _data(self, value: Affine | Tensor) -> Affine:
        return value if isinstance(value, Affine) else constant(value, self.width)

    def sum(self, wires: Sequence[Wire], row: WiredRow, state: Values) -> Value:
        """Σ_j A_j x_j: a tensor where no part depends on the inputs."""
        terms: list[Affine] = []
        total: Tensor | None = None
        for wire in wires:
            if wire.column not in state:
                return Broken(row.part, f"it reads the noise {wire.column!r}")
            value = state[wire.column]
            if isinstance(value, Broken):
                return value
            if isinstance(value, Affine):
                terms.append(self.wired(wire, value))
            else:
                term = _wide(apply_wire(wire, value, self.run_))
                total = term if total is None else total + term
        if not terms:
            return self.run_.zeros(row.part) if total is None else total
        return added(terms if total is None else [*terms, constant(total, self.width)])

    def wired(self, wire: Wire, value: Affine) -> Affine:
        if wire.passes:
            return value
        if wire.flattens:
            kept = value.shape[: wire.kept]
            value = Affine((*kept, math.prod(value.shape[wire.kept :])), value.matrix)
        out = multiplied(self.matrix(wire), value, len(value.shape) - 1)
        tail = out.shape[-1:] if wire.tail is None else self.run_.fix(wire.tail)
        shape = (
            (*[1] * wire.spread, *out.shape[: wire.kept], *tail) if wire.spread or wire.tail else out.shape
        )
        out = Affine(shape, out.matrix)
        if wire.fills is not None:
            out = picked(out, np.broadcast_to(places_of(shape), self.run_.fix(wire.fills)))
        return out

    def matrix(self, wire: Wire) -> Matrix:
        if wire.slot not in self.sparse:
            structure = self.run_.structures[wire.slot]
            self.sparse[wire.slot] = coordinates(structure.at(**self.run_.sizes) if wire.named else structure)
        return self.sparse[wire.slot]


def _tick(value: Affine | Tensor, place: int, t: int) -> Value:
    """One tick of a value; a number per tick keeps one dimension."""
    if isinstance(value, Tensor):
        part = value.select(1 + place, t)
        return part.unsqueeze(-1) if part.dim() == 1 else part
    places = np.take(places_of(value.shape), t, axis=place)
    return picked(value, places if places.ndim else places[None])


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _one_hot_parts(program: Program) -> dict[str, str]:
    """Integer input → the one index part made of it by one_hot."""
    found: dict[str, list[str]] = {}
    for step in program.steps():
        for row in step.rows:
            reads = row.reads()
            if isinstance(row.join, Join) and row.join.name == "one_hot" and len(reads) == 1:
                found.setdefault(reads[0], []).append(row.part)
    return {n: parts[0] for n, parts in found.items() if n in program.inputs and len(parts) == 1}
