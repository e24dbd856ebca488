"""Matrix products: with a parameter a block, between activations a contraction."""

from collections.abc import Sequence

import torch

from onematrix.converters.arithmetic import joined
from onematrix.converters.builder import Builder, Term, Unsupported, last_block
from onematrix.converters.elementwise import times_number
from onematrix.converters.layout import along, ordered, refine, reshaped
from onematrix.converters.operators import OPERATORS, operator
from onematrix.converters.result import Result
from onematrix.converters.sizes import product
from onematrix.converters.values import BATCH, BATCH_LEADS, Spread, Value
from onematrix.programs.block_matrix import Block
from onematrix.programs.part import ONE
from onematrix.structures.algebra import Transposed
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.reshaped import Reshaped


def matrix(b: Builder, weight: Value) -> Structure | None:
    """A parameter of two dimensions as (rows, columns); None where it is computed or holds more."""
    held = weight.tensor
    if held is None or weight.rank != 2 or 1 in weight.axes or not all(weight.dims):
        return None
    if held.dim() != 2 or weight.axes != tuple(held.shape):
        return _merged(b, weight)
    if weight.dims == ((0,), (1,)):
        kept = b.tensor(weight)
        return b.shared("dense", id(kept), make=lambda: Dense(kept))
    if weight.dims == ((1,), (0,)):
        kept = b.tensor(weight)
        return b.shared("transposed", id(kept), make=lambda: Transposed(Dense(kept)))
    return None


def _merged(b: Builder, weight: Value) -> Structure | None:
    """A parameter of any dimensions read as a matrix, its axes in order."""
    kept = b.tensor(weight)
    sizes = [int(weight.dimension(i)) for i in range(2)]
    if weight.atoms == list(range(len(weight.axes))):
        return b.shared("rows", id(kept), *sizes, make=lambda: Reshaped(kept, *sizes))
    if [*weight.dims[1], *weight.dims[0]] == list(range(len(weight.axes))):
        return b.shared(
            "columns", id(kept), *sizes, make=lambda: Transposed(Reshaped(kept, sizes[1], sizes[0]))
        )
    return None


def parameter_matrix(b: Builder, weight: Value) -> Structure | None:
    """As `matrix`, for parameters with a dimension of 1 too."""
    held = weight.tensor
    if held is not None and held.dim() == 2 and 1 in held.shape and not weight.ticks:
        sizes = tuple(weight.dimension(i) for i in range(weight.rank))
        kept = b.tensor(weight)
        if sizes == tuple(held.shape):
            return b.shared("dense", id(kept), make=lambda: Dense(kept))
        return b.shared("transposed", id(kept), make=lambda: Transposed(Dense(kept)))
    return matrix(b, weight)


def bias_term(b: Builder, bias: Value) -> Term:
    """A parameter of one dimension at every place, as a block from `one`."""
    return ONE, Block(b.column(bias), on="last")


def tailed(b: Builder, x: Value, place: int) -> tuple[Value, int]:
    """The value over a part whose last axes are one dimension, in order; the number of the others."""
    dim = x.dims[place]
    if BATCH in dim:
        raise Unsupported("it mixes the samples of the batch")
    x = b.written(x)
    n = len(x.axes)
    if list(dim) == list(range(n - len(dim), n)):
        return x, n - len(dim)
    moved = x.with_dims((*x.dims[:place], *x.dims[place + 1 :], dim))
    moved = ordered(b, moved)
    dims = moved.dims[:-1]
    return moved.with_dims((*dims[:place], moved.dims[-1], *dims[place:])), len(moved.axes) - len(dim)


def apply_matrix(
    b: Builder, x: Value, place: int, a: Structure, *more: Term, activation: str | None = None
) -> Value:
    """Σ A x along one dimension, with further terms on the last axis of the result (biases)."""
    x, kept = tailed(b, x, place)
    size = a.shape[0]
    before = x.axes[:kept]
    axes = (*before, *((size,) if size != 1 else ()))
    terms = [(x.column, last_block(a, before))]
    for column, block in more:
        if size == 1 and before:
            block = Block(PerAxis((_ones(product(before)), block.structure)))
        terms.append((column, block))
    part = b.row(axes, x.dtype, terms, activation=activation)
    new = (kept,) if size != 1 else ()
    dims = tuple(new if i == place else dim for i, dim in enumerate(x.dims))
    return Value(part, axes, dims, x.dtype)


