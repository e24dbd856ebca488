"""Layouts: views, and bringing several values to the same axes, with as few rows as possible."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onematrix.converters.builder import Builder, Term, Unsupported, last_block
from onematrix.converters.sizes import divide, product, times
from onematrix.converters.values import BATCH, Atom, Dims, Spread, Value
from onematrix.programs.block_matrix import Block
from onematrix.structures.base import Structure
from onematrix.structures.identity import Ones
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.sizes import Size

Target = tuple[Size, int | None]  # size of an axis to make, and the axis it comes from; None: repeated


def arrange(b: Builder, value: Value, targets: Sequence[Target], whole: bool = False) -> Term:
    """The block that brings a written value to the target axes in their order; whole: on all features."""
    order = [axis for _, axis in targets if axis is not None]
    assert sorted(order) == list(range(len(value.axes))), "every axis of a value is used once"
    lead = next((i for i, (_, axis) in enumerate(targets) if axis is not None), len(targets))
    natural = order == sorted(order)
    if natural and len(order) == len(targets) - lead and order:
        if lead == 0:
            return b.take(value.column)
        if not whole:
            return value.column, Block(b.identity(product(value.axes)), on="last")
    if not order:
        if not targets:
            return b.take(value.column)
        return value.column, Block(PerAxis(tuple(Ones(size, 1) for size, _ in targets)))
    terms: list[Structure] = [b.identity(size) for size in value.axes]
    places = []
    for size, axis in targets:
        if axis is None:
            terms.append(Ones(size, 1))
        places.append(len(terms) - 1 if axis is None else axis)
    text = " ".join(map(str, places))
    key = ("arranged", value.axes, text, tuple(size for size, axis in targets if axis is None))
    return value.column, Block(b.shared(*key, make=lambda: PerAxis(tuple(terms), text)))


def ordered(b: Builder, value: Value) -> Value:
    """The value over a part whose axes lie in the order of the dimensions, nothing repeated but the batch."""
    value = b.written(value)
    atoms = [atom for atom in value.atoms if atom != BATCH]
    if atoms == list(range(len(value.axes))):
        return value
    targets: list[Target] = [(value.size(a), None if isinstance(a, Spread) else a) for a in atoms]
    part = b.row([size for size, _ in targets], value.dtype, [arrange(b, value, targets)])
    places = iter(range(len(atoms)))
    dims = tuple(tuple(a if a == BATCH else next(places) for a in dim) for dim in value.dims)
    return Value(part, tuple(size for size, _ in targets), dims, value.dtype)


def split_axes(b: Builder, value: Value, pieces: dict[int, list[Size]]) -> tuple[Value, dict[int, list[int]]]:
    """The value with axes split into pieces, and where the pieces of each old axis are. `dims` is not changed."""
    if value.ticks:
        value = b.written(value)
    axes: list[Size] = []
    where: dict[int, list[int]] = {}
    for axis, size in enumerate(value.axes):
        sizes = pieces.get(axis, [size])
        where[axis] = list(range(len(axes), len(axes) + len(sizes)))
        axes += sizes
    if len(axes) != len(value.axes):
        value = reshaped(b, value, axes)
    return value, where


def reshaped(b: Builder, value: Value, axes: Sequence[Size]) -> Value:
    """The same numbers in the same order as a part of other axes; `dims` is not changed."""
    if value.part is None:
        return replace(value, axes=tuple(axes))
    key = ("reshaped", value.column, tuple(axes))
    if key not in b.constants:
        b.constants[key] = b.row(axes, value.dtype, [b.take(value.column)])
    return replace(value, part=b.constants[key], axes=tuple(axes))


def view(b: Builder, value: Value, sizes: Sequence[Size]) -> Value:
    """The tensor with other dimensions, its numbers in the same order."""
    found = _regroup(value, sizes)
    if found is None:
        value = flattened(b, value)
        found = _regroup(value, sizes)
    if found is None:
        raise Unsupported(f"a view as {list(sizes)} tears the batch")
    groups, pieces = found
    value, where = split_axes(b, value, pieces)

    def renamed(atom: Atom, piece: int) -> Atom:
        return atom if atom == BATCH or isinstance(atom, Spread) else where[atom][piece]

    return value.with_dims(tuple(tuple(renamed(*entry) for entry in group) for group in groups))


def _regroup(
    value: Value, sizes: Sequence[Size]
) -> tuple[list[list[tuple[Atom, int]]], dict[int, list[Size]]] | None:
    """Factors of each new dimension as (atom, piece), and the pieces of split axes; None where it does not go up."""
    rest: list[tuple[Atom, Size]] = [(atom, value.size(atom)) for atom in value.atoms]
    pieces: dict[int, list[Size]] = {}
    groups: list[list[tuple[Atom, int]]] = []

    def take(atom: Atom, size: Size) -> tuple[Atom, int]:
        if isinstance(atom, Spread):
            return Spread(size), 0
        if atom == BATCH:
            return BATCH, 0
        pieces.setdefault(atom, []).append(size)
        return atom, len(pieces[atom]) - 1

    for size in sizes:
        group: list[tuple[Atom, int]] = []
        while size != 1:
            if not rest:
                return None
            atom, whole = rest.pop(0)
            if (quotient := divide(size, whole)) is not None:
                group.append(take(atom, whole))
                size = quotient
            elif atom != BATCH and (left := divide(whole, size)) is not None:
                group.append(take(atom, size))
                rest.insert(0, (atom, left))
                size = 1
            else:
                return None
        groups.append(group)
    return None if rest else (groups, pieces)


def flattened(b: Builder, value: Value) -> Value:
    """The value with neighbouring axes merged: at most one before and one behind the batch."""
    value = ordered(b, value)
    atoms = value.atoms
    place = atoms.index(BATCH) if BATCH in atoms else 0
    before, behind = value.axes[:place], value.axes[place:]
    merged = [_merged(group) for group in (before, behind) if group]
    numbers = iter(range(len(merged)))
    dims = [(next(numbers),)] if before else []
    dims += [(BATCH,)] if BATCH in atoms else []  # type: ignore[list-item]
    dims += [(next(numbers),)] if behind else []
    return reshaped(b, value, merged).with_dims(tuple(dims))


def _merged(sizes: Sequence[Size]) -> Size:
    total: Size = 1
    for size in sizes:
        total = times(total, size)
    return total


def one_axis(b: Builder, value: Value, place: int) -> Value:
    """The value with one dimension made of one axis; that of size 1 becomes an axis of size 1 at the end."""
    dim = value.dims[place]
    if BATCH in dim:
        raise Unsupported("it works along the batch")
    if len(dim) == 1 and isinstance(dim[0], int):
        return b.written(value)
    value = b.written(value)
    if not dim:
        axes = (*value.axes, 1)
        dims = (*value.dims[:place], (len(axes) - 1,), *value.dims[place + 1 :])
        return reshaped(b, value, axes).with_dims(dims)
    value = ordered(b, value)
    dim = value.dims[place]
    first = dim[0]
    assert isinstance(first, int), "nothing is repeated in ordered values"
    axes = (
        *value.axes[:first],
        _merged(value.axes[first : first + len(dim)]),
        *value.axes[first + len(dim) :],
    )

    def moved(atom: Atom) -> Atom:
        return atom if not isinstance(atom, int) or atom <= first else atom - len(dim) + 1

    dims = tuple((first,) if i == place else tuple(moved(a) for a in d) for i, d in enumerate(value.dims))
    return reshaped(b, value, axes).with_dims(dims)


def last_axis(b: Builder, value: Value, place: int) -> Value:
    """The value over a part whose last axis is the whole of one dimension."""
    value = one_axis(b, value, place)
    axis = value.dims[place][0]
    if axis == len(value.axes) - 1:
        return value
    assert isinstance(axis, int), "one axis"
    order = [a for a in range(len(value.axes)) if a != axis] + [axis]
    return reorder(b, value, order)


def reorder(b: Builder, value: Value, order: Sequence[int]) -> Value:
    """The value over a part with its axes in another order."""
    targets: list[Target] = [(value.axes[a], a) for a in order]
    part = b.row([size for size, _ in targets], value.dtype, [arrange(b, value, targets)])
    new = {a: i for i, a in enumerate(order)}
    dims = tuple(tuple(new[a] if isinstance(a, int) and a != BATCH else a for a in d) for d in value.dims)
    return Value(part, tuple(value.axes[a] for a in order), dims, value.dtype)


def along(b: Builder, value: Value, place: int, structure: Structure) -> Value:
    """The matrix applied along one dimension."""
    value = one_axis(b, value, place)
    axis = value.dims[place][0]
    assert isinstance(axis, int), "one axis of a part"
    size = structure.shape[0]
    behind = product(value.axes[axis + 1 :])
    factor = structure if behind == 1 else PerAxis((structure, b.identity(behind)))
    block = last_block(factor, value.axes[:axis])
    axes = (*value.axes[:axis], *((size,) if size != 1 else ()), *value.axes[axis + 1 :])
    part = b.row(axes, value.dtype, [(value.column, block)])
    return Value(part, axes, without(value.dims, axis) if size == 1 else value.dims, value.dtype)


def without(dims: Dims, axis: int) -> Dims:
    """The dimensions after an axis has become 1."""
    return tuple(
        tuple(a - 1 if isinstance(a, int) and a > axis else a for a in dim if a != axis) for dim in dims
    )


def squeezed(b: Builder, value: Value) -> Value:
    """The value over a part without axes of size 1."""
    for axis in reversed(range(len(value.axes))):
        if value.axes[axis] == 1:
            axes = value.axes[:axis] + value.axes[axis + 1 :]
            value = reshaped(b, value, axes).with_dims(without(value.dims, axis))
    return value


@dataclass(frozen=True)
class Alignment:
    """Values brought to common axes: their sizes, per value the block that leads there, and the dimensions."""

    values: list[Value]
    axes: list[Size]
    terms: list[Term]
    dims: Dims


def refine(b: Builder, values: list[Value], groups: Sequence[Sequence[int | None]]) -> list[Value]:
    """The values with the dimensions of each group (one place per value, None: has none) in the same factors."""
    for group in groups:
        values = _refine_group(b, values, group)
    return values


def _refine_group(b: Builder, values: list[Value], group: Sequence[int | None]) -> list[Value]:
    place = 0
    while True:
        here: dict[int, tuple[Atom, Size]] = {}
        for i, dim in enumerate(group):
            if dim is not None and values[i].dims[dim]:
                if place >= len(values[i].dims[dim]):
                    continue
                atom = values[i].dims[dim][place]
                here[i] = atom, values[i].size(atom)
        if not here:
            return values
        sizes = [size for _, size in here.values()]
        small = next((s for s in sizes if all(divide(t, s) is not None for t in sizes)), None)
        if small is None:
            raise Unsupported(f"dimensions of factors {sizes} do not meet")
        for i, (_, size) in here.items():
            if size != small:
                dim = group[i]
                assert dim is not None, "only dimensions that are there are refined"
                values = [*values[:i], _split_atom(b, values[i], dim, place, small), *values[i + 1 :]]
        place += 1


def _split_atom(b: Builder, value: Value, dim: int, place: int, small: Size) -> Value:
    atom = value.dims[dim][place]
    large = divide(value.size(atom), small)
    assert large is not None, "the size divides"
    if isinstance(atom, Spread):
        new: tuple[Atom, ...] = (Spread(small), Spread(large))
        where: dict[int, list[int]] = {}
    elif atom == BATCH:
        raise Unsupported("the batch is torn")
    else:
        value, where = split_axes(b, value, {atom: [small, large]})
        new = tuple(where[atom])

    def moved(a: Atom) -> Atom:
        return a if isinstance(a, Spread) or a == BATCH or not where else where[a][0]

    dims = []
    for i, old in enumerate(value.dims):
        line: list[Atom] = []
        for j, a in enumerate(old):
            line += new if (i, j) == (dim, place) else (moved(a),)
        dims.append(tuple(line))
    return value.with_dims(tuple(dims))


def align(b: Builder, values: Sequence[Value]) -> Alignment:
    """Broadcast as torch does: the values, written, over common axes."""
    rank = max(v.rank for v in values)
    values = [v.with_dims(((),) * (rank - v.rank) + v.dims) for v in values]
    values = refine(b, list(values), [[d] * len(values) for d in range(rank)])
    slots: list[tuple[int, int]] = []  # (dimension, place) of each axis of the result
    dims: list[list[tuple[int, int] | Atom]] = []
    for d in range(rank):
        line: list[tuple[int, int] | Atom] = []
        for place in range(max(len(v.dims[d]) for v in values)):
            atoms = [v.dims[d][place] for v in values if v.dims[d]]
            if BATCH in atoms:
                line.append(BATCH)
            elif any(isinstance(a, int) for a in atoms):
                slots.append((d, place))
                line.append((d, place))
            else:
                line.append(atoms[0])
        dims.append(line)
    best = max(values, key=lambda v: len(v.axes))
    if len(best.axes) == len(slots):
        slots.sort(key=lambda s: int(best.dims[s[0]][s[1]]))  # type: ignore[arg-type]
    number = {slot: i for i, slot in enumerate(slots)}
    sizes = [next(v.size(v.dims[d][p]) for v in values if v.dims[d]) for d, p in slots]
    values = [b.written(v) for v in values]
    terms = []
    twice = len({v.part for v in values}) < len(values)  # one sum reads a part in one way only
    for v in values:
        at = [v.dims[d][p] if v.dims[d] else None for d, p in slots]
        targets: list[Target] = [
            (size, atom if isinstance(atom, int) else None) for size, atom in zip(sizes, at, strict=True)
        ]
        terms.append(arrange(b, v, targets, whole=twice))
    result = tuple(tuple(number[a] if isinstance(a, tuple) else a for a in line) for line in dims)
    return Alignment(values, sizes, terms, result)
