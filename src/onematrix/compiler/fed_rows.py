"""Rows that are products of one value and are read by one loop alone, tick by tick: the loop's kernel makes them.

The kernel knows that nobody else reads them: without gradients it need not hold those of all ticks, or writes its
states over them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from onematrix.compiler.merging import Member, Merge, member_of, unscale
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wire, WiredLoop, WiredRow, every_row, outer_nodes


@dataclass(frozen=True)
class FedRows:
    """Rows by part, and of each the product of `merge` it is."""

    merge: Merge
    rows: Mapping[str, WiredRow]
    members: Mapping[str, Member]


def find_fed_rows(
    program: Program, merges: Mapping[int, Merge], absorbed: set[int], uses: Mapping[str, int]
) -> dict[int, FedRows]:
    """id(wired loop) → the rows its kernel makes: all products of one merge, or those of one part that no merge has.

    absorbed: ids of the wires of biases that are added with a merge. uses: how often each part is read.
    """
    rows = {row.part: row for row in every_row(program.wiring, loops=False)}
    found: dict[int, FedRows] = {}
    for node in outer_nodes(program.wiring):
        if not isinstance(node, WiredLoop) or node.loop.over is None:
            continue
        products: dict[int | str, dict[str, Member]] = {}
        whole: dict[int | str, Merge] = {}
        for feed in node.feeds:
            if (name := _passed(feed)) in rows and uses.get(name) == 1:
                made = _product(rows[name], program, merges, absorbed, node.loop.over)
                if made is not None:
                    member, merge = made
                    shared = member.wire.column if merge is None else id(merge)
                    products.setdefault(shared, {})[name] = member
                    whole |= {} if merge is None else {shared: merge}
        for shared, members in sorted(products.items(), key=lambda made: len(made[1])):
            merge = whole.get(shared) or Merge(str(shared), tuple(members.values()))
            if len(members) == len(merge.members):
                found[id(node)] = FedRows(merge, {name: rows[name] for name in members}, members)
    return found


def _passed(feed: WiredRow) -> str:
    """The part that is fed as it is, or nothing."""
    (wires,) = feed.sums
    return wires[0].column if len(wires) == 1 and wires[0].passes else ""


def _product(
    row: WiredRow, program: Program, merges: Mapping[int, Merge], absorbed: set[int], over: str
) -> tuple[Member, Merge | None] | None:
    """The product that a row is, with its bias and nothing else, and the merge it stands in."""
    if row.activation is not None or row.join is not None:
        return None
    wires = [wire for wire in row.sums[0] if id(wire) not in absorbed]
    merge = merges.get(id(wires[0])) if len(wires) == 1 else None
    if merge is not None:
        (member,) = (m for m in merge.members if m.wire is wires[0])
    else:
        biases: dict[int, Wire] = {}
        made = [m for w in wires if (m := member_of(w, row.sums[0], program, biases))]
        if len(made) != 1 or len(wires) != 1 + len(biases) or id(made[0].wire) in merges:
            return None
        member = made[0]
    wire = member.wire
    ratio, a = unscale(program.structures[wire.slot])
    straight = ratio == 1 and wire.kept == 1 and wire.tail is None and not wire.flattens
    fits = straight and program.parts[row.part].shape == (over, a.fixed_shape[0])
    return (member, merge) if fits else None
