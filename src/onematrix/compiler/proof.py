"""Proof of a compiled program: outputs and gradients equal the interpreter's, on small and on edge inputs."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from onematrix.errors import CompileError, OneMatrixError
from onematrix.programs.interpreter import interpret
from onematrix.programs.program import Program
from onematrix.programs.substitution import replace_structures
from onematrix.structures.tree import map_tensors

NUMBERS = 5_000_000  # beyond so many, the proof runs in the program's own dtype: a copy in float64 is large
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 2e-2}

Run = Callable[..., Tensor | tuple[Tensor, ...]]


def prove(
    program: Program,
    lowered: Program,
    build: Callable[[Program, Program], Run],
    sizes: Sequence[int] = (1, 3),
) -> None:
    """Raise CompileError where build(program, lowered) is not what the interpreter gives.

    Named sizes are as in `sizes`, batches 1 and 2; inputs are random, zero, and tied (rounded). Programs of up
    to 5 million numbers are compared in float64 to 1e-9, outputs and gradients; larger ones in their dtype, and
    those that cast to a narrower dtype to its precision.
    """
    exact, low = in_double(program, lowered) if _numbers(program) <= NUMBERS else (program, lowered)
    run = build(exact, low)
    for number, kind in enumerate(("random", "zeros", "ties")):
        size, batch = sizes[number % len(sizes)], 1 + number % 2
        table = dict.fromkeys(exact.free_sizes(), size)
        try:
            inputs = [_input(exact, name, table, batch, kind, number) for name in exact.inputs]
        except OneMatrixError:
            continue  # no input of this size exists
        _compare(exact, run, inputs, table, kind)


def _compare(program: Program, run: Run, inputs: list[Tensor], sizes: dict[str, int], kind: str) -> None:
    try:
        wanted = _tuple(interpret(program, *inputs, seed=1, sizes=sizes))
    except OneMatrixError:
        return  # the program itself refuses such sizes
    narrow = _narrowest(program)
    got = _tuple(run(*inputs, seed=1, sizes=sizes))
    for name, ours, theirs in zip(program.outputs, got, wanted, strict=True):
        _check(f"output {name!r}, {kind} inputs", ours.detach(), theirs.detach(), narrow)
    free = [x for x in inputs if x.requires_grad]
    free += [t for t in program.parameters.values() if t.requires_grad]
    pairs = zip(_slopes(got, free), _slopes(wanted, free), strict=True)
    for number, (ours, theirs) in enumerate(pairs):
        _check(f"gradient {number} of {len(free)}, {kind} inputs", ours, theirs, narrow)


def _narrowest(program: Program) -> float:
    """The tolerance of the narrowest dtype a part of the program is cast to; 0 where none is."""
    dtypes = {getattr(torch, part.dtype) for part in program.parts.values() if part.dtype}
    return max((TOLERANCE[d] for d in dtypes if d in TOLERANCE), default=0.0)


def _check(who: str, ours: Tensor, theirs: Tensor, narrow: float) -> None:
    if ours.shape != theirs.shape:
        raise CompileError(f"proof: {who}: shape {tuple(theirs.shape)} was needed, got {tuple(ours.shape)}")
    if not theirs.is_floating_point():
        if not torch.equal(ours, theirs):
            raise CompileError(f"proof: {who}: integers differ")
        return
    scale = float(theirs[theirs.isfinite()].abs().max()) if bool(theirs.isfinite().any()) else 0.0
    allowed = max(narrow, TOLERANCE.get(theirs.dtype, 1e-3)) * max(1.0, scale)
    if not torch.allclose(ours.double(), theirs.double(), rtol=0, atol=allowed, equal_nan=True):
        worst = float((ours.double() - theirs.double()).abs().nan_to_num(math.inf).max())
        raise CompileError(
            f"proof: {who}: differs from the interpreter by {worst:.3g}, allowed {allowed:.3g}; "
            "this is a fault of the compiler: please report the program's text, and use om.Iterated(program)",
            error=worst,
        )


def _input(program: Program, name: str, sizes: dict[str, int], batch: int, kind: str, seed: int) -> Tensor:
    part = program.parts[name]
    shape = (batch, *part.at(sizes))
    g = torch.Generator().manual_seed(seed)
    if part.kind == "index":
        classes = part.shape[-1]
        return torch.randint(0, classes if isinstance(classes, int) else sizes[classes], shape, generator=g)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    x = {"random": x, "zeros": 0 * x, "ties": x.round()}[kind]
    if part.dtype is not None:
        return x.to(getattr(torch, part.dtype)) if part.dtype != "bool" else x > -0.5
    return x.to(program.dtype or torch.get_default_dtype()).requires_grad_()


def in_double(*programs: Program) -> list[Program]:
    """The programs over float64 copies of their numbers, as parameters; ties stay ties, within and between them."""
    tensors: dict[int, Tensor] = {}

    def double(t: Tensor) -> Tensor:
        if id(t) not in tensors:
            tensors[id(t)] = nn.Parameter(t.detach().double()) if t.is_floating_point() else t
        return tensors[id(t)]

    return [
        replace_structures(program, {id(s): map_tensors(s, double) for s in program.structures})
        for program in programs
    ]


def _numbers(program: Program) -> int:
    return sum(t.numel() for t in program.parameters.values())


def _tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _slopes(outputs: Sequence[Tensor], free: Sequence[Tensor]) -> Sequence[Tensor]:
    total = sum((o.sin() + o).sum() for o in outputs if o.is_floating_point())
    if not isinstance(total, Tensor) or not total.requires_grad or not free:
        return [torch.zeros_like(t) for t in free]
    return torch.autograd.grad(total, free, materialize_grads=True)
