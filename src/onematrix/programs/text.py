"""A program as text: parts, tensors, and the schedule with every block written out."""

from torch import Tensor

from onematrix.programs.block_matrix import Block, BlockMatrix
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Node, Row, Seq, Step, loop_matrices
from onematrix.structures.base import Structure
from onematrix.structures.tree import field_names

VERSION = 1


def print_program(program: Program) -> str:
    """The text `parse` reads back: equal programs have equal texts (and share their tensors)."""
    names = {id(tensor): name for name, tensor in program.parameters.items()}
    lines = [
        f"program {VERSION}",
        f"inputs {' '.join(program.inputs)}",
        f"outputs {' '.join(program.outputs)}",
    ]
    lines += [f"part {name} {_part(part)}" for name, part in program.parts.items() if name != ONE]
    lines += [
        f"tensor {name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in program.parameters.items()
    ]
    return "\n".join(lines + _node(program.schedule, names, "")) + "\n"


def _part(part: Part) -> str:
    text = "[" + ", ".join(str(size) for size in part.shape) + "]"
    return text + (f" {part.kind}" if part.kind != "real" else "") + (f" {part.dtype}" if part.dtype else "")


def _node(node: Node, names: dict[int, str], indent: str) -> list[str]:
    if isinstance(node, Step):
        rows = [f"{indent}  {_row(row, names)}" for row in node.rows]
        return [f"{indent}step {len(node.matrices)}", *rows]
    if isinstance(node, Seq):
        return [f"{indent}seq", *(line for child in node.body for line in _node(child, names, indent + "  "))]
    lines = [f"{indent}loop {_head(node)}"]
    for name, matrix in loop_matrices(node):
        lines += [f"{indent}  {name} {line}" for line in _matrix(matrix, names)]
    return lines + _node(node.body, names, indent + "  ")


def _head(loop: Loop) -> str:
    if loop.times is not None:
        return f"times {loop.times}"
    if loop.until is not None:
        return f"until {loop.until!r} at_most {loop.at_most}"
    words = [f"over {loop.over}"]
    words += [f"ticks ({loop.ticks})"] if loop.ticks is not None else []
    words += [f"after {loop.after}"] if loop.after != "zero" else []
    words += ["reverse"] if loop.reverse else []
    words += [f"valid {loop.valid}"] if loop.valid else []
    return " ".join(words)


def _matrix(matrix: BlockMatrix, names: dict[int, str]) -> list[str]:
    return [f"{row} = {_sum(tuple(matrix.row(row)), names)}" for row in matrix.rows]


def _row(row: Row, names: dict[int, str]) -> str:
    sums = " ".join(_sum(blocks, names) for blocks in row.sums)
    activation = "" if row.activation.name == "identity" else f"{row.activation} "
    return f"{row.part} = {activation}{sums}" + (f" by {row.join}" if row.join is not None else "")


def _sum(blocks: tuple[tuple[str, Block], ...], names: dict[int, str]) -> str:
    return "{" + " + ".join(_block(block, names) + f" {column}" for column, block in blocks) + "}"


def _block(block: Block, names: dict[int, str]) -> str:
    return ("last " if block.on == "last" else "") + print_structure(block.structure, names)


def print_structure(structure: Structure, names: dict[int, str]) -> str:
    """name(field=value, …) with tensors as @name of the table."""
    fields = ", ".join(f"{n}={_value(getattr(structure, n), names)}" for n in field_names(structure))
    return f"{structure.name}({fields})"


def _value(value: object, names: dict[int, str]) -> str:
    if isinstance(value, Tensor):
        return f"@{names[id(value)]}"
    if isinstance(value, Structure):
        return print_structure(value, names)
    if isinstance(value, tuple):
        return "[" + ", ".join(print_structure(term, names) for term in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)
