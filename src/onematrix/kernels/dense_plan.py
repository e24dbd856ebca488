"""What a dense recurrence is besides its tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Activations = tuple[tuple[int, str], ...]
Value = TypeVar("Value")


@dataclass(frozen=True)
class DensePlan:
    """Activations as (width, name), number of ticks, what follows the inputs, direction, what is returned.

    zero: the first state is zero. read: (start, stop) of the features of the last state that are returned; all
    where None.
    """

    activations: Activations
    ticks: int
    after: str
    reverse: bool
    last_only: bool
    zero: bool = False
    read: tuple[int, int] | None = None

    @property
    def order(self) -> range:
        """Ticks in the order they run."""
        return range(self.ticks)[::-1] if self.reverse else range(self.ticks)

    def at_every_tick(self, given: Sequence[Value], zero: Value) -> list[Value]:
        """One value per tick: those given, past their end zero or the last one.

        >>> DensePlan((), 4, "hold", False, False).at_every_tick("ab", "0")
        ['a', 'b', 'b', 'b']
        """
        values = list(given[: self.ticks])
        past = values[-1] if self.after == "hold" and values else zero
        return values + [past] * (self.ticks - len(values))
