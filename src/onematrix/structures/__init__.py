"""Structures: kinds of matrices, as values. One file each; a new file here is a new structure everywhere."""

import importlib
import pkgutil

from onematrix.structures.base import STRUCTURES, Fit, Structure, list_structures, relative_error

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

__all__ = ["STRUCTURES", "Fit", "Structure", "list_structures", "relative_error"]
