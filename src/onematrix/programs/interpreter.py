"""The meaning of a program: run it, literally (the oracle) or with each structure's fast product."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.programs.part import ONE, fix_size
from onematrix.programs.product import apply_wire
from onematrix.programs.program import Program
from onematrix.programs.run import Run, State, Tick, begin
from onematrix.programs.schedule import Loop
from onematrix.programs.wiring import Wire, Wired, WiredLoop, WiredRow, WiredSeq, WiredStep
from onematrix.structures.base import Structure


def interpret(
    program: Program,
    *inputs: Tensor,
    literal: bool = False,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """The outputs of a program for its inputs, each (batch, *shape of the part).

    literal=True multiplies by `to_dense()` in float64 and is the oracle; otherwise each structure's
    `matmul` is used. seed: of noise parts. sizes: named sizes no input shows.
    Raises ShapeError, DTypeError for inputs that do not fit their parts.

    >>> import onematrix as om
    >>> from onematrix.structures.dense import Dense
    >>> G = om.BlockMatrix({("y", "x"): Dense(torch.ones(1, 2))}, parts={"x": 2, "y": 1})
    >>> interpret(Program(om.Step(G), ["x"], ["y"]), torch.tensor([[1.0, 2.0]]))
    tensor([[3.]])
    """
    outputs, _ = interpret_with_state(program, *inputs, literal=literal, seed=seed, sizes=sizes)
    return outputs


def interpret_with_state(
    program: Program,
    *inputs: Tensor,
    state: Mapping[str, Tensor] | None = None,
    literal: bool = False,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    structures: Sequence[Structure] | None = None,
    first_tick: int = 0,
) -> tuple[Tensor | tuple[Tensor, ...], State]:
    """The outputs, and the state to hand over: the carry lists of the outermost loops.

    state: what an earlier call handed over; it takes the place of `init`. Running T₁ ticks, handing over,
    and running T₂ more equals running T₁ + T₂. structures: values to use in place of the program's own.
    first_tick: place of the first tick in the whole sequence, from which noise parts are drawn.
    """
    run, start = begin(program, inputs, structures, literal, seed, sizes, state, first_tick)
    _run_node(program.wiring, start, run, (), True)
    outputs = tuple(_own(start[name], inputs, run) for name in program.outputs)
    handed = {name: _own(value, inputs, run) for name, value in run.state_out.items()}
    return (outputs[0] if len(outputs) == 1 else outputs), handed


def _own(value: Tensor, inputs: Sequence[Tensor], run: Run) -> Tensor:
    """The value for every sample, in memory that is not the caller's and that no two numbers share."""
    if value.shape[0] != run.batch or 0 in value.stride():
        return run.whole(value).contiguous()
    base = value if value._base is None else value._base
    if any(base is x or base is x._base for x in inputs):
        return value.clone()
    return value


def _run_node(node: Wired, state: State, run: Run, tick: Tick, outermost: bool) -> None:
    if isinstance(node, WiredStep):
        state.update([(row.part, _run_row(row, state, run, tick)) for row in node.rows])
    elif isinstance(node, WiredSeq):
        for child in node.body:
            _run_node(child, state, run, tick, outermost)
    elif node.loop.over is not None:
        _run_over(node, state, run, tick, outermost)
    elif node.loop.times is not None:
        _start_rounds(node, state, run, tick)
        for k in range(fix_size(node.loop.times, run.sizes)):
            _run_node(node.body, state, run, (*tick, k), False)
    else:
        _run_until(node, node.loop.until or 0.0, state, run, tick)


def _run_row(row: WiredRow, state: State, run: Run, tick: Tick) -> Tensor:
    total = _sum(row.sums[0], row, state, run, tick)
    if row.activation is not None:
        total = run.widen(row.activation(total))
    if row.join is None:
        return total
    return row.join(total, *[_sum(wires, row, state, run, tick) for wires in row.sums[1:]])


def _sum(wires: Sequence[Wire], row: WiredRow, state: State, run: Run, tick: Tick) -> Tensor:
    """Σ_j A_j x_j; zero in the shape of the row's part where the row has no block."""
    total: Tensor | None = None
    for wire in wires:
        value = state[wire.column] if wire.column in state else run.draw(wire.column, tick)
        term = apply_wire(wire, value, run)
        total = term if total is None else total + term
    return run.zeros(row.part, batch=1) if total is None else total


def _map(rows: Sequence[WiredRow], state: State, run: Run, tick: Tick) -> State:
    """The rows of a loop's own block matrix."""
    return {row.part: _sum(row.sums[0], row, state, run, tick) for row in rows}


