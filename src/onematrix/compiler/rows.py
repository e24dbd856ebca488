"""Code for rows: sums of products, activations and joins, with as few calls as torch allows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from onematrix.compiler.code import Code, Var, shape_text, size_text
from onematrix.programs.activations import Activation
from onematrix.programs.joins import Join, _with_batch
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wire, WiredRow
from onematrix.structures.algebra import Sum, Transposed
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones, Scaled, Zero
from onematrix.structures.low_rank import LowRank
from onematrix.structures.tree import layout

IN_PLACE = {"relu": "relu_", "sigmoid": "sigmoid_", "tanh": "tanh_"}
DIRECT = {"abs", "cos", "exp", "reciprocal", "rsqrt", "sign", "sin", "sqrt", "square"}


@dataclass
class Terms:
    """The terms of one sum by what they are; ratios are numbers."""

    dense: list[tuple[float, str, Var]] = field(default_factory=list)  # weight (m, n)
    scaled: list[tuple[float, str, Var]] = field(default_factory=list)  # vector (n,)
    plain: list[tuple[float, Var]] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)  # constants, shaped like the end of the part
    number: float = 0.0


class Rows:
    """Writes rows of a lowered program; `env` gives the variable of each part."""

    def __init__(
        self,
        program: Program,
        slots: dict[int, int],
        names: Sequence[str],
        code: Code,
        sizes: dict[str, str],
    ) -> None:
        self.program, self.slots, self.names, self.code, self.sizes = program, slots, names, code, sizes
        self.uses = _count_uses(program)

    # Tensors and structures.

    def tensor(self, tensor: object) -> str:
        """A tensor the module holds."""
        return self.code.first(self.tensor_text(tensor))

    def tensor_text(self, tensor: object) -> str:
        """Where a tensor stands in the module's tables."""
        slot = self.slots[id(tensor)]
        return f"tables[{slot}][{self.names[slot]!r}]"

    def structure(self, a: Structure) -> str:
        """A structure over the tensors the module holds."""
        return self.code.first(f"rebuild({self.code.constant(layout(a, self.slots))}, module._slots())")

    def run(self) -> str:
        """What the general product of a wire asks about the run."""
        return "run"

    # Rows.

    def row(self, row: WiredRow, env: dict[str, Var]) -> Var:
        """The value of a row."""
        part = self.program.parts[row.part]
        own = row.join is not None and row.join.keeps_operand_shapes
        found = [self.operand(w, row, env) if own else self.sum(w, part, row, env) for w in row.sums]
        if row.activation is not None:
            found[0] = self.activation(row.activation, self.whole(found[0], part, row.activation))
        return found[0] if row.join is None else self.join(row, row.join, found)

    def whole(self, value: Var, part: Part, activation: Activation) -> Var:
        return value

    def activation(self, activation: Activation, value: Var) -> Var:
        name, x = activation.name, self.text(value)
        if name in IN_PLACE and value.fresh:
            return self.code.let(f"torch.{IN_PLACE[name]}({x})", value.single)
        if name in IN_PLACE or name in DIRECT:
            return self.code.let(f"torch.{name}({x})", value.single)
        if name in ("softmax", "log_softmax"):
            return self.code.let(f"torch.{name}({x}, -1)", value.single)
        arguments = "".join(f", {argument!r}" for argument in activation.arguments)
        function = self.code.constant(activation.rule.function)
        return self.code.let(f"{function}({x}{arguments})", value.single, value.foreign, name != "cast")

    def join(self, row: WiredRow, join: Join, sums: Sequence[Var]) -> Var:
        single = all(v.single for v in sums)
        if join.name == "hadamard":
            a, b = (self.text(v) for v in sums)
            if self.uses.get(row.part, 0) == 1 and not single:
                return Var("", product=(a, b))
            return self.code.let(f"{a} * {b}", single)
        texts = ", ".join(self.text(v) for v in sums)
        if join.pattern:
            return self.code.let(f"torch.einsum({_with_batch(join.pattern)!r}, {texts})", single)
        return self.code.let(f"{self.code.constant(join)}({texts})", single)

    def text(self, value: Var) -> str:
        """The expression of a value, multiplied out."""
        if value.product is None:
            return value.text
        return self.code.let(f"{value.product[0]} * {value.product[1]}").text

    # Sums.

    def operand(self, wires: Sequence[Wire], row: WiredRow, env: dict[str, Var]) -> Var:
        """A sum in the shape of what it reads."""
        found = [self.general(wire, env) for wire in wires]
        total = found[0]
        for more in found[1:]:
            total = self.code.let(f"{self.text(total)} + {self.text(more)}", total.single and more.single)
        return total

    def sum(self, wires: Sequence[Wire], part: Part, row: WiredRow, env: dict[str, Var]) -> Var:
        """Σ_j A_j x_j in the shape of the part."""
        if part.kind == "index":
            return self.general(wires[0], env) if wires else self.zeros(part)
        terms = Terms()
        for wire in wires:
            self.sort(wire, part, terms, env)
        value = self.total(terms, part)
        if not any(w.spread for w in wires) or any(w.column != ONE and not w.spread for w in wires):
            return value
        x = self.text(value)
        return self.code.let(
            f"{x}.expand({x}.shape[0], {shape_text(part, self.sizes)})", value.single, True, False
        )

    def sort(self, wire: Wire, part: Part, terms: Terms, env: dict[str, Var]) -> None:
        """Put a wire where it belongs among the terms."""
        ratio, a = unscaled(self.program.structures[wire.slot])
        if wire.column == ONE and self.constant(ratio, a, wire, part, terms):
            return
        if wire.passes:
            terms.plain.append((1.0, self.value(wire.column, env)))
        elif not wire.plain:
            terms.plain.append((1.0, self.general(wire, env)))
        elif isinstance(a, Identity):
            terms.plain.append((ratio, self.value(wire.column, env)))
        elif isinstance(a, Dense):
            terms.dense.append((ratio, self.tensor(a.weight), self.value(wire.column, env)))
        elif isinstance(a, Diagonal):
            terms.scaled.append((ratio, self.tensor(a.vector), self.value(wire.column, env)))
        else:
            terms.plain.append((ratio, self.product(a, self.value(wire.column, env))))

    def product(self, a: Structure, value: Var) -> Var:
        """A x for a structure without a call of its own in torch."""
        x = self.text(value)
        if isinstance(a, LowRank):
            inner = f"linear({x}, {self.tensor(a.right)})"
            return self.code.let(f"linear({inner}, {self.tensor(a.left)})", value.single)
        if isinstance(a, Transposed) and isinstance(a.inner, Dense):
            return self.code.let(f"{x} @ {self.tensor(a.inner.weight)}", value.single)
        return self.code.let(f"{self.structure(a)}._matmul({x})", value.single)

    def general(self, wire: Wire, env: dict[str, Var]) -> Var:
        """One block as the interpreter applies it."""
        value = self.value(wire.column, env)
        if wire.passes:
            return value
        text = f"apply_wire({self.code.constant(wire)}, {self.text(value)}, {self.run()})"
        return self.code.let(text, value.single, True, False)

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
        return self.code.let(f"{self.run()}.draw({name!r}, ({''.join(t + ', ' for t in self.ticks)}))")

    ticks: tuple[str, ...] = ()

    def zeros(self, part: Part, batch: str = "1") -> Var:
        """A part that is zero."""
        return self.code.let(self.zeros_text(part, batch), batch == "1", fresh=False)

    def zeros_text(self, part: Part, batch: str) -> str:
        """The expression of zero in the shape of a part."""
        shape = ", ".join(filter(None, (batch, shape_text(part, self.sizes))))
        dtype = "torch.int64" if part.kind == "index" else f"torch.{part.dtype}" if part.dtype else "dtype"
        return f"torch.zeros({shape}, dtype={dtype}, device=device)"

    # Constants.

    def constant(self, ratio: float, a: Structure, wire: Wire, part: Part, terms: Terms) -> bool:
        """Add the constant ratio · A · 1 to the terms; False where it has to be multiplied out."""
        if wire.classes is not None or wire.named:
            return False
        if isinstance(a, Ones | Zero):
            terms.number += ratio * isinstance(a, Ones)
            return True
        tail = part.shape if wire.tail is None else wire.tail
        vector = self.vector(a)
        if vector is None:
            return False
        if ratio != 1:
            vector = self.code.first(f"{vector} * {ratio!r}")
        if len(tail) > 1:
            tail_text = ", ".join(size_text(size, self.sizes) for size in tail)
            vector = self.code.first(f"{vector}.view({tail_text})")
        terms.vectors.append(vector)
        return True

    def vector(self, a: Structure) -> str | None:
        """A · 1 as a vector."""
        if isinstance(a, Dense):
            return self.code.first(f"{self.tensor(a.weight)}.view({a.weight.shape[0]})")
        if isinstance(a, Column):
            return self.tensor(a.vector)
        if isinstance(a, Sum):
            inner = [self.vector(t) for t in a.terms]
            return None if None in inner else self.code.first(" + ".join(t for t in inner if t))
        if a.any_weight() is None:
            return None
        return self.code.first(
            f"{self.structure(a)}._matmul(torch.ones(1, 1, dtype=dtype, device=device)).view(-1)"
        )

    # Adding up.

    def total(self, terms: Terms, part: Part) -> Var:
        flat = len(part.stored_shape) == 1
        self._open_products(terms)
        value = self._products(terms, flat)
        if value is None and terms.scaled:
            value = self._base(terms)
        for ratio, vector, x in terms.scaled:
            single = x.single and (value is None or value.single)
            if value is None:
                value = self.code.let(_times(ratio, f"{self.text(x)} * {vector}"), x.single)
            else:
                value = self._let(
                    f"torch.addcmul({value.text}, {self.text(x)}, {vector}{_value(ratio)})", single
                )
        for ratio, x in terms.plain:
            value = self._add(value, ratio, x, terms)
        for vector in terms.vectors:
            if value is None:
                value = self.filled(vector, part)
            else:
                value = self._let(f"{value.text} + {vector}", value.single)
        if value is None:
            shape = shape_text(part, self.sizes)
            text = f"torch.full((1, {shape}), {terms.number!r}, dtype=dtype, device=device)"
            return self.code.let(text, True, fresh=False)
        if terms.number:
            value = self._let(f"{value.text} + {terms.number!r}", value.single)
        return value

    def _let(self, text: str, single: bool) -> Var:
        return self.code.let(text, single)

    def filled(self, vector: str, part: Part) -> Var:
        """A constant at every place of a part, one row for the whole batch."""
        text = f"{vector}.expand(1, {shape_text(part, self.sizes)})"
        return self.code.let(text, True, True, False)

    def _open_products(self, terms: Terms) -> None:
        terms.dense = [(r, w, Var(self.text(x), x.single)) for r, w, x in terms.dense]

    def _products(self, terms: Terms, flat: bool) -> Var | None:
        value: Var | None = None
        for ratio, weight, x in terms.dense:
            if flat and ratio == 1 and value is None:
                value = self._base(terms)
            if value is None:
                bias = terms.vectors.pop() if terms.vectors and ratio == 1 else None
                text = f"linear({x.text}, {weight}{', ' + bias if bias else ''})"
                value = self.code.let(_times(ratio, text), x.single)
            elif flat:
                turned = self.code.first(f"{weight}.t()")
                alpha = "" if ratio == 1 else f", alpha={ratio!r}"
                text = f"torch.addmm({value.text}, {x.text}, {turned}{alpha})"
                if x.single and not value.single:
                    text = _sum_text(value.text, f"linear({x.text}, {weight})", ratio)
                value = self.code.let(text, value.single and x.single)
            else:
                text = _sum_text(value.text, f"linear({x.text}, {weight})", ratio)
                value = self.code.let(text, value.single and x.single)
        return value

    def _base(self, terms: Terms) -> Var | None:
        """A term to add the others to, taken out of the terms."""
        base = next((t for t in terms.plain if t[0] == 1 and t[1].product is None), None)
        if base is None:
            return None
        terms.plain.remove(base)
        return Var(base[1].text, base[1].single)

    def _add(self, value: Var | None, ratio: float, x: Var, terms: Terms) -> Var:
        if value is None and x.product is not None:
            value, x = Var(self.text(x), x.single, fresh=True), Var("")
            return self._let(f"{value.text} * {ratio!r}", value.single) if ratio != 1 else value
        if value is None and ratio == 1:
            return Var(x.text, x.single, x.foreign, False)
        if value is None and terms.number:
            number, terms.number = terms.number, 0.0
            text = f"{number!r} - {x.text}" if ratio == -1 else f"{x.text} * {ratio!r} + {number!r}"
            return self._let(text, x.single)
        if value is None:
            return self._let(f"{x.text} * {ratio!r}", x.single)
        if x.product is not None:
            a, b = x.product
            return self._let(f"torch.addcmul({value.text}, {a}, {b}{_value(ratio)})", value.single)
        return self._let(_sum_text(value.text, x.text, ratio), value.single and x.single)


def _sum_text(a: str, b: str, ratio: float) -> str:
    if ratio == 1:
        return f"{a} + {b}"
    return f"{a} - {b}" if ratio == -1 else f"torch.add({a}, {b}, alpha={ratio!r})"


def _times(ratio: float, text: str) -> str:
    return text if ratio == 1 else f"({text}) * {ratio!r}"


def _value(ratio: float) -> str:
    return "" if ratio == 1 else f", value={ratio!r}"


def unscaled(a: Structure) -> tuple[float, Structure]:
    """(ratio, A) of a scaled structure."""
    ratio = Fraction(1)
    while isinstance(a, Scaled):
        ratio, a = ratio * Fraction(a.numerator, a.denominator), a.inner
    return float(ratio), a


def _count_uses(program: Program) -> dict[str, int]:
    """How often each part is read; outputs of the program and of loops count."""
    count: dict[str, int] = dict.fromkeys(program.outputs, 1)
    for _, column, _ in program.blocks():
        count[column] = count.get(column, 0) + 1
    return count
