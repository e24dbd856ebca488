"""The module a program was converted from, as one more way to run it: over the tensors the compiled module holds."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onematrix.programs.program import Program

Table = dict[str, Any]  # of the parameters or buffers of a module, by name


class Tie(NamedTuple):
    """A tensor of the compiled module, in table `place` under `name`, and where the source module holds it."""

    place: int
    name: str
    table: Table
    key: str


class Native:
    """A copy of the source module whose tensors are always those of the compiled module.

    It runs only where it means what the program means: on the device and in the dtypes it was made with.
    """

    def __init__(self, module: nn.Module, ties: Sequence[Tie]) -> None:
        self.module, self.ties = module, list(ties)
        self.kind = self._kind()

    def _kind(self) -> tuple[object, ...]:
        """Device and dtype; moves and casts of a module change those of all its tensors."""
        if not self.ties:
            return ()
        tensor = self.ties[0].table[self.ties[0].key]
        return tensor.device, tensor.dtype

    def run(self, tables: Sequence[Table], inputs: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...] | None:
        """What the module gives over the tensors in `tables`; None where it is not to be asked, or refuses."""
        for place, name, table, key in self.ties:
            if table[key] is not tables[place][name]:
                table[key] = tables[place][name]
        if self._kind() != self.kind:
            return None
        try:
            found: Tensor | tuple[Tensor, ...] | None = _outputs(self.module(*inputs))
            return found
        except Exception:  # the code of the program says what does not fit
            return None


def find_native(module: nn.Module, program: Program, names: Sequence[str]) -> Native | None:
    """The source module; names: of each parameter of the program in its table. None where it is no candidate.

    It is none where it draws noise or couples the batch (its state would change), and where it cannot be copied.
    """
    if program.couples_batch or any(part.kind == "noise" for part in program.parts.values()):
        return None
    mine = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    try:
        twin = copy.deepcopy(module, dict(mine))
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    everywhere: dict[int, list[tuple[Table, str]]] = {}
    for inner in twin.modules():
        for table in (inner._parameters, inner._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    everywhere.setdefault(id(tensor), []).append((table, name))
    places = {name: place for place, name in enumerate(program.parameters)}
    ties = [
        Tie(places[name], names[places[name]], *held)
        for name, source in program.source_names.items()
        if source in named
        for held in everywhere.get(id(named[source]), ())
    ]
    return Native(twin, ties)


def agrees(
    theirs: Tensor | tuple[Tensor, ...] | None, ours: Tensor | tuple[Tensor, ...], inputs: Sequence[Tensor]
) -> bool:
    """Whether what the module gave is in the shapes of ours and in memory of its own, and the same numbers."""
    if theirs is None or isinstance(theirs, tuple) != isinstance(ours, tuple):
        return False
    mine = ours if isinstance(ours, tuple) else (ours,)
    its = theirs if isinstance(theirs, tuple) else (theirs,)
    given = {x.untyped_storage().data_ptr() for x in inputs}
    return len(its) == len(mine) and all(
        a.shape == b.shape
        and a.dtype == b.dtype
        and b.untyped_storage().data_ptr() not in given
        and torch.allclose(a.double(), b.double(), rtol=1e-2, atol=1e-4, equal_nan=True)
        for a, b in zip(mine, its, strict=True)
    )


def _outputs(value: object) -> Any:
    """A tensor or a flat tuple of tensors; None for anything else."""
    if isinstance(value, Tensor):
        return value
    found = isinstance(value, tuple) and type(value) is tuple and all(isinstance(v, Tensor) for v in value)
    return value if found else None
