"""One run of a program: its inputs checked, its named sizes fixed, its noise drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onematrix.errors import DTypeError, OneMatrixError, ProgramError, ShapeError
from onematrix.programs.noise import draw_uniform
from onematrix.programs.part import ONE, Part, fix_size
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Node, Seq
from onematrix.structures.base import Structure, under_autocast
from onematrix.structures.sizes import Size

State = dict[str, Tensor]
Tick = tuple[int, ...]


@dataclass
class Run:
    """What the nodes of a schedule need to know besides the state."""

    program: Program
    structures: Sequence[Structure]  # one per slot
    batch: int
    dtype: torch.dtype
    device: torch.device
    sizes: dict[str, int]
    literal: bool
    seed: int
    first_tick: int
    state_in: Mapping[str, Tensor]
    state_out: State = field(default_factory=dict)
    dense: dict[int, Tensor] = field(default_factory=dict)  # literal matrices, by slot
    shapes: dict[tuple[Size, ...], tuple[int, ...]] = field(default_factory=dict)

    def fix(self, shape: tuple[Size, ...]) -> tuple[int, ...]:
        """The shape with its named sizes fixed."""
        if shape not in self.shapes:
            self.shapes[shape] = tuple([fix_size(size, self.sizes) for size in shape])
        return self.shapes[shape]

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor that holds a part, without the batch."""
        return self.fix(self.program.parts[name].stored_shape)

    def dtype_of(self, name: str) -> torch.dtype:
        """Dtype of the tensor that holds a part."""
        part = self.program.parts[name]
        if part.kind == "index":
            return torch.int64
        kind = getattr(torch, part.dtype) if part.dtype else self.dtype
        return torch.float64 if self.literal and kind.is_floating_point else kind

    def zeros(self, name: str, batch: int | None = None) -> Tensor:
        """A part that is zero, for every sample or for `batch` of them."""
        count = self.batch if batch is None else batch
        return torch.zeros(count, *self.shape_of(name), dtype=self.dtype_of(name), device=self.device)

    def whole(self, value: Tensor) -> Tensor:
        """The value with one copy per sample, where all samples share one."""
        return value if value.shape[0] == self.batch else value.expand(self.batch, *value.shape[1:])

    def widen(self, x: Tensor) -> Tensor:
        """In float64 when the run is literal."""
        return x.double() if self.literal and x.is_floating_point() else x

    def draw(self, name: str, tick: Tick) -> Tensor:
        """Uniform numbers on [0, 1) that depend on the seed, the part and the tick alone."""
        drawn = draw_uniform(self.seed, name, tick, (self.batch, *self.shape_of(name)))
        return drawn.to(self.device, self.dtype)


def begin(
    program: Program,
    inputs: Sequence[Tensor],
    structures: Sequence[Structure] | None,
    literal: bool,
    seed: int,
    sizes: Mapping[str, int] | None,
    state: Mapping[str, Tensor] | None,
    first_tick: int,
) -> tuple[Run, State]:
    """The run and the state it starts from.

    Raises ShapeError, DTypeError, ProgramError where inputs do not fit, OneMatrixError where one is no tensor.
    """
    if len(inputs) != len(program.inputs):
        raise ShapeError(
            f"program takes {len(program.inputs)} inputs ({', '.join(program.inputs)}), got {len(inputs)}"
        )
    for name, x in zip(program.inputs, inputs, strict=True):
        _check_tensor(f"input {name!r}", name, program.parts[name], x)
    named = {n: _column(program.parts[n], x) for n, x in zip(program.inputs, inputs, strict=True)}
    inputs = tuple(named.values())
    found = dict(sizes or {})
    batch = inputs[0].shape[0] if inputs[0].dim() else 0
    for name, x in named.items():
        _read_sizes(name, program.parts[name], x, batch, found, x is inputs[0])
    structures = program.structures if structures is None else structures
    dtype = _dtype(program, structures, named)
    kind = torch.float64 if literal else dtype
    for name, x in named.items():
        _check_shape(f"input {name!r}", program.parts[name], x, found)
        _check_dtype(f"input {name!r}", program.parts[name], x, dtype)
    for name, x in (state or {}).items():
        _check_state(program, name, x, batch, kind, found)
    run = Run(
        program, structures, batch, kind, inputs[0].device, found, literal, seed, first_tick, state or {}
    )
    start = {name: run.widen(x) for name, x in named.items()}
    start[ONE] = torch.ones(1, 1, dtype=kind, device=run.device)
    return run, start


