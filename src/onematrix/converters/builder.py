"""Rows one after the other: parts with names, and a step for each row a graph node needs."""

from collections.abc import Mapping, Sequence
from itertools import count

import torch
from torch import Tensor, nn

from onematrix.converters.sizes import product
from onematrix.converters.values import Value
from onematrix.errors import ConversionError
from onematrix.programs.block_matrix import Block, BlockMatrix
from onematrix.programs.flow import written
from onematrix.programs.joins import Join
from onematrix.programs.opaque import Opaque
from onematrix.programs.part import NAME, ONE, Part
from onematrix.programs.schedule import Node, Step
from onematrix.structures.algebra import Sum
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.identity import Identity
from onematrix.structures.reshaped import Reshaped
from onematrix.structures.sizes import Size

Term = tuple[str, Block]


class Unsupported(Exception):
    """An operator that no row says here; the node becomes opaque with this reason."""


class Builder:
    """Parts and steps so far. `stem` is the name the next rows take, `where` what an error calls the place."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.parts: dict[str, Part] = {ONE: Part((1,))}
        self.nodes: list[Node] = []
        self.stem = "x"
        self.where = ""
        self.constants: dict[tuple[object, ...], str] = {}
        self.structures: dict[tuple[object, ...], Structure] = {}
        self.sources: dict[int, tuple[Tensor, str]] = {}
        self.numbers: dict[str, count[int]] = {}
        self.inputs: list[str] = []
        self._written: set[str] = set()
        self._counted = 0

    def new_name(self, stem: str) -> str:
        """A part name nobody has, from the path of a module."""
        stem = "".join(c if c.isalnum() or c in "_.-" else "_" for c in stem) or "x"
        stem = stem if NAME.fullmatch(stem) else f"_{stem}"
        if stem not in self.parts:
            return stem
        numbers = self.numbers.setdefault(stem, count(2))
        return next(name for n in numbers if (name := f"{stem}_{n}") not in self.parts)

    def new_part(
        self, axes: Sequence[Size], dtype: torch.dtype, kind: str = "real", stem: str | None = None
    ) -> str:
        """A part of this shape, (1,) where it has no axis."""
        name = self.new_name(self.stem if stem is None else stem)
        text = None if dtype == self.dtype or kind != "real" else str(dtype).removeprefix("torch.")
        self.parts[name] = Part(tuple(axes) or (1,), kind, text)
        return name

    def row(
        self,
        axes: Sequence[Size],
        dtype: torch.dtype,
        *sums: Sequence[Term],
        activation: str | None = None,
        join: str | Join | Opaque | None = None,
        kind: str = "real",
        stem: str | None = None,
    ) -> str:
        """Write a new part σ(first sum) joined with the other sums; its name."""
        name = self.new_part(axes, dtype, kind, stem)
        self.write([(name, sums, activation, join)])
        return name

    def write(
        self,
        rows: Sequence[tuple[str, Sequence[Sequence[Term]], str | None, str | Join | Opaque | None]],
    ) -> None:
        """One step with these rows: (part, sums, activation, join)."""
        self.nodes.append(self.step(rows))

    def step(
        self,
        rows: Sequence[tuple[str, Sequence[Sequence[Term]], str | None, str | Join | Opaque | None]],
    ) -> Step:
        """The step of these rows."""
        depth = max(1, *(len(sums) for _, sums, _, _ in rows))
        grids: list[dict[tuple[str, str], Block]] = [{} for _ in range(depth)]
        names = [name for name, *_ in rows]
        for name, sums, _, _ in rows:
            for grid, terms in zip(grids, sums, strict=False):
                for column, block in terms:
                    grid[name, column] = _added(grid.get((name, column)), block)
        used = {*names, ONE, *(column for grid in grids for _, column in grid)}
        parts = {name: self.parts[name] for name in self.parts if name in used} if len(used) > 64 else None
        table: Mapping[str, Part] = parts or {name: self.parts[name] for name in sorted(used)}
        return Step(
            *(BlockMatrix(grid, table) for grid in grids),
            activations={name: a for name, _, a, _ in rows if a is not None},
            joins={name: j for name, _, _, j in rows if j is not None},
            rows=names,
        )

    def identity(self, size: Size) -> Structure:
        """One identity per size, so that a program of many rows holds few structures."""
        return self.shared("identity", size, make=lambda: Identity(size))

    def written_parts(self) -> set[str]:
        """Parts some row has written: not the inputs."""
        if self._counted != len(self.nodes):
            for node in self.nodes[self._counted :]:
                self._written |= {row.part for row in node.rows} if isinstance(node, Step) else written(node)
            self._counted = len(self.nodes)
        return self._written

    def forget(self) -> None:
        """Drop what stands for rows that have been taken back."""
        self._written, self._counted = set(), 0
        alive = self.written_parts()
        self.constants = {key: part for key, part in self.constants.items() if part in alive}
        keep = alive | {ONE, *self.inputs}
        self.parts = {n: p for n, p in self.parts.items() if n in keep or p.kind == "noise"}

    def shared(self, *key: object, make: object) -> Structure:
        """The structure made once for a key."""
        if key not in self.structures:
            self.structures[key] = make()  # type: ignore[operator]
        return self.structures[key]

    def take(self, part: str) -> Term:
        """The whole part as it is."""
        return part, Block(self.identity(self.parts[part].features))

    def tensor(self, value: Value) -> Tensor:
        """The parameter or buffer of a value as the program holds it; a float buffer is not trained."""
        assert value.tensor is not None, "the value has been written"
        tensor = value.tensor
        key = id(tensor)
        if key not in self.sources:
            self.sources[key] = (_held(tensor, value.name), value.name)
        return self.sources[key][0]

    def column(self, value: Value) -> Structure:
        """A parameter or buffer as a matrix of one column."""
        held = self.tensor(value)
        if held.dim() == 1 and held.is_floating_point():
            return self.shared("column", id(held), make=lambda: Column(held))
        return self.shared("reshaped", id(held), make=lambda: Reshaped(held, held.numel(), 1))

    def written(self, value: Value) -> Value:
        """The value as a part; parameters and constants are written where they are first needed."""
        if value.part is not None:
            return value
        if value.tensor is not None:
            part = self._write_tensor(value)
        elif value.ticks:
            part = self._constant(("ticks", value.axes), value, "positions", stem="positions")
        else:
            part = self._constant(
                ("number", value.number, value.dtype), value, f"fill({value.number!r}, same)", stem="constant"
            )
        return Value(part, value.axes, value.dims, value.dtype)

    def _write_tensor(self, value: Value) -> str:
        key = (id(value.tensor), value.axes)
        if key not in self.constants:
            block = Block(self.column(value))
            self.constants[key] = self.row(value.axes, value.dtype, [(ONE, block)], stem=value.name)
        return self.constants[key]

    def _constant(self, key: tuple[object, ...], value: Value, activation: str, stem: str) -> str:
        if key not in self.constants:
            self.constants[key] = self.row(value.axes, value.dtype, [], activation=activation, stem=stem)
        return self.constants[key]


def _held(tensor: Tensor, name: str) -> Tensor:
    if tensor.dim() == 0:
        tensor = tensor.reshape(1)
    if not tensor.is_contiguous():
        raise ConversionError(
            f"{name}: a contiguous tensor was needed, got strides {tensor.stride()} for shape "
            f"{tuple(tensor.shape)}; set it to .contiguous() before converting"
        )
    if isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
        return tensor
    return tensor if tensor.requires_grad else nn.Buffer(tensor)


def _added(held: Block | None, block: Block) -> Block:
    """The block, or the sum with what stands at its place: a part read twice by one sum."""
    if held is None:
        return block
    if held.on != block.on:
        raise Unsupported("one part is read in two ways by one sum")
    return Block(Sum((held.structure, block.structure)), block.on)


def last_block(structure: Structure, before: Sequence[Size]) -> Block:
    """I ⊗ A: on the last dimensions, or on all where A has one row or column that no dimension shows."""
    m, n = structure.shape
    if before and 1 in (m, n):
        from onematrix.structures.per_axis import PerAxis

        return Block(PerAxis((Identity(product(before)), structure)))
    return Block(structure, on="last") if before else Block(structure)
