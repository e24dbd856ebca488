"""om.Program: parts, a schedule, inputs and outputs, and the table of parameters."""

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onematrix.errors import DTypeError, ProgramError
from onematrix.programs.block_matrix import Block, BlockMatrix
from onematrix.programs.flow import check_flow
from onematrix.programs.opaque import Opaque
from onematrix.programs.ownership import name_leaves
from onematrix.programs.part import ONE, Part, check_name, make_part
from onematrix.programs.schedule import Loop, Node, Seq, Step, blocks_of, merge_parts, walk
from onematrix.programs.shapes import check_shapes
from onematrix.programs.wiring import wire_schedule
from onematrix.structures.base import Structure
from onematrix.structures.sizes import size_names

if TYPE_CHECKING:
    from onematrix.programs.counts import Counts
    from onematrix.programs.description import Description
    from onematrix.structures.compressed import CSR


class Program:
    """A network as a value: x ← σ(G x) ∘ H x, scheduled.

    schedule: a Step, Seq or Loop. inputs, outputs: names of parts, in the order of call and return.
    parts: further parts, for those no block matrix declares. Attribute `parameters`: name → tensor, each
    tensor once; two blocks over one tensor are tied. Programs are equal when their texts are equal and
    their tensors are the same objects.
    source_names: for a converted module, name in `parameters` → name in the module.
    Raises ProgramError (unknown or duplicate parts, undefined reads, unwritten outputs), ShapeError,
    DTypeError (parameters of several dtypes).

    >>> import torch
    >>> from onematrix.structures.dense import Dense
    >>> G = BlockMatrix({("y", "x"): Dense(torch.ones(2, 3))}, parts={"x": 3, "y": 2})
    >>> Program(Step(G, activations={"y": "relu"}), inputs=["x"], outputs=["y"]).counts().multiply_adds
    6
    """

    def __init__(
        self,
        schedule: Node,
        inputs: Sequence[str],
        outputs: Sequence[str],
        parts: Mapping[str, Part | int | str | tuple[int | str, ...]] | None = None,
    ) -> None:
        self.schedule = schedule
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        tables = [node.parts for node in walk(schedule) if not isinstance(node, Seq)]
        given = {check_name(name): make_part(value) for name, value in (parts or {}).items()}
        self.parts: dict[str, Part] = merge_parts(*tables, given, {ONE: Part((1,))})
        self._check_names()
        defined = check_flow(schedule, self.parts, {ONE, *self.inputs})
        for name in self.outputs:
            if name not in defined:
                raise ProgramError(
                    f"output {name!r} is never written by the schedule; written: {sorted(defined)}; "
                    "write it in a step, or take it out of the loop that writes it (outputs or carry)",
                    part=name,
                )
        check_shapes(schedule, self.parts)
        self.structures, self.parameters = self._collect()
        self.dtype = self._common_dtype()
        self.wiring = wire_schedule(schedule, self.parts, self.structures)
        self.source_names: dict[str, str] = {}

    def _check_names(self) -> None:
        for role, names in (("input", self.inputs), ("output", self.outputs)):
            if not names:
                raise ProgramError(f"a program needs at least one {role}")
            if len(set(names)) != len(names):
                raise ProgramError(f"{role}s must differ, got {names}")
            for name in names:
                if name not in self.parts:
                    raise ProgramError(f"{role} {name!r} is no part; parts: {', '.join(self.parts)}")
        if ONE in self.inputs:
            raise ProgramError("part 'one' is the constant 1 and cannot be an input")
        for name in self.inputs:
            if self.parts[name].kind == "noise":
                raise ProgramError(f"input {name!r} is a noise part, which is drawn; give a real part")

    def _collect(self) -> tuple[list[Structure], dict[str, Tensor]]:
        structures: dict[int, Structure] = {}
        prefixes = []
        for node in walk(self.schedule):
            for row, column, block in blocks_of(node):
                if id(block.structure) not in structures:
                    structures[id(block.structure)] = block.structure
                    prefixes.append(f"blocks.{row}.{column}.")
        return list(structures.values()), name_leaves(list(structures.values()), prefixes)

    def _common_dtype(self) -> torch.dtype | None:
        kinds = {t.dtype: name for name, t in reversed(self.parameters.items()) if t.is_floating_point()}
        if len(kinds) > 1:
            raise DTypeError(
                f"parameters of several dtypes: {', '.join(f'{n} is {d}' for d, n in kinds.items())}; "
                "convert the structures to one dtype"
            )
        return next(iter(kinds), None)

    def blocks(self) -> list[tuple[str, str, Block]]:
        """(row, column, block) of every place in the schedule, in order; repeated steps come again."""
        return [place for node in walk(self.schedule) for place in blocks_of(node)]

    def steps(self) -> list[Step]:
        """The steps of the schedule, in order; a loop's body once."""
        return [node for node in walk(self.schedule) if isinstance(node, Step)]

    def opaque(self) -> dict[str, Opaque]:
        """Part → the function that writes it, with its name and reason, for every row no equation covers."""
        rows = [row for step in self.steps() for row in step.rows]
        return {row.part: row.join for row in rows if isinstance(row.join, Opaque)}

    @property
    def couples_batch(self) -> bool:
        """Whether some row mixes the samples of a batch."""
        rows = [row for step in self.steps() for row in step.rows]
        mixed = any(row.activation.rule.mixes == "batch" for row in rows)
        return mixed or any(f.couples_batch for f in self.opaque().values())

    def free_sizes(self) -> set[str]:
        """Named sizes left free until run time."""
        loops = [node for node in walk(self.schedule) if isinstance(node, Loop)]
        sizes = [size for loop in loops for size in (loop.times, loop.length) if size is not None]
        return size_names(*sizes).union(*(part.names() for part in self.parts.values()))

    def counts(self, **sizes: int) -> "Counts":
        """Blocks, stored numbers, index bytes, non-zeros, multiply-adds of one run per sample."""
        from onematrix.programs.counts import count

        return count(self, sizes)

    def to_csr(self, output: str | None = None, input: str | None = None, **sizes: int) -> "CSR":
        """A of y = A x + b from an input part to an output part, sparse all the way, in float64.

        output, input: names of parts (input: any part outside loops, then taken as given); None: all outputs or
        inputs, stacked. input="one": the constant column b. sizes: every free size. Index parts are one-hot.
        Raises ProgramError naming the row where the path stops being affine, ShapeError naming missing sizes.
        """
        from onematrix.programs.explicit import to_csr

        return to_csr(self, output, input, sizes)

    def to_dense(self, output: str | None = None, input: str | None = None, **sizes: int) -> Tensor:
        """The same matrix as `to_csr`, dense: (features of the output, features of the input), in float64."""
        from onematrix.programs.explicit import explicit_matrix

        return torch.from_numpy(explicit_matrix(self, output, input, sizes).toarray())

    def describe(self, part: str, **sizes: int) -> "Description":
        """Bandwidths, triangularity, non-zeros of the blocks a part reads, and the order of its row."""
        from onematrix.programs.description import describe

        return describe(self, part, sizes)

    def text(self) -> str:
        """The program as text; `om.parse` reads it back."""
        from onematrix.programs.text import print_program

        return print_program(self)

    def diff(self, other: "Program") -> str:
        """Unified diff of the two texts; empty when they are equal."""
        before, after = self.text().splitlines(), other.text().splitlines()
        return "\n".join(difflib.unified_diff(before, after, "before", "after", lineterm="", n=2))

    def matrix(self) -> BlockMatrix:
        """Every block of the schedule in one block matrix over all parts, for looking at.

        Where several steps have a block at one place, the first that is not an identity stands there.
        """
        grid: dict[tuple[str, str], Block] = {}
        for row, column, block in self.blocks():
            held = grid.get((row, column))
            if held is None or (held.structure.name == "identity" and block.structure.name != "identity"):
                grid[row, column] = block
        return BlockMatrix(grid, self.parts)

    def iterated(self) -> "Program":
        """The literal form: one step F that writes every row, applied as often as there are steps.

        Raises ProgramError unless the schedule is a sequence of steps that write each part once, and no input.
        """
        steps = self.steps()
        if any(isinstance(node, Loop) for node in walk(self.schedule)):
            raise ProgramError("iterated: the schedule has loops; only a sequence of steps has one F")
        rows = [row.part for step in steps for row in step.rows]
        if len(set(rows)) != len(rows):
            raise ProgramError(f"iterated: a part is written by several steps: {sorted(rows)}")
        if given := sorted(set(rows) & set(self.inputs)):
            raise ProgramError(f"iterated: {given} are inputs and written; give the rows other names")
        count = max(len(step.matrices) for step in steps)
        matrices = [
            BlockMatrix(
                {k: b for s in steps if len(s.matrices) > i for k, b in s.matrices[i] if k[0] in _rows(s)},
                self.parts,
            )
            for i in range(count)
        ]
        every = [row for step in steps for row in step.rows]
        activations = {row.part: row.activation for row in every}
        joins = {row.part: row.join for row in every if row.join is not None}
        step = Step(*matrices, activations=activations, joins=joins, rows=rows)
        return Program(Loop(step, times=len(steps)), self.inputs, self.outputs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Program):
            return NotImplemented
        mine, theirs = self.parameters, other.parameters
        same = mine.keys() == theirs.keys() and all(mine[k] is theirs[k] for k in mine)
        return same and self.text() == other.text()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Program({', '.join(self.inputs)} → {', '.join(self.outputs)}; {len(self.parts)} parts, "
            f"{len(self.structures)} blocks, {len(self.parameters)} tensors)"
        )


def _rows(step: Step) -> set[str]:
    return {row.part for row in step.rows}
