"""The table of operators: name in ATen → the function that writes its rows. Each family is one file."""

from collections.abc import Callable
from typing import Any

from onematrix.converters.values import Value

Operator = Callable[..., Value | list[Value] | tuple[Value, ...]]
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Register a function of (builder, result, *arguments) under names such as "linear" or "slice.Tensor".

    A name without an overload stands for all its overloads. Tensor arguments come as Values, symbolic integers
    as sizes; result: sizes and dtype of the (first) tensor to be made.
    """

    def register(function: Operator) -> Operator:
        for name in names:
            assert name not in OPERATORS, f"{name} is written twice"
            OPERATORS[name] = function
        return function

    return register


def find(target: Any) -> Operator | None:
    """The function for a node's target; None when nobody knows it."""
    name = str(target).removeprefix("aten.")
    return OPERATORS.get(name) or OPERATORS.get(name.rsplit(".", 1)[0])
