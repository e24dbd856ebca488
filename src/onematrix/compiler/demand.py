"""The rows and loops of a lowered program in the order in which its outputs need them."""

from collections.abc import Iterator, Sequence

from onematrix.programs.flow import parts_read, written
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wired, WiredLoop, WiredRow, WiredStep, outer_nodes

Item = WiredRow | WiredLoop


def by_demand(program: Program) -> list[Item]:
    """Each row and outermost loop directly before the first that reads it; what no output needs comes last.

    The schedule runs rows as early as it can: in a decoder the keys of every layer before its first one. On
    demand a value lives shortest, and equal layers stand one after the other. Where a
    part is written twice the order of the schedule stays.
    """
    items = list(_items(program.wiring))
    made = [(name, place) for place, item in enumerate(items) for name in _written(item)]
    maker = dict(made)
    if len(maker) < len(made):
        return items
    needs = [[maker[name] for name in _read(item) if name in maker] for item in items]
    return [items[place] for place in _postorder(needs, [maker[n] for n in program.outputs if n in maker])]


def _items(wired: Wired) -> Iterator[Item]:
    for node in outer_nodes(wired):
        if isinstance(node, WiredStep):
            yield from node.rows
        else:
            yield node


def _written(item: Item) -> list[str]:
    return [item.part] if isinstance(item, WiredRow) else sorted(written(item.loop))


def _read(item: Item) -> list[str]:
    if isinstance(item, WiredRow):
        return [wire.column for wires in item.sums for wire in wires]
    return sorted(parts_read(item.loop))


def _postorder(needs: Sequence[Sequence[int]], roots: Sequence[int]) -> list[int]:
    """Places, those needed first; the roots, then the others in their order."""
    found: list[int] = []
    done: set[int] = set()
    stack = [(place, False) for place in reversed([*roots, *range(len(needs))])]
    while stack:
        place, ready = stack.pop()
        if ready:
            found.append(place)
        elif place not in done:
            done.add(place)
            stack.append((place, True))
            stack += [(need, False) for need in reversed(needs[place])]
    return found