def _ones(size: object) -> Structure:
    from onematrix.structures.identity import Ones

    return Ones(size, 1)  # type: ignore[arg-type]


@operator("linear")
def linear(b: Builder, result: Result, x: Value, weight: Value, bias: Value | None = None) -> Value:
    a = parameter_matrix(b, weight)
    if a is None or weight.dtype != x.dtype:
        swapped = weight.with_dims((weight.dims[1], weight.dims[0]))
        out = matmul(b, result, x, swapped)
        return out if bias is None else OPERATORS["add.Tensor"](b, result, out, bias)  # type: ignore[return-value]
    plain = bias is not None and bias.tensor is not None and bias.tensor.dim() == 1
    terms = [bias_term(b, bias)] if bias is not None and plain else []
    out = apply_matrix(b, x, x.rank - 1, a, *terms)
    if bias is not None and not plain:
        return OPERATORS["add.Tensor"](b, result, out, bias)  # type: ignore[return-value]
    return out


@operator("addmm")
def addmm(
    b: Builder, result: Result, bias: Value, x: Value, y: Value, *, beta: float = 1, alpha: float = 1
) -> Value:
    if (beta, alpha) == (1, 1) and bias.rank == 1:
        return linear(b, result, x, y.with_dims((y.dims[1], y.dims[0])), bias)
    found = times_number(b, matmul(b, result, x, y), float(alpha))
    return OPERATORS["add.Tensor"](b, result, found, bias, alpha=beta)  # type: ignore[return-value]


OPERATORS["baddbmm"] = addmm


@operator("matmul", "mm", "bmm", "mv", "dot")
def matmul(b: Builder, result: Result, x: Value, y: Value) -> Value:
    if y.rank == 2 and x.tensor is None and (a := matrix(b, y.with_dims((y.dims[1], y.dims[0])))) is not None:
        if x.dtype == y.dtype and BATCH not in x.dims[-1]:
            return apply_matrix(b, x, x.rank - 1, a)
    if x.rank == 2 and y.rank >= 2 and y.tensor is None and (a := matrix(b, x)) is not None:
        if x.dtype == y.dtype and BATCH not in y.dims[-2] and len(y.dims[-2]) == 1:
            return along(b, y, y.rank - 2, a)
    lead = "abcdefgh"[: max(x.rank, y.rank) - 2] if max(x.rank, y.rank) > 2 else ""
    left = "k" if x.rank == 1 else lead[len(lead) - (x.rank - 2) :] + "mk"
    right = "k" if y.rank == 1 else lead[len(lead) - (y.rank - 2) :] + "kn"
    out = lead + ("m" if x.rank > 1 else "") + ("n" if y.rank > 1 else "")
    return contract(b, [x, y], [left, right], out, result.dtype)


@operator("einsum")
def einsum(b: Builder, result: Result, equation: str, values: Sequence[Value], **options: object) -> Value:
    left, _, right = equation.replace(" ", "").partition("->")
    sides = left.split(",")
    if "." in equation or not right or len(values) < 2 or any(len(set(s)) < len(s) for s in sides):
        raise Unsupported(f"the contraction {equation}")
    return contract(b, list(values), sides, right, result.dtype)


