"""Counting a program: what it stores, and what one run of it costs per sample."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

from onematrix.errors import ShapeError
from onematrix.programs.block_matrix import Block, BlockMatrix, leading, operand_shape
from onematrix.programs.joins import Join, contraction_axes
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Node, Row, Seq, Step, loop_matrices, walk
from onematrix.programs.text import print_structure
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.embedding import Embedding
from onematrix.structures.identity import Identity
from onematrix.structures.sizes import Size, evaluate_size, multiply_sizes
from onematrix.structures.tree import index_bytes, leaves, stored_numbers


@dataclass(frozen=True)
class Work:
    """Cost of running a node once, per sample.

    products: block products; dense_entries: entries of the whole block matrices applied, zeros included;
    nonzeros: entries of the blocks applied; multiply_adds: of the fast forms and contractions;
    joined, activated: numbers that go through a join or an activation; in_products: the multiply-adds that
    `torch.utils.flop_counter` counts too (as 2 flops): of contractions and of stored matrices, without biases,
    scales, sums and means; moved: numbers that blocks read of their parts and rows write, weights apart.
    What a block makes of `one` is made once for all samples: to each it costs the addition of its numbers.
    """

    products: int = 0
    dense_entries: int = 0
    nonzeros: int = 0
    multiply_adds: int = 0
    joined: int = 0
    activated: int = 0
    in_products: int = 0
    moved: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, number: int) -> "Work":
        """The cost of running it that often."""
        return Work(*(getattr(self, f.name) * number for f in fields(self)))


@dataclass(frozen=True)
class Counts:
    """What a program stores and costs.

    blocks: different places (matrix, row, column) with a structure; stored_numbers: floating-point numbers,
    ties once; index_bytes: bytes of integer arrays; nonzeros: of the different blocks; work: of one run per
    sample. Programs with equal texts have equal counts.
    """

    blocks: int
    stored_numbers: int
    index_bytes: int
    nonzeros: int
    work: Work

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one run per sample (1 multiply-add = 2 flops)."""
        return self.work.multiply_adds


def count(program: Program, sizes: Mapping[str, int]) -> Counts:
    """Counts of a program with its named sizes fixed. Raises ShapeError naming a size that is not given."""
    if missing := sorted(program.free_sizes() - set(sizes)):
        raise ShapeError(f"counts: named sizes {missing} are free; fix them, as in counts({missing[0]}=10)")
    names = {id(tensor): name for name, tensor in program.parameters.items()}
    different: dict[tuple[str, ...], int] = {}
    for role, row, column, block in places(program):
        key = (role, row, column, print_structure(block.structure, names), block.on)
        if key not in different:
            target, source = program.parts[row], program.parts[column]
            different[key] = _block_work(target, source, block, sizes).nonzeros
    structures = program.structures
    return Counts(
        blocks=len(different),
        stored_numbers=stored_numbers(*structures),
        index_bytes=index_bytes(*structures),
        nonzeros=sum(different.values()),
        work=work_of(program.schedule, program, sizes),
    )


def places(program: Program) -> Iterator[tuple[str, str, str, Block]]:
    """(matrix, row, column, block): matrix is the place of a matrix in its step, or the name of a loop's map."""
    for node in walk(program.schedule):
        if isinstance(node, Step):
            for row in node.rows:
                for index, blocks in enumerate(row.sums):
                    yield from ((str(index), row.part, column, block) for column, block in blocks)
        elif isinstance(node, Loop):
            for name, matrix in loop_matrices(node):
                yield from ((name, row, column, block) for (row, column), block in matrix)


def work_of(node: Node, program: Program, sizes: Mapping[str, int]) -> Work:
    """Cost of running one node of the program's schedule once, per sample."""
    return sum((work for _, work in works(node, program, sizes)), Work())


def works(node: Node, program: Program, sizes: Mapping[str, int]) -> Iterator[tuple[str | None, Work]]:
    """(part, cost) of every row and of every row of a loop's maps, per run of the node and sample.

    A row inside a loop comes once, with the cost of all ticks. What belongs to no part (the entries of whole
    block matrices) comes with None.
    """
    if isinstance(node, Step):
        yield None, _whole_matrix(node, program, sizes)
        for row in node.rows:
            yield row.part, _row_work(row, program, sizes)
    elif isinstance(node, Seq):
        for child in node.body:
            yield from works(child, program, sizes)
    else:
        rounds = _rounds(node, sizes)
        for name, matrix in loop_matrices(node):
            for part, work in _map_works(node, matrix, program, sizes):
                yield part, work if name == "init" else work.times(rounds)
        for part_or_none, work in works(node.body, program, sizes):
            yield part_or_none, work.times(rounds)


def _rounds(loop: Loop, sizes: Mapping[str, int]) -> int:
    if loop.over is not None:
        return evaluate_size(loop.length, sizes)
    return loop.at_most if loop.times is None else evaluate_size(loop.times, sizes)


