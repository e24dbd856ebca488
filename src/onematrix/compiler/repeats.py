"""Equal layers of a compiled function: written and compiled once, as one function that is called for each."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from onematrix.compiler.code import INDENT
from onematrix.compiler.lifetimes import release
from onematrix.compiler.statements import WORD, Statement, lines_of

SHORTEST = 4  # operators of a layer: a call takes .1 µs, an operator about 5
PERIODS = 8  # lengths tried, the most frequent distances of like statements first
TURNS = 64  # places tried at which a layer may begin
ATOM = re.compile(r"(?<![\w.])tables\[(\d+)\]|" + WORD.pattern)


@dataclass(frozen=True)
class Body:
    """Statements, the functions they call for equal layers, and nothing held longer than it is read."""

    layers: tuple[tuple[str, ...], ...]
    lines: tuple[str, ...]


def share_layers(body: Sequence[Statement], own: Collection[str], constants: Collection[str]) -> Body:
    """Equal runs of statements as functions; every variable dropped behind its last reader.

    own: variables and arguments of the function; constants: names of objects it reads. Runs are equal when they
    differ in variables, constants, places in the tables and texts alone: those are the arguments of the function.
    Runs have 4 operators and more, and follow each other. Cost: linear in the statements.
    """
    finder = _Finder(body, frozenset(own), frozenset(constants))
    lines = tuple(lines_of(release(list(finder.between(0, len(body))))))
    return Body(tuple(finder.layers), lines)


class _Finder:
    def __init__(self, body: Sequence[Statement], own: frozenset[str], constants: frozenset[str]) -> None:
        self.pieces = [_Piece(each, own, constants) for each in body]
        self.constants = constants
        self.times = Counter(name for each in body for name in (*each.made, *each.inner))
        self.operators = [0, *accumulate(not each.looked_up for each in body)]  # before each statement
        self.last = {name: place for place, each in enumerate(body) for name in each.words}
        self.lasting = {name for each in body if each.looked_up for name in each.made}
        self.layers: list[tuple[str, ...]] = []

    def between(self, start: int, stop: int) -> Iterator[Statement]:
        """The statements of one stretch, equal runs as calls."""
        best = self._best(start, stop)
        if best is None:
            yield from (piece.statement for piece in self.pieces[start:stop])
            return
        first, period, count = best
        yield from self.between(start, first)
        yield from self._calls(first, period, count)
        yield from self.between(first + period * count, stop)

    def _best(self, start: int, stop: int) -> tuple[int, int, int] | None:
        """First statement, length and number of the equal runs that save most."""
        found = [run for p in self._periods(start, stop) for run in self._equal(start, stop, p)]
        return max(found, key=lambda run: ((run[2] - 1) * run[1], -run[1]), default=None)

    def _periods(self, start: int, stop: int) -> list[int]:
        seen: dict[str, int] = {}
        distances: Counter[int] = Counter()
        for place in range(start, stop):
            frame = self.pieces[place].frame
            distances[place - seen.get(frame, place)] += 1
            seen[frame] = place
        return [d for d, _ in distances.most_common() if d >= SHORTEST][:PERIODS]

    def _equal(self, start: int, stop: int, period: int) -> Iterator[tuple[int, int, int]]:
        """The longest series of equal runs in every stretch whose statements are like those a period later."""
        first = start
        for place in range(start, stop - period + 1):
            end = place + period
            if end == stop or self.pieces[place].frame != self.pieces[end].frame:
                if end - first >= 2 * period and (found := self._series(first, end, period)):
                    yield found
                first = place + 1

    def _series(self, first: int, end: int, period: int) -> tuple[int, int, int] | None:
        """Equal runs that follow each other in a stretch; begun where fewest values leave a run."""
        turns = min((end - first) % period + 1, TURNS)
        first = min(range(first, first + turns), key=lambda a: len(self._leaving(a + period, period)))
        starts = range(first, end - period + 1, period)
        keys = [self._key(a, period) for a in starts]
        best, begin = (0, 0), 0
        for place in range(1, len(keys) + 1):
            if place == len(keys) or keys[place] != keys[begin]:
                best = max(best, (place - begin, -begin))
                begin = place
        count, begin = best[0], -best[1]
        found = (starts[begin], period, count)
        worth = count > 1 and self.operators[found[0] + period] - self.operators[found[0]] >= SHORTEST
        return found if worth and self._apart(*found) else None

    def _key(self, first: int, period: int) -> tuple[object, ...]:
        """Equal for runs that differ in names, places and texts alone."""
        run = self.pieces[first : first + period]
        numbers: dict[str, int] = {}
        names = [numbers.setdefault(name, len(numbers)) for piece in run for name in piece.names]
        return (*(piece.frame for piece in run), *names)

    def _leaving(self, first: int, period: int) -> list[str]:
        """Variables of a run that are read behind it."""
        run = self.pieces[first : first + period]
        made = (name for piece in run for name in (*piece.statement.made, *piece.statement.inner))
        return [name for name in dict.fromkeys(made) if self.last[name] >= first + period]

    def _apart(self, first: int, period: int, count: int) -> bool:
        """Whether what the runs assign is assigned nowhere else, and what leaves them is surely assigned."""
        end = first + period * count
        made = [piece.statement for piece in self.pieces[first:end]]
        inner = {name for each in made for name in each.inner}
        leaving = {name for a in range(first, end, period) for name in self._leaving(a, period)}
        return (
            all(self.times[n] == 1 for each in made for n in (*each.made, *each.inner))
            and not leaving & inner
        )

    def _calls(self, first: int, period: int, count: int) -> Iterator[Statement]:
        """One call for each run, of a function that is written down."""
        starts = range(first, first + period * count, period)
        ends = range(first + period, first + period * count + 1, period)
        runs = [_Run(self.pieces[a : a + period]) for a in starts]
        leaving = {
            run.names.index(n) for run, a in zip(runs, starts, strict=True) for n in self._leaving(a, period)
        }
        results = sorted(leaving)
        given: list[tuple[str, Sequence[str]]]
        given = [(runs[0].names[p], [run.names[p] for run in runs]) for p in self._read(runs)]
        given += [("tables", ["tables"] * count)] if runs[0].tables else []
        found = [_texts([run.texts for run in runs]), _tables([run.tables for run in runs])]
        given += [pair for arguments in found for pair in arguments.given.items()]
        name = f"layer_{len(self.layers) + 1}"
        returned = Statement((f"return {', '.join(runs[0].names[p] for p in results)}",))
        body = [*runs[0].rewritten(*(arguments.written for arguments in found)), returned]
        handed = [p for p, values in given if any(map(self._dies, values, ends))]
        lines = lines_of(release(body, given=handed))
        head = f"def {name}({', '.join(parameter for parameter, _ in given)}):"
        self.layers.append((head, *(INDENT + line for line in lines)))
        for k, (run, end) in enumerate(zip(runs, ends, strict=True)):
            arguments = [values[k] for _, values in given]
            dying = [value for value in arguments if self._dies(value, end)]
            if dying:
                yield Statement((f"held = [{', '.join(reversed(dying))}]",))
            texts = ", ".join("held.pop()" if value in dying else value for value in arguments)
            yield Statement((f"{', '.join(run.names[p] for p in results)} = {name}({texts})",))

    def _dies(self, name: str, end: int) -> bool:
        """Whether nothing reads the variable from there on: it is handed over, for the function to drop."""
        return self.times[name] == 1 and self.last[name] < end and name not in self.lasting

    def _read(self, runs: Sequence["_Run"]) -> list[int]:
        """Places of the names a run is given: variables, and constants that are not the same in all runs."""
        first = runs[0]
        return [
            place
            for place, name in enumerate(first.names)
            if name not in first.made
            and (name not in self.constants or len({run.names[place] for run in runs}) > 1)
        ]


class _Piece:
    """A statement, and its names, texts and places in the tables apart from the rest."""

    def __init__(self, statement: Statement, own: frozenset[str], constants: frozenset[str]) -> None:
        self.statement = statement
        self.names: list[str] = []
        self.texts: list[str] = []
        self.tables: list[int] = []

        def apart(found: re.Match[str]) -> str:
            word = found[0]
            if found[1]:
                self.tables.append(int(found[1]))
                return "tables[?]"
            if word[0] in "'\"":
                self.texts.append(word)
                return "'?'"
            if word in own or word in constants:
                self.names.append(word)
                return "?"
            return word

        self.frame = ATOM.sub(apart, "\n".join(statement.lines))


class _Run:
    """Statements that follow each other: names in the order they come first, texts and places in theirs."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self.statements = [piece.statement for piece in pieces]
        self.names = list(dict.fromkeys(name for piece in pieces for name in piece.names))
        self.made = {name for each in self.statements for name in (*each.made, *each.inner)}
        self.texts = [text for piece in pieces for text in piece.texts]
        self.tables = [place for piece in pieces for place in piece.tables]

    def rewritten(self, texts: Sequence[str], tables: Sequence[str]) -> list[Statement]:
        """The statements with other texts and places, in their order."""
        text, table = iter(texts), iter(tables)

        def other(found: re.Match[str]) -> str:
            if found[1]:
                return f"tables[{next(table)}]"
            return next(text) if found[0][0] in "'\"" else found[0]

        return [Statement(tuple(ATOM.sub(other, line) for line in each.lines)) for each in self.statements]


