"""Carried parts that are multiples of one another, or constant: one carry for all of them.

Assumed for all that start so, and dropped for those the body does not keep so, until the rest holds.
"""

from fractions import Fraction

from onematrix.compiler.canonical import IDENTITY
from onematrix.compiler.graph import Carry, Given, Graph, Region, Result, Row, Term, Value
from onematrix.compiler.numbering import is_zero, scaled_value
from onematrix.compiler.places import is_constant
from onematrix.compiler.rewriting import probe, rewrite

Assumption = tuple[Fraction, Given | None]  # ratio times another carried part; None: what the carry starts at


def join_carries(graph: Graph, fired: list[str]) -> Graph:
    """The graph with every loop's carries reduced to those that differ."""
    done: set[int] = set()
    while True:
        region = next((r for r in graph.regions() if id(r.scope) not in done), None)
        if region is None:
            return graph
        found = next(filter(None, (_settle(graph, region, a) for a in _assumptions(region))), None)
        if not found:
            done.add(id(region.scope))
            continue
        names = ", ".join(c.param.name for c in region.carries if id(c.param) in found)
        fired.append(f"carried {names}: multiples of another carry, or constant")
        graph = rewrite(graph, _replacements(region, found) | _finals(graph, region, found))


def _assumptions(region: Region) -> list[dict[int, Assumption]]:
    """What may hold, the most first; in a loop of rounds everything may stay what it starts as."""
    constant: dict[int, Assumption] = {}
    if region.header.over is None:
        free = [c for c in region.carries if c.init is not None or c.param.part.kind == "real"]
        constant = {id(c.param): (Fraction(1), None) for c in free}
    return [_assume(region) | constant, _assume(region)]


def _assume(region: Region) -> dict[int, Assumption]:
    """id(param) → what the carry is before the first tick, in terms of an earlier carry or as a constant."""
    found: dict[int, Assumption] = {}
    first: dict[tuple[object, ...], tuple[Fraction, Given]] = {}
    for carry in sorted(region.carries, key=lambda c: c.init is None or _start(c)[0] != 1):
        if carry.param.part.kind != "real":
            continue
        if carry.init is None or is_zero(carry.init) or is_constant(carry.init):
            found[id(carry.param)] = (Fraction(1), None)
            continue
        ratio, base = _start(carry)
        key = (id(base), carry.param.part)
        if key in first:
            found[id(carry.param)] = (ratio / first[key][0], first[key][1])
        else:
            first[key] = (ratio, carry.param)
    return found


def _start(carry: Carry) -> tuple[Fraction, Value]:
    assert carry.init is not None, "a carry without init starts at zero"
    return scaled_value(carry.init)


def _settle(graph: Graph, region: Region, assumed: dict[int, Assumption]) -> dict[int, Assumption]:
    """The assumptions that hold after a tick if all of them hold before it."""
    carries = {id(c.param): c for c in region.carries}
    while assumed:
        outs, starts = [c.out for c in region.carries], [_first(c) for c in region.carries]
        made = probe(graph, [*outs, *starts], _replacements(region, assumed))
        params = [id(c.param) for c in region.carries]
        after = dict(zip(params, made[: len(outs)], strict=True))
        before = dict(zip(params, made[len(outs) :], strict=True))
        kept = {}
        for key, (ratio, other) in assumed.items():
            if other is None:
                holds = _same(after[key], before[key], Fraction(1))
            else:
                holds = _same(after[key], after[id(other)], ratio)
            if holds:
                kept[key] = (ratio, other)
        if len(kept) == len(assumed):
            return kept
        assumed = {k: v for k, v in kept.items() if v[1] is None or id(v[1]) in carries}
    return {}


def _first(carry: Carry) -> Value:
    return zero_of(carry.param) if carry.init is None else carry.init


def _same(value: Value, other: Value, ratio: Fraction) -> bool:
    """Whether value = ratio · other, by their canonical forms."""
    if is_zero(value) or is_zero(other):
        return is_zero(value) and is_zero(other)
    (a, v), (b, w) = scaled_value(value), scaled_value(other)
    return v is w and a == ratio * b


def _replacements(region: Region, assumed: dict[int, Assumption]) -> dict[int, Value]:
    found: dict[int, Value] = {}
    for carry in region.carries:
        if id(carry.param) not in assumed:
            continue
        ratio, other = assumed[id(carry.param)]
        found[id(carry.param)] = _first(carry) if other is None else _multiple(carry.param, ratio, other)
    return found


def _finals(graph: Graph, region: Region, found: dict[int, Assumption]) -> dict[int, Value]:
    """The values after the loop, likewise."""
    places = {id(c.param): place for place, c in enumerate(region.carries)}
    replace: dict[int, Value] = {}
    for value in graph.values():
        if not isinstance(value, Result) or value.region is not region or value.kind != "final":
            continue
        carry = region.carries[value.place]
        if id(carry.param) in found:
            ratio, other = found[id(carry.param)]
            end: Value | None = None
            if other is not None:
                end = Result(other.name, other.part, region, "final", places[id(other)])
            replace[id(value)] = _first(carry) if end is None else _multiple(carry.param, ratio, end)
    return replace


def _multiple(param: Given, ratio: Fraction, other: Value) -> Value:
    return Row(param.name, param.part, ((Term(ratio, None, other),),), IDENTITY, None)


def zero_of(param: Given) -> Row:
    """Zero in the shape of a part."""
    return Row(param.name, param.part, ((),), IDENTITY, None)