def _run_over(node: WiredLoop, state: State, run: Run, tick: Tick, outermost: bool) -> None:
    """Per tick: init or carry → feeds overwrite → body → outputs are read; the carry alone survives."""
    loop, one = node.loop, {ONE: state[ONE]}
    carried = _first_state(node, state, run, tick, outermost)
    ticks = fix_size(loop.length, run.sizes)
    names = {wire.column for row in node.feeds for wire in row.sums[0]}
    fed = {name: _ticks_of(name, loop, ticks, state, run) for name in names - {ONE}}
    valid = None if loop.valid is None else _ticks_of(loop.valid, loop, ticks, state, run)
    collected: dict[str, list[Tensor]] = {row.part: [] for row in node.outputs}
    first = run.first_tick if outermost else 0
    for t in reversed(range(ticks)) if loop.reverse else range(ticks):
        now = (*tick, first + t)
        inner: State = one | carried
        inner |= _map(node.feeds, one | {name: series[t] for name, series in fed.items()}, run, now)
        _run_node(node.body, inner, run, now, False)
        outputs, new = _map(node.outputs, inner, run, now), _map(node.carry, inner, run, now)
        if valid is not None:
            outputs = {n: _hold(valid[t], v, torch.zeros_like(v)) for n, v in outputs.items()}
            new = {n: _hold(valid[t], v, carried[n]) for n, v in new.items()}
        for name, value in outputs.items():
            collected[name].append(value)
        carried = new
    state.update(carried)
    if outermost:
        run.state_out.update(carried)
    for name, values in collected.items():
        state[name] = _stack(values[::-1] if loop.reverse else values, name, loop, run)


def _first_state(node: WiredLoop, state: State, run: Run, tick: Tick, outermost: bool) -> State:
    given = _map(node.init, state, run, tick)
    if outermost:
        given |= {name: run.widen(value) for name, value in run.state_in.items()}
    names = [row.part for row in node.carry]
    return {name: given[name] if name in given else run.zeros(name) for name in names}


def _ticks_of(name: str, loop: Loop, ticks: int, state: State, run: Run) -> Sequence[Tensor]:
    """An outer part's value at every tick, past its end zero or the last one; whole where it has no ticks."""
    part = run.program.parts[name]
    value = state[name]
    if loop.over not in part.shape:
        return [value] * ticks
    if part.shape == (loop.over,):  # leaves one number per tick
        value = value.unsqueeze(-1)
    place = 1 + part.shape.index(loop.over)
    series = list(value.unbind(place))
    if len(series) < ticks:
        series += [_past_the_end(name, loop, ticks, series, value, place)] * (ticks - len(series))
    return series


def _past_the_end(
    name: str, loop: Loop, ticks: int, series: Sequence[Tensor], value: Tensor, place: int
) -> Tensor:
    if loop.after == "zero":
        return value.new_zeros(*value.shape[:place], *value.shape[place + 1 :])
    if not series:
        raise ShapeError(
            f"loop over {loop.over}: nothing to hold, {name!r} has no tick and {ticks} are asked"
        )
    return series[-1]


def _hold(counts: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new value where the sample counts, else the old one; the other reaches neither value nor gradient."""
    mask = counts.reshape(counts.shape[0], *[1] * (new.dim() - 1))
    return torch.where(mask if mask.dtype == torch.bool else mask != 0, new, old)


def _stack(values: list[Tensor], name: str, loop: Loop, run: Run) -> Tensor:
    if not values:
        return run.zeros(name)
    place = run.program.parts[name].shape.index(loop.length)
    stacked = torch.stack([run.whole(value) for value in values], 1 + place)
    return stacked.reshape(run.batch, *run.shape_of(name))


def _start_rounds(node: WiredLoop, state: State, run: Run, tick: Tick) -> None:
    given = _map(node.init, state, run, tick)
    state.update({name: run.zeros(name) for name in node.written})
    state.update(given)


def _run_until(node: WiredLoop, tolerance: float, state: State, run: Run, tick: Tick) -> None:
    """Each sample stops once no written part changed by more than the tolerance; its value then holds."""
    _start_rounds(node, state, run, tick)
    moving = torch.ones(run.batch, dtype=torch.bool, device=run.device)
    for k in range(node.loop.at_most):
        old = {name: state[name] for name in node.written}
        _run_node(node.body, state, run, (*tick, k), False)
        still = torch.ones_like(moving)
        for name in node.written:
            still = still & ~run.whole(_changed(state[name], old[name], tolerance))
        state.update({name: _hold(moving, state[name], old[name]) for name in node.written})
        moving = moving & ~still
        if not bool(moving.any()):
            return


def _changed(new: Tensor, old: Tensor, tolerance: float) -> Tensor:
    """Per sample, whether a number changed by more than the tolerance, or to or from nan: (batch,)."""
    moved = ~((new - old).abs() <= tolerance) if new.is_floating_point() else new != old
    return moved.flatten(1).any(1) if moved.dim() > 1 else moved
