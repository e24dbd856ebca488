"""Least squares by limited-memory BFGS, with the preconditioner of the problem as its first Hessian."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

HISTORY = (
    10  # pairs (step, change of gradient); 30 were no better on Gaussian targets and cost twice the time
)
REFRESH = 25  # steps between two preconditioners
WINDOW = 25  # progress is judged over so many steps
BACKTRACKS = 20


class Objective(Protocol):
    """What `descend` minimises."""

    def value(self, x: Tensor) -> tuple[float, Tensor]:
        """The value and its gradient at x: (N,)."""

    def preconditioner(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """An approximate inverse Hessian at x, as a map of vectors (N,)."""


@dataclass
class Memory:
    """The last steps s and changes of gradient y, with 1 ÷ sᵀy."""

    pairs: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)

    def add(self, step: Tensor, change: Tensor) -> None:
        """Keep the pair where the curvature sᵀy is positive."""
        curvature = float(step.dot(change))
        if curvature > 1e-12 * float(step.norm()) * float(change.norm()):
            self.pairs = [*self.pairs[1 - HISTORY :], (step, change, 1 / curvature)]

    def direction(self, gradient: Tensor, first: Callable[[Tensor], Tensor]) -> Tensor:
        """−H g by the two-loop recursion. Nocedal & Wright, Numerical Optimization 2006, algorithm 7.4."""
        rest, weights = gradient.clone(), []
        for step, change, inverse in reversed(self.pairs):
            weights.append(inverse * step.dot(rest))
            rest = rest - weights[-1] * change
        found = first(rest)
        for (step, change, inverse), weight in zip(self.pairs, reversed(weights), strict=True):
            found = found + step * (weight - inverse * change.dot(found))
        return -found


def descend(
    objective: Objective,
    x: Tensor,
    steps: int,
    *,
    deadline: float = float("inf"),
    progress: float = 0.0,
    enough: float = 0.0,
) -> tuple[Tensor, float]:
    """A point no worse than x, and its value: at most so many steps of L-BFGS.

    deadline: on the clock of time.perf_counter. progress: stop when the last WINDOW steps lowered the value
    by less than this fraction. enough: stop at this value. With fixed steps the result is reproducible.
    """
    value, gradient = objective.value(x)
    memory, marks = Memory(), [value]
    first = objective.preconditioner(x)
    for number in range(1, steps + 1):
        if value <= enough or time.perf_counter() > deadline:
            break
        if number % REFRESH == 0:
            first = objective.preconditioner(x)
        found = _step(objective, x, value, gradient, memory.direction(gradient, first))
        if found is None:
            if not memory.pairs:
                break
            memory, first = Memory(), objective.preconditioner(x)
            continue
        new, value, slope = found
        memory.add(new - x, slope - gradient)
        x, gradient = new, slope
        if number % WINDOW == 0:
            marks.append(value)
            if marks[-2] - marks[-1] < progress * marks[-2]:
                break
    return x, value


def _step(
    objective: Objective, x: Tensor, value: float, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, float, Tensor] | None:
    """The first point along the direction with enough decrease (Armijo, parabola); None when there is none."""
    slope, length = float(gradient.dot(direction)), 1.0
    if not slope < 0:
        return None
    for _ in range(BACKTRACKS):
        new = torch.add(x, direction, alpha=length)
        lower, after = objective.value(new)
        if lower <= value + 1e-4 * length * slope:
            return new, lower, after
        bend = lower - value - length * slope
        guess = -slope * length**2 / (2 * bend) if bend > 0 else 0.5 * length
        length = min(0.5 * length, max(0.1 * length, guess)) if guess == guess else 0.1 * length
    return None
