"""An elementwise recurrence that is linear in what it carries, by a scan over all its ticks at once.

c′ = A c + B with A and B free of c: both are computed for all ticks, then one `linear_scan`, then what is read
of c. More memory than one loop, and ticks side by side: for long runs of few numbers on a GPU.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onematrix.errors import CompileError
from onematrix.kernels.elementwise_code import BINARY, ElementwiseLoop, operands, read_loop, run_line
from onematrix.kernels.elementwise_torch import Sizes
from onematrix.kernels.linear_scan import linear_scan

LONG = 256  # ticks from which on, and
FEW = 8192  # numbers a tick up to which, a scan is the choice on a GPU: by counting, not measured
FREE, OTHER = -1, -2  # of a register: no carried value is in it; not linear in one

Affine = tuple[Tensor, Tensor]  # (A, B) of A c + B


@functools.cache
def linear_in(text: str) -> tuple[int, ...] | None:
    """Per register, the carried value it is linear in, FREE or OTHER; None unless each c′ is linear in its own c.

    >>> leak = ElementwiseLoop(2, 0, 1, (("mul", 0, 2), ("add", 3, 1)), outputs=(4,), carry=(4,))
    >>> linear_in(leak.text)
    (-1, -1, 0, 0, 0)
    >>> linear_in(ElementwiseLoop(0, 0, 1, (("mul", 0, 0),), (1,), (1,)).text) is None
    True
    """
    loop = read_loop(text)
    kinds = [FREE] * (loop.series + loop.vectors) + list(range(loop.carried))
    for line in loop.code:
        kinds.append(_kind(line[0], line, [kinds[r] for r in operands(line)]))
    own = all(kinds[register] in (FREE, k) for k, register in enumerate(loop.carry))
    return tuple(kinds) if own and loop.carried else None


def _kind(name: str, line: Sequence[object], kinds: Sequence[int]) -> int:
    """What a line makes of operands of these kinds."""
    found = set(kinds) - {FREE}
    if not found:
        return FREE
    linear = (
        (name in ("add", "sub") and len(found) == 1)
        or (name == "mul" and FREE in kinds)
        or (name == "divide" and kinds[1] == FREE)
        or name in ("scale", "shift")
        or line[2:3] == ("identity",)
    )
    return found.pop() if linear else OTHER


def prefers_scan(loop: ElementwiseLoop, sizes: Sizes) -> bool:
    """Whether the scan is the choice on a GPU."""
    return sizes[0] >= LONG and sizes[1] * sizes[2] <= FEW and linear_in(loop.text) is not None


def run_by_scan(
    loop: ElementwiseLoop,
    series: Sequence[Tensor],
    vectors: Sequence[Tensor],
    init: Sequence[Tensor],
    sizes: Sizes,
    reverse: bool = False,
    valid: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """As `run_by_torch`, to rounding. Raises CompileError for a recurrence that is not linear."""
    kinds = linear_in(loop.text)
    if kinds is None:
        raise CompileError("loop: kernel 'scan' cannot run: what is carried is not linear in itself")
    like = next(iter((*series, *vectors, *init)))
    chosen = None if valid is None else valid.unsqueeze(-1)
    # Selected on the way in, so that an infinite derivative of what is left out ends here.
    given = [t if chosen is None else torch.where(chosen, t, 0.0) for t in (*series, *vectors)]
    affine = _memoised(loop, lambda r, of: _affine(loop, kinds, r, of, given, like))
    courses = []
    for k, register in enumerate(loop.carry):
        a, b = (t.expand(sizes) for t in _pair(affine(register), like))
        if chosen is not None:
            a, b = torch.where(chosen, a, 1.0), torch.where(chosen, b, 0.0)
        courses.append(linear_scan(a, b, init[k], reverse))
    before = [_before(course, c, reverse) for course, c in zip(courses, init, strict=True)]
    if chosen is not None:
        before = [torch.where(chosen, c, 0.0) for c in before]
    every = [*given, *before]
    value = _memoised(loop, lambda r, of: every[r] if r < loop.given else _line(loop, r, of, like))
    outputs = [_output(value(register), chosen, sizes) for register in loop.outputs]
    last = 0 if reverse else -1
    return outputs, [
        course[last].clone() if sizes[0] else c.clone() for course, c in zip(courses, init, strict=True)
    ]


def _memoised(loop: ElementwiseLoop, make: Callable[[int, Callable], object]) -> Callable[[int], object]:
    """A function of a register that is computed once, from those of other registers."""
    known: dict[int, object] = {}

    def of(register: int) -> object:
        if register not in known:
            known[register] = make(register, of)
        return known[register]

    return of


def _line(loop: ElementwiseLoop, register: int, of: Callable[[int], Tensor], like: Tensor) -> Tensor:
    line = loop.code[register - loop.given]
    return run_line(line, {r: of(r) for r in operands(line)}, like)


def _affine(
    loop: ElementwiseLoop,
    kinds: Sequence[int],
    register: int,
    of: Callable[[int], Tensor | Affine],
    given: Sequence[Tensor],
    like: Tensor,
) -> Tensor | Affine:
    """The value over all ticks where no carried value is in it, else (A, B)."""
    if register < len(given):
        return given[register]
    if register < loop.given:
        return like.new_ones(()), like.new_zeros(())
    line = loop.code[register - loop.given]
    if kinds[register] == FREE:
        return _line(loop, register, of, like)  # type: ignore[arg-type]
    return _combined(line, [of(r) for r in operands(line)], like)


def _combined(line: Sequence[object], values: Sequence[Tensor | Affine], like: Tensor) -> Affine:
    """A line that keeps (A, B) linear."""
    name = str(line[0])
    (a, b), *rest = [_pair(v, like) for v in values]
    if name in ("add", "sub"):
        return BINARY[name](a, rest[0][0]), BINARY[name](b, rest[0][1])
    if name == "mul":
        first, second = values
        factor, (a, b) = (second, (a, b)) if isinstance(second, Tensor) else (first, rest[0])
        return a * factor, b * factor  # type: ignore[operator]
    if name == "divide":
        return a / values[1], b / values[1]  # type: ignore[operator]
    if name == "scale":
        return a * line[2], b * line[2]  # type: ignore[operator]
    return a, b + line[2] if name == "shift" else b  # type: ignore[operator]


def _pair(value: Tensor | Affine, like: Tensor) -> Affine:
    return (like.new_zeros(()), value) if isinstance(value, Tensor) else value


def _before(course: Tensor, init: Tensor, reverse: bool) -> Tensor:
    """The carried value before every tick."""
    if not len(course):
        return course
    return torch.cat([course[1:], init[None]]) if reverse else torch.cat([init[None], course[:-1]])


def _output(value: Tensor, chosen: Tensor | None, sizes: Sizes) -> Tensor:
    """In full shape, in memory of its own."""
    if chosen is not None:
        return torch.where(chosen, value, 0.0).expand(sizes).clone()
    return value.expand(sizes).clone()
