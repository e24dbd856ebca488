"""The order of a row: its degree of homogeneity in the program's inputs, biases left out."""

from collections.abc import Iterable, Mapping, Sequence

from onematrix.programs.activations import Activation
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.flow import written
from onematrix.programs.joins import Join
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Node, Row, Seq, Step

Degrees = dict[str, int | None]  # None: not homogeneous; 0: a constant
ROUNDS = 4  # a degree that still changes after so many ticks grows without end


def row_orders(program: Program, activated: bool = True) -> Degrees:
    """Part → degree d with f(c x) = c^d f(x) for c > 0, constants added to it left out; None where there is none.

    activated: False takes every activation as the identity. A recurrence whose degree would grow from tick to tick
    has that of one tick, its state of degree 1.
    """
    degrees: Degrees = {ONE: 0, **dict.fromkeys(program.inputs, 1)}
    everything: Degrees = {}
    _node(program.schedule, degrees, everything, activated)
    return everything | degrees


def _node(node: Node, degrees: Degrees, seen: Degrees, activated: bool) -> None:
    if isinstance(node, Seq):
        for child in node.body:
            _node(child, degrees, seen, activated)
    elif isinstance(node, Step):
        new = {row.part: _row(row, degrees, activated) for row in node.rows}
        degrees.update(new)
        seen.update(new)
    elif node.over is None:
        _rounds(node, degrees, seen, activated)
    else:
        _ticks(node, degrees, seen, activated)


def _rounds(loop: Loop, degrees: Degrees, seen: Degrees, activated: bool) -> None:
    start = dict.fromkeys(written(loop.body), 0) | _map(loop.init, degrees)
    outer = dict(degrees)
    for _ in range(ROUNDS):
        degrees.update(start)
        _node(loop.body, degrees, seen, activated)
        if (after := {n: degrees[n] for n in start}) == start:
            return
        start = after
    degrees.update(outer | dict.fromkeys(start, 1))
    _node(loop.body, degrees, seen, activated)


def _ticks(loop: Loop, degrees: Degrees, seen: Degrees, activated: bool) -> None:
    carried = dict.fromkeys(loop.carry.rows if loop.carry else (), 0) | _map(loop.init, degrees)
    fed = _map(loop.feeds, degrees)
    for last in [False] * ROUNDS + [True]:
        if last:
            carried = dict.fromkeys(carried, 1)
        inner: Degrees = {ONE: 0, **carried, **fed}
        _node(loop.body, inner, seen, activated)
        after = _map(loop.carry, inner)
        if last or after == carried:
            break
        carried = after
    degrees.update(after | _map(loop.outputs, inner))
    seen.update(degrees)


def _map(matrix: BlockMatrix | None, degrees: Mapping[str, int | None]) -> Degrees:
    rows = matrix.rows if matrix is not None else ()
    return {r: _alike(degrees.get(c, 0) for c, _ in matrix.row(r)) for r in rows} if matrix else {}


def _alike(degrees: Iterable[int | None]) -> int | None:
    """Degree of a sum: the common one, constants left out."""
    different = set(degrees) - {0}
    return 0 if not different else different.pop() if len(different) == 1 else None


def _row(row: Row, degrees: Degrees, activated: bool) -> int | None:
    sums = [_alike(degrees.get(c, 0) for c, _ in blocks) for blocks in row.sums]
    if activated:
        sums[0] = _activation(row.activation, sums[0])
    if row.join is None:
        return sums[0]
    return _join(row.join, sums) if isinstance(row.join, Join) else (None if any(s != 0 for s in sums) else 0)


def _activation(activation: Activation, degree: int | None) -> int | None:
    if activation.name in ("fill", "positions") or degree == 0:
        return 0
    if activation.name in ("identity", "plus"):  # plus adds a constant, as a bias does
        return degree
    each = activation.rule.degree
    return None if each is None or degree is None else each * degree


def _join(join: Join, sums: Sequence[int | None]) -> int | None:
    if all(s == 0 for s in sums):
        return 0
    if join.name in ("gather", "take", "scatter"):
        return sums[0] if sums[1] == 0 else None
    if join.name == "select":
        return _alike(sums[1:]) if sums[0] == 0 else None
    if any(s is None for s in sums):
        return None
    numbers = [s for s in sums if s is not None]
    if join.pattern is not None or join.name == "hadamard":
        return sum(numbers)
    if join.name == "divide":
        return numbers[0] - numbers[1]
    if join.name in ("maximum", "minimum"):
        return numbers[0] if len(set(numbers)) == 1 else None
    return numbers[0] * join.rule.degree if join.rule.degree is not None and len(numbers) == 1 else None
