"""Sums of blocks as text: {name(field=value, …) part + …}, read token by token."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from onematrix.errors import FormatError, OneMatrixError
from onematrix.programs.block_matrix import Block
from onematrix.structures.base import STRUCTURES, Structure

TOKEN = re.compile(
    r'\s*(?:(?P<text>"[^"]*")|(?P<tensor>@[\w.\-\']+)|(?P<word>[A-Za-z_][\w.\-\']*)'
    r"|(?P<number>-?\d{1,18})|(?P<sign>[(){}\[\],=+]))"
)

# The fields of a damaged text may have any type, and no structure checks for all of them.
FAULTS = (OneMatrixError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError)


class Tokens:
    """The tokens of one row, read from the left. Raises FormatError with the fault alone; the caller knows the line.

    tensors: name → tensor. shared: structures already read, by their text.
    """

    def __init__(self, text: str, tensors: Mapping[str, Tensor], shared: dict[str, Structure]) -> None:
        self.tensors, self.shared = tensors, shared
        self.tokens: list[tuple[str | None, str]] = []
        self.place = at = 0
        while at < len(text.rstrip()):
            match = TOKEN.match(text, at)
            if match is None:
                raise FormatError(f"cannot read {text[at : at + 20]!r}")
            self.tokens.append((match.lastgroup, match[match.lastgroup or 0]))
            at = match.end()

    def peek(self) -> str:
        return self.tokens[self.place][1] if self.place < len(self.tokens) else ""

    def next(self, *kinds: str) -> str:
        kind, value = self.tokens[self.place] if self.place < len(self.tokens) else ("end", "the end")
        if kind not in kinds and value not in kinds:
            raise FormatError(f"{' or '.join(kinds)} was needed, got {value!r}")
        self.place += 1
        return str(value)

    def sums(self) -> list[dict[str, Block]]:
        """Every sum of the row as {column: block}."""
        sums = []
        while self.peek() == "{":
            sums.append(self.read_sum())
        if self.peek():
            raise FormatError(f"the end of the row was needed, got {self.peek()!r}")
        return sums

    def read_sum(self) -> dict[str, Block]:
        self.next("{")
        blocks: dict[str, Block] = {}
        while self.peek() != "}":
            if blocks:
                self.next("+")
            on = self.next("word") if self.peek() == "last" else "all"
            structure = self.read_shared()
            column = self.next("word")
            if column in blocks:
                raise FormatError(f"part {column!r} is read twice in one sum")
            blocks[column] = Block(structure, on)
        self.next("}")
        return blocks

    def read_shared(self) -> Structure:
        """Blocks written alike are one structure, so that repeated steps share their values."""
        start = self.place
        structure = self.read_structure()
        key = " ".join(value for _, value in self.tokens[start : self.place])
        return self.shared.setdefault(key, structure)

    def read_structure(self) -> Structure:
        name = self.next("word")
        if name not in STRUCTURES:
            raise FormatError(f"no structure is called {name!r}; there are: {', '.join(sorted(STRUCTURES))}")
        self.next("(")
        fields: dict[str, Any] = {}
        while self.peek() != ")":
            if fields:
                self.next(",")
            field = self.next("word")
            if field in fields:
                raise FormatError(f"{name}: field {field!r} comes twice")
            self.next("=")
            fields[field] = self.read_value()
        self.next(")")
        try:
            return STRUCTURES[name](**fields)
        except (
            TypeError,
            ValueError,
            AttributeError,
            IndexError,
            RuntimeError,
            OverflowError,
            OneMatrixError,
        ) as error:
            # The fields of a damaged text may have any type, and no structure checks for all of them.
            raise FormatError(f"{name}: {error}") from error

    def read_value(self) -> Any:
        kind, value = self.tokens[self.place] if self.place < len(self.tokens) else ("end", "the end")
        if kind == "tensor":
            self.place += 1
            if value[1:] not in self.tensors:
                raise FormatError(f"tensor {value[1:]!r} is not in the table")
            return self.tensors[value[1:]]
        if kind == "word" and value not in ("True", "False"):
            return self.read_structure()
        if value == "[":
            return self.read_list()
        self.place += 1
        if kind in ("text", "number"):
            return value[1:-1] if kind == "text" else int(value)
        if value in ("True", "False"):
            return value == "True"
        raise FormatError(f"a value was needed, got {value!r}")

    def read_list(self) -> tuple[Structure, ...]:
        self.next("[")
        terms = [self.read_structure()]
        while self.peek() == ",":
            self.next(",")
            terms.append(self.read_structure())
        self.next("]")
        return tuple(terms)
