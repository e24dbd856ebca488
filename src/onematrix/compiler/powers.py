"""Power collapse: a map applied K times, K at least its depth, is one pass in the order of its parts.

With the rows that hold taken as given, the parts a tick writes form a directed graph, i → j where the new j
reads the old i. Without cycles and with longest path L, F^K(z) for K ≥ L does not depend on what the parts
held, and F^K = F^L. A number of rounds that is a name is left as it is: nothing is unrolled.
"""

from onematrix.compiler.carries import zero_of
from onematrix.compiler.graph import Given, Graph, Kept, Region, Result, Value, postorder
from onematrix.compiler.rewriting import rewrite


def collapse_powers(graph: Graph, fired: list[str]) -> Graph:
    """The graph without the loops of rounds whose end one pass gives."""
    done: set[int] = set()
    while True:
        region = next((r for r in graph.regions() if id(r.scope) not in done), None)
        if region is None:
            return graph
        done.add(id(region.scope))
        times = region.header.times
        if not isinstance(times, int):
            continue
        ends = _ends(region, times)
        if ends is None:
            continue
        finals = [v for v in graph.values() if isinstance(v, Result) and v.region is region]
        fired.append(f"{times} rounds of {', '.join(c.param.name for c in region.carries)}: one pass")
        replace: dict[int, Value] = {id(v): ends[v.place] for v in finals}
        if times:
            replace |= {
                id(c.param): end for c, end in zip(region.carries, _before(region, times), strict=True)
            }
        graph = rewrite(graph, replace)


def _ends(region: Region, times: int) -> list[Value] | None:
    """The values after the loop, or None where one pass does not give them."""
    if times < 2 and any(c.init is None and c.param.part.kind == "index" for c in region.carries):
        return None  # a row cannot write an index part that is zero
    if times == 0:
        return _starts(region)
    if any(isinstance(v, Given) and v.role == "noise" for v in postorder(region.outs())):
        return None
    if any(
        isinstance(v, Result) and isinstance(v.region, Kept) and v.region.noisy
        for v in postorder(region.outs())
    ):
        return None
    depth = _depth(region)
    if times == 1 or (depth is not None and depth <= times):
        return [carry.out for carry in region.carries]
    return None


def _starts(region: Region) -> list[Value]:
    return [zero_of(c.param) if c.init is None else c.init for c in region.carries]


def _before(region: Region, times: int) -> list[Value]:
    """What each carried value is read as: what it starts as in a single round, its own end otherwise."""
    return _starts(region) if times == 1 else [carry.out for carry in region.carries]


def _depth(region: Region) -> int | None:
    """Longest path of the parts that change, None where they form a cycle."""
    params = {id(c.param): place for place, c in enumerate(region.carries)}
    reads = [{params[id(v)] for v in postorder([c.out]) if id(v) in params} for c in region.carries]
    levels: dict[int, int] = {}
    while len(levels) < len(reads):
        ready = [p for p, needs in enumerate(reads) if p not in levels and needs <= levels.keys()]
        if not ready:
            return None
        level = 1 + max(levels.values(), default=0)
        levels |= dict.fromkeys(ready, level)
    return max(levels.values(), default=0)
