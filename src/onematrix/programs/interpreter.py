"""The meaning of a program: run it, literally (the oracle) or with each structure's fast product."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onematrix.errors import DTypeError, ProgramError, ShapeError
from onematrix.programs.block_matrix import Block, BlockMatrix
from onematrix.programs.flow import written
from onematrix.programs.part import ONE, Part
from onematrix.programs.product import apply_block
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Node, Row, Seq, Step
from onematrix.structures.base import Structure
from onematrix.structures.sizes import Size, evaluate_size

State = dict[str, Tensor]
Tick = tuple[int, ...]


@dataclass
class Run:
    """One run: what the nodes of the schedule need to know besides the state."""

    program: Program
    structures: Mapping[int, Structure]  # by id of the program's own structure
    batch: int
    dtype: torch.dtype
    device: torch.device
    sizes: dict[str, int]
    literal: bool
    seed: int
    state_in: Mapping[str, Tensor]
    state_out: State = field(default_factory=dict)
    dense: dict[int, Tensor] = field(default_factory=dict)  # literal matrices, by id of the structure


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

    >>> from onematrix.structures.dense import Dense
    >>> G = BlockMatrix({("y", "x"): Dense(torch.ones(1, 2))}, parts={"x": 2, "y": 1})
    >>> interpret(Program(Step(G), ["x"], ["y"]), torch.tensor([[1.0, 2.0]]))
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
) -> tuple[Tensor | tuple[Tensor, ...], State]:
    """The outputs, and the state to hand over: the carry lists of the outermost loops.

    state: what an earlier call handed over; it takes the place of `init`. Running T₁ ticks, handing over,
    and running T₂ more equals running T₁ + T₂. structures: values to use in place of the program's own.
    """
    values = {
        id(own): new for own, new in zip(program.structures, structures or program.structures, strict=True)
    }
    run, start = _begin(program, inputs, literal, seed, dict(sizes or {}), values, state or {})
    _run_node(program.schedule, start, run, (), True)
    given = {id(x) for x in inputs}
    outputs = tuple(_finish(start[name], program.parts[name], run, given) for name in program.outputs)
    return (outputs[0] if len(outputs) == 1 else outputs), run.state_out


def _finish(value: Tensor, part: Part, run: Run, given: set[int]) -> Tensor:
    whole = value.expand(run.batch, *value.shape[1:]) if value.shape[0] != run.batch else value
    return whole.clone() if id(whole) in given else whole


def _begin(
    program: Program,
    inputs: Sequence[Tensor],
    literal: bool,
    seed: int,
    sizes: dict[str, int],
    values: Mapping[int, Structure],
    state: Mapping[str, Tensor],
) -> tuple[Run, State]:
    if len(inputs) != len(program.inputs):
        raise ShapeError(
            f"program takes {len(program.inputs)} inputs ({', '.join(program.inputs)}), got {len(inputs)}"
        )
    batch = inputs[0].shape[0] if inputs[0].dim() else 0
    for name, x in zip(program.inputs, inputs, strict=True):
        _check_input(name, program.parts[name], x, batch, sizes)
    weight = next((w for s in values.values() if (w := s.any_weight()) is not None), None)
    real = next((x for x in inputs if x.is_floating_point()), None)
    dtype = (
        weight.dtype if weight is not None else real.dtype if real is not None else torch.get_default_dtype()
    )
    for name, x in zip(program.inputs, inputs, strict=True):
        _check_dtype(name, program.parts[name], x, dtype)
    for name in state:
        if name not in carried_parts(program):
            raise ProgramError(
                f"state gives {name!r}, which no outermost loop carries; "
                f"carried: {', '.join(carried_parts(program)) or 'nothing'}"
            )
    dtype = torch.float64 if literal else dtype
    run = Run(program, values, batch, dtype, inputs[0].device, sizes, literal, seed, state)
    start = {n: _widen(x, literal) for n, x in zip(program.inputs, inputs, strict=True)}
    start[ONE] = torch.ones(1, 1, dtype=dtype, device=run.device)
    return run, start


def _check_input(name: str, part: Part, x: Tensor, batch: int, sizes: dict[str, int]) -> None:
    shape = part.stored_shape
    if x.dim() != len(shape) + 1 or x.shape[0] != batch:
        raise ShapeError(
            f"input {name!r}: shape (batch, {', '.join(map(str, shape))}) was needed, got {tuple(x.shape)}"
        )
    for size, got in zip(shape, x.shape[1:], strict=True):
        needed = sizes.setdefault(size, got) if isinstance(size, str) and size.isidentifier() else size
        if isinstance(needed, int) and needed != got:
            shown = f"{size} = {needed}" if isinstance(size, str) else needed
            raise ShapeError(
                f"input {name!r}: {shown} was needed, got {got} in {tuple(x.shape)}", needed=needed, got=got
            )


def _check_dtype(name: str, part: Part, x: Tensor, dtype: torch.dtype) -> None:
    if part.kind == "index":
        if x.dtype not in (torch.int32, torch.int64):
            raise DTypeError(f"input {name!r}: integers were needed for an index part, got {x.dtype}")
        return
    needed = getattr(torch, part.dtype) if part.dtype else dtype
    autocast = x.is_floating_point() and torch.is_autocast_enabled(x.device.type)
    if x.dtype != needed and not autocast:
        raise DTypeError(f"input {name!r}: {needed} was needed, got {x.dtype}; convert it with .to({needed})")


def _widen(x: Tensor, literal: bool) -> Tensor:
    return x.double() if literal and x.is_floating_point() else x


def carried_parts(program: Program) -> list[str]:
    """Parts the outermost loops over a dimension carry: the state a run hands over."""
    outer: list[Loop] = []

    def visit(node: Node) -> None:
        if isinstance(node, Seq):
            for child in node.body:
                visit(child)
        elif isinstance(node, Loop) and node.over is not None:
            outer.append(node)

    visit(program.schedule)
    return [name for loop in outer if loop.carry is not None for name in loop.carry.rows]


def _run_node(node: Node, state: State, run: Run, tick: Tick, outermost: bool) -> None:
    if isinstance(node, Step):
        state.update({row.part: _run_row(row, state, run, tick) for row in node.rows})
    elif isinstance(node, Seq):
        for child in node.body:
            _run_node(child, state, run, tick, outermost)
    elif node.over is not None:
        _run_over(node, state, run, tick, outermost)
    elif node.times is not None:
        _start_rounds(node, state, run, tick)
        for k in range(evaluate_size(node.times, run.sizes)):
            _run_node(node.body, state, run, (*tick, k), False)
    else:
        _run_until(node, state, run, tick)


def _run_row(row: Row, state: State, run: Run, tick: Tick) -> Tensor:
    if row.join is None:
        total = _sum(row.sums[0], row.part, state, run, tick)
        return _activate(row, total, run)
    own = row.join.keeps_operand_shapes
    sums = [
        _sum(blocks, None if own else row.part, state, run, tick, raw=i == row.join.index_operand)
        for i, blocks in enumerate(row.sums)
    ]
    sums[0] = _activate(row, sums[0], run)
    return row.join(*sums)


def _activate(row: Row, total: Tensor, run: Run) -> Tensor:
    if row.activation.name == "identity":
        return total
    return _widen(row.activation(total), run.literal)


def _sum(
    blocks: Sequence[tuple[str, Block]],
    target: str | None,
    state: State,
    run: Run,
    tick: Tick,
    raw: bool = False,
) -> Tensor:
    """Σ_j A_j x_j in the shape of the target part, or in the operands' own shape when there is none."""
    total: Tensor | None = None
    for column, block in blocks:
        value = state[column] if column in state else draw_noise(run, column, tick)
        term = value if raw else apply_block(block, value, column, target, run)
        total = term if total is None else total + term
    if total is None:
        shape = () if target is None else run.program.parts[target].at(run.sizes)
        total = torch.zeros(1, *shape, dtype=run.dtype, device=run.device)
    return total


