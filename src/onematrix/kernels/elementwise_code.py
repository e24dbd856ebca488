"""What one tick of an elementwise recurrence computes: straight-line code over numbered registers."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onematrix.errors import ProgramError
from onematrix.programs.activations import RULES

Code = tuple[tuple[Any, ...], ...]

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "divide": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}
JOINS = {
    "hadamard": "mul",
    "maximum": "maximum",
    "minimum": "minimum",
    "divide": "divide",
}  # as lines of code
WITH_NUMBER: dict[str, Callable[[Tensor, float], Tensor]] = {"scale": torch.mul, "shift": torch.add}
ACTIVATIONS = (
    *(
        "identity",
        "relu",
        "leaky_relu",
        "abs",
        "sign",
        "square",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "exp",
        "sigmoid",
    ),
    *("tanh", "gelu", "gelu_tanh", "silu", "softplus", "elu", "sin", "cos", "keep"),
)


@dataclass(frozen=True)
class ElementwiseLoop:
    """A recurrence whose body is elementwise: registers, straight-line code, one tick.

    Registers are numbered: the series (their values at this tick), the vectors, the carried values before
    the tick, then one per line of code.
    series: how many are fed, each (T, B, n) or (T, 1, n). vectors: how many (n,) there are, the same at every
    tick. carried: how many values (B, n) one tick hands to the next.
    code: lines ("add" | "sub" | "mul" | "divide" | "maximum" | "minimum", i, j), ("scale" | "shift", i, number),
    ("constant", number), ("activation", i, name, *arguments).
    outputs: registers stacked over the ticks. carry: registers that are the carried values of the next tick.

    c ← a c + b, with c as the output:

    >>> ElementwiseLoop(2, 0, 1, (("mul", 0, 2), ("add", 3, 1)), outputs=(4,), carry=(4,)).given
    3

    An output that nothing carried needs may be computed when the ticks are done, from what was read of them:

    >>> loop = ElementwiseLoop(1, 0, 1, (("add", 0, 1), ("mul", 2, 0)), outputs=(3,), carry=(2,))
    >>> loop.early, loop.read
    ((2,), (2,))
    """

    series: int
    vectors: int
    carried: int
    code: Code
    outputs: tuple[int, ...]
    carry: tuple[int, ...]

    given: int = field(init=False, repr=False, compare=False)  # registers that have a value before the code
    text: str = field(init=False, repr=False, compare=False)  # JSON: tells −0.0 from 0.0, unlike equality
    early: tuple[int, ...] = field(init=False, repr=False, compare=False)  # lines the carried values need
    read: tuple[int, ...] = field(
        init=False, repr=False, compare=False
    )  # of a tick, by later lines and outputs

    def __post_init__(self) -> None:
        object.__setattr__(self, "given", self.series + self.vectors + self.carried)
        for number, line in enumerate(self.code):
            _check_line(line, number, self.given + number)
        if len(self.carry) != self.carried:
            raise ProgramError(
                f"loop: {self.carried} carried values need as many carry registers, got {len(self.carry)}",
                needed=self.carried,
                got=len(self.carry),
            )
        for register in (*self.outputs, *self.carry):
            _check_register(register, "outputs and carry", self.given + len(self.code))
        facts = [self.series, self.vectors, self.carried, self.code, self.outputs, self.carry]
        object.__setattr__(self, "text", json.dumps(facts, separators=(",", ":")))
        early = _needed(self.code, self.carry, self.given)
        object.__setattr__(self, "early", early)
        object.__setattr__(self, "read", self._read_late(set(early)))

    def _read_late(self, early: set[int]) -> tuple[int, ...]:
        lines = range(self.given, self.given + len(self.code))
        late = [register for register in lines if register not in early]
        found = {*self.outputs, *(r for line in late for r in operands(self.code[line - self.given]))}
        return tuple(sorted(r for r in found - {*late} if r >= self.given - self.carried))

    def source(self, register: int) -> int:
        """The register whose value this one is: itself unless its line is the identity."""
        line = self.code[register - self.given] if register >= self.given else ()
        return self.source(line[1]) if line[:1] == ("activation",) and line[2] == "identity" else register


@functools.cache
def read_loop(text: str) -> ElementwiseLoop:
    """The loop whose `text` this is.

    >>> read_loop(ElementwiseLoop(1, 0, 0, (("shift", 0, 1.0),), (1,), ()).text).code
    (('shift', 0, 1.0),)
    """
    series, vectors, carried, code, outputs, carry = json.loads(text)
    return ElementwiseLoop(
        series, vectors, carried, tuple(tuple(c) for c in code), tuple(outputs), tuple(carry)
    )


def operands(line: tuple[Any, ...]) -> tuple[int, ...]:
    """Registers the line reads.

    >>> operands(("add", 0, 2)), operands(("scale", 1, 0.5)), operands(("constant", 1.0))
    ((0, 2), (1,), ())
    """
    return line[1:3] if line[0] in BINARY else () if line[0] == "constant" else line[1:2]


def run_code(code: Code, registers: list[Tensor], like: Tensor) -> list[Tensor]:
    """The registers after one tick, by torch operations; `like` gives constants their dtype and device."""
    for line in code:
        registers.append(run_line(line, registers, like))
    return registers


def run_line(line: tuple[Any, ...], registers: Any, like: Tensor) -> Tensor:
    """The value of one line; `registers` gives values by number."""
    name = line[0]
    if name in BINARY:
        return BINARY[name](registers[line[1]], registers[line[2]])
    if name in WITH_NUMBER:
        return WITH_NUMBER[name](registers[line[1]], line[2])
    if name == "constant":
        return like.new_full((), line[1])
    return RULES[line[2]].function(registers[line[1]], *line[3:])


def _needed(code: Code, carry: tuple[int, ...], given: int) -> tuple[int, ...]:
    """The registers of the lines that the registers `carry` need."""
    needed = set(carry)
    for number in reversed(range(len(code))):
        if given + number in needed:
            needed.update(operands(code[number]))
    return tuple(r for r in range(given, given + len(code)) if r in needed)


def _check_line(line: tuple[Any, ...], number: int, count: int) -> None:
    """Raise unless the line is one of the table and reads registers below `count`."""
    length = {**dict.fromkeys((*BINARY, *WITH_NUMBER), 3), "constant": 2}.get(line[0])
    if line[0] == "activation" and line[2] in ACTIVATIONS:
        length = 3 + RULES[line[2]].arguments
    if length != len(line):
        raise ProgramError(
            f"loop, line {number}: {line} is no instruction; there are {', '.join(BINARY)}, scale, shift, "
            f"constant and activation (of {', '.join(ACTIVATIONS)})",
            line=number,
        )
    for register in operands(line):
        _check_register(register, f"line {number}", count)


def _check_register(register: object, reader: str, count: int) -> None:
    if not isinstance(register, int) or not 0 <= register < count:
        raise ProgramError(
            f"loop: {reader} may read registers 0 to {count - 1}, got {register}",
            needed=count - 1,
            got=register,
        )
