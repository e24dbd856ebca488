"""What a mask shows, read off the rows that compute it: a band of keys around each query's own place.

A mask nobody feeds is made of positions, constants, comparisons and selections. Each such row is followed as an
affine form of the indices of its part, or as the places where some affine forms of integers are not negative; what
is neither is unknown. So a band is one at every length, not only at those that were tried.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onematrix.compiler.products import unscaled
from onematrix.programs.joins import Join
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wire, WiredRow
from onematrix.structures.algebra import Sum
from onematrix.structures.base import Structure
from onematrix.structures.identity import Identity, Ones
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.sizes import Size

EXACT = ("int64", "int32", "float32", "float64")  # hold every position there is
HIDDEN = -1e30  # a score so low has no weight beside one that is seen: its exponential is 0


@dataclass(frozen=True)
class Affine:
    """Σ_axis factors[axis] index[axis] + constant, over the axes of a part."""

    factors: tuple[float, ...]
    constant: float

    def __add__(self, other: "Affine") -> "Affine":
        pairs = zip(self.factors, other.factors, strict=True)
        return Affine(tuple(a + b for a, b in pairs), self.constant + other.constant)

    def times(self, ratio: float) -> "Affine":
        return Affine(tuple(ratio * a for a in self.factors), ratio * self.constant)


@dataclass(frozen=True)
class Places:
    """True where every form of integers is at least 0; inverted: true elsewhere."""

    forms: tuple[Affine, ...]
    inverted: bool = False

    def inverse(self) -> "Places":
        if len(self.forms) == 1 and not self.inverted:  # not f ≥ 0 is −f − 1 ≥ 0
            (form,) = self.forms
            return Places((form.times(-1) + Affine((0,) * len(form.factors), -1),))
        return Places(self.forms, not self.inverted)


@dataclass(frozen=True)
class Chosen:
    """One number at some places, another elsewhere."""

    where: Places
    there: float
    elsewhere: float


@dataclass(frozen=True)
class Band:
    """Query i sees keys i − before … i + after; None: all there are on that side."""

    before: int | None
    after: int | None


Value = Affine | Places | Chosen
Shape = tuple[Size, ...]


class Masks:
    """Reads the masks of a program, given its rows by part."""

    def __init__(self, program: Program, rows: Mapping[str, WiredRow]) -> None:
        self.program, self.rows = program, rows
        self.known: dict[str, Value | None] = {}

    def added(self, wires: Sequence[Wire], shape: Shape) -> Band | None:
        """The band a sum added to scores leaves: 0 where seen, −∞ elsewhere."""
        value = self._sum(wires, shape)
        if not isinstance(value, Chosen) or {value.there, value.elsewhere} & {0.0} != {0.0}:
            return None
        seen = value.where if value.there == 0 else value.where.inverse()
        return _band(seen) if min(value.there, value.elsewhere) <= HIDDEN else None

    def selected(self, wires: Sequence[Wire], shape: Shape, shown: bool) -> Band | None:
        """The band where a selecting mask is `shown`."""
        value = self._boolean(self._sum(wires, shape))
        return None if value is None else _band(value if shown else value.inverse())

    def number(self, wires: Sequence[Wire], shape: Shape) -> float | None:
        """The number a sum is at every place."""
        value = self._sum(wires, shape)
        return value.constant if isinstance(value, Affine) and not any(value.factors) else None

    # Parts and rows.

    def _part(self, name: str) -> Value | None:
        if name not in self.known:
            self.known[name] = None  # a part that reads itself is unknown
            row = self.rows.get(name)
            shape = self.program.parts[name].shape
            self.known[name] = None if row is None else self._row(row, shape)
        return self.known[name]

    def _row(self, row: WiredRow, shape: Shape) -> Value | None:
        if row.join is not None:
            return self._join(row, shape) if isinstance(row.join, Join) and row.activation is None else None
        value = self._sum(row.sums[0], shape)
        if row.activation is None:
            return value
        name, arguments = row.activation.name, row.activation.arguments
        if name == "fill":
            return Affine((0,) * len(shape), float(arguments[0]))
        if name == "positions":
            return Affine((0,) * (len(shape) - 1) + (1,), 0)
        if name == "plus" and isinstance(value, Affine):
            return value + Affine((0,) * len(shape), arguments[0])
        if name == "times" and isinstance(value, Affine):
            return value.times(arguments[0])
        if name == "cast" and (arguments[0] in EXACT or isinstance(value, Places)):
            return value
        if name == "not":
            places = self._boolean(value)
            return None if places is None else places.inverse()
        return None

    def _join(self, row: WiredRow, shape: Shape) -> Value | None:
        assert row.join is not None, "rows without a join have one sum"
        name, values = row.join.name, [self._sum(wires, shape) for wires in row.sums]
        if name == "both":
            pair = [self._boolean(value) for value in values]
            forms = [place.forms for place in pair if place is not None and not place.inverted]
            return Places(forms[0] + forms[1]) if len(forms) == 2 else None
        if name == "either":
            pair = [self._boolean(value) for value in values]
            turned = [place.inverse() for place in pair if place is not None]
            forms = [place.forms for place in turned if not place.inverted]
            return Places(forms[0] + forms[1], inverted=True) if len(forms) == 2 else None
        if name == "select":
            return self._select(values)
        return self._compare(name, row, values)

    def _select(self, values: list[Value | None]) -> Value | None:
        mask, there, elsewhere = values
        where = self._boolean(mask)
        numbers = [v.constant for v in (there, elsewhere) if isinstance(v, Affine) and not any(v.factors)]
        return Chosen(where, *numbers) if where is not None and len(numbers) == 2 else None

    def _compare(self, name: str, row: WiredRow, values: list[Value | None]) -> Value | None:
        """a ≤ b is b − a ≥ 0, a < b is b − a − 1 ≥ 0: of integers."""
        signs = {"less_equal": (1, 0), "less": (1, 1), "greater_equal": (-1, 0), "greater": (-1, 1)}
        a, b = [*values, None, None][:2]
        if name not in signs or not isinstance(a, Affine) or not isinstance(b, Affine):
            return None
        sign, strict = signs[name]
        form = b.times(sign) + a.times(-sign) + Affine((0,) * len(a.factors), -strict)
        whole = all(float(f).is_integer() for f in (*form.factors, form.constant))
        return Places((form,)) if whole else None

    def _boolean(self, value: Value | None) -> Places | None:
        if isinstance(value, Chosen) and {value.there, value.elsewhere} == {0.0, 1.0}:
            return value.where if value.there else value.where.inverse()
        return value if isinstance(value, Places) else None

    # Sums of blocks.

    def _sum(self, wires: Sequence[Wire], shape: Shape) -> Value | None:
        terms = [self._wire(wire, shape) for wire in wires]
        if len(terms) == 1:
            return terms[0]
        total = Affine((0,) * len(shape), 0)
        for term in terms:
            if not isinstance(term, Affine):
                return None
            total = total + term
        return total

    def _wire(self, wire: Wire, shape: Shape) -> Value | None:
        ratio, a = unscaled(self.program.structures[wire.slot])
        if wire.column == ONE:
            return Affine((0,) * len(shape), ratio) if isinstance(a, Ones) else None
        value = None if wire.classes is not None else self._part(wire.column)
        if value is None:
            return None
        if isinstance(a, Sum):
            found = [self._moved(term, wire, shape, value) for term in a.terms]
            if not all(isinstance(term, Affine) for term in found):
                return None
            total = Affine((0,) * len(shape), 0)
            for term in found:
                assert isinstance(term, Affine), "checked above"
                total = total + term
            return total.times(ratio)
        moved = self._moved(a, wire, shape, value)
        if ratio == 1:
            return moved
        return moved.times(ratio) if isinstance(moved, Affine) else None

    def _moved(self, a: Structure, wire: Wire, shape: Shape, value: Value) -> Value | None:
        """The value where the structure puts it: each axis of the result an axis of the source, or repeated."""
        ratio, a = unscaled(a)
        axes = self._axes(a, wire, shape)
        if axes is None or (ratio != 1 and not isinstance(value, Affine)):
            return None
        moved = _along(value, axes)
        return moved.times(ratio) if isinstance(moved, Affine) else moved

    def _axes(self, a: Structure, wire: Wire, shape: Shape) -> list[int | None] | None:
        """Per axis of the result, the axis of the source it is; None: the source is repeated along it."""
        source = self.program.parts[wire.column].shape
        kept = list(range(wire.kept))
        if isinstance(a, Identity):
            inner: list[int | None] = list(range(wire.kept, len(source)))
        elif isinstance(a, PerAxis):
            rest = iter(range(wire.kept, len(source)))
            terms: list[int | None] = []
            for term in a.axes:
                if isinstance(term, Ones) and term.columns == 1:
                    terms.append(None)
                elif isinstance(term, Identity) and (axis := next(rest, None)) is not None:
                    if source[axis] != term.size:
                        return None
                    terms.append(axis)
                else:
                    return None
            if any(source[axis] != 1 for axis in rest):
                return None
            inner = [terms[place] for place in a.places]
        else:
            return None
        found = [None] * (len(shape) - len(kept) - len(inner)) + [*kept, *inner]
        fits = all(axis is None or source[axis] == size for axis, size in zip(found, shape, strict=False))
        return found if len(found) == len(shape) and fits else None


def _along(value: Value, axes: list[int | None]) -> Value:
    if isinstance(value, Affine):
        return Affine(tuple(0 if axis is None else value.factors[axis] for axis in axes), value.constant)
    if isinstance(value, Places):
        forms = tuple(_along(form, axes) for form in value.forms)
        return Places(tuple(f for f in forms if isinstance(f, Affine)), value.inverted)
    where = _along(value.where, axes)
    assert isinstance(where, Places), "places stay places"
    return Chosen(where, value.there, value.elsewhere)


def _band(seen: Places) -> Band | None:
    """The band of places (…, query, key); None where they are no band that shows each query its own place."""
    before, after = math.inf, math.inf
    if seen.inverted:
        return None
    for form in seen.forms:
        *others, query, key = form.factors if len(form.factors) > 1 else (0, *form.factors)
        if any(others) or query != -key:
            return None
        if query > 0:  # query (i − j) + c ≥ 0
            after = min(after, form.constant // query)
        elif query < 0:
            before = min(before, form.constant // -query)
        elif form.constant < 0:
            return None
    if before < 0 or after < 0:
        return None
    return Band(*(None if math.isinf(side) else int(side) for side in (before, after)))
