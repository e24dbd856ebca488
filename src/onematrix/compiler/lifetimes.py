"""Variables of a compiled function are dropped behind their last reader: a call holds what it still needs."""

from collections import Counter
from collections.abc import Collection, Sequence

from onematrix.compiler.code import INDENT
from onematrix.compiler.statements import Statement, lines_of, statements


def release(
    body: Sequence[Statement], held: Collection[str] = (), given: Collection[str] = ()
) -> list[Statement]:
    """The statements with `del` behind the last reader of every variable they make, also inside loops.

    held: variables read afterwards. given: variables that are there before and are dropped too. A variable that is
    assigned in two places, as the state of a loop, is kept to the end, and so is a weight that is only looked up.
    One instruction a variable; without it a call without gradients holds the values of every layer at once.

    >>> from onematrix.compiler.statements import statements
    >>> lines = ["v1 = a + b", "v2 = v1 * 2", "return v2"]
    >>> list(lines_of(release(statements(lines), given=["a"])))
    ['v1 = a + b', 'del a', 'v2 = v1 * 2', 'del v1', 'return v2']
    """
    times = Counter(name for each in body for name in (*each.made, *each.inner))
    return _release(body, set(held), set(given), times)


def _release(
    body: Sequence[Statement], held: set[str], given: set[str], times: Counter[str]
) -> list[Statement]:
    own = {name for each in body for name in each.made if times[name] == 1 and not each.looked_up}
    own |= {name for name in given if not times[name]}
    own -= held
    last = {name: place for place, each in enumerate(body) for name in each.words if name in own}
    ends: dict[int, list[str]] = {}
    for name, place in last.items():
        if not body[place].lines[0].startswith("return "):
            ends.setdefault(place, []).append(name)
    readers = Counter(name for each in body for name in each.words)
    found: list[Statement] = []
    for place, each in enumerate(body):
        outside = {
            name for name in each.inner if readers[name] > 1
        }  # what it makes and other statements read
        found.append(each if len(each.lines) == 1 else _inside(each, held | outside, times))
        if place in ends:
            found.append(Statement((f"del {', '.join(sorted(ends[place]))}",)))
    return found


def _inside(loop: Statement, held: set[str], times: Counter[str]) -> Statement:
    """A loop whose body drops what one tick made; conditions stay as they are."""
    if not loop.lines[0].startswith("for "):
        return loop
    inner = statements([line.removeprefix(INDENT) for line in loop.lines[1:]])
    return Statement(
        (loop.lines[0], *(INDENT + line for line in lines_of(_release(inner, held, set(), times))))
    )