def draw_noise(run: Run, name: str, tick: Tick) -> Tensor:
    """Uniform numbers on [0, 1) that depend on the seed, the part and the tick alone."""
    key = hashlib.sha256(f"{run.seed}/{name}/{tick}".encode()).digest()[:7]
    generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
    shape = run.program.parts[name].at(run.sizes)
    drawn = torch.rand(run.batch, *shape, generator=generator, dtype=torch.float32)
    return drawn.to(run.device, run.dtype)


def _run_over(loop: Loop, state: State, run: Run, tick: Tick, outermost: bool) -> None:
    """Per tick: init or carry → feeds overwrite → body → outputs are read; the carry alone survives."""
    carried = _first_state(loop, state, run, tick, outermost)
    feeds = _peel_feeds(loop, state, run)
    valid = None if loop.valid is None else state[loop.valid].unbind(1)
    ticks = evaluate_size(loop.length, run.sizes)
    collected: dict[str, list[Tensor]] = {name: [] for name in (loop.outputs.rows if loop.outputs else ())}
    for t in reversed(range(ticks)) if loop.reverse else range(ticks):
        inner: State = {ONE: state[ONE], **carried}
        if loop.feeds is not None:
            outer = {name: series[t] for name, series in feeds.items()}
            inner |= _map(loop.feeds, {ONE: state[ONE], **outer}, run, (*tick, t))
        _run_node(loop.body, inner, run, (*tick, t), False)
        counts = None if valid is None else valid[t]
        if loop.outputs is not None:
            for name, value in _map(loop.outputs, inner, run, (*tick, t), loop.length).items():
                collected[name].append(
                    value if counts is None else _hold(counts, value, torch.zeros_like(value))
                )
        if loop.carry is not None:
            new = _map(loop.carry, inner, run, (*tick, t))
            carried = {n: v if counts is None else _hold(counts, v, carried[n]) for n, v in new.items()}
    state.update(carried)
    if outermost:
        run.state_out.update({n: v.expand(run.batch, *v.shape[1:]) for n, v in carried.items()})
    for name, values in collected.items():
        state[name] = _stack(values[::-1] if loop.reverse else values, name, loop, run)


