"""How a module owns the tensors of a value: parameters and buffers it can rebuild the value from.

Floating-point tensors become parameters (the same object where it already is one), integer tensors
buffers, each once. The module keeps a plan made of data: no tensor, no closure. It therefore survives
.to(), deepcopy, state_dict, FSDP and functional_call, and ties stay ties.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from onematrix.structures.base import Structure
from onematrix.structures.tree import Layout, layout, leaves, rebuild

_EMPTY = nn.Module()  # its attributes are names no leaf or room may have


@dataclass(frozen=True)
class Ownership:
    """Where each tensor of some structures lives in a module, and how to rebuild the structures from there."""

    slots: tuple[tuple[str, ...], ...]  # path of attribute names per slot
    layouts: tuple[Layout, ...]


def name_leaves(structures: Sequence[Structure], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """name → tensor for every different tensor; the first place that uses a tensor gives it its name.

    Every name can be registered: no room has a name nn.Module uses itself, and none is also a leaf.
    """
    table: dict[str, Tensor] = {}
    rooms: set[str] = set()
    seen: set[int] = set()
    for structure, prefix in zip(structures, prefixes, strict=True):
        for path, tensor in leaves(structure):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                name = _free_name([_free_word(word) for word in f"{prefix}{path}".split(".")], table, rooms)
                table[name] = tensor
                rooms.update(_rooms(name))
    return table


def _free_word(word: str) -> str:
    """The word with an underscore behind it where nn.Module has an attribute of that name, or it is empty."""
    return word if word and not hasattr(_EMPTY, word) else f"{word}_"


def _rooms(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[:k]) for k in range(1, len(words))]


def _free_name(words: list[str], taken: Mapping[str, Tensor], rooms: set[str]) -> str:
    """The words joined by dots, numbered where a room would be a leaf or a leaf is there already."""
    for k in range(1, len(words)):
        if ".".join(words[:k]) in taken:
            words = [*words[: k - 1], _number(words[: k - 1], words[k - 1], taken), *words[k:]]
    return ".".join([*words[:-1], _number(words[:-1], words[-1], taken, rooms)])


def _number(before: list[str], word: str, *taken: Collection[str]) -> str:
    number, candidate = 2, word
    while any(".".join([*before, candidate]) in names for names in taken):
        number, candidate = number + 1, f"{word}_{number}"
    return candidate


def adopt(module: nn.Module, structures: Sequence[Structure], table: Mapping[str, Tensor]) -> Ownership:
    """Register every tensor of `table` in `module` under its dotted name, and plan how to rebuild.

    Dots in a name become submodules, so that state_dict shows exactly the names of the table.
    """
    slots: dict[int, int] = {}
    paths = []
    for number, (name, tensor) in enumerate(table.items()):
        path = tuple(name.split("."))
        _register(_room(module, path[:-1]), path[-1], tensor)
        slots[id(tensor)] = number
        paths.append(path)
    return Ownership(tuple(paths), tuple(layout(s, slots) for s in structures))


def slot_tensors(module: nn.Module, ownership: Ownership) -> list[Tensor]:
    """The tensors the module holds now, by slot."""
    return [_slot(module, path) for path in ownership.slots]


def _slot(place: nn.Module, path: tuple[str, ...]) -> Tensor:
    for name in path[:-1]:
        place = place._modules[name]  # type: ignore[assignment]
    found: Tensor | None = place._parameters.get(path[-1])
    if found is None:
        found = place._buffers.get(path[-1])
    return getattr(place, path[-1]) if found is None else found


def rebuild_all(module: nn.Module, ownership: Ownership) -> list[Structure]:
    """The structures over the tensors the module holds now."""
    tensors = slot_tensors(module, ownership)
    return [rebuild(plan, tensors) for plan in ownership.layouts]


def _room(module: nn.Module, path: tuple[str, ...]) -> nn.Module:
    for name in path:
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module._modules[name]  # type: ignore[assignment]
    return module


def _register(place: nn.Module, name: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        place.register_parameter(name, tensor)
    elif isinstance(tensor, nn.Buffer):  # a number of the source that is not trained
        place.register_buffer(name, tensor)
    elif tensor.is_floating_point():
        place.register_parameter(name, nn.Parameter(tensor.detach()))
    else:
        place.register_buffer(name, tensor)
