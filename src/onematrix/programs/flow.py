"""Flow: what each node reads and writes, what is undefined, live, and how deep a step is."""

from collections.abc import Collection, Mapping

from onematrix.errors import ProgramError
from onematrix.programs.part import ONE, Part
from onematrix.programs.schedule import Loop, Node, Row, Seq, Step
from onematrix.structures.identity import Identity

OUTSIDE = (
    "write it in a step before, make it an input, or take it out of the loop that writes it (outputs or carry); "
    "parts that depend on each other in a cycle need an om.Loop"
)
INSIDE = "write it in a step of the body before, feed it (feeds), or carry it from the tick before (carry)"


def check_flow(
    node: Node,
    parts: Mapping[str, Part],
    defined: set[str],
    where: str = "schedule",
    remedy: str = OUTSIDE,
) -> set[str]:
    """The parts defined after the node. Raises ProgramError when a part is read that nothing has written."""
    if isinstance(node, Step):
        for row in node.rows:
            _require(row.reads(), defined, parts, f"{where}: row {row.part!r}", remedy)
        return defined | {row.part for row in node.rows}
    if isinstance(node, Seq):
        defined = set(defined)  # grown in place by steps, so that a long sequence is checked in linear time
        for number, child in enumerate(node.body, start=1):
            here = f"{where}, {number} of {len(node.body)}"
            if isinstance(child, Step):
                for row in child.rows:
                    _require(row.reads(), defined, parts, f"{here}: row {row.part!r}", remedy)
                defined.update(row.part for row in child.rows)
            else:
                defined = check_flow(child, parts, defined, here, remedy)
        return defined
    return _check_loop(node, parts, defined, where, remedy)


def _check_loop(
    loop: Loop, parts: Mapping[str, Part], defined: set[str], where: str, remedy: str
) -> set[str]:
    where = f"{where}, loop"
    for matrix in (loop.init, loop.feeds):
        for (row, column), _ in matrix or ():
            _require([column], defined, parts, f"{where}: {row!r} ← {column!r}", remedy)
    if loop.over is None:
        init = set(loop.init.rows) if loop.init is not None else set()
        once = check_flow(loop.body, parts, defined | init | written(loop.body), where, remedy)
        return check_flow(
            loop.body, parts, once, where, remedy
        )  # what the second round finds is what others find
    if loop.valid is not None:
        _require([loop.valid], defined, parts, f"{where}: valid", remedy)
    carried = set(loop.carry.rows) if loop.carry is not None else set()
    fed = set(loop.feeds.rows) if loop.feeds is not None else set()
    for name in set(loop.init.rows if loop.init is not None else ()) - carried:
        raise ProgramError(
            f"{where}: init gives {name!r}, which the carry does not list; carried: {sorted(carried)}; "
            "list it in carry=, since init is the carry of the first tick"
        )
    inside = check_flow(loop.body, parts, {ONE, *carried, *fed}, f"{where} over {loop.over}", INSIDE)
    for name, matrix in (("output", loop.outputs), ("carry", loop.carry)):
        for (row, column), _ in matrix or ():
            _require([column], inside, parts, f"{where}, {name} {row!r} ← {column!r}", INSIDE)
    stacked = set(loop.outputs.rows) if loop.outputs is not None else set()
    return (defined - (written(loop.body) | fed)) | carried | stacked


def _require(names: list[str], defined: set[str], parts: Mapping[str, Part], who: str, remedy: str) -> None:
    for name in names:
        if name not in defined and parts[name].kind != "noise":
            raise ProgramError(
                f"{who} reads part {name!r}, which nothing has written at that point; "
                f"defined: {sorted(defined)}; {remedy}",
                part=name,
            )


def written(node: Node) -> set[str]:
    """Parts a node writes, at any depth, that are visible to what follows it in the same scope."""
    if isinstance(node, Step):
        return {row.part for row in node.rows}
    if isinstance(node, Seq):
        return set().union(*(written(child) for child in node.body))
    if node.over is None:
        return written(node.body) | set(node.init.rows if node.init is not None else ())
    outer = (m.rows for m in (node.outputs, node.carry) if m is not None)
    return set().union(*outer)


