"""Code for products: one block times one value, constants, and merged products."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from onematrix.compiler.code import Code, Var, shape_text, size_text
from onematrix.compiler.convolution_code import convolution_text
from onematrix.compiler.form import Form
from onematrix.compiler.merging import Merge, merged_text, operand_texts, plan_merges, unscale
from onematrix.compiler.views import moves, shares, view_text
from onematrix.kernels.noise import draw_noise
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wire
from onematrix.structures.algebra import Sum, Transposed
from onematrix.structures.averaging import Mean
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.convolution import Convolution
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones, Zero
from onematrix.structures.low_rank import LowRank
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.reshaped import Reshaped
from onematrix.structures.sizes import Size
from onematrix.structures.tree import layout, leaves
from onematrix.structures.window import Window

CHANNELS = "channels"  # stands in the tail of a constant that has one number per channel


@dataclass(frozen=True)
class Constant:
    """A constant: a vector, and the same in the shape of the end of the part."""

    flat: str
    shaped: str
    tail: tuple[Size, ...]


@dataclass
class Terms:
    """The terms of one sum by what they are; ratios are numbers. made: variables made for this sum alone."""

    dense: list[tuple[float, str, Var]] = field(default_factory=list)  # weight (m, n)
    scaled: list[tuple[float, str, Var]] = field(default_factory=list)  # vector (n,)
    plain: list[tuple[float, Var]] = field(default_factory=list)
    vectors: list["Constant"] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    number: float = 0.0


class Products:
    """Writes products of a lowered program; an `env` gives the variable of each part."""

    def __init__(
        self,
        program: Program,
        slots: dict[int, int],
        names: Sequence[str],
        code: Code,
        sizes: dict[str, str],
        form: Form,
    ) -> None:
        self.program, self.slots, self.names, self.code, self.sizes = program, slots, names, code, sizes
        self.uses, self.form = count_uses(program), form
        self.merges, self.absorbed = plan_merges(program) if form.merge else ({}, set())
        self.made: dict[int, dict[int, Var]] = {}
        self.layouts: dict[int, str] = {}  # of structures by id: the constant that says how to rebuild them
        self.held_back: dict[str, float] = {}  # parts whose ratio an attention multiplies its scores with

    # Tensors and structures.

    def tensor(self, tensor: object) -> str:
        """A tensor the module holds."""
        return self.code.first(self.tensor_text(tensor))

    def tensor_text(self, tensor: object) -> str:
        """Where a tensor stands in the module's tables."""
        slot = self.slots[id(tensor)]
        return f"tables[{slot}][{self.names[slot]!r}]"

    def structure(self, a: Structure) -> str:
        """A structure over the tensors the module holds; itself where it holds none."""
        held = {id(t): t for _, t in leaves(a)}
        if not held:
            return self.code.constant(a)
        if id(a) not in self.layouts:
            plan = layout(a, {key: place for place, key in enumerate(held)})
            self.layouts[id(a)] = self.code.constant(plan)
        tensors = ", ".join(map(self.tensor, held.values()))
        return self.code.first(f"rebuild({self.layouts[id(a)]}, ({tensors},))")

    def weight(self, a: Structure) -> str:
        """The matrix of a dense structure, or the rows of one that a reshaped structure is."""
        if isinstance(a, Dense):
            return self.tensor(a.weight)
        assert isinstance(a, Reshaped), "a weight is dense or rows of a dense matrix"
        return self.code.first(f"{self.tensor(a.tensor)}[{a.start}:{a.start + a.rows}]")

    def run(self) -> str:
        """What the general product of a wire asks about the run."""
        return "run"

    # Rows.

    def text(self, value: Var) -> str:
        """The expression of a value, multiplied out."""
        if value.norm is not None:
            x, epsilon = value.norm
            return self.code.let(f"layer_norm({x}, {x}.shape[-1:], eps={epsilon!r})").text
        if value.product is None:
            return value.text
        return self.code.let(f"{value.product[0]} * {value.product[1]}").text

    def merged(self, wire: Wire, env: dict[str, Var]) -> Var:
        """The slice of a merged product that is this wire's; the product is made at the first of them."""
        merge = self.merges[id(wire)]
        if id(merge) not in self.made:
            self._make_merged(merge, env)
        value = self.made[id(merge)][id(wire)]
        if wire.tail is None:
            return value
        tail = [size_text(size, self.sizes) for size in wire.tail]
        text = f"{value.text}.unflatten(-1, ({', '.join(tail)},))" if len(tail) > 1 else value.text
        return self.code.let(text, value.single, fresh=False)

    def _make_merged(self, merge: Merge, env: dict[str, Var]) -> None:
        first, code = merge.members[0].wire, self.code
        value = self.value(merge.column, env)
        x = self.text(value)
        if first.flattens:
            x = f"{x}.flatten({1 + first.kept})"
        text = merged_text(code, x, *operand_texts(code, self.tensor, merge.members), self.form.fixed)
        whole = code.let(text, value.single)
        names = [code.name() for _ in merge.members]
        sizes = ", ".join(str(m.size) for m in merge.members)
        code.line(f"{', '.join(names)} = {whole.text}.split(({sizes}), -1)")
        starts = accumulate((m.size for m in merge.members), initial=0)
        self.made[id(merge)] = {
            id(m.wire): Var(name, value.single, merged=(whole.text, start, start + m.size))
            for name, m, start in zip(names, merge.members, starts, strict=False)
        }

    def shaped(self, wire: Wire, ratio: float, a: Structure, terms: Terms, env: dict[str, Var]) -> Var:
        """A product on some of the dimensions, others flattened before or split after."""
        value, source = self.value(wire.column, env), self.program.parts[wire.column]
        x = self.text(value)
        if moves(a):
            out = times(ratio, view_text(a, x, wire, source, self.sizes))
            return self.code.let(out, value.single, value.foreign and ratio == 1, ratio != 1)
        if isinstance(a, Convolution) and (text := self.convolved(a, x, ratio, wire, source, terms)):
            return self.code.let(text, value.single)
        if isinstance(a, PerAxis) and (text := self.per_channel(a, x, ratio, wire, source)):
            return self.code.let(text, value.single)
        if isinstance(a, PerAxis) and (text := self.averaged(a, x, ratio, wire, source)):
            return self.code.let(text, value.single)
        if wire.flattens:
            x = f"{x}.flatten({1 + wire.kept})"
        if isinstance(a, Dense):
            ends: tuple[Size, ...] = (a.weight.shape[0],) if wire.tail is None else wire.tail
            bias = self.bias(terms, ends) if ratio == 1 else ""
            out = times(ratio, f"linear({x}, {self.tensor(a.weight)}{bias})")
        else:
            out = times(ratio, f"{self.structure(a)}._matmul({x})")
        grown = isinstance(a, Dense) and bool(wire.kept) and ratio == 1
        own = ratio != 1 or not shares(a)
        if wire.spread or wire.tail is not None:
            y = self.code.let(out).text
            kept = [size_text(size, self.sizes) for size in source.shape[: wire.kept]]
            tail = [f"{y}.shape[-1]"] if wire.tail is None else [size_text(t, self.sizes) for t in wire.tail]
            out = f"{y}.reshape({', '.join([f'{y}.shape[0]', *['1'] * wire.spread, *kept, *tail])})"
        return replace(self.code.let(out, value.single, value.foreign and not own, own), view=grown)

    def convolved(
        self, a: Convolution, x: str, ratio: float, wire: Wire, source: Part, terms: Terms
    ) -> str | None:
        """A convolution of a part that has its axes, with its bias; None where torch has no such call."""
        sides = {side for pair in a.paddings for side in pair}
        axes = (a.channels, *a.sizes)
        out = (a.weight.shape[0], *a.output_sizes)
        if ratio != 1 or (a.mode != "zeros" and sides != {0}):
            return None
        if source.shape != axes:
            if any(isinstance(size, str) for size in (*source.shape, *axes)):
                return None
            x = f"{x}.reshape({x}.shape[0], {', '.join(map(str, axes))})"
        if wire.tail != out or wire.kept or wire.spread:
            return None
        bias = self.bias(terms, (CHANNELS, a.weight.shape[0])) or ", None"
        return convolution_text(a, x, self.tensor(a.weight), bias, self.form, self.code)

    def free_convolution(self, wire: Wire, value: Var) -> str | None:
        """A convolution along a dimension of any length, the last of a part; None where the wire is none."""
        ratio, a = unscaled(self.program.structures[wire.slot])
        if not isinstance(a, Convolution) or not wire.named or wire.classes is not None:
            return None
        source = self.program.parts[wire.column]
        if a.dimensions != 1 or source.shape != (a.channels, a.height):
            return None
        return self.convolved(a, self.text(value), ratio, wire, source, Terms())

    def free_channels(self, wire: Wire) -> str | None:
        """A constant with one number per channel, at every place of a dimension of any length."""
        ratio, a = unscaled(self.program.structures[wire.slot])
        if wire.column != ONE or not wire.named or ratio != 1 or wire.spread or wire.tail is None:
            return None
        constant = self.channel(a, wire.tail)
        if constant is None or len(wire.tail) != 2:
            return None
        return f"{constant.shaped}.expand(1, {', '.join(size_text(size, self.sizes) for size in wire.tail)})"

    def averaged(self, a: PerAxis, x: str, ratio: float, wire: Wire, source: Part) -> str | None:
        """Means along some axes of a part, in whatever layout it is: flattening an image would copy it."""
        inner = source.shape[wire.kept :]
        spans = _spans(inner, [axis.shape[1] for axis in a.axes])
        plain = all(isinstance(axis, Mean | Identity) for axis in a.axes)
        if a.order or not plain or spans is None or wire.spread or wire.named:
            return None
        means = [k for axis, span in zip(a.axes, spans, strict=True) if isinstance(axis, Mean) for k in span]
        rest = tuple(size for k, size in enumerate(inner) if k not in means)
        if not means or not rest or (wire.tail or rest[:1]) != rest:
            return None
        number = math.prod(int(inner[k]) for k in means)
        return times(ratio, f"{x}.sum({[1 + wire.kept + k for k in means]}) / {number}")

    def per_channel(self, a: PerAxis, x: str, ratio: float, wire: Wire, source: Part) -> str | None:
        """A factor per channel, the first axis of a part of several, in whatever layout the part is."""
        if a.order or len(a.axes) != 2 or wire.kept or wire.spread or wire.tail != source.shape:
            return None
        first, rest = a.axes
        if not isinstance(first, Diagonal) or not isinstance(rest, Identity) or len(source.shape) < 2:
            return None
        if source.shape[0] != len(first.vector):
            return None
        ones = ", 1" * (len(source.shape) - 1)
        factor = self.code.first(f"{self.tensor(first.vector)}.view({len(first.vector)}{ones})")
        return times(ratio, f"{x} * {factor}")

    def bias(self, terms: Terms, tail: tuple[Size, ...] | None) -> str:
        """A constant of this tail (None: one dimension) as the bias of a product, taken out of the terms."""
        for constant in terms.vectors:
            if constant.tail == tail or (tail is None and len(constant.tail) == 1):
                terms.vectors.remove(constant)
                return f", {constant.flat}"
        return ""

    def product(self, a: Structure, value: Var) -> Var:
        """A x for a structure without a call of its own in torch."""
        x = self.text(value)
        if isinstance(a, Window) and isinstance(a.rows, int) and isinstance(a.start, int) and a.pace == 1:
            return self.code.let(f"{x}.narrow(-1, {a.start}, {a.rows})", value.single, value.foreign, False)
        if isinstance(a, LowRank):
            inner = f"linear({x}, {self.tensor(a.right)})"
            return self.code.let(f"linear({inner}, {self.tensor(a.left)})", value.single)
        if isinstance(a, Transposed) and isinstance(a.inner, Dense):
            return self.code.let(f"{x} @ {self.tensor(a.inner.weight)}", value.single)
        text, shared = f"{self.structure(a)}._matmul({x})", shares(a)
        return self.code.let(text, value.single, value.foreign and shared, not shared)

    def value(self, name: str, env: dict[str, Var]) -> Var:
        """The variable of a part; drawn where it is noise."""
        if name == ONE:
            return Var(self.code.first("torch.ones(1, 1, dtype=dtype, device=device)"), single=True)
        return env[name] if name in env else self.draw(name)

    def full(self, value: Var) -> str:
        """The expression of a value with one row per sample."""
        text = self.text(value)
        return f"{text}.expand(batch, *{text}.shape[1:])" if value.single else text

    def draw(self, name: str) -> Var:
        """A noise part at the present tick."""
        ticks = "".join(f"{t}, " for t in self.ticks)
        shape = shape_text(self.program.parts[name], self.sizes)
        draw = self.code.constant(draw_noise)
        return self.code.let(f"{draw}(seed, {name!r}, ({ticks}), (batch, {shape}), dtype, device)")

    ticks: tuple[str, ...] = ()

    def zeros(self, part: Part, batch: str = "1") -> Var:
        """A part that is zero."""
        return self.code.let(self.zeros_text(part, batch), batch == "1", fresh=False)

    def zeros_text(self, part: Part, batch: str) -> str:
        """The expression of zero in the shape of a part."""
        shape = ", ".join(filter(None, (batch, shape_text(part, self.sizes))))
        return f"torch.zeros({shape}, dtype={dtype_text(part)}, device=device)"

    # Constants.

    def constant(self, ratio: float, a: Structure, wire: Wire, part: Part, terms: Terms) -> bool:
        """Add the constant ratio · A · 1 to the terms; False where it has to be multiplied out."""
        if wire.classes is not None or wire.named:
            return False
        if isinstance(a, Ones | Zero):
            terms.number += ratio * isinstance(a, Ones)
            return True
        if isinstance(a, Sum):
            own = Terms()
            inner = [(ratio * r, term) for r, term in map(unscaled, a.terms)]
            if all(self.constant(r, term, wire, part, own) for r, term in inner):
                terms.number += own.number
                terms.vectors += own.vectors
                return True
        tail = part.shape if wire.tail is None else wire.tail
        if ratio == 1 and (channel := self.channel(a, tail)) is not None:
            terms.vectors.append(channel)
            return True
        vector = self.vector(a)
        if vector is None:
            return False
        if ratio != 1:
            vector = self.code.first(f"{vector} * {ratio!r}")
        shaped = vector
        if len(tail) > 1:
            tail_text = ", ".join(size_text(size, self.sizes) for size in tail)
            shaped = self.code.first(f"{vector}.view({tail_text})")
        terms.vectors.append(Constant(vector, shaped, tuple(tail)))
        return True

    def channel(self, a: Structure, tail: tuple[Size, ...]) -> Constant | None:
        """A constant that is one number per channel, the first axis of a part of several."""
        if not isinstance(a, PerAxis) or a.order or len(a.axes) != 2:
            return None
        first, rest = a.axes
        if (
            not isinstance(first, Column)
            or not isinstance(rest, Ones)
            or len(tail) < 2
            or tail[0] != len(first.vector)
        ):
            return None
        vector = self.tensor(first.vector)
        shaped = self.code.first(f"{vector}.view({len(first.vector)}{', 1' * (len(tail) - 1)})")
        return Constant(vector, shaped, (CHANNELS, len(first.vector)))

    def vector(self, a: Structure) -> str | None:
        """A · 1 as a vector."""
        if isinstance(a, Dense):
            return self.code.first(f"{self.tensor(a.weight)}.view({a.weight.shape[0]})")
        if isinstance(a, Column):
            return self.tensor(a.vector)
        if isinstance(a, Reshaped) and a.tensor.dim() == a.columns == 1:
            return self.weight(a)
        if isinstance(a, Sum):
            inner = [self.vector(t) for t in a.terms]
            return None if None in inner else self.code.first(" + ".join(t for t in inner if t))
        if a.any_weight() is None:
            return None
        return self.code.first(
            f"{self.structure(a)}._matmul(torch.ones(1, 1, dtype=dtype, device=device)).view(-1)"
        )


