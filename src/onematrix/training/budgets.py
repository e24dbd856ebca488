"""How long to train: a number with its unit."""

import math
from dataclasses import dataclass

from onematrix.errors import TrainingError


@dataclass(frozen=True)
class Steps:
    """A number of optimiser steps, counted from the first step of the run, resumed parts included.

    >>> Steps(200).fraction(step=50, seconds=9.0, steps_per_epoch=15)
    0.25
    """

    count: int

    def __post_init__(self) -> None:
        check_count(self, self.count)

    def fraction(self, step: int, seconds: float, steps_per_epoch: int) -> float:
        return step / self.count

    def describe(self, step: int, seconds: float, steps_per_epoch: int) -> str:
        return f"step {step} of {self.count}"


@dataclass(frozen=True)
class Epochs:
    """A number of passes over the data; an epoch has ceil(examples / batch) steps.

    >>> Epochs(2).fraction(step=15, seconds=9.0, steps_per_epoch=15)
    0.5
    """

    count: int

    def __post_init__(self) -> None:
        check_count(self, self.count)

    def fraction(self, step: int, seconds: float, steps_per_epoch: int) -> float:
        return step / (self.count * steps_per_epoch)

    def describe(self, step: int, seconds: float, steps_per_epoch: int) -> str:
        return f"epoch {step / steps_per_epoch:.1f} of {self.count}"


@dataclass(frozen=True)
class Seconds:
    """Seconds of wall clock spent inside `train`: steps, evaluations and checkpoints, resumed parts included.

    The step under way when the time is up is finished, and so is the last evaluation.

    >>> Seconds(60).fraction(step=50, seconds=15.0, steps_per_epoch=15)
    0.25
    """

    count: float

    def __post_init__(self) -> None:
        got = self.count
        if isinstance(got, bool) or not isinstance(got, (int, float)) or not 0 < got < math.inf:
            raise TrainingError(
                f"Seconds: a finite number > 0 was needed, got {got!r}; for example Seconds(60)",
                got=got,
            )

    def fraction(self, step: int, seconds: float, steps_per_epoch: int) -> float:
        return seconds / self.count

    def describe(self, step: int, seconds: float, steps_per_epoch: int) -> str:
        return f"{seconds:.0f} of {self.count:g} s, step {step}"


Budget = Steps | Epochs | Seconds


def check_count(budget: Steps | Epochs, count: object) -> None:
    """Raise TrainingError unless count is an integer ≥ 1."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        name = type(budget).__name__
        raise TrainingError(
            f"{name}: an integer >= 1 was needed, got {count!r}; for example {name}(10)", got=count
        )


def check_budget(budget: object) -> None:
    """Raise TrainingError unless the budget is a value with a unit."""
    if not isinstance(budget, Steps | Epochs | Seconds):
        raise TrainingError(
            f"train: a budget with its unit was needed, got {budget!r}; "
            "write budget=Steps(100), budget=Epochs(10) or budget=Seconds(60)",
            got=budget,
        )
