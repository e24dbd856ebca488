"""Rows of one module drawn or listed as one, where a program has more rows than a person reads."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from onematrix.reports.folding import Item, Repeat


@dataclass(frozen=True)
class Bundle:
    """Parts of one module shown as one. label: transformer.h.0.attn, or transformer.h.0.* with the modules below."""

    label: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """A Repeat whose shown items may be bundles."""

    repeat: Repeat
    items: tuple["Shown", ...]


Shown = str | Bundle | Group


def bundle_items(items: Sequence[Item], limit: int, open_repeats: bool = True) -> list[Shown]:
    """The items with rows of one module put together, smallest modules first, until `limit` or fewer are shown.

    First rows of the same module, then, from the deepest level of names on, all rows below a module.
    open_repeats: a repeat shows its first layers; else it is one line without items.
    """
    shown = [_wrap(item, open_repeats) for item in items]
    names = {name for item in shown for name in parts_shown(item)}
    depth = max((name.count(".") for name in names), default=0)
    for level in (None, *range(depth, 0, -1)):
        if (surplus := count_shown(shown) - limit) <= 0:
            break
        sizes = sorted((len(g) for line in _lines(shown) for g in _groups(line, level, names)), reverse=True)
        least = _least(sizes, surplus)
        shown = _bundled(shown, level, names, least)
    return shown


def parts_shown(item: Shown) -> list[str]:
    """The parts an item shows: of a repeat those of its first layers."""
    if isinstance(item, str):
        return [item]
    return list(item.parts) if isinstance(item, Bundle) else [n for i in item.items for n in parts_shown(i)]


def rows_shown(items: Sequence[Shown]) -> list[str | Bundle]:
    """What stands in a line by itself, in order."""
    return [r for i in items for r in (rows_shown(i.items) if isinstance(i, Group) else [i])]


def count_shown(items: Sequence[Shown]) -> int:
    """How many rows are shown."""
    return len(rows_shown(items))


def own_module(name: str, names: Collection[str]) -> str:
    """The name without the number that tells the rows of one module apart.

    >>> own_module("h.0.attn_2", {"h.0.attn", "h.0.attn_2"}), own_module("h.0.ln_1", {"h.0.ln_1"})
    ('h.0.attn', 'h.0.ln_1')
    """
    stem = re.sub(r"_\d+$", "", name)
    return stem if stem in names else name


def _wrap(item: Item, open_repeats: bool) -> Shown:
    if isinstance(item, str):
        return item
    return Group(item, tuple(_wrap(i, True) for i in item.items) if open_repeats else ())


def _lines(items: Sequence[Shown]) -> Iterator[Sequence[Shown]]:
    """Every list of items that stand beside each other."""
    yield items
    for item in items:
        if isinstance(item, Group):
            yield from _lines(item.items)


def _least(sizes: Sequence[int], surplus: int) -> int:
    """Size of the smallest group to put together: the largest ones first, until the surplus is gone."""
    for size in sizes:
        surplus -= size - 1
        if surplus <= 0:
            return size
    return 2


def _key(item: Shown, level: int | None, names: Collection[str]) -> str | None:
    """What items have in common that are put together; None for those that stay by themselves."""
    if isinstance(item, Group):
        return None
    name = own_module(item if isinstance(item, str) else item.parts[0], names)
    words = name.split(".")
    if level is None:
        return name
    return ".".join(words[:level]) + ".*" if len(words) >= level else None


def _groups(line: Sequence[Shown], level: int | None, names: Collection[str]) -> list[list[Shown]]:
    groups: dict[str, list[Shown]] = {}
    for item in line:
        if (key := _key(item, level, names)) is not None:
            groups.setdefault(key, []).append(item)
    return [group for group in groups.values() if len(group) > 1]


def _bundled(line: Sequence[Shown], level: int | None, names: Collection[str], least: int) -> list[Shown]:
    groups: dict[str, list[Shown]] = {}
    for item in line:
        if (key := _key(item, level, names)) is not None:
            groups.setdefault(key, []).append(item)
    made: list[Shown] = []
    for item in line:
        key = _key(item, level, names)
        if isinstance(item, Group):
            made.append(replace(item, items=tuple(_bundled(item.items, level, names, least))))
        elif key is None or len(groups[key]) < max(2, least):
            made.append(item)
        elif item is groups[key][0]:
            made.append(Bundle(key, tuple(n for i in groups[key] for n in parts_shown(i))))
    return made
