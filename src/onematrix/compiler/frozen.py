"""Freezing: a compiled program for inference alone, with everything its weights decide computed once."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from onematrix.compiler.emit import emit
from onematrix.compiler.emitted import Emitted
from onematrix.compiler.module import Compiled
from onematrix.compiler.pipeline import lower
from onematrix.compiler.recognition_blocks import recognise_blocks
from onematrix.errors import CompileError
from onematrix.programs.program import Program
from onematrix.programs.substitution import replace_structures
from onematrix.structures.tree import map_tensors


class Frozen(Compiled):
    """A compiled program over copies of its weights, which no longer train.

    Merged and turned weights, scaled biases and whatever else depends on weights alone are computed once, and
    matrices that are diagonal, a permutation, a convolution, Toeplitz, Kronecker, sparse … run as such. Later
    changes of the module it was made from do not reach it: `check(module)` says whether there were any.
    """

    def __init__(self, program: Program, lowered: Program, form: Any) -> None:
        super().__init__(program, lowered, form)
        for p in self.parameters():
            p.requires_grad_(False)
        self._heads: tuple[object, ...] = ()
        self._originals: dict[str, Tensor] = {}
        self._fold()
        self.register_load_state_dict_post_hook(_fold_again)  # type: ignore[no-untyped-call]

    def _make(self, stateful: bool) -> Any:
        names = [path[-1] for path in self._ownership.slots]
        self._emitted[stateful] = self._write(stateful, names)
        forward, prepare = self._emitted[stateful].frozen()
        if not stateful:
            self._prepare: Callable[..., tuple[object, ...]] = prepare
            self._function = forward
            return lambda *arguments: forward(*arguments, self._heads)
        self._prepare_stateful = prepare
        return lambda *arguments: forward(*arguments, self._heads_stateful)

    def _write(self, stateful: bool, names: list[str]) -> Emitted:
        return emit(self._lowered, self._places, names, stateful, self.form)

    def _fold(self) -> None:
        """Compute what the weights decide."""
        weight = next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(1))
        with torch.no_grad():
            self._heads = self._prepare(self, self._tables, weight.dtype, weight.device)
            self._heads_stateful = self._prepare_stateful(self, self._tables, weight.dtype, weight.device)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fold()
        return self

    def check(self, module: nn.Module) -> None:
        """Raise CompileError naming the weights of `module` that are no longer those that were frozen."""
        theirs = dict(module.named_parameters())
        changed = [name for name, mine in self._originals.items() if not _equal(mine, theirs.get(name))]
        if changed:
            raise CompileError(
                f"frozen: {', '.join(changed[:5])} changed after freeze(); call freeze() again",
                changed=changed,
            )


def _fold_again(module: nn.Module, _: object) -> None:
    """Loaded weights decide anew."""
    assert isinstance(module, Frozen), "the hook is registered on frozen modules"
    module._fold()


def _equal(mine: Tensor, theirs: Tensor | None) -> bool:
    return theirs is not None and mine.shape == theirs.shape and bool(torch.equal(mine, theirs.detach()))


def freeze(compiled: Compiled, tolerance: float = 0.0) -> Frozen:
    """The compiled program for inference alone. tolerance: of the recognition of structures; 0: bit-equal."""
    program = compiled.program
    copies: dict[int, Tensor] = {}

    def copy(t: Tensor) -> Tensor:
        return copies.setdefault(id(t), t.detach().clone() if t.is_floating_point() else t)

    copied = {id(s): map_tensors(s, copy) for s in program.structures}
    fixed = recognise_blocks(replace_structures(program, copied), tolerance)
    frozen = Frozen(fixed, lower(fixed), compiled.form)
    frozen._originals |= {name: p.detach().clone() for name, p in compiled.named_parameters()}
    return frozen.eval()
