"""The lines of a compiled function as statements: what each makes and what it reads."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

WORD = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|(?<![\w.])[A-Za-z_]\w*")
TARGETS = re.compile(r"\(?((?:[a-z_]+\d*, ?)*[a-z_]+\d*),?\)? = ")
LOOKED_UP = re.compile(r"\w+ = tables\[[^][]*\]\['\w*'\]$")


@dataclass(frozen=True)
class Statement:
    """A line, and the deeper lines under it."""

    lines: tuple[str, ...]

    @cached_property
    def made(self) -> tuple[str, ...]:
        """The variables its own line assigns."""
        return targets(self.lines[0])

    @cached_property
    def inner(self) -> frozenset[str]:
        """The variables its deeper lines assign, and those of its loops: perhaps never."""
        deeper = {name for line in self.lines[1:] for name in targets(line.strip())}
        return frozenset(deeper.union(*map(counted, self.lines)))

    @cached_property
    def looked_up(self) -> bool:
        """Whether it only gives a tensor of a table a name."""
        return LOOKED_UP.match(self.lines[0]) is not None

    @cached_property
    def words(self) -> frozenset[str]:
        """Every name it reads or makes."""
        return frozenset(word for line in self.lines for word in words(line))


def targets(line: str) -> tuple[str, ...]:
    """The variables a line assigns.

    >>> targets("s1, s2, = v3, v4,"), targets("(h1,h2,) = heads"), targets("v5[0] = v3")
    (('s1', 's2'), ('h1', 'h2'), ())
    """
    found = TARGETS.match(line)
    return tuple(found[1].replace(" ", "").split(",")) if found else ()


def counted(line: str) -> tuple[str, ...]:
    """The variables of a loop.

    >>> counted("for t1, x2 in zip(range(3), u4):")
    ('t1', 'x2')
    """
    found = re.match(r" *for ([\w, ]+) in ", line)
    return tuple(found[1].replace(" ", "").split(",")) if found else ()


def words(line: str) -> list[str]:
    """The names of a line in their order, without those in texts and behind dots.

    >>> words("v2 = torch.relu(v1) + state['v3']")
    ['v2', 'torch', 'v1', 'state']
    """
    return [word for word in WORD.findall(line) if word[0] not in "'\""]


def statements(lines: Iterable[str]) -> list[Statement]:
    """Lines grouped: a line of depth 0 begins a statement, also an `else` or `elif` continues one."""
    groups: list[list[str]] = []
    for line in lines:
        if line.startswith((" ", "else", "elif")) and groups:
            groups[-1].append(line)
        else:
            groups.append([line])
    return [Statement(tuple(group)) for group in groups]


def lines_of(found: Sequence[Statement]) -> Iterator[str]:
    """The lines of statements."""
    for statement in found:
        yield from statement.lines


def placed_late(head: Sequence[Statement], body: Sequence[Statement]) -> list[Statement]:
    """Head and body as one, each statement of the head directly before the first that reads what it makes.

    What nothing reads is left out; a weight put together for one layer is then held while that layer runs. Tensors
    several statements look up, as the weights of tied layers, come first.
    """
    readers = Counter(word for each in (*head, *body) for word in each.words)  # each counts itself too
    maker = {name: place for place, statement in enumerate(head) for name in statement.made}
    found: list[Statement] = []
    done: set[int] = set()

    def place(statement: Statement) -> None:
        stack = [(statement, False)]
        while stack:
            each, ready = stack.pop()
            if ready:
                found.append(each)
            elif id(each) not in done:
                done.add(id(each))
                needed = sorted({maker[w] for w in each.words if w in maker}, reverse=True)
                stack += [(each, True), *((head[place], False) for place in needed)]

    for statement in (*(each for each in head if each.looked_up and readers[each.made[0]] > 2), *body):
        place(statement)
    return found
