"""The compiled program as a torch module: its parameters, and one flat function."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onematrix.compiler.emit import Emitted, emit
from onematrix.errors import ProgramError
from onematrix.programs.ownership import adopt, rebuild_all
from onematrix.programs.part import Part
from onematrix.programs.program import Program
from onematrix.programs.run import Run, begin, carried_parts
from onematrix.programs.substitution import replace_structures

State = dict[str, Tensor]


class Compiled(nn.Module):
    """A program as a flat module: the same Parameter objects under the program's names, no interpreter left.

    forward(*inputs, seed=0, sizes=None) → output or tuple of outputs, each (batch, *shape of the part).
    forward_with_state also takes and gives the state a loop hands over: what the lowered program carries.
    `text` shows the code, `lowered` the program it was made from.
    """

    def __init__(self, source: Program, lowered: Program) -> None:
        super().__init__()
        self._source, self._lowered = source, lowered
        self._ownership = adopt(self, source.structures, source.parameters)
        self._slots = {id(t): place for place, t in enumerate(source.parameters.values())}
        self._places = [_place(self, path) for path in self._ownership.slots]
        self._dtype = lowered.dtype or source.dtype
        self._shapes = [_expected(source.parts[name]) for name in source.inputs]
        self._emitted: dict[bool, Emitted] = {}
        self._functions: dict[bool, Any] = {}
        self._make(False)

    def _make(self, stateful: bool) -> Any:
        if stateful not in self._functions:
            self._emitted[stateful] = emit(self._lowered, self._slots, stateful)
            self._functions[stateful] = self._emitted[stateful].function()
        return self._functions[stateful]

    def forward(
        self, *inputs: Tensor, seed: int = 0, sizes: Mapping[str, int] | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """The outputs of the program."""
        slots = [table[name] for table, name in self._places]
        found = self._sizes(inputs, slots, sizes)
        first = inputs[0]
        dtype = self._dtype_of(inputs, slots)
        run = self._run(inputs, slots, found, seed, dtype, 0) if self._emitted[False].needs_run else None
        outputs, _ = self._functions[False](
            slots, inputs, first.shape[0], dtype, first.device, found, run, None, 0
        )
        result: Tensor | tuple[Tensor, ...] = outputs[0] if len(outputs) == 1 else outputs
        return result

    def forward_with_state(
        self,
        *inputs: Tensor,
        state: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        sizes: Mapping[str, int] | None = None,
        first_tick: int = 0,
    ) -> tuple[Tensor | tuple[Tensor, ...], State]:
        """The outputs and the state to hand over, for streaming and truncated back-propagation."""
        names = carried_parts(self._lowered)
        if unknown := set(state or ()) - set(names) - set(carried_parts(self._source)):
            raise ProgramError(f"state gives {sorted(unknown)}; carried: {', '.join(names) or 'nothing'}")
        function = self._make(True)
        slots = [table[name] for table, name in self._places]
        found = self._sizes(inputs, slots, sizes)
        dtype = self._dtype_of(inputs, slots)
        run = (
            self._run(inputs, slots, found, seed, dtype, first_tick)
            if self._emitted[True].needs_run
            else None
        )
        given = {name: x for name, x in (state or {}).items() if name in names}
        first = inputs[0]
        outputs, handed = function(
            slots, inputs, first.shape[0], dtype, first.device, found, run, given, first_tick
        )
        result = outputs[0] if len(outputs) == 1 else outputs
        return result, dict(zip(names, handed, strict=True))

    def _dtype_of(self, inputs: tuple[Tensor, ...], slots: list[Tensor]) -> torch.dtype:
        if self._dtype is not None:
            return next(t.dtype for t in slots if t.is_floating_point())
        return next((x.dtype for x in inputs if x.is_floating_point()), torch.get_default_dtype())

    def _sizes(
        self, inputs: tuple[Tensor, ...], slots: list[Tensor], sizes: Mapping[str, int] | None
    ) -> dict[str, int]:
        """The named sizes, after the inputs were checked: quickly, and with the full report if that fails."""
        found = dict(sizes) if sizes else {}
        dtype = self._dtype_of(inputs, slots)
        good = len(inputs) == len(self._shapes)
        batch = inputs[0].shape[0] if good and inputs[0].dim() else -1
        for x, (shape, names, plain) in zip(inputs, self._shapes, strict=False):
            got = x.shape
            if not plain or len(got) != len(shape) or got[0] != batch or x.dtype is not dtype:
                good = False
                break
            for place, name in names:
                if found.setdefault(name, got[place]) != got[place]:
                    good = False
            for needed, size in zip(shape, got, strict=True):
                if needed is not None and needed != size:
                    good = False
        if not good:
            structures = rebuild_all(self, self._ownership)
            run, _ = begin(self._source, inputs, structures, False, 0, sizes, None, 0)
            found = run.sizes
        return found

    def _run(
        self,
        inputs: tuple[Tensor, ...],
        slots: list[Tensor],
        sizes: dict[str, int],
        seed: int,
        dtype: torch.dtype,
        first: int,
    ) -> Run:
        from onematrix.structures.tree import rebuild

        structures = [rebuild(plan, slots) for plan in self._layouts()]
        x = inputs[0]
        return Run(self._lowered, structures, x.shape[0], dtype, x.device, sizes, False, seed, first, {})

    def _layouts(self) -> list[Any]:
        from onematrix.structures.tree import layout

        if not hasattr(self, "_plans"):
            self._plans = [layout(s, self._slots) for s in self._lowered.structures]
        return self._plans

    @property
    def program(self) -> Program:
        """The source program over the tensors the module holds now."""
        new = rebuild_all(self, self._ownership)
        return replace_structures(self._source, dict(zip(map(id, self._source.structures), new, strict=True)))

    @property
    def lowered(self) -> Program:
        """The program the code was made from."""
        return self._lowered

    @property
    def text(self) -> str:
        """The code of forward."""
        return self._emitted[False].text

    def extra_repr(self) -> str:
        """Inputs, outputs and sizes."""
        return repr(self._lowered)


def _place(module: nn.Module, path: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The table a tensor of the module stands in, and its name there."""
    for name in path[:-1]:
        module = module._modules[name]  # type: ignore[assignment]
    table = module._parameters if path[-1] in module._parameters else module._buffers
    return table, path[-1]


def _expected(part: Part) -> tuple[tuple[int | None, ...], list[tuple[int, str]], bool]:
    """Sizes an input must have (None: any), where its named sizes are, and whether that says it all."""
    shape = part.stored_shape
    names = [(1 + i, s) for i, s in enumerate(shape) if isinstance(s, str)]
    plain = part.kind == "real" and part.dtype is None and all(s.isidentifier() for _, s in names)
    return (None, *(s if isinstance(s, int) else None for s in shape)), names, plain
