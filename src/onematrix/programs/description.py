"""What a row of a program looks like as a matrix: bandwidths, triangularity, non-zeros, order."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from onematrix.errors import ProgramError, ShapeError
from onematrix.programs.block_matrix import Block
from onematrix.programs.coordinates import coordinates, has_coordinates
from onematrix.programs.order import row_orders
from onematrix.programs.program import Program
from onematrix.programs.schedule import Row
from onematrix.structures.base import Structure
from onematrix.structures.convolution import Convolution
from onematrix.structures.sizes import evaluate_size, size_names

FORMULAS = {
    "dense": "m n",
    "embedding": "m n",
    "ones": "m n",
    "reshaped": "m n",
    "column": "m",
    "mean": "n",
    "identity": "n",
    "diagonal": "n",
    "permutation": "n",
    "selection": "m",
    "window": "m",
    "zero": "0",
    "cumulative": "n (n + 1) / 2",
    "csr": "stored values",
    "masked": "stored values",
    "per_axis": "Π nnz(A_k)",
    "convolution": "C_o C_i / g · Π n, n = #{(i, a): 0 ≤ i s + a d − p < N} per dimension",
}


@dataclass(frozen=True)
class BlockDescription:
    """One block A: (m, n) in the column convention y = A x. Entries lie where −lower ≤ j − i ≤ upper; both are None
    for a matrix without entries. times: copies in I ⊗ A. nonzeros counts all copies, structural zeros left out.
    """

    column: str
    structure: str
    shape: tuple[int, int]
    times: int
    lower: int | None
    upper: int | None
    nonzeros: int
    formula: str

    @property
    def triangularity(self) -> str:
        """diagonal, (strictly) lower or upper triangular, or neither; trapezoidal where the block is not square."""
        if self.lower is None or self.upper is None:
            return "zero"
        shape = "triangular" if self.shape[0] == self.shape[1] else "trapezoidal"
        if self.lower <= 0 and self.upper <= 0:
            return "diagonal"
        if self.upper <= 0:
            return f"{'strictly ' if self.upper < 0 else ''}lower {shape}"
        if self.lower <= 0:
            return f"{'strictly ' if self.lower < 0 else ''}upper {shape}"
        return "neither"

    def __str__(self) -> str:
        copies = f"I_{self.times} ⊗ " if self.times > 1 else ""
        count = f"{self.nonzeros:,} non-zeros" + (f" ({self.formula})" if self.formula else "")
        bands = "no bands" if self.lower is None else f"bandwidths ({self.lower}, {self.upper})"
        m, n = self.shape
        kind = f"{self.triangularity} in y = A x"
        return f"← {self.column}: {copies}{self.structure} {m}×{n}, {bands} (lower, upper), {kind}, {count}"


@dataclass(frozen=True)
class Description:
    """A row: its blocks, and its order, the degree of homogeneity of the part in the program's inputs.

    order: with the activations, biases left out; None: not homogeneous. order_of_joins: activations taken as
    identities as well (convolution 1, gate 2, attention 3). In a loop whose degree grows from tick to tick it is
    that of one tick, its state of degree 1.
    """

    part: str
    blocks: tuple[BlockDescription, ...]
    activation: str
    join: str
    order: int | None
    order_of_joins: int | None

    def __str__(self) -> str:
        joined = f", join {self.join}" if self.join else ""
        head = f"{self.part}: activation {self.activation}{joined}, order {_order(self.order)}"
        if self.order != self.order_of_joins:
            head += f" (activations aside: {_order(self.order_of_joins)})"
        return "\n".join([head, *(f"  {block}" for block in self.blocks)])


def _order(order: int | None) -> str:
    return "not homogeneous" if order is None else str(order)


def describe(program: Program, part: str, sizes: Mapping[str, int]) -> Description:
    """The description of the last row that writes the part. Raises ProgramError where no step writes it, ShapeError
    naming the sizes its blocks leave free.
    """
    rows = {row.part: row for step in program.steps() for row in step.rows}
    if part not in rows:
        raise ProgramError(f"describe: no step writes {part!r}; written: {', '.join(rows)}")
    row = rows[part]
    _check_sizes(program, row, sizes)
    blocks = [_describe(program, c, b, sizes) for blocks in row.sums for c, b in blocks]
    join = "" if row.join is None else str(row.join)
    orders = [row_orders(program, activated).get(part) for activated in (True, False)]
    return Description(part, tuple(blocks), str(row.activation), join, *orders)


def _check_sizes(program: Program, row: Row, sizes: Mapping[str, int]) -> None:
    read = [(program.parts[c], b.structure) for blocks in row.sums for c, b in blocks]
    free = {n for source, a in read for n in source.names() | size_names(*a.shape)}
    if missing := sorted(free - set(sizes)):
        remedy = ", ".join(f"{name}=8" for name in missing)
        raise ShapeError(
            f"describe: part {row.part!r} leaves {', '.join(missing)} free; "
            f"give them by name, as in program.describe({row.part!r}, {remedy})",
            missing=missing,
        )


def _describe(program: Program, column: str, block: Block, sizes: Mapping[str, int]) -> BlockDescription:
    structure = block.structure.at(**sizes)
    features = evaluate_size(program.parts[column].features, sizes)
    n = structure.fixed_shape[1]
    times = features // n if block.on == "last" and n else 1
    lower, upper = bandwidths(structure)
    name, formula = structure.name, FORMULAS.get(structure.name, "")
    count = structure.nonzeros() * times
    return BlockDescription(column, name, structure.fixed_shape, times, lower, upper, count, formula)


def bandwidths(structure: Structure) -> tuple[int | None, int | None]:
    """(lower, upper): the largest i − j and j − i over the entries that are not structurally zero.

    A matrix whose pattern only its definition knows counts as full. None for a matrix without entries.

    >>> from onematrix.structures.identity import Identity
    >>> bandwidths(Identity(4))
    (0, 0)
    """
    if isinstance(structure, Convolution):
        return _convolution_bandwidths(structure)
    m, n = structure.fixed_shape
    if not has_coordinates(structure):
        return m - 1, n - 1
    entries = coordinates(structure).tocoo()
    if not entries.nnz:
        return None, None
    offsets = entries.coords[0].astype("int64") - entries.coords[1]
    return int(offsets.max()), int(-offsets.min())


def _convolution_bandwidths(a: Convolution) -> tuple[int | None, int | None]:
    """From the extremes per dimension, which are independent of each other: no entry is listed."""
    inside, strides_in, strides_out = [int(s) for s in a.sizes], [1], [1]
    for size_in, size_out in zip(inside[:0:-1], [int(s) for s in a.output_sizes][:0:-1], strict=True):
        strides_in.insert(0, strides_in[0] * size_in)
        strides_out.insert(0, strides_out[0] * size_out)
    low = high = 0
    for i in range(a.dimensions):
        source = a._sources(i)[a._places(i)]
        output, tap = (source >= 0).nonzero(as_tuple=True)
        if not len(output):
            return None, None
        offsets = output * strides_out[i] - source[output, tap] * strides_in[i]
        low, high = low + int(offsets.min()), high + int(offsets.max())
    outputs, per_group = a.weight.shape[:2]
    rows, columns = strides_out[0] * int(a.output_sizes[0]), strides_in[0] * inside[0]
    each = outputs // a.groups
    corners = [
        (g * each + o) * rows - (g * per_group + c) * columns
        for g in range(a.groups)
        for o, c in itertools.product((0, each - 1), (0, per_group - 1))
    ]
    return max(corners) + high, -(min(corners) + low)
