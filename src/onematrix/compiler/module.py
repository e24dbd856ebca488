"""The compiled program as a torch module: its parameters, and one flat function."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onematrix.compiler.emit import PLAIN, emit
from onematrix.compiler.emitted import Emitted
from onematrix.compiler.form import Form
from onematrix.compiler.native import Native, find_native
from onematrix.errors import ProgramError, ShapeError
from onematrix.programs.ownership import adopt, rebuild_all, slot_tensors
from onematrix.programs.program import Program
from onematrix.programs.run import Run, begin, carried_parts
from onematrix.programs.substitution import replace_structures
from onematrix.records.collector import collector_at_rest
from onematrix.structures.tree import layout, map_tensors, rebuild

State = dict[str, Tensor]


class Compiled(nn.Module):
    """A program as a flat module: the same Parameter objects under the program's names, no interpreter left.

    forward(*inputs, seed=0, sizes=None) → output or tuple of outputs, each (batch, *shape of the part).
    It runs the module it was converted from (`native`) where that was measured to be faster.
    forward_with_state also takes and gives the state a loop hands over: what the lowered program carries.
    `text` shows the code, `lowered` the program it was made from.
    """

    @collector_at_rest()
    def __init__(self, source: Program, lowered: Program, form: Form = PLAIN) -> None:
        super().__init__()
        self._ownership = adopt(self, source.structures, source.parameters)
        source, lowered = without_numbers(source, lowered)
        self._source, self._lowered, self.form = source, lowered, form
        self._places = {id(t): place for place, t in enumerate(source.parameters.values())}
        self._tables, self._first = self._find_tables()
        self._plans = [layout(s, self._places) for s in lowered.structures]
        self._write_functions()
        self.native: Native | None = None

    def find_native(self, module: nn.Module) -> Native | None:
        """The module the program was converted from, over the tensors held here; None where it is no candidate."""
        return find_native(module, self._source, self._names())

    def _find_tables(self) -> tuple[list[dict[str, Any]], tuple[nn.Module, str] | None]:
        """The table every tensor of the source program stands in, and where the first table stands."""
        paths = self._ownership.slots
        holders = [self.get_submodule(".".join(path[:-1])) for path in paths]
        kinds = [_kind(holder, path[-1]) for holder, path in zip(holders, paths, strict=True)]
        tables = [vars(holder)[kind] for holder, kind in zip(holders, kinds, strict=True)]
        return tables, (holders[0], kinds[0]) if tables else None

    def _bound(self) -> list[dict[str, Any]]:
        """The tables, found again where something put others in their place, as torch.export does."""
        if self._first is None or getattr(*self._first) is self._tables[0]:
            return self._tables
        tables, first = self._find_tables()
        if not torch.compiler.is_compiling():
            self._tables, self._first = tables, first
        return tables

    def _names(self) -> list[str]:
        """The name of every tensor of the source program in its table."""
        return [path[-1] for path in self._ownership.slots]

    def _write_functions(self) -> None:
        """The function of forward, and that of forward_with_state where there is a state."""
        self._emitted: dict[bool, Emitted] = {}
        self._function = self._make(False)
        self._stateful = self._make(True) if carried_parts(self._lowered) else None

    def _make(self, stateful: bool) -> Any:
        self._emitted[stateful] = self._write(stateful, self.form)
        return self._emitted[stateful].function()

    def _write(self, stateful: bool, form: Form) -> Emitted:
        return emit(self._lowered, self._places, self._names(), stateful, form)

    def in_form(self, form: Form, native: Native | None = None) -> "Compiled":
        """The same program over the same tensors with other code; to take the place of this one."""
        other = Compiled.__new__(Compiled)
        other.__dict__ |= self.__dict__
        other.form, other.native = form, native
        other._write_functions()
        return other

    def is_written_alike(self, form: Form) -> bool:
        """Whether the code of forward in another form is line by line the same."""
        return self._write(False, form).lines == self._emitted[False].lines

    def __getstate__(self) -> dict[str, Any]:
        """All but the code, which is written anew, and the tables, which an export leaves with its own tensors."""
        state = self.__dict__.copy()
        for name in ("_tables", "_first", "_places", "_emitted", "_function", "_stateful"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._places = {id(t): place for place, t in enumerate(self._source.parameters.values())}
        self._tables, self._first = self._find_tables()
        self._write_functions()

    def forward(
        self, *inputs: Tensor, seed: int = 0, sizes: Mapping[str, int] | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """The outputs of the program."""
        tables = self._bound()
        if self.native is not None and sizes is None and not torch.compiler.is_compiling():
            found = self.native.run(tables, inputs)
            if found is not None:
                return found
        result: Tensor | tuple[Tensor, ...] = self._function(self, tables, inputs, sizes, seed, None, 0)
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
        given = {name: x for name, x in (state or {}).items() if name in names}
        if given:
            self._check_state(inputs, sizes, given)
        arguments = (self, self._bound(), inputs, sizes, seed, given, first_tick)
        if self._stateful is None:
            return self._function(*arguments), {}
        result, handed = self._stateful(*arguments)
        return result, {name: x.clone() for name, x in zip(names, handed, strict=True)}

    # What the code asks when an input is not plainly what it should be.

    def _slots(self) -> list[Tensor]:
        return slot_tensors(self, self._ownership)

    def _dtype_of(self, inputs: tuple[Tensor, ...]) -> torch.dtype:
        return next((x.dtype for x in inputs if x.is_floating_point()), torch.get_default_dtype())

    def _check(self, inputs: tuple[Tensor, ...], sizes: Mapping[str, int] | None) -> Run:
        """The run of the source program for these inputs. Raises ShapeError, DTypeError where they do not fit."""
        structures = rebuild_all(self, self._ownership)
        return begin(self._source, inputs, structures, False, 0, sizes, None, 0)[0]

    def _check_state(
        self, inputs: tuple[Tensor, ...], sizes: Mapping[str, int] | None, given: Mapping[str, Tensor]
    ) -> None:
        """Raise ShapeError, DTypeError where the state does not fit; asked about what is not plainly right."""
        batch = inputs[0].shape[0] if inputs and inputs[0].dim() else 0
        for name, x in given.items():
            shape = self._lowered.parts[name].stored_shape
            fits = isinstance(x, Tensor) and tuple(x.shape) == (batch, *shape) and x.dtype == inputs[0].dtype
            if not fits:
                structures = rebuild_all(self, self._ownership)
                begin(self._lowered, inputs, structures, False, 0, sizes, given, 0)
                return

    def _size(self, name: str, inputs: tuple[Tensor, ...], sizes: Mapping[str, int] | None) -> int:
        found = self._check(inputs, sizes).sizes
        if name not in found:
            raise ShapeError(f"size {name!r} is free and no input shows it; give sizes={{{name!r}: …}}")
        return found[name]

    def _run(self, inputs: tuple[Tensor, ...], sizes: Mapping[str, int] | None, seed: int, first: int) -> Run:
        """What the interpreter's product asks about a run."""
        run = self._check(inputs, sizes)
        slots = self._slots()
        run.program, run.structures = self._lowered, [rebuild(plan, slots) for plan in self._plans]
        run.seed, run.first_tick = seed, first
        return run

    @property
    def program(self) -> Program:
        """The source program over the tensors the module holds now."""
        new = rebuild_all(self, self._ownership)
        return replace_structures(self._source, dict(zip(map(id, self._source.structures), new, strict=True)))

    def freeze(self, tolerance: float = 0.0) -> "Compiled":
        """A module for inference alone, over copies of the weights, with all they decide computed once.

        tolerance: how near a dense matrix must be to a diagonal, sparse … one to run as such; 0: equal bits.
        """
        from onematrix.compiler.frozen import freeze

        return freeze(self, tolerance)

    @property
    def source_names(self) -> dict[str, str]:
        """Of a converted module: the name of each parameter here → its name in the module."""
        return dict(self._source.source_names)

    @property
    def lowered(self) -> Program:
        """The program the code was made from, over the tensors the module holds now."""
        slots = self._slots()
        new = {
            id(s): rebuild(plan, slots) for s, plan in zip(self._lowered.structures, self._plans, strict=True)
        }
        return replace_structures(self._lowered, new)

    @property
    def text(self) -> str:
        """The code of forward."""
        return self._emitted[False].text

    @property
    def notes(self) -> tuple[str, ...]:
        """Why each kernel that was looked for was refused."""
        return self._emitted[False].notes

    def extra_repr(self) -> str:
        """Inputs, outputs and sizes."""
        return repr(self._lowered)


def without_numbers(*programs: Program) -> list[Program]:
    """The programs over tensors of shapes and dtypes alone, ties kept: the numbers are those of the module."""
    tensors: dict[int, Tensor] = {}

    def abstract(t: Tensor) -> Tensor:
        if id(t) not in tensors:
            tensors[id(t)] = torch.empty_like(t, device="meta") if t.is_floating_point() else t
        return tensors[id(t)]

    found = []
    for program in programs:
        new = replace_structures(program, {id(s): map_tensors(s, abstract) for s in program.structures})
        new.source_names = program.source_names
        found.append(new)
    return found


def _kind(module: nn.Module, name: str) -> str:
    """Which of a module's tables a tensor stands in."""
    return "_parameters" if name in module._parameters else "_buffers"
