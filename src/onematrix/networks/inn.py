"""The iterated network of the Kale report: a state [x; h1; …; y] under one block matrix, tick after tick."""

from collections.abc import Callable, Sequence

import torch

from onematrix.errors import BudgetError, FitError, ShapeError
from onematrix.networks.recurrent import TIME, Blocks, column
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Seq, Step
from onematrix.structures.base import STRUCTURES, Structure
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity
from onematrix.structures.tree import map_tensors

Choose = Callable[[str, str, int, int], Structure]


def inn(
    widths: Sequence[int],
    structure: str | Choose = "dense",
    budget: float = 1.0,
    *,
    activation: str = "relu",
    per_block: bool = False,
    after: str = "hold",
    generator: torch.Generator | None = None,
) -> Program:
    """z ← σ(G z + b) once per tick, z = [x; h1; …; y]; every row but x reads all parts.

    widths: [pixels, hidden …, outputs]. structure: a name of `list_structures()` at budget E for every block
    but the last (outputs × last hidden), which is dense; a block too small for E takes its structure's smallest
    member, so count what is stored; or a function (row, column, m, n) → Structure.
    Ticks: the length of the sequence and len(widths) − 1 more, during which the last input is held
    (after="hold") or nothing is fed ("zero"), so that the last input reaches y. Output: y, without activation.
    per_block: the form of the public code: σ on every block's product before they are added, softmax on the
    block (y, last hidden), no bias on the sum but one per block.
    Kale 2024, section 3.2 and Table 7.

    >>> inn([2500, 300, 20, 10]).counts(time=10).stored_numbers  # 933,900 weights and 330 biases
    934230
    """
    if len(widths) < 3:
        raise ShapeError(f"inn: [inputs, hidden …, outputs] was needed, got {list(widths)}")
    names = ["x", *(f"h{i}" for i in range(1, len(widths) - 1)), "y"]
    sizes = dict(zip(names, widths, strict=True))
    choose = structure if callable(structure) else _chooser(structure, budget, names, generator)
    G: Blocks = {(r, c): choose(r, c, sizes[r], sizes[c]) for r in names[1:] for c in names}
    parts: dict[str, Part | int] = {**sizes, "images": Part((TIME, widths[0]))}
    make = _per_block if per_block else _per_row
    body, parts = make(G, names, parts, activation)
    loop = Loop(
        body,
        over=TIME,
        feeds=BlockMatrix({("x", "images"): Identity(widths[0])}, parts),
        carry=BlockMatrix({(name, name): Identity(sizes[name]) for name in names[1:]}, parts),
        ticks=f"{TIME} + {len(widths) - 1}",
        after=after,
    )
    return Program(loop, ["images"], ["y"])


Body = tuple[Step | Seq, dict[str, Part | int]]


def _per_row(G: Blocks, names: Sequence[str], parts: dict[str, Part | int], activation: str) -> Body:
    bias: Blocks = {(name, ONE): column(torch.zeros(int(parts[name]))) for name in names[1:]}  # type: ignore[arg-type]
    matrix = BlockMatrix(G | bias, parts)
    return Step(matrix, activations=dict.fromkeys(names[1:-1], activation)), parts


def _per_block(G: Blocks, names: Sequence[str], parts: dict[str, Part | int], activation: str) -> Body:
    """A part per block that holds σ(A x + b), then the rows as their sums."""
    products: Blocks = {}
    sums: Blocks = {}
    activations = {}
    parts = dict(parts)
    for (row, column_name), block in G.items():
        part, m = f"{row}_from_{column_name}", block.fixed_shape[0]
        parts[part] = m
        products |= {(part, column_name): block, (part, ONE): column(torch.zeros(m))}
        sums[row, part] = Identity(m)
        activations[part] = "softmax" if (row, column_name) == (names[-1], names[-2]) else activation
    body = Seq(Step(BlockMatrix(products, parts), activations=activations), Step(BlockMatrix(sums, parts)))
    return body, parts


def _chooser(name: str, budget: float, names: Sequence[str], generator: torch.Generator | None) -> Choose:
    if name not in STRUCTURES:
        raise FitError(f"inn: no structure is called {name!r}; there are: {', '.join(sorted(STRUCTURES))}")

    def choose(row: str, column_name: str, m: int, n: int) -> Structure:
        last = (row, column_name) == (names[-1], names[-2])
        cls, share = (Dense, 1.0) if last else (STRUCTURES[name], budget)
        return _shrink(_draw(cls, m, n, share, generator), len(names))

    return choose


def _draw(
    cls: type[Structure], m: int, n: int, budget: float, generator: torch.Generator | None
) -> Structure:
    try:
        return cls.random(m, n, budget, generator)
    except BudgetError as error:
        smallest = error.facts.get("smallest")
        if not isinstance(smallest, float) or smallest > 1:
            raise
        return cls.random(m, n, smallest, generator)


def _shrink(block: Structure, columns: int) -> Structure:
    """Divide the block by √columns, spread evenly over its factors: the blocks of a row add up."""
    factors = sum(1 for _ in _float_fields(block))
    share = columns ** (-0.5 / max(1, factors))
    return map_tensors(block, lambda t: t * share if t.is_floating_point() else t)


def _float_fields(block: Structure) -> list[torch.Tensor]:
    return [v for v in vars(block).values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
