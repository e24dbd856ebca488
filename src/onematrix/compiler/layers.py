"""Dense layers that follow each other on the lowered program: rows that read the row before and nothing else."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from onematrix.compiler.code import Var
from onematrix.compiler.products import unscaled
from onematrix.compiler.rows import Rows
from onematrix.kernels.dense_layers import IN_PLACE, run_dense_layers
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wire, WiredRow, every_row
from onematrix.structures.column import Column
from onematrix.structures.dense import Dense

Env = dict[str, Var]


@dataclass(frozen=True)
class Layer:
    """The part y of y = σ(W x + b), x, and what stands in between."""

    result: str
    source: str
    weight: Dense
    bias: Column | None
    activation: str


def find_layers(
    program: Program, uses: Mapping[str, int], taken: Mapping[int, object]
) -> dict[str, list[Layer]]:
    """Last part → its layers, two or more, of which nothing else reads those before the last.

    taken: wires, by id, that stand in products of several rows.
    """
    written = Counter(row.part for row in every_row(program.wiring))
    rows = [row for row in every_row(program.wiring, loops=False) if written[row.part] == 1]
    found = {row.part: layer for row in rows if (layer := _layer(program, row, taken))}
    follows = {a.source: a for a in found.values() if a.source in found and uses.get(a.source) == 1}
    chains = {}
    for first in found.values():
        if first.source in follows:
            continue
        chain = [first]
        while chain[-1].result in follows:
            chain.append(follows[chain[-1].result])
        if len(chain) > 1:
            chains[chain[-1].result] = chain
    return chains


def emit_layers(layers: list[Layer], rows: Rows, env: Env) -> Var:
    """The value of the last layer."""
    source = rows.value(layers[0].source, env)
    weights = "".join(f"{rows.tensor(layer.weight.weight)}, " for layer in layers)
    biases = "".join(f"{rows.tensor(layer.bias.vector) if layer.bias else None}, " for layer in layers)
    activations = tuple(layer.activation for layer in layers)
    run = rows.code.constant(run_dense_layers)
    text = f"{run}({rows.text(source)}, ({weights}), ({biases}), {activations!r})"
    return rows.code.let(text, source.single, fresh=False)


def _layer(program: Program, row: WiredRow, taken: Mapping[int, object]) -> Layer | None:
    """The row as a layer, if it is one."""
    part = program.parts[row.part]
    name = "identity" if row.activation is None else row.activation.name
    if row.join is not None or name not in (*IN_PLACE, "identity"):
        return None
    if part.kind != "real" or part.dtype is not None or len(part.shape) != 1 or len(row.sums) != 1:
        return None
    bias: Column | None = None
    product: tuple[Wire, Dense] | None = None
    for wire in row.sums[0]:
        ratio, a = unscaled(program.structures[wire.slot])
        if ratio != 1 or id(wire) in taken:
            return None
        if wire.column == ONE and isinstance(a, Column) and bias is None and not wire.named:
            bias = a
        elif wire.column != ONE and isinstance(a, Dense) and product is None and wire.plain:
            product = (wire, a)
        else:
            return None
    return product and Layer(row.part, product[0].column, product[1], bias, name)
