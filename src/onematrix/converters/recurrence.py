"""Recurrent layers and scans as loops over time; over a fixed number of ticks as one step after the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from onematrix.converters.arithmetic import select as choose
from onematrix.converters.builder import Builder, Term, Unsupported
from onematrix.converters.elementwise import dropped
from onematrix.converters.layout import one_axis, ordered, squeezed
from onematrix.converters.operators import operator
from onematrix.converters.rearrangements import cat, permute, select, stack
from onematrix.converters.result import Result, uniform
from onematrix.converters.sizes import BATCH_NAME
from onematrix.converters.values import BATCH, BATCH_LEADS, Value
from onematrix.errors import ConversionError
from onematrix.programs.block_matrix import Block, BlockMatrix
from onematrix.programs.part import ONE
from onematrix.programs.schedule import Loop, Seq
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.dense import Dense
from onematrix.structures.identity import scale
from onematrix.structures.reshaped import Reshaped
from onematrix.structures.sizes import Size


@dataclass(frozen=True)
class Cell:
    """Parameters of one layer and direction, and what it computes."""

    mode: str
    units: int
    weights: list[Value]  # W_ih, W_hh, then b_ih, b_hh, then W_hr where there are such
    bias: bool

    @property
    def projected(self) -> Value | None:
        """W_hr, the map from the state to the output."""
        return self.weights[-1] if len(self.weights) % 2 else None

    @property
    def width(self) -> int:
        """Numbers of the output."""
        return self.units if self.projected is None else int(self.projected.dimension(0))


def _rows(b: Builder, weight: Value, gate: int, units: int) -> Structure:
    """The rows of one gate of a parameter that holds several."""
    held = b.tensor(weight)
    if len(held) == units:
        return Dense(held) if held.dim() == 2 else Column(held)
    columns = 1 if held.dim() == 1 else held.shape[1]
    return b.shared("gate", id(held), gate, units, make=lambda: Reshaped(held, units, columns, gate * units))


def _gate(b: Builder, cell: Cell, gate: int, x: str | None, h: str | None) -> list[Term]:
    """W x + b_ih and U h + b_hh of one gate; either side may be left out."""
    terms: list[Term] = []
    for source, matrix, offset in ((x, 0, 2), (h, 1, 3)):
        if source is None:
            continue
        terms.append((source, Block(_rows(b, cell.weights[matrix], gate, cell.units))))
        if cell.bias:
            terms.append((ONE, Block(_rows(b, cell.weights[offset], gate, cell.units))))
    return terms


def tick(b: Builder, cell: Cell, x: str, h: str, c: str | None, dtype: torch.dtype) -> tuple[str, str | None]:
    """The rows of one tick: names of the new output and, for an LSTM, the new state."""
    if cell.mode == "LSTM":
        assert c is not None, "an LSTM has two states"
        return _lstm(b, cell, x, h, c, dtype)
    if cell.mode == "GRU":
        return _gru(b, cell, x, h, dtype), None
    activation = "tanh" if cell.mode == "RNN_TANH" else "relu"
    return b.row([cell.units], dtype, _gate(b, cell, 0, x, h), activation=activation), None


def _lstm(b: Builder, cell: Cell, x: str, h: str, c: str, dtype: torch.dtype) -> tuple[str, str]:
    n = [cell.units]
    names = [b.new_part(n, dtype, stem=f"{b.stem}.{k}") for k in "ifgo"]
    b.write(
        [
            (name, [_gate(b, cell, k, x, h)], "tanh" if k == 2 else "sigmoid", None)
            for k, name in enumerate(names)
        ]
    )
    i, f, g, o = (b.take(name) for name in names)
    p, q = (b.new_part(n, dtype, stem=f"{b.stem}.{k}") for k in "pq")
    b.write([(p, [[f], [b.take(c)]], None, "hadamard"), (q, [[i], [g]], None, "hadamard")])
    new_c = b.row(n, dtype, [b.take(p), b.take(q)], stem=f"{b.stem}.c")
    new_h = b.row(n, dtype, [b.take(new_c)], [o], activation="tanh", join="hadamard", stem=f"{b.stem}.h")
    if cell.projected is not None:
        block = Block(Dense(b.tensor(cell.projected)))
        new_h = b.row([cell.width], dtype, [(new_h, block)], stem=f"{b.stem}.r")
    return new_h, new_c


def _gru(b: Builder, cell: Cell, x: str, h: str, dtype: torch.dtype) -> str:
    """r, z = σ(…); n = tanh(W x + b + r ∘ (U h + b')); h' = n + z ∘ (h − n)."""
    n = [cell.units]
    r, z = (b.new_part(n, dtype, stem=f"{b.stem}.{k}") for k in "rz")
    b.write([(name, [_gate(b, cell, k, x, h)], "sigmoid", None) for k, name in enumerate((r, z))])
    m = b.row(n, dtype, [b.take(r)], _gate(b, cell, 2, None, h), join="hadamard", stem=f"{b.stem}.m")
    new = [*_gate(b, cell, 2, x, None), b.take(m)]
    g = b.row(n, dtype, new, activation="tanh", stem=f"{b.stem}.n")
    minus = g, Block(scale(b.identity(cell.units), -1))
    d = b.row(n, dtype, [b.take(z)], [b.take(h), minus], join="hadamard", stem=f"{b.stem}.d")
    return b.row(n, dtype, [b.take(g), b.take(d)], stem=f"{b.stem}.h")


def run(
    b: Builder, cell: Cell, x: Value, states: Sequence[Value], reverse: bool, valid: Value | None
) -> tuple[Value, list[Value]]:
    """One layer and direction over x: (batch, time, features); output (batch, time, width), final states.

    valid: (batch, time), where False the states hold and the output is 0.
    """
    time = x.dimension(1)
    if isinstance(time, int):
        return _unrolled(b, cell, x, states, reverse, time, valid)
    if not str(time).isidentifier():
        raise Unsupported(f"it runs over {time} ticks; a loop needs a plain name")
    return _looped(b, cell, x, states, reverse, time, valid)


def _looped(
    b: Builder,
    cell: Cell,
    x: Value,
    states: Sequence[Value],
    reverse: bool,
    time: Size,
    valid: Value | None,
) -> tuple[Value, list[Value]]:
    x = ordered(b, one_axis(b, one_axis(b, x, 1), 2))
    mask = None if valid is None else b.written(ordered(b, valid)).column
    width = x.axes[-1] if len(x.axes) > 1 else 1
    widths = [cell.width, cell.units][: len(states)]
    given = [None if s.number == 0 else ordered(b, s) for s in states]
    now = b.new_part([width], x.dtype, stem=f"{b.stem}.x")
    old = [b.new_part([w], x.dtype, stem=f"{b.stem}.{k}_prev") for k, w in zip("hc", widths, strict=False)]
    outer, b.nodes = b.nodes, []
    h, c = tick(b, cell, now, old[0], old[1] if len(old) > 1 else None, x.dtype)
    body, b.nodes = b.nodes, outer
    out = b.new_part([time, cell.width], x.dtype, stem=f"{b.stem}.hidden")
    new = [h] if c is None else [h, c]
    names = {now, *old, *new, out, x.column, *(g.part for g in given if g is not None and g.part is not None)}
    names |= {mask} if mask is not None else set()
    parts = {name: b.parts[name] for name in sorted(names)}

    def identities(pairs: Sequence[tuple[str, str, int]]) -> BlockMatrix:
        return BlockMatrix({(row, column): b.identity(size) for row, column, size in pairs}, parts)

    starts = [(o, g.part, w) for o, g, w in zip(old, given, widths, strict=True) if g is not None and g.part]
    b.nodes.append(
        Loop(
            body[0] if len(body) == 1 else Seq(*body),
            over=str(time),
            feeds=identities([(now, x.column, int(width))]),
            outputs=identities([(out, h, cell.width)]),
            init=identities(starts) if starts else None,
            carry=identities(list(zip(old, new, widths, strict=True))),
            reverse=reverse,
            valid=mask,
        )
    )
    finals = [Value(o, (w,), ((BATCH,), (0,)), x.dtype) for o, w in zip(old, widths, strict=True)]
    return Value(out, (time, cell.width), ((BATCH,), (0,), (1,)), x.dtype), finals


def _unrolled(
    b: Builder,
    cell: Cell,
    x: Value,
    states: Sequence[Value],
    reverse: bool,
    time: int,
    valid: Value | None,
) -> tuple[Value, list[Value]]:
    plain = Result((), x.dtype)
    held = [ordered(b, s) for s in states]
    names = [_vector(b, s, int(s.dimension(1))) for s in held]
    made: list[Value] = []
    for t in reversed(range(time)) if reverse else range(time):
        now = _vector(b, ordered(b, select(b, plain, x, 1, t)), int(x.dimension(2)))
        h, c = tick(b, cell, now, names[0], names[1] if len(names) > 1 else None, x.dtype)
        new = [h] if c is None else [h, c]
        if valid is None:
            names = new
            made.append(_state(h, cell.width, x.dtype))
            continue
        mask = select(b, plain, valid, 1, t)
        names = [
            _held(b, mask, _state(n, w, x.dtype), _state(o, w, x.dtype))
            for n, o, w in zip(new, names, [cell.width, cell.units], strict=False)
        ]
        made.append(_state(_held(b, mask, _state(h, cell.width, x.dtype), None), cell.width, x.dtype))
    if not made:
        raise Unsupported("there is no tick")
    sizes = (BATCH_NAME, time, cell.width)
    out = stack(b, Result(sizes, x.dtype), made[::-1] if reverse else made, 1)
    widths = [cell.width, cell.units]
    return out, [_state(name, w, x.dtype) for name, w in zip(names, widths, strict=False)]


def _held(b: Builder, mask: Value, new: Value, old: Value | None) -> str:
    """The new value of the samples that count, of the others the old one, or 0."""
    column = mask.with_dims((*mask.dims, ()))  # one number for all features
    size = tuple(new.dimension(i) for i in range(new.rank))
    found = choose(
        b, Result(size, new.dtype), column, new, uniform(0.0, (), new.dtype) if old is None else old
    )
    return _vector(b, ordered(b, found), int(new.dimension(1)))


def _vector(b: Builder, value: Value, width: int) -> str:
    """The part of (batch, width), of a number too: for every sample."""
    value = b.written(value)
    if b.parts[value.column].shape == (width,):
        return value.column
    return b.row([width], value.dtype, [b.take(value.column)])


def _state(name: str, width: int, dtype: torch.dtype) -> Value:
    return Value(name, (width,) if width > 1 else (), ((BATCH,), (0,) if width > 1 else ()), dtype)


@operator("onematrix.recurrence")
def recurrence(
    b: Builder,
    result: Result,
    x: Value,
    states: Sequence[Value],
    weights: Sequence[Value],
    mode: str,
    layers: int,
    dropout: float,
    bidirectional: bool,
    batch_first: bool,
    bias: bool,
    valid: Value | None = None,
) -> list[Value]:
    """Layers of one or two directions, as torch lays out their parameters."""
    directions = 2 if bidirectional else 1
    if not batch_first:
        x = permute(b, result, x, [1, 0, 2])
    _check_batch(x, states, batch_first)
    _check_layers(states, layers * directions)
    if x.dims[0] != (BATCH,):
        raise Unsupported("its batch is not a dimension of its own")
    units = int(states[-1].dimension(2))
    each = len(weights) // (layers * directions)
    finals: list[list[Value]] = [[] for _ in states]
    for layer in range(layers):
        outs = []
        for d in range(directions):
            place = layer * directions + d
            cell = Cell(mode, units, list(weights[place * each : (place + 1) * each]), bias)
            first = [select(b, result, s, 0, place) if s.number is None else _zero(s) for s in states]
            out, last = run(b, cell, x, first, reverse=d == 1, valid=valid)
            outs.append(squeezed(b, out))
            for line, value in zip(finals, last, strict=True):
                line.append(squeezed(b, value))
        width = sum(int(out.dimension(2)) for out in outs)
        sizes = (BATCH_NAME, x.dimension(1), width)
        x = outs[0] if directions == 1 else cat(b, Result(sizes, x.dtype), outs, 2)
        if dropout > 0 and layer < layers - 1:
            x = dropped(b, result, x, dropout)
    y = x if batch_first else permute(b, result, x, [1, 0, 2])
    stacked = [_stacked(b, line) for line in finals]
    return [y, *stacked]


def _check_batch(x: Value, states: Sequence[Value], batch_first: bool) -> None:
    """Raise ConversionError where the samples of a batch would be ticks or layers."""
    if BATCH in x.dims[1]:
        order = "give it (batch, time, features)" if batch_first else "build it with batch_first=True"
        raise ConversionError(f"a recurrent layer runs over the batch, {BATCH_LEADS}; {order}")
    if any(BATCH in s.dims[0] for s in states):
        raise ConversionError(
            f"a recurrent layer reads the layers of its state from the batch, {BATCH_LEADS}; give the state as "
            "(batch, layers, width) to a small module around the layer that transposes it"
        )


def _check_layers(states: Sequence[Value], needed: int) -> None:
    for state in states:
        if (got := state.dimension(0)) != needed:
            raise ConversionError(
                f"a recurrent layer with {needed} layers × directions needs as many states, got {got}; "
                f"give them as ({needed}, batch, width)",
                needed=needed,
                got=got,
            )


def _zero(state: Value) -> Value:
    return state.with_dims(state.dims[1:])


def _stacked(b: Builder, values: Sequence[Value]) -> Value:
    """Final states, (layers × directions, batch, width)."""
    width = values[0].dimension(1)
    return stack(b, Result((len(values), BATCH_NAME, width), values[0].dtype), values, 0)


@operator("onematrix.scan")
def scan(b: Builder, result: Result, decay: Value, drive: Value, place: int) -> Value:
    """h_t = a_t ∘ h_(t−1) + d_t along a named dimension."""
    time = drive.dimension(place)
    order = [0, place, *(i for i in range(1, drive.rank) if i != place)]
    a, d = (ordered(b, permute(b, result, v, order)) for v in (decay, drive))
    if d.dims[0] != (BATCH,) or not str(time).isidentifier() or a.axes != d.axes:
        raise Unsupported(f"it runs over {time} ticks; a loop needs a plain name")
    inner = d.axes[1:]
    names = [b.new_part(inner, d.dtype, stem=f"{b.stem}.{k}") for k in ("decay", "drive", "h_prev")]
    p = b.new_part(inner, d.dtype, stem=f"{b.stem}.p")
    h = b.new_part(inner, d.dtype, stem=f"{b.stem}.h")
    body = Seq(
        b.step([(p, [[b.take(names[0])], [b.take(names[2])]], None, "hadamard")]),
        b.step([(h, [[b.take(p), b.take(names[1])]], None, None)]),
    )
    out = b.new_part(d.axes, d.dtype, stem=f"{b.stem}.states")
    parts = {n: b.parts[n] for n in (*names, p, h, out, a.column, d.column)}
    whole = b.identity(parts[h].features)
    feeds = {(names[0], a.column): whole, (names[1], d.column): whole}
    b.nodes.append(
        Loop(
            body,
            over=str(time),
            feeds=BlockMatrix(feeds, parts),
            outputs=BlockMatrix({(out, h): whole}, parts),
            carry=BlockMatrix({(names[2], h): whole}, parts),
        )
    )
    back = [order.index(i) for i in range(len(order))]
    return permute(b, result, Value(out, d.axes, d.dims, d.dtype), back)
