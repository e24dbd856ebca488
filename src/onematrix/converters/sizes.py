"""Sizes of an exported graph: symbols of torch as named sizes, with exact products and quotients."""

from collections.abc import Sequence
from typing import Any

import sympy

from onematrix.errors import ConversionError
from onematrix.structures.sizes import Size, evaluate_size, multiply_sizes

BATCH_NAME = "batch"
_EXPRESSIONS: dict[str, Any] = {}  # text of a size → expression, for every text `show` has written


def symbol(name: str) -> Any:
    """The positive integer a named size stands for."""
    return sympy.Symbol(name, integer=True, positive=True)


def show(expression: Any) -> Size:
    """An expression as a size; equal expressions have equal texts.

    >>> show(symbol("time") * 8 - 1)
    '8 * time - 1'
    """
    expression = sympy.expand(expression)
    if expression.is_Integer:
        return int(expression)
    text = _text(expression)
    _EXPRESSIONS[text] = expression
    return text


def _text(e: Any) -> str:
    if e.is_Integer or e.is_Symbol:
        return str(e)
    if e.is_Add:
        terms = sorted(e.args, key=lambda t: (t.is_number, str(t)))
        signs = [(t, "-" if t.could_extract_minus_sign() else "+") for t in terms]
        if signs[0][1] == "-":
            return "0 - " + _text(-signs[0][0]) + "".join(f" {s} {_text(abs_(t))}" for t, s in signs[1:])
        return _text(signs[0][0]) + "".join(f" {s} {_text(abs_(t))}" for t, s in signs[1:])
    if e.is_Mul:
        number, rest = e.as_coeff_Mul()
        factors = [_factor(f) for f in sorted(rest.as_ordered_factors(), key=str)]
        return " * ".join(([str(number)] if number != 1 else []) + factors)
    if e.is_Pow and e.exp.is_Integer and e.exp > 0:
        return " * ".join([_factor(e.base)] * int(e.exp))
    if e.func.__name__ in ("FloorDiv", "CleanDiv") and len(e.args) == 2:
        return f"({_text(e.args[0])}) // {_factor(e.args[1])}"
    raise ConversionError(f"a size {e} has no form as + - * //; fix this dimension with free={{}}")


def abs_(term: Any) -> Any:
    """The term without a leading minus."""
    return -term if term.could_extract_minus_sign() else term


def _factor(e: Any) -> str:
    text = _text(e)
    return text if e.is_Symbol or e.is_Integer else f"({text})"


def expression(size: Size) -> Any:
    """The expression of a size."""
    if isinstance(size, int):
        return sympy.Integer(size)
    if size not in _EXPRESSIONS:
        names = {word for word in size.replace("(", " ").replace(")", " ").split() if word.isidentifier()}
        _EXPRESSIONS[size] = evaluate_size(size, {name: symbol(name) for name in names})
    return _EXPRESSIONS[size]


def product(sizes: Sequence[Size]) -> Size:
    """The product of sizes as `Part.features` writes it."""
    return multiply_sizes(*sizes)


def times(a: Size, b: Size) -> Size:
    """The product of two sizes as one axis."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return show(expression(a) * expression(b))


def add(a: Size, b: Size) -> Size:
    """The sum of two sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return show(expression(a) + expression(b))


def subtract(a: Size, b: Size) -> Size:
    """The difference of two sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return show(expression(a) - expression(b))


def divide(a: Size, b: Size) -> Size | None:
    """a ÷ b where it is exact for every value of the names, else None.

    >>> divide("12 * time", 4)
    '3 * time'
    """
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if a == b:
        return 1
    quotient = sympy.cancel(expression(a) / expression(b))
    above, below = sympy.fraction(sympy.together(quotient))
    return show(above) if below == 1 else None
