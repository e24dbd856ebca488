"""om.parse: the text of a program back to a program."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from onematrix.errors import FormatError, OneMatrixError
from onematrix.programs.block_matrix import Block, BlockMatrix
from onematrix.programs.part import Part, check_size
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Node, Seq, Step
from onematrix.programs.text import VERSION
from onematrix.programs.tokens import Tokens
from onematrix.structures.base import Structure

LOOP_ROWS = {"init": "init", "feed": "feeds", "output": "outputs", "carry": "carry"}
PART = re.compile(r"(\S+) \[(.*)\](?: (index|noise))?(?: (\w+))?")
TENSOR = re.compile(r"(\S+) (\w+) \[(\d{1,15}(?:, \d{1,15})*)\]")
ROW = re.compile(r"(\S+) = ([^{]*)(\{.*\})(?: by (.*))?")
HEAD = re.compile(
    r"times (?P<times>.+)|until (?P<until>[\d.e+-]+) at_most (?P<at_most>\d{1,9})|over (?P<over>\S+)"
    r"(?: ticks \((?P<ticks>.+)\))?(?: after (?P<after>\w+))?(?P<reverse> reverse)?(?: valid (?P<valid>\S+))?"
)
MOST_NUMBERS = 2**48  # of one tensor; torch counts bytes in 63 bits


def parse(text: str, tensors: Mapping[str, Tensor] | None = None) -> Program:
    """The program a text describes, over the given tensors (name → tensor).

    Without tensors the parameters are on the `meta` device: such a program counts, prints and draws.
    Structures are looked up by name in the registry; no code is run and nothing is imported.
    Raises FormatError naming line and fault.

    >>> text = "program 1\\ninputs x\\noutputs y\\npart x [2]\\npart y [2]\\nstep 1\\n  y = {identity(size=2) x}\\n"
    >>> parse(text).text() == text
    True
    """
    return _Reader(text, tensors).program()


class _Reader:
    """Lines with their indentation, read from the top; `place` is the next one."""

    def __init__(self, text: str, tensors: Mapping[str, Tensor] | None) -> None:
        self.lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
        self.place = 0
        self.given = tensors
        self.parts: dict[str, Part] = {}
        self.tensors: dict[str, Tensor] = {}
        self.blocks: dict[str, Structure] = {}

    @contextlib.contextmanager
    def naming(self, place: int) -> Iterator[None]:
        """Give every fault inside the number and the text of the line, unless it has one."""
        try:
            yield
        except (OneMatrixError, ValueError, RecursionError) as error:
            if isinstance(error, FormatError) and "line" in error.facts:
                raise
            number, line = self.lines[min(place, len(self.lines) - 1)] if self.lines else (0, "")
            raise FormatError(
                f"program text, line {number}: {error}: {line.strip()!r}", line=number
            ) from error

    def program(self) -> Program:
        with self.naming(0):
            if self.take("program") != str(VERSION):
                raise FormatError(f"'program {VERSION}' was needed")
        inputs, outputs = self.take("inputs").split(), self.take("outputs").split()
        while self.word() == "part":
            with self.naming(self.place):
                self.read_part(self.take("part"))
        while self.word() == "tensor":
            with self.naming(self.place):
                self.read_tensor(self.take("tensor"))
        node = self.read_node(0)
        with self.naming(self.place):
            if self.place < len(self.lines):
                raise FormatError("the schedule ended before this line")
        with self.naming(1):
            self.check_tensors()
            return Program(node, inputs, outputs, self.parts)

    def word(self) -> str:
        """The first word of the next line; nothing at the end."""
        return self.lines[self.place][1].split()[0] if self.place < len(self.lines) else ""

    def take(self, word: str) -> str:
        """The next line without its first word, which must be the given one."""
        with self.naming(self.place):
            if self.word() != word:
                raise FormatError(f"a line starting with {word!r} was needed")
        self.place += 1
        return self.lines[self.place - 1][1].strip()[len(word) :].strip()

    def indent(self) -> int:
        """Spaces before the next line; −1 at the end."""
        line = self.lines[self.place][1] if self.place < len(self.lines) else ""
        return len(line) - len(line.lstrip(" ")) if line else -1

    def read_part(self, rest: str) -> None:
        match = PART.fullmatch(rest)
        if match is None or match[1] in self.parts:
            raise FormatError("'part name [sizes] kind dtype' was needed, each name once")
        self.parts[match[1]] = Part(tuple(match[2].split(",")), match[3] or "real", match[4])

    def read_tensor(self, rest: str) -> None:
        match = TENSOR.fullmatch(rest)
        dtype = getattr(torch, match[2], None) if match else None
        if match is None or not isinstance(dtype, torch.dtype) or match[1] in self.tensors:
            raise FormatError("'tensor name dtype [sizes]' was needed, each name once")
        name, shape = match[1], [int(size) for size in match[3].split(", ")]
        if self.given is None:
            if math.prod(shape) > MOST_NUMBERS:
                raise FormatError(f"at most {MOST_NUMBERS} numbers were needed, got {math.prod(shape)}")
            self.tensors[name] = torch.empty(shape, dtype=dtype, device="meta")
            return
        tensor = self.given.get(name)
        if tensor is None or list(tensor.shape) != shape or tensor.dtype != dtype:
            got = "none was given" if tensor is None else f"got {tensor.dtype} {list(tensor.shape)}"
            raise FormatError(f"tensor {name!r}: {dtype} {shape} was needed, {got}")
        self.tensors[name] = tensor

    def check_tensors(self) -> None:
        if more := sorted(set(self.given or ()) - set(self.tensors)):
            raise FormatError(f"tensors {', '.join(more[:5])} are given, the text does not name them")

    def read_node(self, indent: int) -> Node:
        start = self.place
        with self.naming(start):
            if self.indent() != indent or self.word() not in ("step", "seq", "loop"):
                raise FormatError(f"a step, seq or loop indented by {indent} was needed")
            if self.word() == "step":
                return self.read_step(indent)
            if self.word() == "loop":
                return self.read_loop(indent)
            self.take("seq")
            body = []
            while self.indent() == indent + 2:
                body.append(self.read_node(indent + 2))
            return Seq(*body)

    def read_step(self, indent: int) -> Step:
        count = self.take("step")
        if not re.fullmatch(r"[1-9]\d?", count):
            raise FormatError("'step' and its number of block matrices was needed")
        grids: list[dict[tuple[str, str], Block]] = [{} for _ in range(int(count))]
        activations: dict[str, str] = {}
        joins: dict[str, str] = {}
        rows: list[str] = []
        while self.indent() == indent + 2:
            with self.naming(self.place):
                row, activation, sums, join = self.read_row("")
                if len(sums) > len(grids):
                    raise FormatError(f"{len(grids)} sums at most were needed, got {len(sums)}")
            rows.append(row)
            for grid, blocks in zip(grids, sums, strict=False):
                grid.update({(row, column): block for column, block in blocks.items()})
            activations |= {row: activation} if activation else {}
            joins |= {row: join} if join else {}
        matrices = [BlockMatrix(grid, self.parts) for grid in grids]
        return Step(*matrices, activations=activations, joins=joins, rows=rows)

    def read_loop(self, indent: int) -> Loop:
        options = self.read_head(self.take("loop"))
        grids: dict[str, dict[tuple[str, str], Block]] = {}
        while self.indent() == indent + 2 and self.word() in LOOP_ROWS:
            with self.naming(self.place):
                word = self.word()
                row, activation, sums, join = self.read_row(word)
                grid = grids.setdefault(LOOP_ROWS[word], {})
                if activation or join or len(sums) != 1 or any(row == name for name, _ in grid):
                    raise FormatError(f"{word}: one sum without activation or join was needed, each row once")
                grid.update({(row, column): block for column, block in sums[0].items()})
        body = self.read_node(indent + 2)
        maps: dict[str, Any] = {name: BlockMatrix(grid, self.parts) for name, grid in grids.items()}
        return Loop(body, **options, **maps)

    def read_head(self, head: str) -> dict[str, Any]:
        match = HEAD.fullmatch(head)
        if match is None:
            raise FormatError("'loop over …', 'loop times …' or 'loop until … at_most …' was needed")
        found: dict[str, Any] = {k: v for k, v in match.groupdict().items() if v is not None}
        convert: dict[str, Callable[[str], Any]] = {
            "until": float,
            "at_most": int,
            "reverse": bool,
            "times": lambda text: check_size(text, "times", least=0),
            "ticks": lambda text: check_size(text, "ticks", least=0),
        }
        return {k: convert.get(k, str)(v) for k, v in found.items()}

    def read_row(self, word: str) -> tuple[str, str, list[dict[str, Block]], str]:
        match = ROW.fullmatch(self.lines[self.place][1].strip()[len(word) :].strip())
        if match is None:
            raise FormatError("'row = activation {block part + …} by join' was needed")
        self.place += 1
        return match[1], match[2].strip(), Tokens(match[3], self.tensors, self.blocks).sums(), match[4] or ""
