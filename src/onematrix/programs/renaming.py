"""A schedule with other names for its parts."""

from collections.abc import Callable, Mapping
from dataclasses import fields

from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.part import Part
from onematrix.programs.schedule import Loop, Node, Seq, Step

Names = Callable[[str], str]


def rename_parts(node: Node, names: Names) -> Node:
    """The node with every part name mapped; parts nothing reads or writes are left out."""
    if isinstance(node, Seq):
        return Seq(*(rename_parts(child, names) for child in node.body))
    if isinstance(node, Step):
        rows = {row.part: node.parts[row.part] for row in node.rows}
        return Step(
            *(rename_matrix(m, names, names, rows) for m in node.matrices),
            activations={names(row.part): row.activation for row in node.rows},
            joins={names(row.part): row.join for row in node.rows if row.join is not None},
            rows=[names(row.part) for row in node.rows],
        )
    return rename_loop(node, names, names)


def rename_loop(loop: Loop, names: Names, outer: Names) -> Loop:
    """A loop with its part names mapped; `outer` maps those its init reads."""
    given = {f.name: getattr(loop, f.name) for f in fields(loop) if f.init}
    given["body"] = rename_parts(loop.body, names)
    for key in ("feeds", "outputs", "carry", "init"):
        if (matrix := given[key]) is not None:
            given[key] = rename_matrix(matrix, names, outer if key == "init" else names)
    given["valid"] = None if loop.valid is None else names(loop.valid)
    return Loop(**given)


def rename_matrix(
    matrix: BlockMatrix, rows: Names, columns: Names, more: Mapping[str, Part] | None = None
) -> BlockMatrix:
    """A block matrix with the names of its rows and columns mapped; more: rows without blocks."""
    table = {rows(name): part for name, part in (more or {}).items()}
    table |= {rows(row): matrix.parts[row] for (row, _), _ in matrix}
    table |= {columns(column): matrix.parts[column] for (_, column), _ in matrix}
    return BlockMatrix({(rows(r), columns(c)): block for (r, c), block in matrix}, table)