def _check_tensor(who: str, name: str, part: Part, x: object) -> None:
    if not isinstance(x, Tensor):
        needed, got = ", ".join(map(str, ("batch", *part.stored_shape))), type(x).__name__
        raise OneMatrixError(
            f"{who}: a tensor of shape ({needed}) was needed, got {got}; torch.as_tensor makes one of numbers",
            part=name,
            got=got,
        )


def _column(part: Part, x: Tensor) -> Tensor:
    """One number per sample may come as (batch,)."""
    return x.unsqueeze(1) if x.dim() == 1 and part.stored_shape == (1,) else x


def _dtype(program: Program, structures: Sequence[Structure], inputs: Mapping[str, Tensor]) -> torch.dtype:
    """That of the weights; without weights that of the first real input whose part does not fix its own."""
    for structure in structures:
        if (weight := structure.any_weight()) is not None:
            return weight.dtype
    free = (x for name, x in inputs.items() if program.parts[name].dtype is None and x.is_floating_point())
    return next((x.dtype for x in free), torch.get_default_dtype())


def _read_sizes(name: str, part: Part, x: Tensor, batch: int, sizes: dict[str, int], first: bool) -> None:
    shape = part.stored_shape
    if x.dim() != len(shape) + 1 or x.shape[0] != batch:
        needed = ", ".join(map(str, ("batch" if first else f"batch = {batch}", *shape)))
        raise ShapeError(f"input {name!r}: shape ({needed}) was needed, got {tuple(x.shape)}")
    for size, got in zip(shape, x.shape[1:], strict=True):
        if isinstance(size, str) and size.isidentifier():
            sizes.setdefault(size, got)


def _check_shape(who: str, part: Part, x: Tensor, sizes: Mapping[str, int]) -> None:
    for size, got in zip(part.stored_shape, x.shape[1:], strict=True):
        needed = fix_size(size, sizes)
        if needed != got:
            shown = f"{size} = {needed}" if isinstance(size, str) else needed
            raise ShapeError(
                f"{who}: {shown} was needed, got {got} in {tuple(x.shape)}", needed=needed, got=got
            )


def _check_dtype(who: str, part: Part, x: Tensor, dtype: torch.dtype) -> None:
    if part.kind == "index":
        if x.dtype not in (torch.int32, torch.int64):
            raise DTypeError(f"{who}: integers were needed for an index part, got {x.dtype}")
        _check_range(who, part, x)
        return
    needed = getattr(torch, part.dtype) if part.dtype else dtype
    if x.dtype != needed and not under_autocast(x):
        raise DTypeError(f"{who}: {needed} was needed, got {x.dtype}; convert it with .to({needed})")


def _check_range(who: str, part: Part, x: Tensor) -> None:
    classes = part.shape[-1]
    if isinstance(classes, str) or torch.compiler.is_compiling() or x.numel() == 0 or x.is_meta:
        return
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= classes:
        got = low if low < 0 else high
        raise ShapeError(f"{who}: integers from 0 to {classes - 1} were needed, got {got}", got=got)


def _check_state(
    program: Program, name: str, x: Tensor, batch: int, dtype: torch.dtype, sizes: Mapping[str, int]
) -> None:
    carried = carried_parts(program)
    if carried.count(name) != 1:
        listed = ", ".join(carried) or "nothing"
        fault = "several outermost loops carry" if name in carried else "no outermost loop carries"
        raise ProgramError(f"state gives {name!r}, which {fault}; carried: {listed}")
    part = program.parts[name]
    _check_tensor(f"state {name!r}", name, part, x)
    if x.dim() != len(part.stored_shape) + 1 or x.shape[0] != batch:
        needed = ", ".join(map(str, (f"batch = {batch}", *part.stored_shape)))
        raise ShapeError(f"state {name!r}: shape ({needed}) was needed, got {tuple(x.shape)}")
    _check_shape(f"state {name!r}", part, x, sizes)
    _check_dtype(f"state {name!r}", part, x, dtype)


def carried_parts(program: Program) -> list[str]:
    """Parts the outermost loops over a dimension carry: the state a run hands over."""
    return [name for loop in _outermost(program.schedule) if loop.carry for name in loop.carry.rows]


def _outermost(node: Node) -> list[Loop]:
    if isinstance(node, Seq):
        return [loop for child in node.body for loop in _outermost(child)]
    return [node] if isinstance(node, Loop) and node.over is not None else []
