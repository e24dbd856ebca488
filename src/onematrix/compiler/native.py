"""The module a program was converted from, as one more way to run it: over the tensors the compiled module holds."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onematrix.programs.program import Program

Place = tuple[dict[str, Any], str]  # a module's table of parameters or buffers, and a name in it


class Native:
    """A copy of the source module whose tensors are always those of the compiled module.

    It runs only where it means what the program means: on the device and in the dtypes it was made with.
    """

    def __init__(self, module: nn.Module, ties: Sequence[tuple[Place, Place]]) -> None:
        self.module, self.ties = module, list(ties)
        self.kind = self._kind()

    def _kind(self) -> tuple[object, ...]:
        """Device and dtype; moves and casts of a module change those of all its tensors."""
        if not self.ties:
            return ()
        (table, key), _ = self.ties[0]
        return table[key].device, table[key].dtype

    def run(self, inputs: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...] | None:
        """What the module gives; None where it is not to be asked, or refuses the inputs."""
        for (mine, key), (theirs, name) in self.ties:
            if theirs[name] is not mine[key]:
                theirs[name] = mine[key]
        if self._kind() != self.kind:
            return None
        try:
            found: Tensor | tuple[Tensor, ...] | None = _outputs(self.module(*inputs))
            return found
        except Exception:  # the code of the program says what does not fit
            return None


def find_native(module: nn.Module, program: Program, tables: Mapping[str, Place]) -> Native | None:
    """The source module over the tensors in `tables` (by name in the program); None where it is no candidate.

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
    everywhere: dict[int, list[Place]] = {}
    for inner in twin.modules():
        for table in (inner._parameters, inner._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    everywhere.setdefault(id(tensor), []).append((table, name))
    ties = []
    for name, source in program.source_names.items():
        if source in named:
            ties += [(tables[name], place) for place in everywhere.get(id(named[source]), ())]
    return Native(twin, ties)


def agrees(native: Native, ours: Tensor | tuple[Tensor, ...], inputs: Sequence[Tensor]) -> bool:
    """Whether the module gives, in the shapes of the program's outputs and in memory of its own, the same numbers."""
    theirs = native.run(inputs)
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
