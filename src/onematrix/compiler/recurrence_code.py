"""Code of the loops that are one kernel."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from onematrix.compiler.cells import Cell
from onematrix.compiler.code import Var, size_text
from onematrix.compiler.fed_rows import FedRows
from onematrix.compiler.merging import operand_texts
from onematrix.compiler.recurrences import Dense1, Elementwise
from onematrix.compiler.rows import Rows
from onematrix.compiler.whole_gates import whole_biases, whole_tensor
from onematrix.kernels.assembled import assemble
from onematrix.kernels.dense_fed import run_fed_dense_loop
from onematrix.kernels.dense_loop import run_dense_loop
from onematrix.kernels.elementwise_fed import run_fed_elementwise_loop
from onematrix.kernels.elementwise_loop import run_elementwise_loop
from onematrix.kernels.native_recurrence import native_gru, native_lstm
from onematrix.programs.schedule import Loop
from onematrix.structures.base import Structure

Env = dict[str, Var]


def emit_elementwise(
    found: Elementwise, loop: Loop, starts: Sequence[str], rows: Rows, env: Env, fed: FedRows | None
) -> tuple[Env, list[str | None]]:
    """The stacked outputs and the final values of an elementwise recurrence, which makes the rows `fed` itself."""
    code = rows.code
    run = code.constant(run_elementwise_loop if fed is None else run_fed_elementwise_loop)
    made = fed.rows if fed is not None else {}
    series = ", ".join(
        "None" if name in made else f"{rows.text(env[name])}.transpose(0, 1)" for name in found.series
    )
    products = "" if fed is None else _fed(fed, [name for name in found.series if name in made], rows, env)
    options = _options(loop, rows, env)
    first = found.loop.given - found.loop.carried
    overlap = loop.valid is None and any(first <= r < found.loop.given for r in found.loop.outputs)
    options += ", overlap=True" if overlap else ""
    stacked, final = code.name("all"), code.name("end")
    code.line(
        f"{stacked}, {final} = {run}({code.constant(found.loop)}, {products}[{series}], [{', '.join(found.vectors)}], "
        f"[{', '.join(starts)}]{options})"
    )
    outputs = {
        name: code.let(f"{stacked}[{place}].transpose(0, 1)", foreign=overlap, fresh=False)
        for place, name in enumerate(found.outputs)
    }
    return outputs, [f"{final}[{place}]" for place in range(len(starts))]


def emit_cell(found: Cell, loop: Loop, starts: Mapping[str, str], rows: Rows, env: Env) -> tuple[Env, Env]:
    """The hidden states of torch's own cell, and its final state by carried part."""
    code = rows.code
    run = code.constant(native_lstm if found.kind == "lstm" else native_gru)
    inputs = f"{rows.text(env[found.inputs])}.transpose(0, 1)"
    init = ", ".join(starts[name] for name in found.state)
    init = f"({init})" if len(found.state) > 1 else init
    weights = [_gates(group, rows) for group in (found.w_ih, found.w_hh)]
    both = whole_biases(found)
    biases = (
        [_biases(group, found, rows) for group in (found.b_ih, found.b_hh)]
        if both is None
        else [rows.tensor(vector) for vector in both]
    )
    reverse = ", reverse=True" if loop.reverse else ""
    stacked, final = code.name("all"), code.name("end")
    code.line(f"{stacked}, {final} = {run}({inputs}, {init}, {', '.join([*weights, *biases])}{reverse})")
    outputs = {name: code.let(f"{stacked}.transpose(0, 1)", fresh=False) for name in found.outputs}
    ends = [f"{final}[{k}]" for k in range(len(found.state))] if len(found.state) > 1 else [final]
    return outputs, {
        name: code.let(end, foreign=True, fresh=False) for name, end in zip(found.state, ends, strict=True)
    }


def _gates(group: Sequence[Structure], rows: Rows) -> str:
    """Weights gate by gate, or the tensor they are."""
    whole = whole_tensor(group)
    return f"[{', '.join(rows.weight(w) for w in group)}]" if whole is None else rows.tensor(whole)


def _biases(group: Sequence[Structure | None], found: Cell, rows: Rows) -> str:
    if all(bias is None for bias in group):
        return "None"
    zero = [f"{rows.weight(w)}.new_zeros({w.fixed_shape[0]})" for w in found.w_hh]
    texts = [
        rows.code.first(z) if bias is None else rows.vector(bias) or ""
        for bias, z in zip(group, zero, strict=True)
    ]
    return f"[{', '.join(texts)}]"


def emit_dense(
    found: Dense1,
    loop: Loop,
    starts: Sequence[str] | None,
    rows: Rows,
    env: Env,
    read: Sequence[bool],
    fed: FedRows | None,
) -> tuple[Env, list[str | None]]:
    """The stacked outputs and the final values of a dense recurrence, None where one is not computed.

    starts: None where it starts from zero. read: of each carried part, whether anything needs its final value.
    fed: the rows that are all its inputs, which it makes itself.
    """
    code = rows.code
    run = code.constant(run_dense_loop if fed is None else run_fed_dense_loop)
    inputs = (
        f"{_inputs(found, rows, env, loop)}, " if fed is None else _fed(fed, _fed_names(found), rows, env)
    )
    if starts is None:
        zero = "torch.zeros(1, 1, dtype=dtype, device=device)"
        init = code.let(f"{zero}.expand(batch, {sum(found.widths)})").text
    else:
        init = starts[0] if len(starts) == 1 else code.let(f"torch.cat([{', '.join(starts)}], -1)").text
    options = _options(loop, rows, env)
    if loop.ticks is not None:
        options += f", ticks={size_text(loop.ticks, rows.sizes)}, after={loop.after!r}"
    options += ", zero=True" if starts is None else ""
    edges = list(pairwise(accumulate(found.widths, initial=0)))
    start, stop = 0, edges[-1][1]
    if not found.outputs:
        options += ", last_only=True"
        needed = [edge for edge, wanted in zip(edges, read, strict=True) if wanted]
        start, stop = (needed[0][0], needed[-1][1]) if needed else (start, stop)
        options += f", read=({start}, {stop})" if (start, stop) != (0, edges[-1][1]) else ""
    slices = _joined(found, {start, stop})
    weight = _weight(found, rows) if fed is None else _blocks(found, rows)
    stacked, final = code.name("all"), code.name("end")
    code.line(f"{stacked}, {final} = {run}({inputs}{weight}, {init}, {slices!r}{options})")
    outputs = {
        name: code.let(f"{stacked}{_cut(edges[k], 0, edges[-1][1])}.transpose(0, 1)", fresh=False)
        for name, k in found.outputs.items()
    }
    ends = [f"{final}{_cut((a, b), start, stop)}" if start <= a and b <= stop else None for a, b in edges]
    return outputs, ends