def contract(b: Builder, values: list[Value], sides: Sequence[str], out: str, dtype: torch.dtype) -> Value:
    """Σ over the labels that do not stay of the product of all tensors; one label per dimension.

    A dimension of size 1 against a larger one is repeated. The batch stays outside the contraction.
    """
    labels = sorted({label for side in sides for label in side})
    groups = [[side.index(label) if label in side else None for side in sides] for label in labels]
    values = refine(b, values, groups)
    letters: dict[tuple[str, int], str] = {}
    kept: dict[str, list[tuple[str, int] | int | Spread]] = {}
    for label, group in zip(labels, groups, strict=True):
        lines = [values[i].dims[d] for i, d in enumerate(group) if d is not None and values[i].dims[d]]
        kept[label] = []
        for place in range(max((len(line) for line in lines), default=0)):
            atoms = [line[place] for line in lines]
            if BATCH in atoms:
                kept[label].append(BATCH)
            elif any(isinstance(a, int) for a in atoms):
                letters[label, place] = f"{label}{place}" if place else label
                kept[label].append((label, place))
            else:
                kept[label].append(atoms[0])
    _check_batch(labels, kept, sides, out, values)
    operands = []
    for value, side in zip(values, sides, strict=True):
        operands.append(_operand(b, b.written(value), side, letters))
    names = [letters[entry] for label in out for entry in kept[label] if isinstance(entry, tuple)]
    number = {
        entry: i for i, entry in enumerate(e for label in out for e in kept[label] if isinstance(e, tuple))
    }
    dims = tuple(tuple(number[e] if isinstance(e, tuple) else e for e in kept[label]) for label in out)
    return _contraction(b, operands, names, dims, dtype)


def _check_batch(
    labels: Sequence[str],
    kept: dict[str, list[object]] | object,
    sides: Sequence[str],
    out: str,
    values: object,
) -> None:
    assert isinstance(kept, dict), "factors per label"
    holding = [label for label in labels if BATCH in kept[label]]
    if len(holding) > 1 or any(label not in out for label in holding):
        raise Unsupported(
            f"it multiplies different samples of the batch, {BATCH_LEADS}; a layer that reads the time there "
            "needs batch_first=True"
        )
    for label in labels:
        if label not in out and any(isinstance(e, Spread) for e in kept[label]):
            raise Unsupported("it sums copies")


def _operand(
    b: Builder, value: Value, side: str, letters: dict[tuple[str, int], str]
) -> tuple[Value, list[str]]:
    """The value and the letter of each of its axes."""
    names: dict[int, str] = {}
    for label, dim in zip(side, value.dims, strict=True):
        for place, atom in enumerate(dim):
            if isinstance(atom, int) and atom != BATCH:
                names[atom] = letters[label, place]
    return value, [names[a] for a in range(len(value.axes))]


def _contraction(
    b: Builder,
    operands: list[tuple[Value, list[str]]],
    names: list[str],
    dims: tuple[tuple[int | Spread, ...], ...],
    dtype: torch.dtype,
) -> Value:
    single = any(not letters for _, letters in operands)
    if not names and not single:  # one number per sample still needs an axis
        value, letters = operands[0]
        operands = [(reshaped(b, value, (1, *value.axes)), ["o", *letters]), *operands[1:]]
        single = True
    written = [letters or ["o"] for _, letters in operands]
    pattern = ", ".join(" ".join(line) for line in written) + " -> " + " ".join(names or ["o"])
    lengths = {n: s for v, line in operands for n, s in zip(line, v.axes, strict=True)}
    axes = [lengths[n] for n in names]
    parts = [v.part for v, _ in operands]
    part = b.row(axes, dtype, *([b.take(p)] for p in parts if p is not None), join=pattern)
    return Value(part, tuple(axes), dims, dtype)


@operator("bilinear")
def bilinear(
    b: Builder, result: Result, x: Value, y: Value, weight: Value, bias: Value | None = None
) -> Value:
    """y_o = Σ W[o, i, j] x_i y_j + b_o, the third-order term."""
    lead = "abcdefgh"[: x.rank - 1]
    found = contract(b, [x, weight, y], [lead + "i", "oij", lead + "j"], lead + "o", result.dtype)
    return found if bias is None else OPERATORS["add.Tensor"](b, result, found, bias)  # type: ignore[return-value]


@operator("outer")
def outer(b: Builder, result: Result, x: Value, y: Value) -> Value:
    return joined(b, "hadamard", result.dtype, x.with_dims((*x.dims, ())), y)
