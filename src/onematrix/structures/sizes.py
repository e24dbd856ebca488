"""Sizes that are integers, or expressions of named sizes left free until run time."""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from numbers import Integral

from onematrix.errors import BudgetError, FitError, ShapeError

Size = int | str
Tree = int | str | tuple[Callable[[int, int], int], "Tree", "Tree"]

_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_PARSED: dict[str, Tree] = {}  # so that torch.compile, which cannot trace a parser, finds sizes parsed


def evaluate_size(size: Size, sizes: Mapping[str, int]) -> int:
    """Value of a size under the given named sizes; + - * // and parentheses are understood.

    Raises ShapeError when a name is not given, or the text is no such expression.

    >>> evaluate_size("16 * time + 3", {"time": 10})
    163
    """
    if isinstance(size, int):
        return size
    if size in sizes:
        return sizes[size]
    if size not in _PARSED:
        _PARSED[size] = _parse(size)
    return _evaluate(_PARSED[size], sizes, size)


def _parse(text: str) -> Tree:
    """The expression as nested triples (operator, left, right) of integers and names."""
    try:
        return _tree(ast.parse(text, mode="eval").body, text)
    except SyntaxError as error:
        raise ShapeError(f"size {text!r} is no expression of named sizes") from error


def _tree(node: ast.expr, text: str) -> Tree:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)], _tree(node.left, text), _tree(node.right, text)
    raise ShapeError(f"size {text!r}: only names, integers, + - * // and parentheses are understood")


def _evaluate(tree: Tree, sizes: Mapping[str, int], text: str) -> int:
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        if tree in sizes:
            return sizes[tree]
        raise ShapeError(f"size {text!r}: {tree!r} is not given; known sizes: {dict(sizes)}", name=tree)
    apply, left, right = tree
    return apply(_evaluate(left, sizes, text), _evaluate(right, sizes, text))


def size_names(*sizes: Size) -> set[str]:
    """Names that occur in the given sizes.

    >>> sorted(size_names(3, "time * heads"))
    ['heads', 'time']
    """
    return {name for size in sizes if isinstance(size, str) for name in re.findall(r"[A-Za-z_]\w*", size)}


def multiply_sizes(*sizes: Size) -> Size:
    """Product of sizes; symbolic when one of them is, names in alphabetical order so that equals look equal.

    >>> multiply_sizes(2, "time", 8)
    '16 * time'
    """
    if len(sizes) == 1:
        return sizes[0]
    number, names = 1, []
    for size in sizes:
        for factor in [size] if isinstance(size, int) else _factors(size):
            if isinstance(factor, int) or factor.isdigit():
                number *= int(factor)
            else:
                names.append(factor)
    if not names or number == 0:
        return number
    if number == 1 and len(names) == 1:
        return names[0].removeprefix("(").removesuffix(")") if _is_sum(names[0][1:-1]) else names[0]
    return " * ".join(([str(number)] if number != 1 else []) + sorted(names))


def _factors(size: str) -> list[str]:
    """The factors of a product at its top level; a sum, difference or quotient is one factor in parentheses."""
    if _is_sum(size):
        return [f"({size})"]
    factors, depth, held = [], 0, ""
    for letter in size:
        depth += (letter == "(") - (letter == ")")
        if letter == "*" and depth == 0:
            factors.append(held.strip())
            held = ""
        else:
            held += letter
    return [*factors, held.strip()]


def _is_sum(size: str) -> bool:
    """Whether + - or // stands outside all parentheses."""
    depth = 0
    for letter in size:
        depth += (letter == "(") - (letter == ")")
        if letter in "+-/" and depth == 0:
            return True
    return False


def check_budget(budget: float, who: str) -> Fraction:
    """The budget E as the exact fraction its decimal text means; E in (0, 1].

    Raises BudgetError with the value.

    >>> check_budget(0.29, "csr")
    Fraction(29, 100)
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
        raise BudgetError(
            f"{who}: budget must lie in (0, 1] (stored numbers ÷ m n), got {budget!r}; "
            "0.2 keeps one number in five; rank= or nonzeros= set a size exactly",
            budget=budget,
        )
    return Fraction(repr(budget)) if isinstance(budget, float) else Fraction(budget)


def check_seconds(who: str, seconds: float | None) -> None:
    """Raise FitError unless the limit is None or above 0."""
    if seconds is not None and not seconds > 0:
        raise FitError(f"{who}: seconds must be above 0 (or None for no limit), got {seconds!r}", got=seconds)


def check_sides(who: str, rows: int, columns: int) -> None:
    """Raise FitError unless the matrix has entries."""
    if rows < 1 or columns < 1:
        raise FitError(f"{who}: a non-empty matrix was needed, got shape ({rows}, {columns})")


def numbers_within(budget: float, rows: int, columns: int, who: str) -> int:
    """Largest count of stored numbers within the budget: floor(E m n), without rounding error in E.

    >>> numbers_within(0.29, 10, 10, "csr")
    29
    """
    check_sides(who, rows, columns)
    return math.floor(check_budget(budget, who) * rows * columns)


def nearest_count(budget: float, rows: int, columns: int, who: str) -> int:
    """round(E m n), halves to even: the exact number of entries of a random sparse matrix.

    >>> nearest_count(0.2, 3, 4, "csr")
    2
    """
    check_sides(who, rows, columns)
    return round(check_budget(budget, who) * rows * columns)


def check_rank(who: str, rank: object) -> None:
    """Raise FitError unless the rank is an integer of at least 1."""
    if isinstance(rank, bool) or not isinstance(rank, Integral) or rank < 1:
        raise FitError(f"{who}: rank must be at least 1, got {rank!r}; it is an integer", got=rank)


def check_rank_within(who: str, rank: int, bound: int, where: str = "", other: str = "") -> int:
    """The rank asked for. Raises FitError unless it is from 1 to the bound, beyond which it adds no matrix.

    who: the name and the sizes; where: the sizes the bound is of; other: the option that leads to others.

    >>> check_rank_within("low_rank 4×3", 2, bound=3)
    2
    """
    check_rank(who.split()[0], rank)
    if rank > bound:
        raise above_bound(who, "rank", rank, bound, where, other)
    return rank


def above_bound(who: str, what: str, got: int, bound: int, where: str = "", other: str = "") -> FitError:
    """The error for a rank beyond the largest of use, naming both."""
    return FitError(
        f"{who}: {what} {got} is above {bound}, the largest of use{where}: more would add numbers and no "
        f"matrix; ask for {bound} or less" + (f", or for other sizes with {other}" if other else ""),
        needed=bound,
        got=got,
    )
