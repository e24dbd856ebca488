"""Rows no equation covers: the operator itself, between the layouts of the parts it reads and writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from onematrix.converters.builder import Builder
from onematrix.converters.native_layers import RUNS
from onematrix.converters.sizes import BATCH_NAME, divide
from onematrix.converters.values import BATCH, BATCH_LEADS, Atom, Dims, Spread, Value
from onematrix.errors import ConversionError
from onematrix.programs.opaque import Opaque
from onematrix.structures.sizes import Size, evaluate_size

MARK = object()


@dataclass(frozen=True)
class Read:
    """Place of a tensor argument among the parts an opaque row reads."""

    place: int


def write_opaque(
    b: Builder, target: Any, args: Any, kwargs: Any, outputs: Sequence[Any], reason: str
) -> list[Value]:
    """One row per tensor the operator returns; outputs: (sizes, dtype) of each."""
    values: list[Value] = []

    def replaced(x: Any) -> Any:
        if isinstance(x, Value):
            values.append(b.written(x))
            return Read(len(values) - 1)
        if isinstance(x, list | tuple):
            return type(x)(replaced(v) for v in x)
        return {k: replaced(v) for k, v in x.items()} if isinstance(x, dict) else x

    template = replaced(list(args)), replaced(dict(kwargs))
    layouts = [(v.axes, v.dims) for v in values]
    made = []
    for number, (sizes, dtype) in enumerate(outputs):
        axes, dims, place = output_layout(sizes, b.where)
        choose = number if len(outputs) > 1 else None
        function = _caller(RUNS.get(target, target), template, layouts, place, choose)
        name = str(target)
        coupled = any(v.has_batch for v in values)
        opaque = Opaque(name, reason, function, max(len(values), 1), couples_batch=coupled)
        sums = [[b.take(v.part)] for v in values if v.part is not None] or [[b.take("one")]]
        part = b.row(axes, dtype, *sums, join=opaque)
        made.append(Value(part, axes, dims, dtype))
    return made


def output_layout(sizes: Sequence[Size], where: str) -> tuple[tuple[Size, ...], Dims, int | None]:
    """Axes and dimensions of a part that holds a tensor of these sizes, and the dimension of the batch."""
    axes: list[Size] = []
    dims: list[tuple[Atom, ...]] = []
    place = None
    for i, size in enumerate(sizes):
        rest = divide(size, BATCH_NAME) if isinstance(size, str) and BATCH_NAME in size else None
        line: tuple[Atom, ...] = ()
        if rest is not None:
            if place is not None:
                raise ConversionError(
                    f"{where}: a tensor of sizes {list(sizes)} holds the batch twice, {BATCH_LEADS}; "
                    "a layer that reads the time there needs batch_first=True"
                )
            place, line, size = i, (BATCH,), rest
        if size != 1:
            axes.append(size)
            line = (*line, len(axes) - 1)
        dims.append(line)
    return tuple(axes), tuple(dims), place


def _caller(
    target: Any, template: tuple[Any, Any], layouts: Sequence[Any], place: int | None, choose: int | None
) -> Callable[..., Tensor]:
    def call(*parts: Tensor) -> Tensor:
        sizes = _sizes(parts, layouts)
        tensors = [to_tensor(p, axes, dims, sizes) for p, (axes, dims) in zip(parts, layouts, strict=False)]
        args, kwargs = (_filled(t, tensors, sizes) for t in template)
        out = target(*args, **kwargs)
        out = out if choose is None else out[choose]
        return _to_part(out, place, sizes[BATCH_NAME])

    return call


def _sizes(parts: Sequence[Tensor], layouts: Sequence[Any]) -> dict[str, int]:
    sizes = {BATCH_NAME: max((p.shape[0] for p in parts), default=1)}
    for part, (axes, _) in zip(parts, layouts, strict=False):
        for size, got in zip(axes, part.shape[1:], strict=False):
            if isinstance(size, str) and size.isidentifier():
                sizes[size] = got
    return sizes


def _filled(x: Any, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Any:
    if isinstance(x, Read):
        return tensors[x.place]
    if isinstance(x, list | tuple):
        return type(x)(_filled(v, tensors, sizes) for v in x)
    if isinstance(x, dict):
        return {k: _filled(v, tensors, sizes) for k, v in x.items()}
    return evaluate_size(x, sizes) if isinstance(x, SizeText) else x


class SizeText(str):
    """A size among the arguments of an operator, told from an ordinary text."""


def to_tensor(part: Tensor, axes: Sequence[Size], dims: Dims, sizes: Mapping[str, int]) -> Tensor:
    """The tensor of the graph from the value of a part, (batch or 1, *axes)."""
    atoms = [atom for dim in dims for atom in dim]
    x = part if axes else part.reshape(part.shape[0])
    if BATCH in atoms:
        x = x.expand(sizes[BATCH_NAME], *x.shape[1:])
    else:
        x, atoms = x[:1], [BATCH, *atoms]
    x = x.permute([0 if a == BATCH else a + 1 for a in atoms if isinstance(a, int)])
    for i, atom in enumerate(atoms):
        if isinstance(atom, Spread):
            x = x.unsqueeze(i)
            x = x.expand(*x.shape[:i], evaluate_size(atom.size, sizes), *x.shape[i + 1 :])
    shape, at = [], 0 if BATCH in [a for d in dims for a in d] else 1
    for dim in dims:
        total = 1
        for size in x.shape[at : at + len(dim)]:
            total *= size
        shape.append(total)
        at += len(dim)
    return x.reshape(shape)


def _to_part(out: Tensor, place: int | None, batch: int) -> Tensor:
    if place is None:
        out = out.unsqueeze(0)
    else:
        out = out.unflatten(place, (batch, out.shape[place] // batch)).movedim(place, 0)
    kept = [s for s in out.shape[1:] if s != 1]
    return out.reshape(out.shape[0], *(kept or [1]))
