"""How a size splits into factors: divisors, even splits, and the refusal of sizes that do not split."""

import functools
import math
from collections.abc import Sequence
from typing import TypeVar

from onematrix.errors import FitError, ShapeError

T = TypeVar("T")


def divisors(n: int) -> list[int]:
    """Every divisor, in rising order.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def proper_divisors(n: int) -> list[int]:
    """Divisors other than 1 and n, the one nearest to √n (as a ratio) first; empty for a prime.

    >>> proper_divisors(12)
    [3, 4, 2, 6]
    """
    return sorted(divisors(n)[1:-1], key=lambda d: (max(d, n // d), d))  # a ratio and its inverse tie


def split_evenly(n: int, count: int) -> tuple[int, ...]:
    """`count` factors of n, each the divisor of what is left nearest to its even share.

    >>> split_evenly(96, 3)
    (4, 4, 6)
    >>> split_evenly(7, 2)
    (1, 7)
    """
    if count == 1:
        return (n,)
    share = n ** (1 / count)
    first = min(divisors(n), key=lambda d: (abs(math.log(d / share)), d))
    return tuple(sorted((first, *split_evenly(n // first, count - 1))))


@functools.lru_cache(maxsize=4096)
def ordered_splits(n: int, count: int, least: int = 2) -> tuple[tuple[int, ...], ...]:
    """Every way to write n as so many factors of at least so much, their order counting.

    >>> ordered_splits(12, 2)
    ((2, 6), (3, 4), (4, 3), (6, 2))
    """
    if count == 0:
        return ((),) if n == 1 else ()
    if count == 1:
        return ((n,),) if n >= least else ()
    first = [d for d in divisors(n) if d >= least]
    return tuple((d, *rest) for d in first for rest in ordered_splits(n // d, count - 1, least))


def prime_factors(n: int) -> list[int]:
    """Primes whose product is n, in rising order.

    >>> prime_factors(96)
    [2, 2, 2, 2, 2, 3]
    """
    if n == 1:
        return []
    first = next((d for d in range(2, math.isqrt(n) + 1) if n % d == 0), n)
    return [first, *prime_factors(n // first)]


def spread(values: Sequence[T], count: int) -> list[T]:
    """At most `count` of the values, the first always among them, evenly over their order.

    >>> spread([8, 4, 16, 2, 32], 3)
    [8, 16, 32]
    """
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def usable_splits(n: int) -> str:
    """The splits of n into two factors above 1, as text for a message; what to do where there are none.

    >>> usable_splits(12)
    '12 = 2·6, 3·4'
    >>> usable_splits(7)
    '7 is prime (the next sizes that split: 8, 9)'
    """
    pairs = [f"{d}·{n // d}" for d in divisors(n)[1:-1] if d * d <= n]
    if pairs:
        return f"{n} = {', '.join(pairs)}"
    near = [str(k) for k in range(n + 1, n + 5) if len(divisors(k)) > 2][:2]
    return f"{n} is {'prime' if n > 1 else 'one'} (the next sizes that split: {', '.join(near)})"


def cannot_split(name: str, m: int, n: int, option: str) -> FitError:
    """The error for sizes that have no factors above 1, naming those that are usable and the explicit option."""
    return FitError(
        f"{name} {m}×{n}: the sizes do not split into factors above 1: rows {usable_splits(m)}; "
        f"columns {usable_splits(n)}; pad the matrix, or accept a factor of 1 with {option}",
        rows=m,
        columns=n,
    )


def check_product(name: str, option: str, factors: Sequence[int], size: int) -> tuple[int, ...]:
    """The factors as a tuple. Raises FitError unless they are positive and their product is the size."""
    found = tuple(factors)
    if not found or any(f < 1 for f in found) or math.prod(found) != size:
        raise FitError(
            f"{name}: {option}={found} multiply to {math.prod(found)}, the size is {size}; "
            f"usable: {usable_splits(size)}",
            needed=size,
            got=math.prod(found),
        )
    return found


def parse_factors(name: str, text: str) -> tuple[int, ...]:
    """Factors written as text, one space between them; the form a structure's field holds.

    Raises ShapeError when the text holds anything but positive integers.

    >>> parse_factors("tensor_train", "2 3 2")
    (2, 3, 2)
    """
    parts = text.split()
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ShapeError(f"{name}: positive integers with spaces between were needed, got {text!r}")
    return tuple(int(part) for part in parts)


def write_factors(factors: Sequence[int]) -> str:
    """The inverse of `parse_factors`.

    >>> write_factors((2, 3, 2))
    '2 3 2'
    """
    return " ".join(str(f) for f in factors)