def dtype_text(part: Part) -> str:
    """The dtype a part is stored in: its own, or that of the run."""
    return "torch.int64" if part.kind == "index" else f"torch.{part.dtype}" if part.dtype else "dtype"


def _spans(sizes: Sequence[Size], wanted: Sequence[Size]) -> list[range] | None:
    """Consecutive dimensions whose sizes multiply to each of the wanted ones; None where they do not."""
    spans, k = list[range](), 0
    for size in wanted:
        start, product = k, 1
        while product != size:
            if k == len(sizes) or not isinstance(sizes[k], int):
                return None
            product, k = product * int(sizes[k]), k + 1
        spans.append(range(start, k))
    return spans if k == len(sizes) else None


def times(ratio: float, text: str) -> str:
    return text if ratio == 1 else f"({text}) * {ratio!r}"


def unscaled(a: Structure) -> tuple[float, Structure]:
    """(ratio, A) of a scaled structure, the ratio as a number."""
    ratio, inner = unscale(a)
    return float(ratio), inner


def count_uses(program: Program) -> dict[str, int]:
    """How often each part is read; outputs of the program and of loops count."""
    count: dict[str, int] = dict.fromkeys(program.outputs, 1)
    for _, column, _ in program.blocks():
        count[column] = count.get(column, 0) + 1
    return count
