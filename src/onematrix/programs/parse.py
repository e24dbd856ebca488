"""om.parse: the text of a program back to a program."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onematrix.errors import FormatError, OneMatrixError
from onematrix.programs.block_matrix import Block, BlockMatrix
from onematrix.programs.part import Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Node, Seq, Step
from onematrix.programs.text import VERSION
from onematrix.structures.base import STRUCTURES, Structure
from onematrix.structures.sizes import Size

TOKEN = re.compile(
    r'\s*(?:(?P<text>"[^"]*")|(?P<tensor>@[\w.\-\']+)|(?P<word>[A-Za-z_][\w.\-\']*)|(?P<number>-?\d+)|(?P<sign>[(){}\[\],=+]))'
)
LOOP_ROWS = ("init", "feed", "output", "carry")


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
    """Lines with their indentation, read from the top."""

    def __init__(self, text: str, tensors: Mapping[str, Tensor] | None) -> None:
        self.lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
        self.place = 0
        self.given = tensors
        self.parts: dict[str, Part] = {}
        self.tensors: dict[str, Tensor] = {}
        self.blocks: dict[str, Structure] = {}

    def fail(self, reason: str) -> FormatError:
        number, line = self.lines[min(self.place, len(self.lines) - 1)] if self.lines else (0, "")
        return FormatError(f"program text, line {number}: {reason}: {line.strip()!r}", line=number)

    def program(self) -> Program:
        if self.take("program") != str(VERSION):
            self.place -= 1
            raise self.fail(f"'program {VERSION}' was needed")
        inputs, outputs = self.take("inputs").split(), self.take("outputs").split()
        while self.starts("part"):
            self.read_part(self.take("part"))
        while self.starts("tensor"):
            self.read_tensor(self.take("tensor"))
        node = self.read_node(0)
        if self.place < len(self.lines):
            raise self.fail("the schedule ended before this line")
        try:
            return Program(node, inputs, outputs, self.parts)
        except OneMatrixError as error:
            raise FormatError(f"program text: {error}") from error

    def starts(self, word: str) -> bool:
        return self.place < len(self.lines) and self.lines[self.place][1].split()[0] == word

    def take(self, word: str) -> str:
        if not self.starts(word):
            raise self.fail(f"a line starting with {word!r} was needed")
        self.place += 1
        return self.lines[self.place - 1][1].strip()[len(word) :].strip()

    def read_part(self, rest: str) -> None:
        match = re.fullmatch(r"(\S+) \[(.*)\]((?: \w+)*)", rest)
        if match is None:
            self.place -= 1
            raise self.fail("'part name [sizes] kind dtype' was needed")
        sizes: tuple[Size, ...] = tuple(
            int(s) if s.strip().isdigit() else s.strip() for s in match[2].split(",")
        )
        words = match[3].split()
        kind = words.pop(0) if words and words[0] in ("index", "noise") else "real"
        self.parts[match[1]] = Part(sizes, kind, words[0] if words else None)

    def read_tensor(self, rest: str) -> None:
        match = re.fullmatch(r"(\S+) (\w+) \[([\d, ]*)\]", rest)
        dtype = getattr(torch, match[2], None) if match else None
        if match is None or not isinstance(dtype, torch.dtype):
            self.place -= 1
            raise self.fail("'tensor name dtype [sizes]' was needed")
        name, shape = match[1], [int(s) for s in match[3].split(",")]
        if self.given is None:
            self.tensors[name] = torch.empty(shape, dtype=dtype, device="meta")
            return
        tensor = self.given.get(name)
        if tensor is None or list(tensor.shape) != shape or tensor.dtype != dtype:
            got = "none was given" if tensor is None else f"got {tensor.dtype} {list(tensor.shape)}"
            raise FormatError(f"tensor {name!r}: {dtype} {shape} was needed, {got}")
        self.tensors[name] = tensor

    def depth(self) -> int:
        line = self.lines[self.place][1]
        return len(line) - len(line.lstrip(" "))

    def read_node(self, indent: int) -> Node:
        if self.place >= len(self.lines) or self.depth() != indent:
            raise self.fail(f"a step, seq or loop indented by {indent} was needed")
        if self.starts("step"):
            return self.read_step(indent)
        if self.starts("seq"):
            self.take("seq")
            body = []
            while self.place < len(self.lines) and self.depth() == indent + 2:
                body.append(self.read_node(indent + 2))
            return self.guard(lambda: Seq(*body))
        return self.read_loop(self.take("loop"), indent)

    def guard(self, make: Any) -> Any:
        try:
            return make()
        except OneMatrixError as error:
            raise FormatError(f"program text, before line {self.place + 1}: {error}") from error

    def read_step(self, indent: int) -> Step:
        count = int(self.take("step") or 1)
        grids: list[dict[tuple[str, str], Block]] = [{} for _ in range(count)]
        activations, joins, rows = {}, {}, []
        while self.place < len(self.lines) and self.depth() == indent + 2:
            row, activation, sums, join = self.read_row(self.lines[self.place][1])
            self.place += 1
            rows.append(row)
            for grid, blocks in zip(grids, sums, strict=False):
                grid.update({(row, column): block for column, block in blocks})
            activations |= {row: activation} if activation else {}
            joins |= {row: join} if join else {}
        return self.guard(  # type: ignore[no-any-return]
            lambda: Step(
                *(BlockMatrix(g, self.parts) for g in grids), activations=activations, joins=joins, rows=rows
            )
        )

    def read_loop(self, head: str, indent: int) -> Loop:
        options = self.read_head(head)
        grids: dict[str, dict[tuple[str, str], Block]] = {}
        while any(self.starts(word) for word in LOOP_ROWS):
            word = self.lines[self.place][1].split()[0]
            row, _, sums, _ = self.read_row(self.lines[self.place][1].strip()[len(word) :])
            self.place += 1
            grids.setdefault(word, {}).update({(row, column): block for column, block in sums[0]})
        maps = {
            {"feed": "feeds", "output": "outputs"}.get(w, w): self.guard(
                lambda g=g: BlockMatrix(g, self.parts)
            )
            for w, g in grids.items()
        }
        body = self.read_node(indent + 2)
        return self.guard(lambda: Loop(body, **options, **maps))  # type: ignore[no-any-return]

    def read_head(self, head: str) -> dict[str, Any]:
        match = re.fullmatch(
            r"times (?P<times>\S+)|until (?P<until>\S+) at_most (?P<at_most>\d+)|over (?P<over>\S+)"
            r"(?: ticks \((?P<ticks>[^)]*)\))?(?: after (?P<after>\w+))?(?P<reverse> reverse)?(?: valid (?P<valid>\S+))?",
            head,
        )
        if match is None:
            self.place -= 1
            raise self.fail("'loop over …', 'loop times …' or 'loop until … at_most …' was needed")
        found = {k: v for k, v in match.groupdict().items() if v is not None}
        convert = {"until": float, "at_most": int, "reverse": lambda _: True, "times": _size, "ticks": _size}
        return {k: convert.get(k, str)(v) for k, v in found.items()}  # type: ignore[operator]

    def read_row(self, line: str) -> tuple[str, str, list[list[tuple[str, Block]]], str]:
        match = re.fullmatch(r"\s*(\S+) = ([^{]*)(\{.*\})(?: by (.*))?\s*", line)
        if match is None:
            raise self.fail("'row = activation {block part + …} by join' was needed")
        tokens = _Tokens(match[3], self)
        sums = []
        while tokens.peek() == "{":
            sums.append(tokens.read_sum())
        return match[1], match[2].strip(), sums, match[4] or ""


class _Tokens:
    """The tokens of one line, read from the left."""

    def __init__(self, text: str, reader: _Reader) -> None:
        self.reader, self.tokens, self.place, at = reader, [], 0, 0  # type: ignore[var-annotated]
        while at < len(text.rstrip()):
            match = TOKEN.match(text, at)
            if match is None:
                raise reader.fail(f"cannot read {text[at : at + 20]!r}")
            self.tokens.append((match.lastgroup, match[match.lastgroup or 0]))
            at = match.end()

    def peek(self) -> str:
        return self.tokens[self.place][1] if self.place < len(self.tokens) else ""

    def next(self, *kinds: str) -> str:
        kind, value = self.tokens[self.place] if self.place < len(self.tokens) else ("end", "the end")
        if kind not in kinds and value not in kinds:
            raise self.reader.fail(f"{' or '.join(kinds)} was needed, got {value!r}")
        self.place += 1
        return str(value)

    def read_sum(self) -> list[tuple[str, Block]]:
        self.next("{")
        blocks: list[tuple[str, Block]] = []
        while self.peek() != "}":
            if blocks:
                self.next("+")
            on = self.next("word") if self.peek() == "last" else "all"
            structure = self.read_shared()
            blocks.append((self.next("word"), Block(structure, on)))
        self.next("}")
        return blocks

    def read_shared(self) -> Structure:
        """Blocks written alike are one structure, so that repeated steps share their values."""
        start = self.place
        structure = self.read_structure()
        key = " ".join(value for _, value in self.tokens[start : self.place])
        return self.reader.blocks.setdefault(key, structure)

    def read_structure(self) -> Structure:
        name = self.next("word")
        if name not in STRUCTURES:
            raise self.reader.fail(
                f"no structure is called {name!r}; there are: {', '.join(sorted(STRUCTURES))}"
            )
        self.next("(")
        fields: dict[str, Any] = {}
        while self.peek() != ")":
            if fields:
                self.next(",")
            field = self.next("word")
            self.next("=")
            fields[field] = self.read_value()
        self.next(")")
        try:
            return STRUCTURES[name](**fields)
        except (TypeError, OneMatrixError) as error:
            raise self.reader.fail(f"{name}: {error}") from error

    def read_value(self) -> Any:
        kind, value = self.tokens[self.place] if self.place < len(self.tokens) else ("end", "the end")
        if kind == "tensor":
            self.place += 1
            if value[1:] not in self.reader.tensors:
                raise self.reader.fail(f"tensor {value[1:]!r} is not in the table")
            return self.reader.tensors[value[1:]]
        if kind == "word" and value not in ("True", "False"):
            return self.read_structure()
        if value == "[":
            return self.read_list()
        self.place += 1
        if kind in ("text", "number"):
            return value[1:-1] if kind == "text" else int(value)
        if value in ("True", "False"):
            return value == "True"
        raise self.reader.fail(f"a value was needed, got {value!r}")

    def read_list(self) -> tuple[Structure, ...]:
        self.next("[")
        terms = [self.read_structure()]
        while self.peek() == ",":
            self.next(",")
            terms.append(self.read_structure())
        self.next("]")
        return tuple(terms)


def _size(text: str) -> Size:
    return int(text) if text.isdigit() else text
