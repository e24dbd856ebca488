"""The answer to "which structure?": every fit within a budget, with its error, size, work and measured time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

from onematrix.structures.base import Fit
from onematrix.structures.tree import stored_bytes

ALIKE = 1.1  # times nearer than this factor count as equal


@dataclass(frozen=True)
class Candidate:
    """One row: what a structure needs and how near it comes.

    seconds: of one product at the table's batch, None where not measured. optimal: whether no other row is at
    least as good in error, stored bytes and time (multiply-adds where not measured) and better in one of them.
    """

    name: str
    fit: Fit
    stored_numbers: int
    index_bytes: int
    multiply_adds: int
    seconds: float | None = None
    optimal: bool = False

    @property
    def error(self) -> float:
        """Relative Frobenius error reached; weighted by the gram where one was given."""
        return self.fit.error

    @property
    def stored_bytes(self) -> int:
        """Bytes of numbers and indices."""
        return stored_bytes(self.fit.structure)

    def beats(self, other: "Candidate") -> bool:
        """Whether this row is as good as the other everywhere and better somewhere."""
        mine, theirs = (self.error, self.stored_bytes), (other.error, other.stored_bytes)
        work, its, alike = float(self.multiply_adds), float(other.multiply_adds), 1.0
        if self.seconds is not None and other.seconds is not None:
            work, its, alike = self.seconds, other.seconds, ALIKE
        no_worse = all(a <= b for a, b in zip(mine, theirs, strict=True)) and work <= alike * its
        return no_worse and (mine != theirs or work * alike < its)


@dataclass(frozen=True, eq=False, repr=False)
class FitTable(Sequence[Candidate]):
    """The fits of one matrix, best error first; reads like a list and prints as a table.

    shape: (m, n). skipped: name → reason, for structures without a row. batch: vectors per measured product,
    one thread. dense_seconds: the same product with the matrix as it is.
    """

    rows: tuple[Candidate, ...]
    shape: tuple[int, int]
    budget: float | None
    skipped: Mapping[str, str]
    batch: int | None = None
    dense_seconds: float | None = None

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, index: int | slice) -> Candidate | Sequence[Candidate]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.rows)

    def find(self, name: str) -> Candidate | None:
        """The row of a structure; None where it has none, `skipped[name]` then says why."""
        return next((row for row in self.rows if row.name == name), None)

    def optimal(self) -> list[Candidate]:
        """The rows no other row beats."""
        return [row for row in self.rows if row.optimal]

    def facts(self) -> dict[str, object]:
        """Everything but the numbers of the structures as plain data, for JSON."""
        return {
            "shape": list(self.shape),
            "budget": self.budget,
            "batch": self.batch,
            "dense_seconds": self.dense_seconds,
            "rows": [self._row(row) for row in self.rows],
            "skipped": dict(self.skipped),
        }

    def _row(self, row: Candidate) -> dict[str, object]:
        return {
            "structure": row.name,
            "error": row.error,
            "predicted": row.fit.predicted,
            "stored_numbers": row.stored_numbers,
            "index_bytes": row.index_bytes,
            "multiply_adds": row.multiply_adds,
            "seconds": row.seconds,
            "optimal": row.optimal,
        }

    def __str__(self) -> str:
        m, n = self.shape
        within = "" if self.budget is None else f" within E = {self.budget:g}"
        timed = "multiply-adds" if self.batch is None else f"time at batch {self.batch}, one thread"
        title = f"{len(self)} structures for {m}×{n}{within}; * none is better in error, bytes and {timed}"
        return "\n".join([title, *_align([HEAD, *map(self._cells, self.rows)]), *self._remarks()])

    __repr__ = __str__

    def _cells(self, row: Candidate) -> tuple[str, ...]:
        m, n = self.shape
        took = "" if row.seconds is None else f"{row.seconds * 1e3:.3g} ms"
        ratio = (
            "" if row.seconds is None or not self.dense_seconds else f"{row.seconds / self.dense_seconds:.2f}"
        )
        numbers = (f"{row.stored_numbers:,}", f"{row.stored_numbers / (m * n):.3f}", f"{row.index_bytes:,}")
        mark = "*" if row.optimal else ""
        return (mark, row.name, f"{row.error:.4g}", *numbers, f"{row.multiply_adds:,}", took, ratio)

    def _remarks(self) -> list[str]:
        return [f"without a row: {reason}" for reason in self.skipped.values()]


HEAD = ("", "structure", "error", "numbers", "E", "index bytes", "multiply-adds", "time", "÷ dense")


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with names to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def mark_optimal(rows: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The rows, best error first, each with whether another one beats it."""
    ordered = sorted(rows, key=lambda c: (c.error, c.stored_numbers, c.name))
    return tuple(replace(row, optimal=not any(o.beats(row) for o in ordered)) for row in ordered)