def _row_work(row: Row, program: Program, sizes: Mapping[str, int]) -> Work:
    target = program.parts[row.part]
    own = row.join is not None and row.join.keeps_operand_shapes
    work = Work()
    for blocks in row.sums:
        for column, block in blocks:
            one = _column_work(None if own else target, column, block, program, sizes)
            work = work + (replace(one, in_products=0) if column == ONE else one)  # a bias is added
    size = evaluate_size(target.features, sizes)
    work = work + Work(moved=size)
    if row.activation.name != "identity":
        work = work + Work(activated=size)
    if row.join is not None:
        adds = _contraction(row, program, sizes)
        work = work + Work(joined=size * (len(row.sums) - 1), multiply_adds=adds, in_products=adds)
    return work


def _whole_matrix(step: Step, program: Program, sizes: Mapping[str, int]) -> Work:
    """Entries a dense product with the whole block matrices would touch: (Σ widths)² per matrix used."""
    names = {row.part for row in step.rows} | {name for row in step.rows for name in row.reads()}
    names.discard("one")
    width = sum(evaluate_size(program.parts[name].features, sizes) for name in names)
    return Work(dense_entries=width * width * len(step.matrices))


def _contraction(row: Row, program: Program, sizes: Mapping[str, int]) -> int:
    """Multiply-adds of an einsum: the product of the lengths of all its axes."""
    if not isinstance(row.join, Join) or row.join.pattern is None:
        return 0
    lengths: dict[str, Size] = {}
    for axes, blocks in zip(contraction_axes(row.join.pattern)[0], row.sums, strict=True):
        column, block = blocks[0]
        shape = operand_shape(f"row {row.part!r}", block, program.parts[column])
        lengths |= dict(zip(axes, shape, strict=True))
    return math.prod(evaluate_size(length, sizes) for length in lengths.values())


def _map_works(
    loop: Loop, matrix: BlockMatrix, program: Program, sizes: Mapping[str, int]
) -> Iterator[tuple[str, Work]]:
    for (row, column), block in matrix:
        target = program.parts[row]
        if matrix is loop.outputs:
            target = target.peel(loop.length) or target
        peeled = loop.over if matrix is loop.feeds else None
        yield row, _column_work(target, column, block, program, sizes, peeled)


def _column_work(
    target: Part | None,
    column: str,
    block: Block,
    program: Program,
    sizes: Mapping[str, int],
    peeled: str | None = None,
) -> Work:
    """One block's product with its column, of which a feed takes the slice along a dimension.

    What a block makes of `one` is the same for every sample: per sample its numbers are added, whatever made them.
    """
    source = program.parts[column]
    source = source if peeled is None else source.peel(peeled) or source
    work = _block_work(target, source, block, sizes)
    if column != ONE:
        return work
    added = evaluate_size(block.structure.shape[0], sizes) * _repeats(target, source, block, sizes)
    return replace(work, multiply_adds=min(work.multiply_adds, added))


def _block_work(target: Part | None, source: Part, block: Block, sizes: Mapping[str, int]) -> Work:
    """One product per leading place the block leaves alone; a bias is added at every place of its target."""
    repeats = _repeats(target, source, block, sizes)
    read = Work(moved=evaluate_size(source.features, sizes))
    if isinstance(block.structure, Identity):  # of any size, 0 included
        nonzeros = evaluate_size(block.structure.size, sizes)
        return Work(products=1, nonzeros=nonzeros).times(repeats) + read
    structure = block.structure.at(**sizes)
    picks = source.kind == "index" and isinstance(
        structure, Dense | Embedding
    )  # columns are picked, not multiplied
    adds = 0 if picks else structure.multiply_adds()
    inner = adds if mixes(structure) else 0
    once = Work(products=1, nonzeros=structure.nonzeros(), multiply_adds=adds, in_products=inner)
    return once.times(repeats) + read


def mixes(structure: Structure) -> bool:
    """Whether a stored number other than a scale or a bias takes part: some matrix inside is multiplied by.

    >>> import torch
    >>> mixes(Dense(torch.ones(2, 3))), mixes(Diagonal(torch.ones(3)))
    (True, False)
    """
    inner = [v if isinstance(v, tuple) else (v,) for v in vars(structure).values()]
    if parts := [s for group in inner for s in group if isinstance(s, Structure)]:
        return any(map(mixes, parts))
    return not isinstance(structure, Diagonal | Column) and next(leaves(structure), None) is not None


def _repeats(target: Part | None, source: Part, block: Block, sizes: Mapping[str, int]) -> int:
    if block.on == "all":
        return 1
    m, n = block.structure.shape
    before = leading(source, n) or (leading(target, m) if target is not None else None) or ()
    return evaluate_size(multiply_sizes(*before), sizes)
