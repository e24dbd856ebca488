"""Part names for the values of a graph: those they had, numbered where two want the same."""

import re

from onematrix.compiler.canonical import IDENTITY
from onematrix.compiler.graph import Carry, Given, Graph, Kept, Region, Result, Row, Value
from onematrix.compiler.places import Places
from onematrix.programs.flow import written
from onematrix.programs.part import ONE, Part
from onematrix.programs.schedule import Seq, Step, blocks_of, walk

Key = tuple[object, ...]


class Names:
    """A name for every value, given when it is first asked for."""

    identity = IDENTITY

    def __init__(self, graph: Graph, places: Places) -> None:
        self.places = places
        self.table: dict[Key, str] = {}
        self.of_output: dict[str, Key] = {}  # outputs that are a value's own part
        self.params = {
            id(c.param): (region, place)
            for region in places.regions.values()
            if isinstance(region, Region)
            for place, c in enumerate(region.carries)
        }
        self.taken = {ONE, *(g.name for g in graph.inputs), *(name for name, _ in graph.outputs)}
        self.taken |= {v.name for v in places.values if isinstance(v, Given) and v.role == "noise"}
        self.wanted = {v.name for v in places.values}
        self.uses = _uses(places)
        for name, value in graph.outputs:
            key = self.key(value)
            given = isinstance(value, Given)
            if not given and key not in self.table and name not in self.of_output:
                self.table[key] = name
                self.of_output[name] = key

    def key(self, value: Value) -> Key:
        """Equal for a carried value before a tick and after the loop: one part."""
        if isinstance(value, Result):
            return (
                id(value.region),
                value.kind,
                value.name if isinstance(value.region, Kept) else value.place,
            )
        if id(value) in self.params:
            region, place = self.params[id(value)]
            return (id(region), "final", place)
        return (id(value),)

    def of(self, value: Value) -> str:
        """The name of the part that holds the value."""
        return self.give(self.key(value), value.name)

    def of_stacked(self, region: Region, place: int) -> str:
        """The name of a loop's stacked output."""
        return self.give((id(region), "stacked", place), region.outputs[place].name)

    def copy(self, value: Value, region: Region, role: str = "fed") -> str:
        """The name under which a loop reads an outer value as a whole."""
        return self.give((id(region), role, id(value)), value.name)

    def give(self, key: Key, wanted: str) -> str:
        if key not in self.table:
            name, base, number = wanted, re.sub(r"_\d+$", "", wanted), 2
            while name in self.taken or (number > 2 and name in self.wanted):
                name, number = f"{base}_{number}", number + 1
            self.taken.add(name)
            self.table[key] = name
        return self.table[key]

    def written_last(self, carry: Carry) -> bool:
        """Whether only the carry reads this row, so that it can be written under the carry's name."""
        out = carry.out
        if not isinstance(out, Row) or self.places.home(out) is not carry.param.scope:
            return False
        return id(out) in self.places.written and self.uses.get(id(out)) == 1

    # Kept nodes.

    def of_kept(self, kept: Kept) -> dict[str, str]:
        """A name for every part a kept node does not read from outside."""
        return {name: self.give((id(kept), "final", name), name) for name in self.kept_parts(kept)}

    def kept_parts(self, kept: Kept) -> dict[str, Part]:
        """Parts of a kept node it does not read from outside, by name."""
        outside = {ONE, *(name for name, _ in kept.captured)}
        started = {column for (_, column), _ in kept.node.init or ()}
        found: dict[str, Part] = {}
        for node in walk(kept.node):
            if isinstance(node, Seq):
                continue
            inner = {n for row, column, _ in blocks_of(node) for n in (row, column)}
            inner |= {row.part for row in node.rows} if isinstance(node, Step) else {node.valid or ONE}
            if node is kept.node:
                inner -= started - written(kept.node)
            found |= {n: node.parts[n] for n in inner - outside if n in node.parts}
        return {n: p for n, p in sorted(found.items()) if p.kind != "noise"}


def _uses(places: Places) -> dict[int, int]:
    count: dict[int, int] = {}
    for value in places.values:
        if isinstance(value, Row):
            for terms in value.sums:
                for term in terms:
                    count[id(term.value)] = count.get(id(term.value), 0) + 1
    for region in places.regions.values():
        values = region.outs() + ([] if isinstance(region, Kept) else region.inits())
        for value in values:
            count[id(value)] = count.get(id(value), 0) + 1
    return count
