"""Rows that are one merged product and are read by one loop alone, tick by tick: the loop's kernel makes them.

Without gradients the kernel then need not hold the products of all ticks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onematrix.compiler.merging import Member, Merge, unscale
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wire, Wired, WiredLoop, WiredRow, WiredSeq, WiredStep


@dataclass(frozen=True)
class FedRows:
    """The rows of a merge by part, and of each the product it is."""

    merge: Merge
    rows: Mapping[str, WiredRow]
    members: Mapping[str, Member]


def find_fed_rows(
    program: Program, merges: Mapping[int, Merge], absorbed: set[int], uses: Mapping[str, int]
) -> dict[int, FedRows]:
    """id(wired loop) → the rows its kernel makes, those of one merge.

    absorbed: ids of the wires of biases that are added with a merge. uses: how often each part is read.
    """
    nodes = list(_outer(program.wiring))
    rows = {row.part: row for node in nodes if isinstance(node, WiredStep) for row in node.rows}
    found: dict[int, FedRows] = {}
    for node in nodes:
        if not isinstance(node, WiredLoop) or node.loop.over is None:
            continue
        products: dict[int, dict[str, Wire]] = {}
        for feed in node.feeds:
            if (name := _passed(feed)) in rows and uses.get(name) == 1:
                wire = _product(rows[name], program, merges, absorbed, node.loop.over)
                if wire is not None:
                    products.setdefault(id(merges[id(wire)]), {})[name] = wire
        for wires in products.values():
            merge = merges[id(next(iter(wires.values())))]
            members = {id(member.wire): member for member in merge.members}
            if len(wires) == len(members):
                by_part = {name: members[id(wire)] for name, wire in wires.items()}
                found[id(node)] = FedRows(merge, {name: rows[name] for name in wires}, by_part)
    return found


def _outer(wired: Wired) -> Iterator[WiredStep | WiredLoop]:
    if isinstance(wired, WiredSeq):
        for child in wired.body:
            yield from _outer(child)
    else:
        yield wired


def _passed(feed: WiredRow) -> str:
    """The part that is fed as it is, or nothing."""
    (wires,) = feed.sums
    return wires[0].column if len(wires) == 1 and wires[0].passes else ""


def _product(
    row: WiredRow, program: Program, merges: Mapping[int, Merge], absorbed: set[int], over: str
) -> Wire | None:
    """The wire of a row that is one product of a merge, with its bias and nothing else."""
    if row.activation is not None or row.join is not None:
        return None
    wires = [wire for wire in row.sums[0] if id(wire) not in absorbed]
    if len(wires) != 1 or id(wires[0]) not in merges:
        return None
    wire, part = wires[0], program.parts[row.part]
    ratio, a = unscale(program.structures[wire.slot])
    straight = ratio == 1 and wire.kept == 1 and wire.tail is None and not wire.flattens
    return wire if straight and part.shape == (over, a.fixed_shape[0]) else None
