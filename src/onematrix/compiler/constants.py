"""Values the weights alone decide, computed: what a program for inference need not compute again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from onematrix.compiler.graph import Given, Graph, Row, Value, operands
from onematrix.compiler.writing import write_program
from onematrix.programs.interpreter import interpret
from onematrix.programs.part import Part
from onematrix.programs.program import Program


def fixed_values(graph: Graph) -> set[int]:
    """By id the values that depend on no input: `one`, and rows of real numbers and fixed sizes over such values."""
    fixed = {id(graph.one)}
    for value in graph.values():
        if isinstance(value, Row) and _plain(value.part) and all(id(v) in fixed for v in operands(value)):
            fixed.add(id(value))
    return fixed


def evaluate(graph: Graph, rows: Sequence[Row], program: Program) -> list[Tensor]:
    """What rows over fixed values are, each in the shape of its part; program: that of the graph."""
    if not rows:
        return []
    blank = Given("blank", Part((1,)), "input")
    outputs = {f"value{number}": row for number, row in enumerate(rows)}
    parts: dict[str, Part] = {name: row.part for name, row in outputs.items()}
    pairs: tuple[tuple[str, Value], ...] = tuple(outputs.items())
    small = write_program(Graph((blank,), pairs, graph.one, parts))
    some = next(iter(program.parameters.values()), torch.zeros(1))
    with torch.no_grad():
        values = interpret(small, torch.zeros(1, 1, dtype=program.dtype, device=some.device))
    return [value[0] for value in (values if isinstance(values, tuple) else (values,))]


def _plain(part: Part) -> bool:
    return part.kind == "real" and all(isinstance(size, int) for size in part.shape)
