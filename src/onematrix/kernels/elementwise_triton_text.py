"""The two loops of an elementwise recurrence as the text of Triton kernels.

One thread per sample and feature goes through the ticks; what is carried stays in registers. Every tensor
that has ticks is given by its first tick in the order of the run and a stride to the next, so one text serves
both directions. What up to `AHEAD` ticks read is loaded while those before are computed: reads do not depend on
what is carried, and a thread that waited for each would wait for memory at every tick.

The expressions are those of `elementwise_text`; `_in_triton` turns a choice into a selection and names
functions as Triton does.
"""

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onematrix.kernels.elementwise_code import ElementwiseLoop
from onematrix.kernels.elementwise_text import CONSTANTS, BackwardVariant, ForwardVariant, adjoints, compute

READS = 24  # numbers of one thread that are on their way from memory at a time, about
AHEAD = 8  # ticks at most
LINES = 240  # of code for them all, about: the compiler's time grows with it
NUMBERS = {"zero": 0.0, "half": 0.5, "one": 1.0, "two": 2.0} | CONSTANTS
FUNCTIONS = {
    "abs": "tl.abs",
    "exp": "tl.exp",
    "math.sqrt": "root",
    "math.erf": "tl.erf",
    "math.sin": "tl.sin",
    "math.cos": "tl.cos",
    "math.log1p": "log1p",
}


