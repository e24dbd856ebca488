"""The text of a compiled function: lines, variables, and the constants they name."""

import math
import re
from dataclasses import dataclass
from types import FunctionType

import torch
from torch.nn import functional

from onematrix.compiler.fixed_point import run_to_fixed_point
from onematrix.programs.interpreter import _run_node
from onematrix.programs.part import Part
from onematrix.programs.product import apply_wire
from onematrix.structures.sizes import Size
from onematrix.structures.tree import rebuild

INDENT = "    "
ARGUMENTS = frozenset(("module", "tables", "inputs", "given", "seed", "state", "first", "heads"))
SPACE = {  # what every function sees
    "torch": torch,
    "Tensor": torch.Tensor,
    "inf": math.inf,  # as repr writes the arguments of activations
    "nan": math.nan,
    "linear": functional.linear,
    "layer_norm": functional.layer_norm,
    "rebuild": rebuild,
    "apply_wire": apply_wire,
    "run_node": _run_node,
    "run_to_fixed_point": run_to_fixed_point,
}


@dataclass(frozen=True)
class Var:
    """What a part is in the code: an expression, and what may be done with it.

    single: has one row for the whole batch. foreign: may be or share memory with a caller's tensor or a
    parameter. fresh: made by the last line and read by nobody yet, so it may be written over. product: two
    expressions whose Hadamard product it is, not multiplied yet. merged: (variable, start, stop) when it is
    that slice of the last dimension of one product for several rows. norm: (expression, ε) when it is the
    layer norm of that, not computed yet. view: fresh, but a view of what torch made, which autograd writes over at
    the cost of copies.
    """

    text: str
    single: bool = False
    foreign: bool = False
    fresh: bool = False
    product: tuple[str, str] | None = None
    merged: tuple[str, int, int] | None = None
    norm: tuple[str, float] | None = None
    view: bool = False


class Code:
    """Lines of one function; `head` runs before the body and holds what no tick changes."""

    def __init__(self) -> None:
        self.head: list[str] = []
        self.body: list[str] = []
        self.depth = 0
        self.constants: dict[str, object] = {}
        self.count = 0
        self.heads: dict[str, str] = {}
        self.known: dict[int, str] = {}

    def name(self, prefix: str = "v") -> str:
        """A new variable."""
        self.count += 1
        return f"{prefix}{self.count}"

    def line(self, text: str) -> None:
        """One more line at the present depth."""
        self.body.append(INDENT * self.depth + text)

    def let(self, expression: str, single: bool = False, foreign: bool = False, fresh: bool = True) -> Var:
        """A new variable with this value."""
        name = self.name()
        self.line(f"{name} = {expression}")
        return Var(name, single, foreign, fresh)

    def first(self, expression: str) -> str:
        """A variable made once, before everything; the same expression gives the same one."""
        if expression not in self.heads:
            name = self.name("h")
            self.head.append(f"{name} = {expression}")
            self.heads[expression] = name
        return self.heads[expression]

    def constant(self, value: object) -> str:
        """A name for an object the code needs: that of a public function, or a number."""
        if id(value) not in self.known:
            own = getattr(value, "__name__", "_") if isinstance(value, FunctionType) else "_"
            taken = own.startswith(("_", "<")) or own in {*SPACE, *ARGUMENTS, *self.constants}
            name = f"k{len(self.constants)}" if taken else own
            self.constants[name] = value
            self.known[id(value)] = name
        return self.known[id(value)]


def size_text(size: Size, names: dict[str, str]) -> str:
    """A size as an expression of the variables of its names.

    >>> size_text("time + 3", {"time": "n_time"})
    '(n_time + 3)'
    """
    if isinstance(size, int):
        return str(size)
    return "(" + re.sub(r"[A-Za-z_]\w*", lambda m: names[m[0]], size) + ")"


def shape_text(part: Part, names: dict[str, str]) -> str:
    """The stored shape of a part as arguments of a call."""
    return ", ".join(size_text(size, names) for size in part.stored_shape)
