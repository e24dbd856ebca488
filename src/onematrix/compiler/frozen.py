"""Freezing: a compiled program for inference alone, with everything its weights decide computed once."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from onematrix.compiler.folding import fold_scales
from onematrix.compiler.module import Compiled
from onematrix.compiler.pipeline import lower
from onematrix.compiler.recognition_blocks import recognise_blocks
from onematrix.compiler.recognition_masks import recognise_masks
from onematrix.errors import CompileError
from onematrix.programs.program import Program
from onematrix.programs.substitution import replace_structures
from onematrix.structures.tree import map_tensors


class Frozen(Compiled):
    """A compiled program over copies of its weights, which no longer train.

    Merged weights, scaled biases and whatever else depends on weights alone are computed once, normalisation by
    fixed numbers is folded into the matrices before it, and matrices that are diagonal, a permutation, a
    convolution, Toeplitz, Kronecker, sparse … run as such; attention under a fixed mask that is causal or a band
    computes the band.

    Its own weights decided that and are to stay as they are. A call raises CompileError where one of them was
    written in place, replaced, or given other storage (`.data = …`): three comparisons a tensor. In-place writes
    through `.data` leave no trace to compare; `check()` reads every number and finds those too. Loading a state,
    `.to()` and copies compute everything anew. Later changes of the module it was made from do not reach it:
    `check(module)` says whether there were any.
    """

    def __init__(self, program: Program, lowered: Program, form: Any) -> None:
        super().__init__(program, lowered, replace(form, fixed=True))
        for p in self.parameters():
            p.requires_grad_(False)
        self._originals: dict[str, bytes] = {}
        self._fold()
        self.register_load_state_dict_post_hook(_fold_again)  # type: ignore[no-untyped-call]

    def _write_functions(self) -> None:
        self._prepare: dict[bool, Callable[..., tuple[object, ...]]] = {}
        super()._write_functions()

    def _make(self, stateful: bool) -> Any:
        self._emitted[stateful] = self._write(stateful, self.form)
        forward, self._prepare[stateful] = self._emitted[stateful].frozen()
        return lambda module, *arguments: forward(module, *arguments, module._heads[stateful])

    def _fold(self) -> None:
        """Compute what the weights decide, and remember which weights they were."""
        weight = next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(1))
        with torch.no_grad():
            self._heads = {
                stateful: prepare(self, self._bound(), weight.dtype, weight.device)
                for stateful, prepare in self._prepare.items()
            }
        held = self._held()
        self._marks = list(map(_mark, self._names(), held))
        self._folded = dict(zip(self._source.parameters, map(_digest, held), strict=True))

    def _held(self) -> list[Any]:
        """Its own weights."""
        return [table.get(key) for table, key in zip(self._bound(), self._names(), strict=True)]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fold()
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_prepare"], state["_heads"]
        return state

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._fold()  # a copy has storage of its own

    def forward(
        self, *inputs: Tensor, seed: int = 0, sizes: Mapping[str, int] | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """The outputs of the program. Raises CompileError where its weights were seen to change."""
        self._notice()
        return super().forward(*inputs, seed=seed, sizes=sizes)

    def forward_with_state(
        self, *inputs: Tensor, **options: Any
    ) -> tuple[Tensor | tuple[Tensor, ...], dict[str, Tensor]]:
        """The outputs and the state to hand over, as `Compiled` gives them; weights looked at as by forward."""
        self._notice()
        return super().forward_with_state(*inputs, **options)

    def _notice(self) -> None:
        if torch.compiler.is_compiling():
            return
        for table, (key, tensor, version, storage) in zip(self._bound(), self._marks, strict=False):
            if (
                table.get(key) is not tensor
                or (version is not None and tensor._version != version)
                or tensor.data_ptr() != storage
            ):
                self._refuse(self._seen_changed())

    def _seen_changed(self) -> Iterator[str]:
        for name, held, (_, tensor, version, storage) in zip(
            self._source.parameters, self._held(), self._marks, strict=True
        ):
            if held is not tensor:
                yield f"{name} (replaced)"
            elif version is not None and tensor._version != version:
                yield f"{name} (written in place)"
            elif tensor.data_ptr() != storage:
                yield f"{name} (other storage)"

    def _refuse(self, found: Iterator[str]) -> None:
        changed = list(found)
        if changed:
            raise CompileError(
                f"frozen: its own weights {', '.join(changed[:5])} changed after freeze(), and what was computed "
                "from them is no longer theirs; load_state_dict() computes it anew, or change the module it was "
                "made from and call freeze() again",
                changed=[name.split(" (")[0] for name in changed],
            )

    def check(self, module: nn.Module | None = None) -> None:
        """Raise CompileError naming the weights of `module` that are no longer those that were frozen.

        Without a module: those of the frozen program itself, compared bit by bit with those that were folded.
        """
        if module is None:
            self._refuse(self._seen_changed())
            folded = zip(self._folded.items(), self._held(), strict=True)
            self._refuse(name for (name, digest), held in folded if _digest(held) != digest)
            return
        theirs = dict(module.named_parameters())
        changed = [name for name, mine in self._originals.items() if _digest(theirs.get(name)) != mine]
        if changed:
            raise CompileError(
                f"frozen: {', '.join(changed[:5])} changed after freeze(); call freeze() again",
                changed=changed,
            )


Mark = tuple[str, Tensor, int | None, int]


def _mark(key: str, tensor: Tensor) -> Mark:
    """The name of a tensor, the tensor, its version (None: it counts none) and the place of its numbers."""
    return key, tensor, None if tensor.is_inference() else tensor._version, tensor.data_ptr()


def _digest(tensor: Tensor | None) -> bytes:
    """128 bits that change with shape, dtype and every bit of the numbers; of "meta" shape and dtype alone."""
    if tensor is None:
        return b""
    found = hashlib.blake2b(f"{tuple(tensor.shape)} {tensor.dtype}".encode(), digest_size=16)
    if tensor.device.type != "meta":
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


def _fold_again(module: nn.Module, _: object) -> None:
    """Loaded weights decide anew."""
    assert isinstance(module, Frozen), "the hook is registered on frozen modules"
    module._fold()


def freeze(compiled: Compiled, tolerance: float = 0.0) -> Frozen:
    """The compiled program for inference alone. tolerance: of the recognition of structures; 0: bit-equal.

    Raises CompileError for a tolerance outside [0, 1), and for weights that are shards of a distributed tensor.
    """
    if not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise CompileError(
            "freeze: a tolerance from 0 (equal bits) to below 1, relative to the largest entry, was needed, "
            f"got {tolerance!r}",
            got=tolerance,
        )
    if sharded := [name for name, p in compiled.named_parameters() if hasattr(p, "full_tensor")]:
        raise CompileError(
            f"freeze: {', '.join(sharded[:5])} are shards of distributed tensors, and structures are found in whole "
            "matrices; load the full state (torch.distributed.checkpoint.state_dict) into a module that is not "
            "sharded, and freeze that",
            sharded=sharded,
        )
    program = compiled.program
    copies: dict[int, Tensor] = {}

    def copy(t: Tensor) -> Tensor:
        return copies.setdefault(id(t), t.detach().clone() if t.is_floating_point() else t)

    copied = {id(s): map_tensors(s, copy) for s in program.structures}
    fixed = replace_structures(program, copied)
    fixed = recognise_blocks(recognise_masks(fixed) if compiled.form.bands else fixed, tolerance)
    fixed = fold_scales(fixed)
    frozen = Frozen(fixed, lower(fixed), compiled.form)
    frozen._originals |= {name: _digest(p) for name, p in compiled.named_parameters()}
    return frozen.eval()
