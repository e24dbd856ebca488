"""The text of a compiled function, and the function it is."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from onematrix.compiler.fixed_point import run_to_fixed_point
from onematrix.programs.interpreter import _run_node
from onematrix.programs.product import apply_wire
from onematrix.structures.tree import rebuild


@dataclass(frozen=True)
class Emitted:
    """Text, the objects it names, those of its lines that depend on the module's tensors alone, and notes.

    notes: of every kernel that was refused, why.

    The text comes from a checked program; nothing of it is read from a file.
    """

    text: str
    constants: Mapping[str, object]
    head: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def function(self) -> Any:
        """forward, as `emit` describes it."""
        return self._run(self.text)["forward"]

    def frozen(self) -> tuple[Any, Any]:
        """(forward, prepare): prepare(module, tables, dtype, device) gives what forward takes as last argument."""
        head = _decided(self.head)
        names = "".join(f"{line.split(' = ', 1)[0]}, " for line in head)
        start, body = self.text.split("\n", 1)
        for line in head:
            body = body.replace(f"    {line}\n", "", 1)
        taken = f"    ({names}) = heads\n" if names else ""
        lines = "".join(f"    {line}\n" for line in head)
        prepare = f"def prepare(module, tables, dtype, device):\n{lines}    return ({names})\n"
        space = self._run(f"{start.replace('first):', 'first, heads):')}\n{taken}{body}\n{prepare}")
        return space["forward"], space["prepare"]

    def _run(self, text: str) -> dict[str, Any]:
        space: dict[str, Any] = {
            "torch": torch,
            "inf": math.inf,  # as repr writes the arguments of activations
            "nan": math.nan,
            "linear": functional.linear,
            "layer_norm": functional.layer_norm,
            "attend": functional.scaled_dot_product_attention,
            "rebuild": rebuild,
            "apply_wire": apply_wire,
            "run_node": _run_node,
            "run_to_fixed_point": run_to_fixed_point,
            **self.constants,
        }
        exec(compile(text, "<compiled program>", "exec"), space)
        return space


CALL = ("batch", "run", "plain")  # what a call alone knows


def _decided(head: Sequence[str]) -> list[str]:
    """The lines that read nothing a call alone knows, nor what such lines made."""
    late, found = set(CALL), list[str]()
    for line in head:
        made, read = line.split(" = ", 1)
        words = set(re.findall(r"\w+", read))
        if words & late or any(word.startswith("n_") for word in words):
            late |= set(re.findall(r"\w+", made))
        else:
            found.append(line)
    return found
