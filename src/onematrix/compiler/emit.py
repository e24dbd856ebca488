"""Lowered program → the text of one flat function of its tensors and inputs."""

import functools
import re
from collections.abc import Callable, Sequence
from functools import cached_property

from onematrix.compiler.attention import Attention, find_attention, held_back, refused_attention
from onematrix.compiler.attention_code import emit_attention
from onematrix.compiler.cells import find_cells
from onematrix.compiler.code import Code, Var, shape_text, size_text
from onematrix.compiler.convolution_code import refused_transforms
from onematrix.compiler.demand import by_demand
from onematrix.compiler.emitted import Emitted
from onematrix.compiler.entry import entry_lines
from onematrix.compiler.fed_rows import FedRows, find_fed_rows
from onematrix.compiler.form import Form
from onematrix.compiler.layers import emit_layers, find_layers
from onematrix.compiler.norms import emit_norm, find_norms
from onematrix.compiler.recurrence_code import emit_cell, emit_dense, emit_elementwise, is_fed_alone
from onematrix.compiler.recurrences import NoMatch, match_dense, match_elementwise
from onematrix.compiler.rows import Rows
from onematrix.compiler.ticks import hold, past_the_end
from onematrix.programs.flow import live_after, parts_read, written
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.run import carried_parts
from onematrix.programs.schedule import Loop
from onematrix.programs.wiring import Wired, WiredLoop, WiredRow, WiredSeq, WiredStep
from onematrix.records.collector import collector_at_rest

Env = dict[str, Var]
First = Callable[[], dict[str, str]]


PLAIN = Form()


@collector_at_rest()
def emit(
    program: Program, slots: dict[int, int], names: Sequence[str], stateful: bool = False, form: Form = PLAIN
) -> Emitted:
    """The function of a lowered program; slots: id(tensor) → its place; names: of each place in its table.

    forward(module, tables, inputs, given, seed, state, first) → outputs, or (outputs, state) when stateful,
    the state being that of `carried_parts`. The module is asked only when an input is not plainly what it
    should be.
    """
    return _Emitter(program, slots, names, stateful, form).emit()


