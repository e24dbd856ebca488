"""Code for rows: sums of products, activations and joins, with as few calls as torch allows."""

from collections.abc import Sequence
from dataclasses import replace

from onematrix.compiler.code import Var, shape_text
from onematrix.compiler.products import Products, Terms, dtype_text, times, unscaled
from onematrix.compiler.views import moves
from onematrix.kernels.product_sum import add_product
from onematrix.programs.activations import Activation
from onematrix.programs.joins import Join, _with_batch
from onematrix.programs.opaque import Opaque
from onematrix.programs.part import ONE, Part
from onematrix.programs.wiring import Wire, WiredRow
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.embedding import Embedding
from onematrix.structures.identity import Identity

IN_PLACE = {"relu": "relu_", "sigmoid": "sigmoid_", "tanh": "tanh_"}
DIRECT = {"abs", "cos", "exp", "reciprocal", "rsqrt", "sign", "sin", "sqrt", "square"}


class Rows(Products):
    """Writes rows of a lowered program."""

    def row(self, row: WiredRow, env: dict[str, Var]) -> Var:
        """The value of a row."""
        part = self.program.parts[row.part]
        own = row.join is not None and row.join.keeps_operand_shapes
        found = [self.operand(w, row, env) if own else self.sum(w, part, row, env) for w in row.sums]
        if row.activation is not None and self.waits(row):
            return Var("", found[0].single, norm=(self.text(found[0]), row.activation.arguments[0]))
        if row.activation is not None:
            found[0] = self.activation(row.activation, found[0])
        return found[0] if row.join is None else self.join(row, row.join, found)

    def waits(self, row: WiredRow) -> bool:
        """Whether a layer norm may be joined with the scale and shift that follow it."""
        named = row.activation is not None and row.activation.name == "layer_norm"
        return named and row.join is None and self.uses.get(row.part) == 1

    def activation(self, activation: Activation, value: Var) -> Var:
        name, x = activation.name, self.text(value)
        if name in IN_PLACE and value.fresh and value.view:
            return self.code.let(f"(torch.{IN_PLACE[name]} if plain else torch.{name})({x})", value.single)
        if name in IN_PLACE and value.fresh:
            return self.code.let(f"torch.{IN_PLACE[name]}({x})", value.single)
        if name in IN_PLACE or name in DIRECT:
            return self.code.let(f"torch.{name}({x})", value.single)
        if name in ("softmax", "log_softmax"):
            return self.code.let(f"torch.{name}({x}, -1)", value.single)
        arguments = "".join(f", {argument!r}" for argument in activation.arguments)
        function = self.code.constant(activation.rule.function)
        single = value.single or activation.rule.mixes == "batch"  # one row for all samples
        return self.code.let(f"{function}({x}{arguments})", single, value.foreign, name != "cast")

    def join(self, row: WiredRow, join: Join | Opaque, sums: Sequence[Var]) -> Var:
        single = all(v.single for v in sums)
        if join.name == "hadamard":
            a, b = (self.text(v) for v in sums)
            if self.uses.get(row.part, 0) == 1 and not single:
                return Var("", product=(a, b))
            return self.code.let(f"{a} * {b}", single)
        texts = ", ".join(self.text(v) for v in sums)
        if isinstance(join, Join) and join.pattern:
            return self.code.let(f"torch.einsum({_with_batch(join.pattern)!r}, {texts})", single)
        if isinstance(join, Join) and (pooled := self.pooled(row, join, texts)):
            return self.code.let(pooled, single)
        return self.code.let(f"{self.code.constant(join)}({texts})", single)

    def pooled(self, row: WiredRow, join: Join, x: str) -> str | None:
        """The largest of every window by torch's own call, where there is one axis of channels."""
        count = (len(join.numbers) - 1) // 4
        if join.name != "max_pool" or len(self.program.parts[row.part].shape) != count + 1:
            return None
        numbers = [list(join.numbers[i * count : (i + 1) * count]) for i in range(4)]
        options = ", ".join(map(str, [*numbers, bool(join.numbers[-1])]))
        return f"torch.max_pool{count}d({x}, {options})"

    def operand(self, wires: Sequence[Wire], row: WiredRow, env: dict[str, Var]) -> Var:
        """A sum in the shape of what it reads."""
        found = [self.general(wire, env) for wire in wires]
        total = found[0]
        for more in found[1:]:
            total = self.code.let(f"{self.text(total)} + {self.text(more)}", total.single and more.single)
        return total

    def general(self, wire: Wire, env: dict[str, Var]) -> Var:
        """One block where nothing is added to it: a call of its own, or else as the interpreter applies it."""
        if (text := self.free_channels(wire)) is not None:
            return self.code.let(text, True, True, False)
        value = self.value(wire.column, env)
        if wire.passes:
            return value
        if (text := self.free_convolution(wire, value)) is not None:
            return self.code.let(text, value.single)
        if wire.plain:
            return self.alone(wire, value)
        if wire.embeds and not wire.spread and wire.tail is None:
            return self.code.let(
                self.picked(self.program.structures[wire.slot], self.text(value)), value.single
            )
        text = f"apply_wire({self.code.constant(wire)}, {self.text(value)}, {self.run()})"
        return self.code.let(text, value.single, True, False)

    def alone(self, wire: Wire, value: Var) -> Var:
        """A x for a block on one dimension that needs no reshaping."""
        ratio, a = unscaled(self.program.structures[wire.slot])
        if isinstance(a, Dense):
            return self.code.let(
                times(ratio, f"linear({self.text(value)}, {self.tensor(a.weight)})"), value.single
            )
        made = value if isinstance(a, Identity) else self.product(a, value)
        return made if ratio == 1 else self.code.let(times(ratio, self.text(made)), value.single)

    def picked(self, a: Structure, index: str) -> str:
        """The columns of a dense matrix, or the rows of an embedding, that integers name."""
        if isinstance(a, Dense):
            return f"torch.nn.functional.embedding({index}, {self.tensor(a.weight)}.mT)"
        assert isinstance(a, Embedding), "only dense blocks and embeddings embed"
        padding = f", {a.padding}" if a.padding >= 0 else ""
        return f"torch.nn.functional.embedding({index}, {self.tensor(a.weight)}{padding})"

    def sum(self, wires: Sequence[Wire], part: Part, row: WiredRow, env: dict[str, Var]) -> Var:
        """Σ_j A_j x_j in the shape of the part."""
        if part.kind == "index":
            return self.general(wires[0], env) if wires else self.zeros(part)
        terms = Terms()
        constants_first = sorted(wires, key=lambda wire: wire.column != ONE)
        for wire in constants_first:
            self.sort(wire, part, terms, env, row.part in self.held_back)
        value = self.total(terms, part)
        if not any(w.spread for w in wires) or any(w.column != ONE and not w.spread for w in wires):
            return value
        x = self.text(value)
        return self.code.let(
            f"{x}.expand({x}.shape[0], {shape_text(part, self.sizes)})", value.single, True, False
        )

    def sort(
        self, wire: Wire, part: Part, terms: Terms, env: dict[str, Var], held_back: bool = False
    ) -> None:
        """Put a wire where it belongs among the terms; without its ratio where that is held back."""
        ratio, a = unscaled(self.program.structures[wire.slot])
        ratio = 1.0 if held_back else ratio
        if id(wire) in self.absorbed:
            return
        if id(wire) in self.merges:
            terms.plain.append((ratio, self.merged(wire, env)))
            return
        if wire.column == ONE and self.constant(ratio, a, wire, part, terms):
            return
        if wire.passes:
            terms.plain.append((1.0, self.value(wire.column, env)))
        elif not wire.plain and (
            wire.classes is not None or wire.column == ONE or (wire.named and not moves(a))
        ):
            terms.plain.append((1.0, self.general(wire, env)))
        elif not wire.plain:
            made = self.shaped(wire, ratio, a, terms, env)
            terms.made.add(made.text)
            terms.plain.append((1.0, made))
        elif isinstance(a, Identity):
            terms.plain.append((ratio, self.value(wire.column, env)))
        elif isinstance(a, Dense):
            terms.dense.append((ratio, self.tensor(a.weight), self.value(wire.column, env)))
        elif isinstance(a, Diagonal):
            terms.scaled.append((ratio, self.tensor(a.vector), self.value(wire.column, env)))
        else:
            terms.plain.append((ratio, self.product(a, self.value(wire.column, env))))

    def total(self, terms: Terms, part: Part) -> Var:
        flat = len(part.stored_shape) == 1
        self._open_products(terms)
        value = self._products(terms, flat)
        if value is None and terms.scaled and terms.scaled[0][2].norm is None:
            value = self._base(terms)
        for ratio, vector, x in terms.scaled:
            if value is None and x.norm is not None and ratio == 1:
                inner, epsilon = x.norm
                bias = self.bias(terms, None) or ", None"
                text = f"layer_norm({inner}, {vector}.shape, {vector}{bias}, {epsilon!r})"
                value = self.code.let(text, x.single)
                continue
            single = x.single and (value is None or value.single)
            if value is None:
                value = self.code.let(times(ratio, f"{self.text(x)} * {vector}"), x.single)
            else:
                value = self._let(
                    f"torch.addcmul({value.text}, {self.text(x)}, {vector}{_value(ratio)})", single
                )
        for ratio, x in terms.plain:
            value = self._add(value, ratio, x, terms)
        for constant in terms.vectors:
            if value is None:
                value = self.filled(constant.shaped, part)
            else:
                value = self._let(f"{value.text} + {constant.shaped}", value.single)
        if value is None:
            shape = shape_text(part, self.sizes)
            text = f"torch.full((1, {shape}), {terms.number!r}, dtype={dtype_text(part)}, device=device)"
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
        base = self._base(terms) if flat and terms.dense else None
        value, addmm = base, "torch.addmm" if base is None else self.code.constant(add_product)
        for ratio, weight, x in terms.dense:
            if value is None:
                bias = self.bias(terms, None) if ratio == 1 else ""
                text = f"linear({x.text}, {weight}{bias})"
                value = replace(self.code.let(times(ratio, text), x.single), view=not flat and ratio == 1)
            elif flat:
                turned = self.code.first(f"{weight}.t()")
                name = "alpha" if base is None else "ratio"
                alpha = "" if ratio == 1 else f", {name}={ratio!r}"
                text = f"{addmm}({value.text}, {x.text}, {turned}{alpha})"
                if x.single and not value.single:
                    text = _sum_text(value.text, f"linear({x.text}, {weight})", ratio)
                value = self.code.let(text, value.single and x.single)
            else:
                text = _sum_text(value.text, f"linear({x.text}, {weight})", ratio)
                value = self.code.let(text, value.single and x.single)
        return value

    def _base(self, terms: Terms) -> Var | None:
        """A term to add the others to, taken out of the terms."""
        base = next(
            (t for t in terms.plain if t[0] == 1 and t[1].product is None and t[1].norm is None), None
        )
        if base is None:
            return None
        terms.plain.remove(base)
        return Var(base[1].text, base[1].single)

    def _add(self, value: Var | None, ratio: float, x: Var, terms: Terms) -> Var:
        if value is None and (x.product is not None or x.norm is not None):
            value = Var(self.text(x), x.single, fresh=True)
            return self._let(f"{value.text} * {ratio!r}", value.single) if ratio != 1 else value
        if x.norm is not None:
            x = Var(self.text(x), x.single)
        if value is None and ratio == 1:
            own = x.fresh and x.text in terms.made
            return Var(x.text, x.single, x.foreign, own, merged=x.merged, view=own and x.view)
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


def _value(ratio: float) -> str:
    return "" if ratio == 1 else f", value={ratio!r}"