def ticks_ahead(reads: int, lines: int) -> int:
    """How many ticks are read at a time, of so many reads and lines of code per tick.

    >>> ticks_ahead(2, 20), ticks_ahead(5, 20), ticks_ahead(2, 100)
    (8, 4, 2)
    """
    return max(1, min(AHEAD, READS // max(reads, 1), LINES // max(lines, 1)))


def forward_text(loop: ElementwiseLoop, variant: ForwardVariant) -> str:
    """forward(T, n, tick, …, valid, valid_t, BLOCK, real, stored).

    In between: series with the strides of ticks and samples; vectors; first carried values (B, n); courses and
    stored outputs (T, B, n), `tick` from one to the next; final carried values (B, n).
    """
    outputs = [p for p, stored in enumerate(variant.stored) if stored]
    courses = [k for k, course in enumerate(variant.courses) if course]
    carried = range(loop.carried)
    written = [*(f"h{k}" for k in courses), *(f"o{p}" for p in outputs)]
    arguments = [*_strided("s", range(loop.series)), *(f"v{j}" for j in range(loop.vectors))]
    arguments += [*(f"c{k}" for k in carried), *written, *(f"f{k}" for k in carried)]
    start = [*_vectors(loop), *(f"x{k} = {_row(f'c{k}')}" for k in carried)]
    reads = [Read(f"s{j}") for j in range(loop.series)]
    lines = [*_registers(loop, [f"x{k}" for k in carried]), *compute(loop)]
    lines += [_store(f"o{p}", f"r{loop.outputs[p]}", variant.valid) for p in outputs]
    # A carried value has the dtype of its part after every tick, so a run may be cut between any two.
    lines += [f"y{k} = tl.where(keep, r{r}.to(stored).to(real), x{k})" for k, r in enumerate(loop.carry)]
    lines += [f"x{k} = y{k}" for k in carried] + [_store(f"h{k}", f"x{k}") for k in courses]
    end = [f"tl.store(f{k} + here, x{k}, mask=inside)" for k in carried]
    return _kernel("forward", arguments, start, reads, lines, written, end, variant.valid)


def backward_text(loop: ElementwiseLoop, variant: BackwardVariant) -> str:
    """backward(T, n, tick, …, valid, valid_t, BLOCK, real, stored), from the last tick of the run to its first.

    In between: series with strides, vectors, first carried values and courses as in `forward_text`, then
    gradients: of outputs with strides; of series (T, B, n); of vectors (B, n), to be summed over the batch; of
    carried values (B, n), the last ones before and the first ones after.
    """
    given, series, vectors = (
        [k for k, flag in enumerate(flags) if flag]
        for flags in (variant.given, variant.series, variant.vectors)
    )
    carried = range(loop.carried)
    written = [f"ds{j}" for j in series]
    arguments = [*_strided("s", range(loop.series)), *(f"v{j}" for j in range(loop.vectors))]
    arguments += [*(f"c{k}" for k in carried), *(f"h{k}" for k in carried), *_strided("g", given)]
    arguments += [*written, *(f"dv{j}" for j in vectors), *(f"dc{k}" for k in carried)]
    start = [*_vectors(loop), *(f"b{k} = {_row(f'c{k}')}" for k in carried)]
    start += [f"d{k} = {_row(f'dc{k}')}" for k in carried] + [f"w{j} = zero" for j in vectors]
    reads = [Read(f"s{j}") for j in range(loop.series)] + [Read(f"g{p}") for p in given]
    # The carried value before a tick is its course one tick earlier, which in this order comes later.
    reads += [Read(f"h{k}", "tick", later=1) for k in carried]
    lines = [f"p{k} = tl.where(step + # + 1 < T, h{k}_#.to(real), b{k})" for k in carried]
    lines += [*_registers(loop, [f"p{k}" for k in carried]), *compute(loop)]
    lines += [f"q{p} = g{p}_#.to(real)" for p in given]
    seeds = [(loop.outputs[p], f"q{p}") for p in given]
    seeds += [(register, f"d{k}") for k, register in enumerate(loop.carry)]
    found, known = adjoints(loop, seeds)
    value = [f"a{r}" if r in known else "zero" for r in range(loop.given)]
    base = loop.series + loop.vectors
    lines += [*found, *(_store(f"ds{j}", value[j], variant.valid) for j in series)]
    lines += [f"w{j} = tl.where(keep, w{j} + {value[loop.series + j]}, w{j})" for j in vectors]
    lines += [f"e{k} = tl.where(keep, {value[base + k]}, d{k})" for k in carried]
    lines += [f"d{k} = e{k}" for k in carried]
    end = [f"tl.store(dv{j} + here, w{j}, mask=inside)" for j in vectors]
    end += [f"tl.store(dc{k} + here, d{k}, mask=inside)" for k in carried]
    return _kernel("backward", arguments, start, reads, lines, written, end, variant.valid)


@dataclass(frozen=True)
class Read:
    """Numbers read at every tick: their array, the name of its stride, how many ticks later they stand in it."""

    name: str
    stride: str = ""
    later: int = 0

    def load(self, place: int, step: str, ahead: int) -> str:
        """The line that reads for the tick `step` + place, from `place` ticks after the pointer."""
        number = place + self.later
        inside = f"({step} + {number} < T)" if self.name == "valid" else f"inside & ({step} + {number} < T)"
        value = f"tl.load({self.name}_p + {number} * {self.step}, mask={inside}, other=0)"
        return f"{self.name}_{place + ahead} = {value}{' != 0' * (self.name == 'valid')}"

    @property
    def step(self) -> str:
        """The stride from a tick to the next."""
        return self.stride or f"{self.name}_t"


def _strided(letter: str, numbers: Iterable[int]) -> list[str]:
    return [f"{letter}{j}{end}" for j in numbers for end in ("", "_t", "_b")]


def _row(name: str) -> str:
    return f"tl.load({name} + here, mask=inside, other=0).to(real)"


def _vectors(loop: ElementwiseLoop) -> list[str]:
    return [f"v{j}_r = tl.load(v{j} + i, mask=inside, other=0).to(real)" for j in range(loop.vectors)]


def _registers(loop: ElementwiseLoop, carried: Sequence[str]) -> list[str]:
    given = [f"s{j}_#.to(real)" for j in range(loop.series)] + [f"v{j}_r" for j in range(loop.vectors)]
    return [f"r{r} = {text}" for r, text in enumerate([*given, *carried])]


def _store(name: str, value: str, selected: bool = False) -> str:
    value = f"tl.where(keep, {value}, zero)" if selected else value
    return f"tl.store({name}_p + # * tick, {value}, mask=inside & live)"


def _kernel(
    name: str,
    arguments: Sequence[str],
    start: Sequence[str],
    reads: Sequence[Read],
    lines: Sequence[str],
    written: Sequence[str],
    end: Sequence[str],
    selected: bool,
) -> str:
    """A loop over chunks of ticks: the next chunk is read, then the lines run for each tick of this one."""
    reads = [*reads, *[Read("valid")] * selected]
    ahead = ticks_ahead(len(reads), len(lines))
    places = range(ahead)
    dense = [*written, *(read.name for read in reads if read.stride == "tick")]
    start = [*start, *(f"{a}_p = {a} + b * {a}_b + i" for a in arguments if f"{a}_b" in arguments)]
    start += [*(f"{a}_p = {a} + here" for a in dense), *["valid_p = valid + b"] * selected]
    start += [read.load(place, "0", ahead) for read in reads for place in places]
    tick = ["live = step + # < T", "keep = live & valid_#" if selected else "keep = live", *lines]
    chunk = [f"{read.name}_{place} = {read.name}_{place + ahead}" for read in reads for place in places]
    chunk += [f"{read.name}_p += {ahead} * {read.step}" for read in reads]
    chunk += [read.load(place, f"step + {ahead}", ahead) for read in reads for place in places]
    chunk += [line.replace("#", str(place)) for place in places for line in map(_in_triton, tick)]
    chunk += [*(f"{a}_p += {ahead} * tick" for a in written), f"step += {ahead}"]
    text = "\n".join([*start, *chunk, *end])
    used = [k for k in NUMBERS if re.search(rf"\b{k}\b", text)]
    every = ", ".join([*arguments, "valid", "valid_t"])
    return "\n".join(
        [
            f"def {name}(T, n, tick, {every}, BLOCK: tl.constexpr, real: tl.constexpr, stored: tl.constexpr):",
            *(f"    {k} = tl.full((BLOCK,), {NUMBERS[k]!r}, real)" for k in used),
            "    blocks = tl.cdiv(n, BLOCK)",
            "    b = (tl.program_id(0) // blocks).to(tl.int64)",
            "    i = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)",
            "    inside = i < n",
            "    here = b * n + i",
            *(f"    {line}" for line in start),
            "    step = 0",
            "    while step < T:",
            *(f"        {line}" for line in chunk),
            *(f"    {line}" for line in end),
            "",
        ]
    )


class _Selections(ast.NodeTransformer):
    """a if c else b → tl.where(c, a, b); functions and quotients of Triton; numbers as blocks."""

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        parts = [self.visit(n) for n in (node.test, node.body, node.orelse)]
        return ast.Call(_name("tl.where"), parts, [])

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, ast.Div):
            return ast.Call(_name("quotient"), [left, right], [])
        return ast.BinOp(left, node.op, right)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called, arguments = ast.unparse(node.func), [self.visit(a) for a in node.args]
        if called == "real":
            return _block(node.args[0]) or arguments[0]
        return ast.Call(_name(FUNCTIONS.get(called, called)), arguments, node.keywords)


def _block(node: ast.expr) -> ast.AST | None:
    """A number, or minus one, as a block of it; None for anything else."""
    text = ast.unparse(node)
    if text.lstrip("-") in ("math.inf", "math.nan"):
        text = f"float('{text.replace('math.', '')}')"
    elif not isinstance(node.operand if isinstance(node, ast.UnaryOp) else node, ast.Constant):
        return None
    return ast.parse(f"tl.full((BLOCK,), {text}, real)", mode="eval").body


def _name(dotted: str) -> ast.expr:
    return ast.parse(dotted, mode="eval").body


def _in_triton(line: str) -> str:
    """A line of `elementwise_text` as Triton reads it.

    >>> _in_triton("r3 = r1 if r1 > zero else r1 / real(2.0)")
    'r3 = tl.where(r1 > zero, r1, quotient(r1, tl.full((BLOCK,), 2.0, real)))'
    """
    if "#" in line or "tl." in line:  # in Triton's words already
        return line
    return ast.unparse(ast.fix_missing_locations(_Selections().visit(ast.parse(line))))
