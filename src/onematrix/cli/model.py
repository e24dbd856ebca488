"""What a MODEL argument may be: package.module:callable, or a folder written by om.save."""

import importlib
import sys
from pathlib import Path
from typing import Any

import typer

from onematrix.errors import ConversionError

GRAMMAR = "package.module:callable (called without arguments), or a folder written by om.save"


def find_model(text: str) -> Any:
    """The program, module or structure a MODEL argument names. No pickle is ever read."""
    from onematrix.programs.storage import load

    if Path(text).is_dir():
        return load(text)
    if text.endswith((".pt", ".pth", ".pkl", ".bin", ".ckpt")):
        raise typer.BadParameter(f"{text}: pickled models are not read; {GRAMMAR}")
    module, _, name = text.partition(":")
    if not name:
        raise typer.BadParameter(f"{text!r} is no model; needed is {GRAMMAR}")
    return _call(module, name)


def _call(module: str, name: str) -> Any:
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
        return getattr(place, name)()
    except TypeError as error:
        raise typer.BadParameter(f"{module}:{name} cannot be called without arguments ({error})") from error


def as_program(value: Any) -> Any:
    """The program of a model. Raises ConversionError for what has none yet."""
    from onematrix.programs.iterated import Iterated
    from onematrix.programs.linear import Linear
    from onematrix.programs.program import Program
    from onematrix.programs.storage import linear_program

    if isinstance(value, Program):
        return value
    if isinstance(value, Iterated):
        return value.program
    if isinstance(value, Linear):
        return linear_program(value)
    raise ConversionError(
        f"{type(value).__name__} has no program here; give an om.Program, om.Iterated or om.Linear "
        "(conversion of any torch module is planned)"
    )
