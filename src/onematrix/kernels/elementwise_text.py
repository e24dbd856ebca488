"""The two loops of an elementwise recurrence as the text of Python functions, for a compiler to take.

Everything in the text comes from the closed tables below and from register numbers and floats: no name and
no text of a user reaches it. Arrays are flat; offsets are unsigned, because a signed index may count from
the end, which costs a test per access and keeps a loop from becoming vector code.

Forward, per tick, sample and feature:  registers = code(series, vectors, carried before), store.
Backward, ticks in the opposite order:  the registers again, then each line's adjoint from last to first.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from onematrix.kernels.elementwise_code import ElementwiseLoop, operands

VALUES = {  # of register {x} and, where there is a second, {w}
    "add": "{x} + {w}",
    "sub": "{x} - {w}",
    "mul": "{x} * {w}",
    "divide": "{x} / {w}",
    # nan wins, as in torch
    "maximum": "{x} if {x} > {w} else ({w} if {x} == {x} else {x})",
    "minimum": "{x} if {x} < {w} else ({w} if {x} == {x} else {x})",
    "scale": "{x} * {0}",
    "shift": "{x} + {0}",
    "constant": "{0}",
    "identity": "{x}",
    "relu": "zero if {x} < zero else {x}",
    "leaky_relu": "{x} if {x} > zero else {x} * {0}",
    "abs": "abs({x})",
    "sign": "one if {x} > zero else (-one if {x} < zero else zero)",
    "square": "{x} * {x}",
    "sqrt": "math.sqrt({x})",
    "rsqrt": "one / math.sqrt({x})",
    "reciprocal": "one / {x}",
    "exp": "exp({x})",
    "sigmoid": "sigmoid({x})",
    "tanh": "tanh({x})",
    "gelu": "{x} * (half * (one + real(math.erf({x} * root_half))))",
    "gelu_tanh": "half * {x} * (one + tanh(slope * ({x} + cube * {x} * {x} * {x})))",
    "silu": "{x} / (one + exp(-{x}))",
    "softplus": "{x} if {x} > twenty else real(math.log1p(exp({x})))",
    "elu": "expm1({x}) if {x} < zero else {x}",
    "sin": "real(math.sin({x}))",
    "cos": "real(math.cos({x}))",
    "keep": "one / {0} if {x} < {0} else zero / {0}",
}
# Gradients for the first and the second operand, of {g} and the line's value {y}; at ties as torch's.
ADJOINTS = {
    "add": ("{g}", "{g}"),
    "sub": ("{g}", "-{g}"),
    "mul": ("{g} * {w}", "{g} * {x}"),
    "divide": ("{g} / {w}", "-{g} * ({y} / {w})"),
    "maximum": (
        "zero if {x} < {w} else ({g} * half if {x} == {w} else {g})",
        "zero if {x} > {w} else ({g} * half if {x} == {w} else {g})",
    ),
    "minimum": (
        "zero if {x} > {w} else ({g} * half if {x} == {w} else {g})",
        "zero if {x} < {w} else ({g} * half if {x} == {w} else {g})",
    ),
    "scale": ("{g} * {0}",),
    "shift": ("{g}",),
    "constant": (),
    "identity": ("{g}",),
    "relu": ("zero if {x} <= zero else {g}",),
    "leaky_relu": ("{g} if {x} > zero else {g} * {0}",),
    "abs": ("{g} if {x} > zero else (-{g} if {x} < zero else {g} * zero)",),
    "sign": (),
    "square": ("{g} * (two * {x})",),
    "sqrt": ("{g} / (two * {y})",),
    "rsqrt": ("-half * {g} * ({y} * {y} * {y})",),
    "reciprocal": ("-{g} * ({y} * {y})",),
    "exp": ("{g} * {y}",),
    "sigmoid": ("{g} * ((one - {y}) * {y})",),
    "tanh": ("{g} * (one - {y} * {y})",),
    "gelu": (
        "{g} * (half * (one + real(math.erf({x} * root_half))) + {x} * (density * exp(-half * {x} * {x})))",
    ),
    "gelu_tanh": (
        "{g} * (half * (one + tanh(slope * ({x} + cube * {x} * {x} * {x}))) + half * {x} * "
        "(one - tanh(slope * ({x} + cube * {x} * {x} * {x})) * tanh(slope * ({x} + cube * {x} * {x} * {x}))) * "
        "(slope * (one + three * cube * {x} * {x})))",
    ),
    "silu": ("{g} * (sigmoid({x}) * (one + {x} * (one - sigmoid({x}))))",),
    "softplus": ("{g} if {x} > twenty else {g} * sigmoid({x})",),
    "elu": ("{g} * exp({x}) if {x} <= zero else {g}",),
    "sin": ("{g} * real(math.cos({x}))",),
    "cos": ("-{g} * real(math.sin({x}))",),
    "keep": (),
}


CONSTANTS = {  # of the tables above, beside those of `scalar_functions`
    "three": 3.0,
    "twenty": 20.0,  # above it torch takes softplus for the identity
    "root_half": 0.5**0.5,
    "density": (2 * math.pi) ** -0.5,
    "slope": (2 / math.pi) ** 0.5,
    "cube": 0.044715,
}


@dataclass(frozen=True)
class ForwardVariant:
    """What differs between forward runs of one loop, and is fixed in the text.

    courses: of each carried value, whether its values after every tick are stored; else it is one row of
    memory. stored: of each output, whether it is written for itself; else it is a course. valid: whether
    samples are selected.
    """

    courses: tuple[bool, ...]
    stored: tuple[bool, ...]
    valid: bool


@dataclass(frozen=True)
class BackwardVariant:
    """What differs between backward runs of one loop.

    given: outputs that have a gradient. series, vectors: those whose gradient is wanted. shared: series that
    one row serves for the whole batch. valid: whether samples are selected.
    """

    given: tuple[bool, ...]
    series: tuple[bool, ...]
    vectors: tuple[bool, ...]
    shared: tuple[bool, ...]
    valid: bool


def forward_text(loop: ElementwiseLoop, variant: ForwardVariant) -> str:
    """forward(ticks, batch, width, reverse, …, valid).

    In between: series with the strides of ticks and samples; vectors; first carried values (B, n), the
    last ones after it where no course is stored; courses (T, B, n); stored outputs (T, B, n).
    """
    outputs = [p for p, stored in enumerate(variant.stored) if stored]
    courses = [k for k, course in enumerate(variant.courses) if course]
    arguments = [
        *_with_strides("s", range(loop.series)),
        *_names("v", loop.vectors),
        *_names("c", loop.carried),
    ]
    arguments += [*(f"h{k}" for k in courses), *(f"o{p}" for p in outputs)]
    old = [f"p{k}[low + here + i]" if c else f"c{k}[here + i]" for k, c in enumerate(variant.courses)]
    new = [f"h{k}[at + i]" if c else f"c{k}[here + i]" for k, c in enumerate(variant.courses)]
    body = [*_read(loop, old), *compute(loop)]
    body += [f"o{p}[at + i] = r{loop.outputs[p]}" for p in outputs]
    body += [f"{place} = r{register}" for place, register in zip(new, loop.carry, strict=True)]
    skipped = [f"o{p}[at + i] = zero" for p in outputs]
    skipped += [f"{new[k]} = {old[k]}" for k in courses]
    tick = [
        "t, before, first = (T - u1 - step, T - step, step == u0) if reverse else (step, step - u1, step == u0)"
    ]
    tick += [f"p{k} = c{k} if first else h{k}" for k in courses]
    offsets = _offsets("s", range(loop.series))
    return _loops("forward", arguments, tick, offsets, body, skipped if variant.valid else None)


def backward_text(loop: ElementwiseLoop, variant: BackwardVariant) -> str:
    """backward(ticks, batch, width, reverse, …, valid).

    In between: series with strides, vectors, first carried values and courses as in `forward_text`, then
    gradients: of outputs with strides; of series with strides, to be added to where (T, 1, n); of vectors,
    added to, (B, n); of carried values (B, n), the last ones before and the first ones after.
    """
    given, series, vectors = (
        [k for k, flag in enumerate(flags) if flag]
        for flags in (variant.given, variant.series, variant.vectors)
    )
    arguments = [
        *_with_strides("s", range(loop.series)),
        *_names("v", loop.vectors),
        *_names("c", loop.carried),
        *_names("h", loop.carried),
    ]
    arguments += [*_with_strides("g", given), *_with_strides("ds", series)]
    arguments += [*(f"dv{j}" for j in vectors), *_names("dc", loop.carried)]
    body = [*_read(loop, [f"p{k}[low + here + i]" for k in range(loop.carried)]), *compute(loop)]
    seeds = [(loop.outputs[p], f"g{p}[g{p}_at + i]") for p in given]
    seeds += [(register, f"dc{k}[here + i]") for k, register in enumerate(loop.carry)]
    lines, known = adjoints(loop, seeds)
    value = [f"a{r}" if r in known else "zero" for r in range(loop.given)]
    places = {j: f"ds{j}[ds{j}_at + i] {'+' * variant.shared[j]}" for j in series}
    body += [*lines, *(f"{place}= {value[j]}" for j, place in places.items())]
    body += [f"dv{j}[here + i] += {value[loop.series + j]}" for j in vectors]
    body += [f"dc{k}[here + i] = {value[loop.series + loop.vectors + k]}" for k in range(loop.carried)]
    skipped = [f"{place}= zero" for place in places.values()]
    tick = [
        "t, before, first = (step, step + u1, step + u1 == T) if reverse else "
        "(T - u1 - step, T - u1 - u1 - step, step + u1 == T)",
        *(f"p{k} = c{k} if first else h{k}" for k in range(loop.carried)),
    ]
    offsets = _offsets("s", range(loop.series)) + _offsets("g", given) + _offsets("ds", series)
    return _loops("backward", arguments, tick, offsets, body, skipped if variant.valid else None)


def _names(letter: str, count: int) -> list[str]:
    return [f"{letter}{k}" for k in range(count)]


def _with_strides(letter: str, numbers: Iterable[int]) -> list[str]:
    return [f"{letter}{j}{end}" for j in numbers for end in ("", "_t", "_b")]


def _offsets(letter: str, numbers: Iterable[int]) -> list[str]:
    return [f"{letter}{j}_at = t * unsigned({letter}{j}_t) + b * unsigned({letter}{j}_b)" for j in numbers]


def _read(loop: ElementwiseLoop, carried: list[str]) -> list[str]:
    given = [f"s{j}[s{j}_at + i]" for j in range(loop.series)] + [f"v{j}[i]" for j in range(loop.vectors)]
    return [f"r{r} = {text}" for r, text in enumerate(given + carried)]


def compute(loop: ElementwiseLoop) -> list[str]:
    return [
        f"r{loop.given + k} = {VALUES[_entry(line)].format(*_numbers(line), **_operand_names(line))}"
        for k, line in enumerate(loop.code)
    ]


def adjoints(loop: ElementwiseLoop, seeds: list[tuple[int, str]]) -> tuple[list[str], set[int]]:
    """Lines that compute a{r}, the gradient of register r, and the registers that have one."""
    lines: list[str] = []
    known: set[int] = set()

    def add(register: int, text: str) -> None:
        lines.append(
            f"a{register} = a{register} + ({text})" if register in known else f"a{register} = {text}"
        )
        known.add(register)

    for register, text in seeds:
        add(register, text)
    for k, line in reversed(list(enumerate(loop.code))):
        result = loop.given + k
        names = {**_operand_names(line), "g": f"a{result}", "y": f"r{result}"}
        if result in known:
            for register, text in zip(operands(line), ADJOINTS[_entry(line)], strict=False):
                add(register, text.format(*_numbers(line), **names))
    return lines, known


def _entry(line: tuple[Any, ...]) -> str:
    return line[2] if line[0] == "activation" else line[0]  # type: ignore[no-any-return]


def _numbers(line: tuple[Any, ...]) -> list[str]:
    """Every number in the line that is no register, in the format of the loop."""
    numbers = line[3:] if line[0] == "activation" else line[1 + len(operands(line)) :]
    return [
        f"real({'math.' * (not math.isfinite(v))}{float(v)!r})".replace("math.-", "-math.") for v in numbers
    ]


def _operand_names(line: tuple[Any, ...]) -> dict[str, str]:
    return dict(zip("xw", (f"r{r}" for r in operands(line)), strict=False))


def _loops(
    name: str,
    arguments: list[str],
    tick: list[str],
    offsets: list[str],
    body: list[str],
    skipped: list[str] | None,
) -> str:
    """Loops over ticks, samples and features around lines for one feature; others for samples not selected."""
    inner = _over_features(body, 3)
    if skipped is not None:
        inner = ["            if valid[t * B + b]:", *_over_features(body, 4)]
        inner += ["            else:", *_over_features(skipped or ["pass"], 4)]
    return "\n".join(
        [
            f"def {name}(ticks, batch, width, reverse, {', '.join([*arguments, 'valid'])}):",
            "    T, B, n, u0, u1 = unsigned(ticks), unsigned(batch), unsigned(width), unsigned(0), unsigned(1)",
            "    for step in range(T):",
            *(f"        {line}" for line in tick),
            "        low = u0 if first else before * B * n",
            "        for b in range(B):",
            "            at, here = (t * B + b) * n, b * n",
            *(f"            {line}" for line in offsets),
            *inner,
            "",
        ]
    )


def _over_features(lines: list[str], depth: int) -> list[str]:
    return ["    " * depth + "for i in range(n):", *("    " * (depth + 1) + line for line in lines)]
