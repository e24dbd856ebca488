"""The text of a definition, "p d r g a, p e r g b -> (p e d) (g b a)", read and checked."""

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onematrix.errors import FormatError
from onematrix.structures.multilinear import Form

WORD = r"[A-Za-z]\w*"
CORE = re.compile(
    rf"(?:(?P<name>{WORD})\s*\[\s*(?P<named>{WORD}(?:\s+{WORD})*)\s*\]|(?P<bare>{WORD}(?:\s+{WORD})*))"
)
SIDE = re.compile(rf"\(\s*({WORD}(?:\s+{WORD})*)\s*\)|({WORD})")
MOST_AXES = 26  # every rank needs a second letter in the normal equations


@dataclass(frozen=True)
class Pattern:
    """Cores by name, each with its axes, and the axes of rows and columns; `form` has a letter per axis."""

    cores: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """Every axis, in the order of first use."""
        return tuple(dict.fromkeys(axis for _, core in self.cores for axis in core))

    @property
    def ranks(self) -> tuple[str, ...]:
        """Axes that are summed over the cores, as no side of the matrix has them."""
        return tuple(axis for axis in self.axes if axis not in self.rows + self.columns)

    @property
    def letters(self) -> dict[str, str]:
        """Axis → letter: itself where all axes are letters."""
        if all(len(axis) == 1 for axis in self.axes):
            return {axis: axis for axis in self.axes}
        return dict(zip(self.axes, string.ascii_letters, strict=False))

    @property
    def form(self) -> Form:
        """The same in letters."""
        letters = self.letters

        def spell(axes: Iterable[str]) -> str:
            return "".join(letters[axis] for axis in axes)

        return Form(tuple(spell(axes) for _, axes in self.cores), spell(self.rows), spell(self.columns))

    def in_letters(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Size by letter from size by axis."""
        return {letter: sizes[axis] for axis, letter in self.letters.items()}

    def __str__(self) -> str:
        cores = ", ".join(f"{name}[{' '.join(axes)}]" for name, axes in self.cores)
        return f"{cores} -> ({' '.join(self.rows)}) ({' '.join(self.columns)})"

    def equation(self) -> str:
        """The definition as a formula.

        >>> read_pattern("i r, r j -> i j", "r").equation()
        'A[(i), (j)] = Σ_r core0[i, r] core1[r, j]'
        """
        total = f"Σ_{','.join(self.ranks)} " if self.ranks else ""
        cores = " ".join(f"{name}[{', '.join(axes)}]" for name, axes in self.cores)
        return f"A[({' '.join(self.rows)}), ({' '.join(self.columns)})] = {total}{cores}"


def read_pattern(text: str, ranks: str | None = None) -> Pattern:
    """The pattern of a text, cores named core0, core1, … unless it says name[axes].

    ranks: axes that are summed, separated by spaces; None: those that neither side has.
    Raises FormatError when the text cannot be read, repeats or loses an axis, or uses a core twice.

    >>> str(read_pattern("i r, r j -> (i) (j)", "r"))
    'core0[i r], core1[r j] -> (i) (j)'
    """
    left, arrow, right = text.partition("->")
    sides = [m[1] or m[2] for m in SIDE.finditer(right)]
    if not arrow or len(sides) != 2 or SIDE.sub("", right).strip():
        raise FormatError(
            f"definition {text!r}: two sides, '-> (rows) (columns)', were needed, got {right.strip()!r}"
        )
    cores = tuple(_core(part.strip(), number, text) for number, part in enumerate(left.split(",")))
    pattern = Pattern(cores, tuple(sides[0].split()), tuple(sides[1].split()))
    _check_cores(pattern, text)
    _check_axes(pattern, text)
    if ranks is not None:
        _check_ranks(pattern, ranks.replace(",", " ").split(), text)
    return pattern


def _core(part: str, number: int, text: str) -> tuple[str, tuple[str, ...]]:
    match = CORE.fullmatch(part)
    if match is None:
        raise FormatError(f"definition {text!r}: core {number} is {part!r}; axes or name[axes] were needed")
    return match["name"] or f"core{number}", tuple((match["named"] or match["bare"]).split())


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _check_cores(pattern: Pattern, text: str) -> None:
    names = [name for name, _ in pattern.cores]
    if twice := _twice(names):
        raise FormatError(
            f"definition {text!r}: core {twice[0]!r} is used {names.count(twice[0])} times; "
            "the matrix must be linear in every core",
            core=twice[0],
        )
    if len(pattern.axes) > MOST_AXES:
        raise FormatError(
            f"definition {text!r}: at most {MOST_AXES} axes are possible, got {len(pattern.axes)}"
        )


def _check_axes(pattern: Pattern, text: str) -> None:
    for name, axes in pattern.cores:
        if twice := _twice(axes):
            raise FormatError(f"definition {text!r}: {name} repeats axis {twice[0]!r}", axis=twice[0])
    output = pattern.rows + pattern.columns
    if twice := _twice(output):
        raise FormatError(f"definition {text!r}: the matrix repeats axis {twice[0]!r}", axis=twice[0])
    if lost := sorted(set(output) - set(pattern.axes)):
        raise FormatError(f"definition {text!r}: no core has axis {lost[0]!r} of the matrix", axis=lost[0])
    for axis in pattern.ranks:
        if sum(axis in axes for _, axes in pattern.cores) == 1:
            raise FormatError(
                f"definition {text!r}: axis {axis!r} is in one core alone and not in the matrix: it is lost",
                axis=axis,
            )


def _check_ranks(pattern: Pattern, ranks: list[str], text: str) -> None:
    if lost := sorted(set(pattern.ranks) - set(ranks)):
        raise FormatError(
            f"definition {text!r}: axis {lost[0]!r} is in no side of the matrix; "
            f"add it there, or to ranks={' '.join([*ranks, lost[0]])!r}",
            axis=lost[0],
        )
    if more := sorted(set(ranks) - set(pattern.ranks)):
        where = "an axis of the matrix" if more[0] in pattern.axes else "in no core"
        raise FormatError(f"definition {text!r}: rank {more[0]!r} is {where}", axis=more[0])
