"""The text of a compiled function, and the function it is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from onematrix.compiler.code import ARGUMENTS, INDENT, SPACE
from onematrix.compiler.repeats import share_layers
from onematrix.compiler.statements import placed_late, statements

START = "def forward(module, tables, inputs, given, seed, state, first"


@dataclass(frozen=True)
class Emitted:
    """The lines of forward, the objects they name, and notes.

    entry: the inputs, looked at. head: what the module's tensors and the sizes alone decide. body: the rest.
    notes: of every kernel that was refused, why.

    The text comes from a checked program; nothing of it is read from a file.
    """

    entry: tuple[str, ...]
    head: tuple[str, ...]
    body: tuple[str, ...]
    constants: Mapping[str, object]
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines it was given, one layer after the other."""
        return (*self.entry, *self.head, *self.body)

    @cached_property
    def text(self) -> str:
        """The functions of equal layers, and forward."""
        return self._text(f"{START}):", self.entry, self.head)

    def function(self) -> Any:
        """forward, as `emit` describes it."""
        return self._run(self.text)["forward"]

    def frozen(self) -> tuple[Any, Any]:
        """(forward, prepare): prepare(module, tables, dtype, device) gives what forward takes as last argument."""
        decided = _decided(self.head, self.entry)
        names = "".join(f"{line.split(' = ', 1)[0]}," for line in decided)
        taken = (f"({names}) = heads",) if names else ()
        late = [line for line in self.head if line not in decided]
        forward = self._text(f"{START}, heads):", (*taken, *self.entry), late)
        lines = "".join(f"{INDENT}{line}\n" for line in decided)
        prepare = f"def prepare(module, tables, dtype, device):\n{lines}{INDENT}return ({names})\n"
        space = self._run(f"{forward}\n{prepare}")
        return space["forward"], space["prepare"]

    def _text(self, start: str, entry: Sequence[str], head: Sequence[str]) -> str:
        body = placed_late(statements(head), statements(self.body))
        made = {name for each in (*statements(entry), *body) for name in (*each.made, *each.inner)}
        shared = share_layers(body, ARGUMENTS | made, frozenset(self.constants))
        forward = [start, *(INDENT + line for line in (*entry, *shared.lines))]
        return "\n\n".join("\n".join(lines) for lines in (*shared.layers, forward)) + "\n"

    def _run(self, text: str) -> dict[str, Any]:
        space: dict[str, Any] = {**SPACE, **self.constants}
        exec(compile(text, "<compiled program>", "exec"), space)
        return space


CALL = ("batch", "run", "plain")  # what a call alone knows
OF_INPUTS = ("dtype", "device")  # too, where no weight tells them


def _decided(head: Sequence[str], entry: Sequence[str]) -> list[str]:
    """The lines that read nothing a call alone knows, nor what such lines made."""
    weightless = any(line.startswith("dtype = module._dtype_of") for line in entry)
    late, found = {*CALL, *(OF_INPUTS if weightless else ())}, list[str]()
    for line in head:
        made, read = line.split(" = ", 1)
        words = set(re.findall(r"\w+", read))
        if words & late or any(word.startswith("n_") for word in words):
            late |= set(re.findall(r"\w+", made))
        else:
            found.append(line)
    return found