def is_fed_alone(found: Dense1, fed: FedRows) -> bool:
    """Whether the inputs of a dense recurrence are these rows and nothing else."""
    names = [name for series in found.series for name in series]
    return names == _fed_names(found) and set(names) == set(fed.rows) and not any(found.vectors)


def _fed_names(found: Dense1) -> list[str]:
    """The one series of each carried part that has one."""
    return [names[0] for names in found.series if len(names) == 1]


def _fed(fed: FedRows, names: Sequence[str], rows: Rows, env: Env) -> str:
    """The first arguments of a kernel that makes its inputs: what they are products of, weights, biases."""
    x = rows.text(rows.value(fed.merge.column, env))
    weights, vectors = operand_texts(rows.code, rows.tensor, [fed.members[n] for n in names])
    biases = f"[{', '.join(vectors)}]" if vectors else "None"
    return f"{x}, [{', '.join(weights)}], {biases}, "


def _joined(found: Dense1, kept: set[int]) -> tuple[tuple[int, str], ...]:
    """Slices with their activations; elementwise neighbours with the same one are one, but at the edges kept."""
    joined: list[tuple[int, str]] = []
    at = 0
    for width, name in zip(found.widths, found.activations, strict=True):
        if joined and joined[-1][1] == name != "softmax" and at not in kept:
            joined[-1] = (joined[-1][0] + width, name)
        else:
            joined.append((width, name))
        at += width
    return tuple(joined)


def _cut(edge: tuple[int, int], start: int, stop: int) -> str:
    """The indexing of these features of a tensor that holds those from start to stop."""
    return "" if edge == (start, stop) else f"[..., {edge[0] - start}:{edge[1] - start}]"


def _options(loop: Loop, rows: Rows, env: Env) -> str:
    text = ", reverse=True" if loop.reverse else ""
    if loop.valid is not None:
        mask = rows.text(env[loop.valid])
        if rows.program.parts[loop.valid].dtype != "bool":
            mask = f"({mask} != 0)"
        text += f", valid={mask}.transpose(0, 1)"
    return text


def _weight(found: Dense1, rows: Rows) -> str:
    """W, put together from its blocks."""
    if len(found.widths) == 1:
        return rows.tensor(found.blocks[0, 0])
    return rows.code.first(f"{rows.code.constant(assemble)}({_blocks(found, rows)})")


def _blocks(found: Dense1, rows: Rows) -> str:
    """W as rows of blocks, zero where there is none."""
    code, count = rows.code, len(found.widths)
    lines = []
    for i in range(count):
        blocks = []
        for j in range(count):
            if (i, j) in found.blocks:
                blocks.append(rows.tensor(found.blocks[i, j]))
            else:
                like = rows.tensor(next(iter(found.blocks.values())))
                blocks.append(code.first(f"{like}.new_zeros({found.widths[i]}, {found.widths[j]})"))
        lines.append(f"[{', '.join(blocks)}]")
    return f"[{', '.join(lines)}]"


def _inputs(found: Dense1, rows: Rows, env: Env, loop: Loop) -> str:
    """a: per carried part its series and constants added, all side by side, ticks first."""
    code = rows.code
    joined = _merged([env[names[0]] for names in found.series if len(names) == 1], found)
    if joined is not None:
        return f"{joined}.transpose(0, 1)"
    pieces = []
    for names, vectors, width in zip(found.series, found.vectors, found.widths, strict=True):
        terms = [rows.text(env[name]) for name in names] + vectors
        if not names:  # nothing is fed to this part
            length = size_text(loop.length if loop.after == "zero" else loop.over or 1, rows.sizes)
            terms = [f"torch.zeros(1, {length}, {width}, dtype=dtype, device=device)", *vectors]
        pieces.append(code.let(" + ".join(terms)).text if len(terms) > 1 else terms[0])
    if len(pieces) == 1:
        return f"{pieces[0]}.transpose(0, 1)"
    batch = [f"{piece}.expand(batch, *{piece}.shape[1:])" for piece in pieces]
    return f"torch.cat([{', '.join(batch)}], -1).transpose(0, 1)"


def _merged(series: Sequence[Var], found: Dense1) -> str | None:
    """The one product the series are consecutive slices of, if they are."""
    if len(series) != len(found.widths) or any(found.vectors):
        return None
    places = [var.merged for var in series]
    first = places[0]
    if first is None or any(p is None or p[0] != first[0] for p in places):
        return None
    starts = [p[1:] for p in places if p is not None]
    if any(a[1] != b[0] for a, b in pairwise(starts)):
        return None
    return f"{first[0]}[..., {starts[0][0]}:{starts[-1][1]}]"
