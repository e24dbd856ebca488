"""Every network is one matrix: see it, shrink it, run it fast, prove it right."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onematrix.learners.projection import fit as fit
    from onematrix.programs.block_matrix import Block as Block
    from onematrix.programs.block_matrix import BlockMatrix as BlockMatrix
    from onematrix.programs.interpreter import interpret as interpret
    from onematrix.programs.iterated import Iterated as Iterated
    from onematrix.programs.linear import Linear as Linear
    from onematrix.programs.parse import parse as parse
    from onematrix.programs.part import Part as Part
    from onematrix.programs.program import Program as Program
    from onematrix.programs.schedule import Loop as Loop
    from onematrix.programs.schedule import Seq as Seq
    from onematrix.programs.schedule import Step as Step
    from onematrix.programs.storage import load as load
    from onematrix.programs.storage import save as save
    from onematrix.reports.drawing import draw as draw
    from onematrix.structures import list_structures as list_structures
    from onematrix.training.parameter_groups import parameter_groups as parameter_groups

_PUBLIC = {
    "Block": "onematrix.programs.block_matrix",
    "BlockMatrix": "onematrix.programs.block_matrix",
    "Iterated": "onematrix.programs.iterated",
    "Linear": "onematrix.programs.linear",
    "Loop": "onematrix.programs.schedule",
    "Part": "onematrix.programs.part",
    "Program": "onematrix.programs.program",
    "Seq": "onematrix.programs.schedule",
    "Step": "onematrix.programs.schedule",
    "compile": "onematrix.compiler.compilation",
    "convert": "onematrix.converters.conversion",
    "define": "onematrix.structures.definition",
    "draw": "onematrix.reports.drawing",
    "fit": "onematrix.learners.projection",
    "interpret": "onematrix.programs.interpreter",
    "list_structures": "onematrix.structures",
    "load": "onematrix.programs.storage",
    "parameter_groups": "onematrix.training.parameter_groups",
    "parse": "onematrix.programs.parse",
    "save": "onematrix.programs.storage",
}

__all__ = list(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"onematrix has no {name!r}; public names: {', '.join(sorted(_PUBLIC))}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, "__version__"])
