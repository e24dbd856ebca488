"""Opaque rows: a function no equation covers, with the parts it reads, its name and the reason it is opaque."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from onematrix.errors import ProgramError


@dataclass(frozen=True, eq=False)
class Opaque:
    """A join that is a function: σ(first sum), second sum, … ↦ function of them, (batch, *shape of the row's part).

    name: of the operator, as it prints; reason: why it stays as it is; arity: how many parts it reads.
    couples_batch: whether a sample's value depends on other samples. Saved programs cannot hold it.
    """

    name: str
    reason: str
    function: Callable[..., Tensor]
    arity: int
    couples_batch: bool = True

    index_operand = None
    keeps_operand_shapes = True
    pattern = None
    argument = None

    def __post_init__(self) -> None:
        if '"' in self.name + self.reason or self.arity < 1:
            raise ProgramError(f"opaque {self.name!r}: a name without quotes and a part to read were needed")

    def __call__(self, *sums: Tensor) -> Tensor:
        return self.function(*sums)

    def __str__(self) -> str:
        return f'opaque "{self.name}" because "{self.reason}"'
