"""Example inputs of a module: from --input, or those that came with the model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor, nn

SYNTAX = "[NAME=]SHAPE[:dtype], the shape of one sample: 3,224,224 or 16:int64"


@dataclass(frozen=True)
class Example:
    """A torch module with example inputs, (batch, …) each."""

    module: "nn.Module"
    inputs: "tuple[Tensor, ...]" = ()
    named: "dict[str, Tensor]" = field(default_factory=dict)

    @property
    def tensors(self) -> "list[Tensor]":
        """All of them, in the order of the program's inputs."""
        return [*self.inputs, *self.named.values()]


def with_inputs(example: Example, texts: Sequence[str], batch: int) -> Example:
    """The module with the inputs --input describes, on the module's device; those it has where none is given."""
    if not texts:
        return example
    found = [read_input(text, batch, device_of(example.module)) for text in texts]
    return Example(
        example.module,
        tuple(tensor for name, tensor in found if not name),
        {name: tensor for name, tensor in found if name},
    )


def read_input(text: str, batch: int, device: Any = "cpu") -> "tuple[str, Tensor]":
    """(name or "", tensor of zeros (batch, *shape)) of one --input. Exits with a usage error."""
    import torch

    found = re.fullmatch(
        r"(?:([A-Za-z_]\w*)=)?((?:\d+(?:[,x]\d+)*)?)(?::([a-z]+\d*))?", text.replace(" ", "")
    )
    if not found or not (found[2] or found[3]):
        raise typer.BadParameter(f"--input {text!r}: {SYNTAX} was needed")
    dtype = getattr(torch, found[3] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise typer.BadParameter(
            f"--input {text!r}: {found[3]!r} is no torch dtype; write float32, int64, bool …"
        )
    shape = [int(size) for size in re.split("[,x]", found[2])] if found[2] else []
    return found[1] or "", torch.zeros(batch, *shape, dtype=dtype, device=device)


def device_of(module: "nn.Module") -> Any:
    """The device of the module's first parameter or buffer; the CPU where it has none."""
    import itertools

    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return "cpu" if first is None else first.device


def sizes_of(program: Any, tensors: "Sequence[Tensor]") -> dict[str, int]:
    """Named sizes of a program's inputs as these tensors have them."""
    sizes: dict[str, int] = {}
    for name, tensor in zip(program.inputs, tensors, strict=False):
        for size, length in zip(program.parts[name].shape, tensor.shape[1:], strict=False):
            if isinstance(size, str) and size.isidentifier():
                sizes.setdefault(size, length)
    return sizes
