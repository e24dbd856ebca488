"""A program with other structures in the same places."""

from collections.abc import Mapping

from onematrix.programs.block_matrix import Block, BlockMatrix
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Node, Seq, Step
from onematrix.structures.base import Structure


def replace_structures(program: Program, new: Mapping[int, Structure]) -> Program:
    """The same program with `new[id(structure)]` in place of each structure named there."""
    matrices: dict[int, BlockMatrix] = {}
    blocks: dict[int, Block] = {}

    def block(old: Block) -> Block:
        if id(old) not in blocks:
            blocks[id(old)] = Block(new.get(id(old.structure), old.structure), old.on)
        return blocks[id(old)]

    def matrix(old: BlockMatrix) -> BlockMatrix:
        if id(old) not in matrices:
            matrices[id(old)] = BlockMatrix({key: block(b) for key, b in old}, old.parts)
        return matrices[id(old)]

    def maybe(old: BlockMatrix | None) -> BlockMatrix | None:
        return None if old is None else matrix(old)

    def node(old: Node) -> Node:
        if isinstance(old, Seq):
            return Seq(*(node(child) for child in old.body))
        if isinstance(old, Step):
            return Step(
                *(matrix(m) for m in old.matrices),
                activations={row.part: row.activation for row in old.rows},
                joins={row.part: row.join for row in old.rows if row.join is not None},
                rows=[row.part for row in old.rows],
            )
        return Loop(
            node(old.body),
            old.over,
            old.times,
            old.until,
            old.at_most,
            maybe(old.feeds),
            maybe(old.outputs),
            maybe(old.init),
            maybe(old.carry),
            old.reverse,
            old.valid,
            old.ticks,
            old.after,
        )

    return Program(node(program.schedule), program.inputs, program.outputs, program.parts)
