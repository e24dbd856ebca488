"""Joins: the closed table of ways a row combines its sums σ(G x), H x, …"""

import re
import string
from dataclasses import dataclass

import torch
from torch import Tensor

from onematrix.errors import ProgramError
from onematrix.programs.further_joins import FURTHER, Rule
from onematrix.programs.opaque import Opaque


def _select(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(mask if mask.dtype == torch.bool else mask != 0, a, b)


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """values (B, n, …), index (B, k) → (B, k, …)."""
    values, index = _same_batch(values, index)
    wide = index.reshape(*index.shape, *[1] * (values.dim() - 2)).expand(*index.shape, *values.shape[2:])
    return values.gather(1, wide.long())


def _scatter(values: Tensor, index: Tensor, count: int) -> Tensor:
    """values (B, k, …), index (B, k) → (B, count, …), summing values that meet."""
    values, index = _same_batch(values, index)
    wide = index.reshape(*index.shape, *[1] * (values.dim() - 2)).expand(*index.shape, *values.shape[2:])
    return values.new_zeros(values.shape[0], count, *values.shape[2:]).scatter_add(1, wide.long(), values)


def _same_batch(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    batch = max(a.shape[0], b.shape[0]) if a.shape[0] and b.shape[0] else 0
    return a.expand(batch, *a.shape[1:]), b.expand(batch, *b.shape[1:])


def _top_k(values: Tensor, k: int) -> Tensor:
    """Positions of the k largest, the largest first; of equals the lowest position first."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :k]


RULES: dict[str, Rule] = {
    "hadamard": Rule(2, torch.mul, degree=2),
    "maximum": Rule(2, torch.maximum, degree=1, ties="half to each"),
    "minimum": Rule(2, torch.minimum, degree=1, ties="half to each"),
    "divide": Rule(2, torch.div, degree=0, at_zero="nan"),
    "select": Rule(3, _select, ties="an unselected value reaches neither output nor gradient"),
    "gather": Rule(2, _gather, mixes="first", degree=1, index_operand=1, keeps_operand_shapes=True),
    "scatter": Rule(
        2, _scatter, mixes="first", degree=1, index_operand=1, keeps_operand_shapes=True, arguments=1
    ),
    "top_k": Rule(
        1,
        _top_k,
        mixes="last",
        ties="the lowest position first",
        keeps_operand_shapes=True,
        arguments=1,
    ),
}


@dataclass(frozen=True)
class Join:
    """A name of the table with its argument, or a contraction "q d, k d -> q k" (an einsum without the batch).

    >>> make_join("q d, k d -> q k").pattern
    'q d, k d -> q k'
    """

    name: str
    argument: int | None = None
    pattern: str | None = None
    numbers: tuple[int, ...] = ()  # arguments of a join that takes several

    def __post_init__(self) -> None:
        if self.name == "einsum":
            _parse_pattern(self.pattern or "")
        elif self.name in FURTHER:
            self._check_numbers()
        elif self.name not in RULES:
            known = ", ".join([*sorted(RULES), *sorted(FURTHER)])
            raise ProgramError(
                f"join {self.name!r} is unknown; there are: {known}, or an einsum 'a b, c b -> a c'"
            )
        elif (self.argument is not None) != bool(RULES[self.name].arguments):
            raise ProgramError(
                f"join {self.name} takes {RULES[self.name].arguments} argument, got {self.argument}"
            )

    def _check_numbers(self) -> None:
        needed = FURTHER[self.name].arguments
        if self.argument is not None or (needed == -1) != bool(self.numbers):
            raise ProgramError(
                f"join {self.name} takes {'several' if needed else 'no'} arguments, "
                f"got {self.numbers or self.argument}"
            )

    @property
    def rule(self) -> Rule:
        """The entry of the table; a contraction has none."""
        return RULES[self.name] if self.name in RULES else FURTHER[self.name]

    @property
    def arity(self) -> int:
        """Number of sums it combines."""
        return len(_parse_pattern(self.pattern)[0]) if self.pattern else self.rule.arity

    @property
    def index_operand(self) -> int | None:
        """Position of the sum that is read as integers, if any."""
        return None if self.pattern else self.rule.index_operand

    @property
    def keeps_operand_shapes(self) -> bool:
        """Whether its sums have the shapes of what they read (contractions, gather, scatter, top_k)."""
        return self.pattern is not None or self.rule.keeps_operand_shapes

    def __call__(self, *sums: Tensor) -> Tensor:
        if self.pattern:
            return torch.einsum(_with_batch(self.pattern), *sums)
        more = self.numbers if self.argument is None else (self.argument,)
        return self.rule.function(*sums, *more)

    def __str__(self) -> str:
        if self.pattern:
            return f'"{self.pattern}"'
        if self.numbers:
            return f"{self.name}({' '.join(map(str, self.numbers))})"
        return self.name if self.argument is None else f"{self.name}({self.argument})"


def make_join(value: "Join | Opaque | str") -> "Join | Opaque":
    """A join from its text: a name, a name with an argument, or an einsum pattern."""
    if isinstance(value, Join | Opaque):
        return value
    if value.startswith("opaque "):
        raise ProgramError(f"join {value}: a function is not kept in text; convert the module again")
    text = value.strip().strip('"')
    if "->" in text:
        return Join("einsum", pattern=" ".join(text.split()))
    if match := re.fullmatch(r"(\w+)\((\d+(?: \d+)+)\)", text):
        return Join(match[1], numbers=tuple(int(word) for word in match[2].split()))
    match = re.fullmatch(r"(\w+)(?:\((\d+)\))?", text)
    if match is None:
        raise ProgramError(f"join {value!r}: a name, a name with an integer, or 'a b, c b -> a c' was needed")
    return Join(match[1], int(match[2]) if match[2] else None)


def contraction_axes(pattern: str) -> tuple[list[list[str]], list[str]]:
    """Axis names per operand and of the output.

    >>> contraction_axes("q d, k d -> q k")
    ([['q', 'd'], ['k', 'd']], ['q', 'k'])
    """
    return _parse_pattern(pattern)


def _parse_pattern(pattern: str) -> tuple[list[list[str]], list[str]]:
    if pattern.count("->") != 1:
        raise ProgramError(f"contraction {pattern!r}: one '->' was needed, as in 'q d, k d -> q k'")
    left, right = pattern.split("->")
    operands, output = [side.split() for side in left.split(",")], right.split()
    names = {name for operand in operands for name in operand}
    if len(operands) < 2 or len(names) > 25 or not all(operands):
        raise ProgramError(f"contraction {pattern!r}: two or more operands over at most 25 axes were needed")
    if unknown := [name for name in output if name not in names]:
        raise ProgramError(f"contraction {pattern!r}: {unknown[0]!r} stands on the right only")
    return operands, output


def _with_batch(pattern: str) -> str:
    operands, output = _parse_pattern(pattern)
    letters: dict[str, str] = {}
    for operand in operands:
        for name in operand:
            letters.setdefault(name, string.ascii_lowercase[len(letters)])
    left = ",".join("Z" + "".join(letters[n] for n in operand) for operand in operands)
    return f"{left}->Z{''.join(letters[n] for n in output)}"