def _first_state(loop: Loop, state: State, run: Run, tick: Tick, outermost: bool) -> State:
    if loop.carry is None:
        return {}
    given = _map(loop.init, state, run, tick) if loop.init is not None else {}
    first = {}
    for name in loop.carry.rows:
        if outermost and name in run.state_in:
            first[name] = _widen(run.state_in[name], run.literal)
        else:
            first[name] = given.get(name, _zeros(run, name))
    return first


def _zeros(run: Run, name: str) -> Tensor:
    part = run.program.parts[name]
    return torch.zeros(run.batch, *part.at(run.sizes), dtype=_dtype_of(part, run), device=run.device)


def _dtype_of(part: Part, run: Run) -> torch.dtype:
    if part.kind == "index":
        return torch.int64
    kind = getattr(torch, part.dtype) if part.dtype else run.dtype
    return torch.float64 if run.literal and kind.is_floating_point else kind


def _peel_feeds(loop: Loop, state: State, run: Run) -> dict[str, Sequence[Tensor]]:
    """Per fed outer part its value at every tick; past the end zero or the last one."""
    series: dict[str, Sequence[Tensor]] = {}
    if loop.feeds is None or loop.over is None:
        return series
    ticks = evaluate_size(loop.length, run.sizes)
    for name in {column for (_, column), _ in loop.feeds} - {ONE}:
        part = run.program.parts[name]
        if loop.over not in part.shape:
            series[name] = [state[name]] * ticks
            continue
        steps = state[name].unbind(1 + part.shape.index(loop.over))
        if len(steps) < ticks:
            if not steps and loop.after == "hold":
                raise ShapeError(
                    f"loop over {loop.over}: nothing to hold, {name!r} has no tick and {ticks} are asked"
                )
            rest = (
                steps[-1]
                if loop.after == "hold"
                else torch.zeros_like(state[name].select(1, 0))
                if steps
                else None
            )
            steps = (*steps, *[_zero_tick(name, loop, run) if rest is None else rest] * (ticks - len(steps)))
        series[name] = steps
    return series


def _zero_tick(name: str, loop: Loop, run: Run) -> Tensor:
    part = run.program.parts[name]
    peeled = part.peel(loop.over or "") or part
    return torch.zeros(run.batch, *peeled.at(run.sizes), dtype=_dtype_of(part, run), device=run.device)


def _map(matrix: BlockMatrix, state: State, run: Run, tick: Tick, peeled: Size | None = None) -> State:
    """The rows of a loop's own block matrix; `peeled` is the dimension its target parts do not have here."""
    new: State = {}
    for row in matrix.rows:
        blocks = matrix.row(row)
        if all(run.program.parts[c].kind == "index" for c, _ in blocks):
            new[row] = state[blocks[0][0]]  # integers pass through an identity as they are
            continue
        total: Tensor | None = None
        for column, block in blocks:
            value = state[column] if column in state else draw_noise(run, column, tick)
            term = apply_block(block, value, column, row, run, peeled)
            total = term if total is None else total + term
        assert total is not None, "rows of a block matrix have blocks"
        new[row] = total
    return new


def _hold(counts: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(counts.reshape(-1, *[1] * (new.dim() - 1)), new, old)


def _stack(values: list[Tensor], name: str, loop: Loop, run: Run) -> Tensor:
    part = run.program.parts[name]
    if not values:
        return torch.zeros(run.batch, *part.at(run.sizes), dtype=_dtype_of(part, run), device=run.device)
    whole = [v.expand(run.batch, *v.shape[1:]) for v in values]
    stacked = torch.stack(whole, 1 + part.shape.index(loop.length))
    return stacked.reshape(run.batch, *part.at(run.sizes))


def _start_rounds(loop: Loop, state: State, run: Run, tick: Tick) -> None:
    given = _map(loop.init, state, run, tick) if loop.init is not None else {}
    for name in written(loop.body):
        state[name] = _zeros(run, name)
    state.update(given)


def _run_until(loop: Loop, state: State, run: Run, tick: Tick) -> None:
    """Each sample stops once no written part changed by more than the tolerance; its value then holds."""
    _start_rounds(loop, state, run, tick)
    names = sorted(written(loop.body))
    moving = torch.ones(run.batch, dtype=torch.bool, device=run.device)
    for k in range(loop.at_most):
        old = {name: state[name] for name in names}
        _run_node(loop.body, state, run, (*tick, k), False)
        change = [(state[n] - old[n]).expand(run.batch, *old[n].shape[1:]).abs().flatten(1) for n in names]
        largest = torch.stack([c.amax(1) for c in change]).amax(0)
        state.update({n: _hold(moving, state[n], old[n]) for n in names})
        moving = moving & ~(largest <= loop.until)
        if not bool(moving.any()):
            return