class _Emitter:
    def __init__(
        self, program: Program, slots: dict[int, int], names: Sequence[str], stateful: bool, form: Form
    ) -> None:
        self.program, self.stateful = program, stateful
        self.code = Code()
        free = sorted(program.free_sizes())
        self.sizes = {name: f"n_{name}" for name in free}
        self.rows = Rows(program, slots, names, self.code, self.sizes, form)
        self.handed: dict[str, str] = {}
        self.fixed = {ONE}  # parts the weights alone decide
        self.form = form
        self.cells = find_cells(program, self.rows.uses) if form.cells else {}
        self.attention = self._attention() if form.attend else {}
        self.rows.held_back = held_back(program, self.attention, self.rows.uses)
        self.notes = refused_attention(program, self.attention) if form.attend else []
        self.notes += refused_transforms(program) if form.spectral else []
        self.norms = find_norms(program, self.rows.uses) if form.norms else {}
        self.within = {name for cell in self.cells.values() for name in cell.absorbed}
        self.within |= {name for name, found in self.attention.items() if name != found.result}
        self.within |= {name for norm in self.norms.values() for name in norm.inner}
        fed = find_fed_rows(program, self.rows.merges, self.rows.absorbed, self.rows.uses)
        makes = form.kernels and not form.fixed  # what is fixed is put together once
        self.fed = {loop: rows for loop, rows in fed.items() if makes and loop not in self.cells}
        self.within |= {name for rows in self.fed.values() for name in rows.rows}
        self.layers = find_layers(program, self.rows.uses, self.rows.merges)
        self.within |= {layer.result for found in self.layers.values() for layer in found[:-1]}

    def _attention(self) -> dict[str, Attention]:
        return find_attention(self.program, self.rows.uses, self.form.bands, self.form.never_empty)

    def emit(self) -> Emitted:
        program = self.program
        env: Env = {}
        for place, name in enumerate(program.inputs):
            env[name] = Var(f"in{place}", foreign=True)
        for item in by_demand(program):
            self.node(WiredStep((item,)) if isinstance(item, WiredRow) else item, env, True)
        outputs = [self.output(name, env) for name in program.outputs]
        result = outputs[0] if len(outputs) == 1 else f"({', '.join(outputs)})"
        if self.stateful:
            result = f"{result}, ({''.join(self.handed[name] + ', ' for name in carried_parts(program))})"
        body = (*self.code.body, f"return {result}")
        entry = entry_lines(program, self.rows, self.sizes, "\n".join((*self.code.head, *body)))
        return Emitted(tuple(entry), tuple(self.code.head), body, self.code.constants, tuple(self.notes))

    def output(self, name: str, env: Env) -> str:
        """An output in memory of its own, with one row per sample."""
        if name == ONE:
            return "torch.ones(batch, 1, dtype=dtype, device=device)"
        value = env[name]
        text = self.rows.text(value)
        if value.single:
            return f"{text}.expand(batch, *{text}.shape[1:]).contiguous().clone()"
        return f"{text}.clone()" if value.foreign else text

    # Nodes.

    @cached_property
    def live(self) -> dict[int, set[str]]:
        """Of each outermost loop, by id, the parts that something after it needs."""
        return live_after(self.program.schedule, set(self.program.outputs))

    def node(self, wired: Wired, env: Env, outermost: bool) -> None:
        if isinstance(wired, WiredStep):
            needed = [r for r in wired.rows if self.rows.uses.get(r.part) and r.part not in self.within]
            env.update([(row.part, self.placed(row, env, outermost)) for row in needed])
        elif isinstance(wired, WiredSeq):
            for inner in wired.body:
                self.node(inner, env, outermost)
        elif wired.loop.over is not None:
            self.over(wired, env, outermost)
        elif wired.loop.times is not None:
            self.rounds(wired, env)
        else:
            self.interpreted(wired, env)

    def placed(self, row: WiredRow, env: Env, outermost: bool) -> Var:
        """The value of a row; what no input decides is computed in the head."""
        columns = {wire.column for wires in row.sums for wire in wires}
        if not outermost or not columns <= self.fixed:
            return self.row(row, env)
        code = self.code
        code.body, body = [], code.body
        value = self.row(row, env)
        value = value if value.product is None and value.norm is None else Var(self.rows.text(value), True)
        code.head += code.body
        code.body = body
        if not any(re.search(r"\b(batch|run|n_\w+)\b", line) for line in code.head):
            self.fixed.add(row.part)
        return value

    def row(self, row: WiredRow, env: Env) -> Var:
        """The value of a row, or of all rows of an attention at its last."""
        if row.part in self.norms:
            return emit_norm(self.norms[row.part], self.rows, env)
        if row.part in self.layers:
            return emit_layers(self.layers[row.part], self.rows, env)
        attention = self.attention.get(row.part)
        return self.rows.row(row, env) if attention is None else emit_attention(attention, self.rows, env)

    def interpreted(self, wired: WiredLoop, env: Env) -> None:
        """A loop until it stands still: run as the interpreter runs it."""
        names = sorted(n for n in parts_read(wired.loop) if n in env)
        texts = ", ".join(f"{name!r}: {self.rows.text(env[name])}" for name in names)
        state, one = self.code.name("state"), self.code.first("torch.ones(1, 1, dtype=dtype, device=device)")
        self.code.line(f"{state} = {{{ONE!r}: {one}, {texts}}}")
        ticks = "".join(f"{t}, " for t in self.rows.ticks)
        wire = self.code.constant(wired)
        call = "run_to_fixed_point" if self.form.implicit else "run_node"
        self.code.line(f"{call}({wire}, {state}, {self.rows.run()}, ({ticks}), False)")
        for name in sorted(written(wired.loop)):
            env[name] = self.code.let(f"run.whole({state}[{name!r}])", foreign=True, fresh=False)

    def rounds(self, wired: WiredLoop, env: Env) -> None:
        """A number of rounds."""
        loop, code = wired.loop, self.code
        start = {row.part: self.map_row(row, env) for row in wired.init}
        names = sorted(written(loop))
        needed = parts_read(loop.body) if isinstance(loop.times, int) and loop.times > 0 else set(names)
        fixed = {name: code.name("s") for name in names}
        for name in names:
            if name in start:
                code.line(f"{fixed[name]} = {self.rows.full(start[name])}")
            elif name in needed:
                code.line(f"{fixed[name]} = {self.rows.zeros(self.program.parts[name], 'batch').text}")
        inner = env | {name: Var(fixed[name], foreign=True) for name in names}
        tick = code.name("t")
        code.line(f"for {tick} in range({size_text(loop.times or 0, self.sizes)}):")
        code.depth += 1
        before, self.rows.ticks = self.rows.ticks, (*self.rows.ticks, tick)
        self.node(wired.body, inner, False)
        texts = [self.rows.full(inner[name]) for name in names]
        code.line(f"{', '.join(fixed[n] for n in names)}, = {', '.join(texts)},")
        code.depth -= 1
        self.rows.ticks = before
        env.update({name: Var(fixed[name], foreign=True) for name in names})

    def map_row(self, row: WiredRow, env: Env, peel: object = None) -> Var:
        """One row of a loop's own block matrix."""
        return self.rows.sum(row.sums[0], self.program.parts[row.part], row, env)

    # Loops over a dimension.

    def over(self, wired: WiredLoop, env: Env, outermost: bool) -> None:
        loop, code = wired.loop, self.code
        ticks = size_text(loop.length, self.sizes)
        first = functools.cache(lambda: self.first_state(wired, env, outermost))
        if self.as_kernel(wired, env, first, outermost):
            return
        carried = first()
        series, whole = self.feeds(wired, env, ticks)
        valid = None if loop.valid is None else self.series(loop.valid, loop, env, ticks)
        stacks = {row.part: code.name("all") for row in wired.outputs}
        for name in stacks.values():
            code.line(f"{name} = []")
        tick = code.name("t")
        lists = list(series.values()) + ([valid] if valid else [])
        each = [code.name("x") for _ in lists]
        places = f"range({ticks} - 1, -1, -1)" if loop.reverse else f"range({ticks})"
        if each:
            turned = [f"{text}[::-1]" if loop.reverse else text for text in lists]
            code.line(f"for {tick}, {', '.join(each)} in zip({places}, {', '.join(turned)}):")
        else:
            code.line(f"for {tick} in {places}:")
        code.depth += 1
        before = self.rows.ticks
        shifted = f"{tick} + first" if outermost else tick
        self.rows.ticks = (*before, shifted)
        inner: Env = {name: Var(text, foreign=True) for name, text in carried.items()}
        outer: Env = dict(whole)
        for name, text in zip(series, each, strict=False):
            outer[name] = Var(text, env[name].single, foreign=True)
        inner |= {row.part: self.map_row(row, outer) for row in wired.feeds}
        self.node(wired.body, inner, False)
        self.end_tick(wired, inner, carried, stacks, each[-1] if valid else None)
        code.depth -= 1
        self.rows.ticks = before
        for name, text in carried.items():
            env[name] = Var(text, foreign=True)
            if outermost:
                self.handed[name] = text
        for name, text in stacks.items():
            env[name] = self.stacked(name, text, loop)

    def as_kernel(self, wired: WiredLoop, env: Env, first: First, outermost: bool) -> bool:
        """Write the loop as one kernel, where it is one; first: writes the state it starts from."""
        if id(wired) in self.cells:
            outputs, ends = emit_cell(self.cells[id(wired)], wired.loop, first(), self.rows, env)
            env.update(outputs | ends)
            if outermost:
                self.handed |= {row.part: ends[row.part].text for row in wired.carry}
            return True
        if not self.form.kernels:
            return False
        made = self.recurrence(wired, env, first, outermost)
        if made is None:
            return False
        stacked, texts = made
        env.update(stacked)
        for row, text in zip(wired.carry, texts, strict=True):
            if text is None:  # nothing reads it
                continue
            env[row.part] = self.code.let(text, foreign=True, fresh=False)
            if outermost:
                self.handed[row.part] = env[row.part].text
        return True

    def recurrence(
        self, wired: WiredLoop, env: Env, first: First, outermost: bool
    ) -> tuple[Env, list[str | None]] | None:
        """Stacked outputs and final values of an elementwise or dense recurrence; None, and why, where it is none."""
        refused, fed = [], self.fed.get(id(wired))
        try:
            elementwise = match_elementwise(wired, self.program, self.rows)
            return emit_elementwise(elementwise, wired.loop, list(first().values()), self.rows, env, fed)
        except NoMatch as why:
            refused.append(f"elementwise recurrence: {why}")
        try:
            dense = match_dense(wired, self.program, self.rows)
            if fed is not None and not is_fed_alone(dense, fed):
                self.feed(fed, env)
                fed = None
            given = outermost and self.stateful
            read = [given or not outermost or row.part in self.live[id(wired.loop)] for row in wired.carry]
            zero = not given and not wired.init
            starts = None if zero else list(first().values())
            return emit_dense(dense, wired.loop, starts, self.rows, env, read, fed)
        except NoMatch as why:
            refused.append(f"dense recurrence: {why}")
        self.notes += [f"loop over {wired.loop.over!r}: no {reason}" for reason in refused]
        if fed is not None:
            self.feed(fed, env)
        return None

    def feed(self, fed: FedRows, env: Env) -> None:
        """Write the rows that waited for a kernel to make them."""
        env.update({name: self.placed(row, env, True) for name, row in fed.rows.items()})

    def first_state(self, wired: WiredLoop, env: Env, outermost: bool) -> dict[str, str]:
        """A variable per carried part, at what it starts as."""
        code, init = self.code, {row.part: row for row in wired.init}
        found = {}
        for row in wired.carry:
            name, part = row.part, self.program.parts[row.part]
            found[name] = code.name("s")
            given = f"state.get({name!r})" if outermost and self.stateful else None
            if given:
                code.line(f"{found[name]} = {given}")
                code.line(f"if {found[name]} is None:")
                code.depth += 1
            start = self.map_row(init[name], env) if name in init else self.rows.zeros(part, "batch")
            code.line(f"{found[name]} = {self.rows.full(start)}")
            code.depth -= 1 if given else 0
        return found

    def feeds(self, wired: WiredLoop, env: Env, ticks: str) -> tuple[dict[str, str], Env]:
        """The list of ticks of every fed part, and the parts fed whole."""
        names = dict.fromkeys(w.column for row in wired.feeds for w in row.sums[0] if w.column in env)
        series, whole = {}, Env()
        for name in names:
            if wired.loop.over in self.program.parts[name].shape:
                series[name] = self.series(name, wired.loop, env, ticks)
            else:
                whole[name] = Var(self.rows.text(env[name]), env[name].single, env[name].foreign)
        return series, whole

    def series(self, name: str, loop: Loop, env: Env, ticks: str) -> str:
        """The ticks of an outer part as a list, past its end zero or the last one."""
        part = self.program.parts[name]
        value, code = self.rows.text(env[name]), self.code
        if part.shape == (loop.over,):
            value = f"{value}.unsqueeze(-1)"
        place = 1 + part.shape.index(loop.over or "")
        listed = code.name("u")
        code.line(f"{listed} = {value}.unbind({place})")
        if loop.ticks is not None:
            code.line(
                f"{listed} = past_the_end({listed}, {ticks}, {value}, {place}, {loop.after!r}, {name!r})"
            )
            code.constants["past_the_end"] = past_the_end
        return listed

    def end_tick(
        self, wired: WiredLoop, inner: Env, carried: dict[str, str], stacks: dict[str, str], valid: str | None
    ) -> None:
        code = self.code
        outputs = {row.part: self.peeled_row(row, wired, inner) for row in wired.outputs}
        new = {row.part: self.map_row(row, inner) for row in wired.carry}
        for name, value in outputs.items():
            text = self.rows.full(value)
            if valid:
                text = f"hold({valid}, {text}, torch.zeros_like({text}))"
            code.line(f"{stacks[name]}.append({text})")
        texts = [self.rows.full(value) for value in new.values()]
        if valid:
            code.constants["hold"] = hold
            texts = [f"hold({valid}, {t}, {carried[n]})" for n, t in zip(new, texts, strict=True)]
        if new:
            code.line(f"{', '.join(carried[n] for n in new)}, = {', '.join(texts)},")

    def peeled_row(self, row: WiredRow, wired: WiredLoop, inner: Env) -> Var:
        part = self.program.parts[row.part]
        return self.rows.sum(row.sums[0], part.peel(wired.loop.length) or part, row, inner)

    def stacked(self, name: str, text: str, loop: Loop) -> Var:
        part = self.program.parts[name]
        place = 1 + part.shape.index(loop.length)
        shape, code = shape_text(part, self.sizes), self.code
        zeros = self.rows.zeros_text(part, "batch") if self._may_be_empty(loop) else ""
        listed = f"{text}[::-1]" if loop.reverse else text
        stacked = f"torch.stack({listed}, {place})"
        if part.shape == (loop.length,):
            stacked = f"{stacked}.reshape(batch, {shape})"
        if zeros:
            stacked = f"{stacked} if {text} else {zeros}"
        return code.let(stacked, fresh=False)

    def _may_be_empty(self, loop: Loop) -> bool:
        return not isinstance(loop.length, int) or loop.length == 0