@dataclass(frozen=True)
class _Arguments:
    """What a function is given: a value per run for each of its parameters; and what it writes at each place."""

    given: Mapping[str, Sequence[str]]
    written: Sequence[str]


def _texts(found: Sequence[Sequence[str]]) -> _Arguments:
    """Texts as they are where all runs have the same, else arguments."""
    given: dict[tuple[str, ...], str] = {}
    written = []
    for values in zip(*found, strict=True):
        same = len(set(values)) == 1
        written.append(values[0] if same else given.setdefault(values, f"text{len(given)}"))
    return _Arguments({name: values for values, name in given.items()}, written)


def _tables(found: Sequence[Sequence[int]]) -> _Arguments:
    """Places in the tables: an argument for all that move alike from run to run."""
    given: dict[tuple[int, ...], tuple[str, int]] = {}
    moves = [tuple(value - values[0] for value in values) for values in zip(*found, strict=True)]
    least: dict[tuple[int, ...], int] = {}
    for place, moved in zip(found[0], moves, strict=True):
        least[moved] = min(place, least.get(moved, place))
    written = []
    for place, moved in zip(found[0], moves, strict=True):
        if not any(moved):
            written.append(str(place))
            continue
        name, base = given.setdefault(moved, (f"place{len(given)}", least[moved]))
        written.append(f"{name} + {place - base}" if place > base else name)
    return _Arguments(
        {name: [str(base + m) for m in moved] for moved, (name, base) in given.items()}, written
    )