def parts_read(node: Node) -> set[str]:
    """Parts a node reads that it has not written itself: what it needs of the scope it stands in."""
    if isinstance(node, Step):
        return {name for row in node.rows for name in row.reads()}
    if isinstance(node, Seq):
        found: set[str] = set()
        done: set[str] = set()
        for child in node.body:
            found |= parts_read(child) - done
            done |= written(child)
        return found
    outer = {column for matrix in (node.init, node.feeds) for (_, column), _ in matrix or ()}
    if node.over is None:
        return outer | (parts_read(node.body) - written(node))
    return outer | ({node.valid} if node.valid else set())


def live_rows(node: Node, live: set[str]) -> tuple[list[tuple[Step, list[Row]]], set[str]]:
    """Per step in order the rows whose value reaches a live part, and the parts live before the node.

    A loop's body is listed once, with what is live in a tick between others.
    """
    if isinstance(node, Step):
        rows = [row for row in node.rows if row.part in live]
        reads = {name for row in rows for name in row.reads()}
        return [(node, rows)], (live - {row.part for row in node.rows}) | reads
    if isinstance(node, Seq):
        found: list[tuple[Step, list[Row]]] = []
        for child in reversed(node.body):
            steps, live = live_rows(child, live)
            found = steps + found
        return found, live
    return _live_loop(node, live)


def live_after(node: Node, live: set[str]) -> dict[int, set[str]]:
    """Of every step and outermost loop, by its id, the parts whose value after it reaches a live part."""
    if not isinstance(node, Seq):
        return {id(node): live}
    found: dict[int, set[str]] = {}
    for child in reversed(node.body):
        found |= live_after(child, live)
        live = live_rows(child, live)[1]
    return found


def _live_loop(loop: Loop, live: set[str]) -> tuple[list[tuple[Step, list[Row]]], set[str]]:
    if loop.over is None:
        while True:
            steps, before = live_rows(loop.body, live)
            if before <= live:
                break
            live = live | before
        init = {c for (r, c), _ in loop.init or () if r in live}
        return steps, (live - written(loop)) | init
    outer = {c for (r, c), _ in loop.outputs or () if r in live}
    carried = live & set(loop.carry.rows if loop.carry is not None else ())
    while True:
        at_end = outer | {c for (r, c), _ in loop.carry or () if r in carried}
        steps, before = live_rows(loop.body, at_end)
        more = carried | (before & set(loop.carry.rows if loop.carry is not None else ()))
        if more == carried:
            break
        carried = more
    sources = {c for (r, c), _ in loop.feeds or () if r in before}
    sources |= {c for (r, c), _ in loop.init or () if r in carried}
    return steps, (live - written(loop)) | sources | ({loop.valid} if loop.valid else set())


def depth(step: Step, ones: Collection[str] = ()) -> int | None:
    """Smallest K for which the step applied K times is exact from any content of the rows that do not hold.

    Rows that hold (an identity block on themselves) are given; ones: parts known to be all 1, by which a row
    may be multiplied and still hold. None when the other rows depend on each other in a cycle.
    """
    reads = {row.part: set(row.reads()) for row in step.rows if not _holds(row, ones)}
    levels: dict[str, int] = {}
    while len(levels) < len(reads):
        ready = {
            part: sources
            for part, sources in reads.items()
            if part not in levels and all(s not in reads or s in levels for s in sources)
        }
        if not ready:
            return None
        for part, sources in ready.items():
            levels[part] = 1 + max((levels[s] for s in sources if s in reads), default=0)
    return max(levels.values(), default=0)


def _holds(row: Row, ones: Collection[str]) -> bool:
    if row.activation.name != "identity" or any(len(blocks) != 1 for blocks in row.sums):
        return False
    columns = [blocks[0][0] for blocks in row.sums]
    identities = all(isinstance(blocks[0][1].structure, Identity) for blocks in row.sums)
    return identities and columns[0] == row.part and all(column in ones for column in columns[1:])
