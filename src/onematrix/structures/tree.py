"""A structure as a tree of tensors: leaves by path, rebuilding from other tensors, counts.

The layout of a structure is data (classes, field names, slot numbers), so that modules can rebuild a
structure from the tensors they own without keeping a tensor or a closure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from onematrix.structures.base import Structure

S = TypeVar("S", bound=Structure)


def field_names(structure: Structure | type[Structure]) -> list[str]:
    """Names of the fields, in the order of the definition."""
    return [field.name for field in fields(structure)]  # type: ignore[arg-type]


def leaves(structure: Structure, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) for every tensor in the structure, depth first; a shared tensor comes once per path."""
    for name in field_names(structure):
        value = getattr(structure, name)
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Structure):
            yield from leaves(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            for i, term in enumerate(value):
                yield from leaves(term, f"{prefix}{name}.{i}.")


def map_fields(structure: S, change: Callable[[Structure, str, Any], Any]) -> S:
    """A copy with `change(owner, field, value)` in place of every tensor, int, str and bool field."""
    new: dict[str, Any] = {}
    for name in field_names(structure):
        value = getattr(structure, name)
        if isinstance(value, Structure):
            new[name] = map_fields(value, change)
        elif isinstance(value, tuple):
            new[name] = tuple(map_fields(term, change) for term in value)
        else:
            new[name] = change(structure, name, value)
    return type(structure)(**new)


def map_tensors(structure: S, change: Callable[[Tensor], Tensor]) -> S:
    """A copy with `change(tensor)` in place of every tensor."""
    return map_fields(structure, lambda _, __, v: change(v) if isinstance(v, Tensor) else v)


@dataclass(frozen=True)
class Layout:
    """How to rebuild a structure: its class and, per field, the kind (slot, value, one, many) and content."""

    structure: type[Structure]
    entries: tuple[tuple[str, str, Any], ...]


def layout(structure: Structure, slots: Mapping[int, int]) -> Layout:
    """The layout of a structure; `slots` gives the slot number of each tensor by its id()."""
    entries: list[tuple[str, str, Any]] = []
    for name in field_names(structure):
        value = getattr(structure, name)
        if isinstance(value, Tensor):
            entries.append((name, "slot", slots[id(value)]))
        elif isinstance(value, Structure):
            entries.append((name, "one", layout(value, slots)))
        elif isinstance(value, tuple):
            entries.append((name, "many", tuple(layout(term, slots) for term in value)))
        else:
            entries.append((name, "value", value))
    return Layout(type(structure), tuple(entries))


def rebuild(plan: Layout, tensors: Sequence[Tensor]) -> Structure:
    """The structure of a layout over the given tensors. Fields were checked when the layout was made."""
    new = object.__new__(plan.structure)
    for name, kind, content in plan.entries:
        if kind == "slot":
            content = tensors[content]
        elif kind == "one":
            content = rebuild(content, tensors)
        elif kind == "many":
            content = tuple([rebuild(term, tensors) for term in content])
        new.__dict__[name] = content  # frozen: no attribute can be set
    return new


def unique_tensors(structures: Sequence[Structure]) -> list[Tensor]:
    """Every tensor once, in the order of first use."""
    seen: dict[int, Tensor] = {}
    for structure in structures:
        for _, tensor in leaves(structure):
            seen.setdefault(id(tensor), tensor)
    return list(seen.values())


def stored_numbers(*structures: Structure) -> int:
    """Floating-point numbers stored; a tensor shared by several structures counts once."""
    return sum(t.numel() for t in unique_tensors(structures) if t.is_floating_point())


def index_bytes(*structures: Structure) -> int:
    """Bytes of the integer arrays (positions, pointers, permutations)."""
    tensors = unique_tensors(structures)
    return sum(t.numel() * t.element_size() for t in tensors if not t.is_floating_point())


def stored_bytes(*structures: Structure) -> int:
    """Bytes of all tensors, numbers and indices."""
    return sum(t.numel() * t.element_size() for t in unique_tensors(structures))


def effective_weight(structure: Structure) -> float:
    """E = stored floating-point numbers ÷ m n; may exceed 1."""
    m, n = structure.fixed_shape
    return stored_numbers(structure) / (m * n)


def with_dtype(structure: S, dtype: torch.dtype) -> S:
    """A copy with every floating-point tensor in the given dtype; indices stay."""
    return map_tensors(structure, lambda t: t.to(dtype) if t.is_floating_point() else t)
