"""Rows that are products of one value and are read by one loop alone, tick by tick: the loop's kernel makes them.

The kernel knows that nobody else reads them: without gradients it need not hold those of all ticks, or writes its
states over them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onematrix.compiler.merging import Member, Merge, member_of, unscale
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wire, Wired, WiredLoop, WiredRow, WiredSeq, WiredStep


@dataclass(frozen=True)
class FedRows:
    """Rows by part, and of each the product of `merge` it is."""

    merge: Merge
    rows: Mapping[str, WiredRow]
    members: Mapping[str, Member]


def find_fed_rows(
    program: Program, merges: Mapping[int, Merge], absorbed: set[int], uses: Mapping[str, int]
) -> dict[int, FedRows]:
    """id(wired loop) → the rows its kernel makes: all of one merge, or else one product.

    absorbed: ids of the wires of biases that are added with a merge. uses: how often each part is read.
    """
    nodes = list(_outer(program.wiring))
    rows = {row.part: row for node in nodes if isinstance(node, WiredStep) for row in node.rows}
    found: dict[int, FedRows] = {}
    for node in nodes:
        if not isinstance(node, WiredLoop) or node.loop.over is None:
            continue
        products: dict[int, tuple[Merge, dict[str, Wire]]] = {}
        for feed in node.feeds:
            if (name := _passed(feed)) in rows and uses.get(name) == 1:
                made = _product(rows[name], program, merges, absorbed, node.loop.over)
                if made is not None:
                    merge, wire = made
                    products.setdefault(id(merge), (merge, {}))[1][name] = wire
        for merge, wires in sorted(products.values(), key=lambda made: len(made[1])):
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
) -> tuple[Merge, Wire] | None:
    """The product that a row is, with its bias and nothing else: its wire, and the merge it stands in or is alone."""
    if row.activation is not None or row.join is not None:
        return None
    wires = [wire for wire in row.sums[0] if id(wire) not in absorbed]
    if len(wires) == 1 and id(wires[0]) in merges:
        wire, merge = wires[0], merges[id(wires[0])]
    else:
        biases: dict[int, Wire] = {}
        made = [member for w in wires if (member := member_of(w, row.sums[0], program, biases))]
        if len(made) != 1 or len(wires) != 1 + len(biases) or id(made[0].wire) in merges:
            return None
        wire, merge = made[0].wire, Merge(made[0].wire.column, (made[0],))
    ratio, a = unscale(program.structures[wire.slot])
    straight = ratio == 1 and wire.kept == 1 and wire.tail is None and not wire.flattens
    fits = straight and program.parts[row.part].shape == (over, a.fixed_shape[0])
    return (merge, wire) if fits else None
