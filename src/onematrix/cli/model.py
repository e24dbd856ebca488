"""What a MODEL argument may be: package.module:callable, a folder written by om.save, or hf:config.json."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from onematrix.cli.model_inputs import SYNTAX, Example, with_inputs
from onematrix.errors import ConversionError

GRAMMAR = (
    "package.module:callable (called without arguments), a folder written by om.save, "
    "or hf:path/to/config.json (random weights)"
)
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")
Model = Annotated[
    str, typer.Argument(help="package.module:callable, a folder written by om.save, or hf:config.json.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", help=f"Example input of a torch module: {SYNTAX}; once per input."),
]
Batch = Annotated[
    int, typer.Option("--batch", min=2, help="Samples of the example inputs; the batch is free.")
]
Meta = Annotated[bool, typer.Option("--meta", help="Make the model without its numbers, on the meta device.")]


def find_model(text: str) -> Any:
    """The program, module or structure a MODEL argument names. No pickle is ever read."""
    found = find_example(text)
    return found.module if isinstance(found, Example) else found


def find_example(text: str, inputs: Sequence[str] = (), batch: int = 2, meta: bool = False) -> Any:
    """What a MODEL argument names; a torch module as an Example with the inputs it came with or --input gives.

    A callable returns a torch module, (module, *example inputs), a program or a structure.
    """
    from torch import nn

    from onematrix.programs.iterated import Iterated
    from onematrix.programs.linear import Linear

    found = _find(text, batch, meta)
    if isinstance(found, tuple) and found and isinstance(found[0], nn.Module):
        found = Example(found[0], tuple(found[1:]))
    elif isinstance(found, nn.Module) and not isinstance(found, Iterated | Linear):
        found = Example(found)
    if isinstance(found, Example):
        return with_inputs(found, inputs, batch)
    if inputs:
        raise typer.BadParameter(f"--input belongs to torch modules; {text} is {type(found).__name__}")
    return found


def _find(text: str, batch: int, meta: bool) -> Any:
    from onematrix.programs.storage import load

    if text.startswith("hf:"):
        from onematrix.cli.model_config import model_of_config

        return model_of_config(text.removeprefix("hf:"), batch, meta)
    if Path(text).is_dir():
        return load(text)
    if text.endswith(PICKLES):
        raise typer.BadParameter(f"{text}: pickled models are not read; {GRAMMAR}")
    module, _, name = text.partition(":")
    if not name:
        raise typer.BadParameter(f"{text!r} is no model; needed is {GRAMMAR}")
    return _call(module, name, meta)


def _call(module: str, name: str, meta: bool) -> Any:
    import torch

    import onematrix.structures  # noqa: F401 - while tensors are still made on the CPU

    context = torch.device("meta") if meta else nullcontext()
    sys.path.insert(0, "")  # modules of the current folder, as `python -m` finds them
    try:
        place = importlib.import_module(module)
    except ImportError as error:
        raise typer.BadParameter(f"cannot import {module!r}: {error}") from error
    finally:
        sys.path.remove("")
    if not callable(getattr(place, name, None)):
        public = [n for n in dir(place) if callable(getattr(place, n)) and not n.startswith("_")]
        raise typer.BadParameter(f"{module} has no callable {name!r}; it has: {', '.join(public[:12])}")
    try:
        with context:
            return getattr(place, name)()
    except TypeError as error:
        raise typer.BadParameter(f"{module}:{name} cannot be called without arguments ({error})") from error


def as_program(value: Any) -> Any:
    """The program of a model: converted where it is a torch module with its example inputs.

    Raises ConversionError for a module without example inputs, and for what is no model.
    """
    from torch import nn

    from onematrix.converters.conversion import convert
    from onematrix.programs.block_matrix import BlockMatrix
    from onematrix.programs.iterated import Iterated
    from onematrix.programs.linear import Linear
    from onematrix.programs.program import Program
    from onematrix.programs.schedule import Step
    from onematrix.programs.storage import linear_program
    from onematrix.structures.base import Structure

    if isinstance(value, Program):
        return value
    if isinstance(value, Iterated):
        return value.program
    if isinstance(value, Linear):
        return linear_program(value)
    if isinstance(value, Structure):
        m, n = value.shape
        return Program(Step(BlockMatrix({("y", "x"): value}, {"x": n, "y": m})), ["x"], ["y"])
    if isinstance(value, Example) and value.tensors:
        from rich.console import Console

        waiting = Console(stderr=True).status(f"converting {type(value.module).__name__}")
        with warnings.catch_warnings(), waiting:
            warnings.simplefilter("ignore")  # of torch about torch, while it exports
            return convert(value.module, *value.inputs, **value.named)
    name = type(value.module if isinstance(value, Example) else value).__name__
    if isinstance(value, nn.Module | Example):
        raise ConversionError(
            f"{name} has no program here without an example input: give the shape of one sample, as in "
            "--input 3,224,224 or --input 16:int64, or let the callable return (module, example input)"
        )
    raise ConversionError(f"{name} has no program; a torch module, an om.Program or a structure was needed")
