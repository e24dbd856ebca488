"""Block matrices over parts: a structure at each (output part, input part)."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from onematrix.errors import ConversionError, ProgramError, ShapeError
from onematrix.programs.part import ONE, Part, check_name, make_part
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity
from onematrix.structures.sizes import Size, multiply_sizes

Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Block:
    """A structure and what it acts on: "all" flattened features, or the "last" dimensions (I ⊗ A).

    With on="last" the structure acts on as many trailing dimensions as multiply to its width.
    """

    structure: Structure
    on: str = "all"

    def __post_init__(self) -> None:
        if self.on not in ("all", "last"):
            raise ProgramError(f"block on={self.on!r}: 'all' or 'last' was needed")


class BlockMatrix:
    """G = (G_ij): rows are output parts i, columns input parts j; an absent block is a structural zero.

    blocks: {(output part, input part): Structure or Block}. parts: {name: size, shape or Part}; the
    constant part `one` (shape (1,)) is always there, so that a bias is a block from it.
    Raises ProgramError (unknown part), ShapeError (a block that does not fit its parts).

    >>> G = BlockMatrix({("h", "x"): Dense(torch.ones(2, 3))}, parts={"x": 3, "h": 2})
    >>> G.rows
    ('h',)
    """

    def __init__(
        self,
        blocks: Mapping[Key, Structure | Block],
        parts: Mapping[str, Part | int | str | tuple[Size, ...]],
    ) -> None:
        self.parts: dict[str, Part] = {check_name(n): make_part(p) for n, p in parts.items()}
        self.parts.setdefault(ONE, Part((1,)))
        if self.parts[ONE].shape != (1,):
            raise ShapeError(f"part 'one' is the constant 1 of shape (1,), got {self.parts[ONE].shape}")
        self.blocks: dict[Key, Block] = {}
        for key, value in blocks.items():
            self._check_key(key)
            self.blocks[key] = value if isinstance(value, Block) else Block(value)

    def _check_key(self, key: Key) -> None:
        if not (isinstance(key, tuple) and len(key) == 2):
            raise ProgramError(f"block key {key!r}: a pair (output part, input part) was needed")
        for name in key:
            if name not in self.parts:
                raise ProgramError(
                    f"block ({key[0]!r}, {key[1]!r}): there is no part {name!r}; parts: {', '.join(self.parts)}"
                )

    def check_blocks(
        self, peel_rows: Size | None = None, peel_columns: Size | None = None, free: Collection[str] = ()
    ) -> None:
        """Raise ShapeError unless every block fits its parts, the named dimension taken off rows or columns.

        free: rows whose sums keep the shapes of what they read; their blocks need only fit their sources.
        """
        for (row, column), block in self.blocks.items():
            if row in free:
                operand_shape(f"block ({row!r}, {column!r})", block, self.parts[column])
                continue
            target, source = self.parts[row], self.parts[column]
            target = (target.peel(peel_rows) or target) if peel_rows is not None else target
            source = (source.peel(peel_columns) or source) if peel_columns is not None else source
            check_fit(f"block ({row!r}, {column!r})", block, target, source)

    @property
    def rows(self) -> tuple[str, ...]:
        """Parts with a block in their row, in the order of first use."""
        return tuple(dict.fromkeys(row for row, _ in self.blocks))

    def row(self, name: str) -> list[tuple[str, Block]]:
        """(input part, block) of one row."""
        return [(column, block) for (row, column), block in self.blocks.items() if row == name]

    def __iter__(self) -> Iterator[tuple[Key, Block]]:
        return iter(self.blocks.items())

    def __getitem__(self, key: Key) -> Structure:
        if key not in self.blocks:
            raise ProgramError(f"there is no block {key}; blocks: {', '.join(map(str, self.blocks))}")
        return self.blocks[key].structure

    def __len__(self) -> int:
        return len(self.blocks)

    def to_dense(
        self, rows: Sequence[str] | None = None, columns: Sequence[str] | None = None, **sizes: int
    ) -> Tensor:
        """The whole matrix in float64 over the given parts (default: all but `one`), for checking."""
        names = [name for name in self.parts if name != ONE]
        grid = []
        for row in rows or names:
            line = []
            for column in columns or names:
                m, n = (_width(self.parts[p].features, sizes) for p in (row, column))
                block = self.blocks.get((row, column))
                line.append(
                    torch.zeros(m, n, dtype=torch.float64) if block is None else _whole(block, m, n, sizes)
                )
            grid.append(torch.cat(line, dim=1))
        return torch.cat(grid, dim=0)

    @classmethod
    def from_sequential2d(
        cls,
        blocks: Sequence[Sequence[Structure | Tensor | nn.Linear | nn.Identity | None]],
        names: Sequence[str] | None = None,
        sizes: Sequence[int] | None = None,
    ) -> Self:
        """The block matrix of a Sequential2D: blocks[i][j] maps input i to output j, None is a zero block.

        Entries: structures, matrices (outputs × inputs), nn.Linear, nn.Identity. Weights are shared; the
        biases of a row are added into one new bias per row. names: of the parts (default x0, x1, …);
        sizes: needed only for parts that no entry touches. Square lists give one set of parts, so that the
        matrix can be iterated.

        >>> G = BlockMatrix.from_sequential2d([[None, torch.ones(2, 3)], [None, None]])
        >>> list(G.blocks)
        [('x1', 'x0')]
        """
        count = len(blocks)
        if any(len(line) != count for line in blocks):
            raise ShapeError(
                f"from_sequential2d: {count} inputs need {count} outputs each, "
                f"got {[len(line) for line in blocks]}"
            )
        names = [f"x{i}" for i in range(count)] if names is None else list(names)
        if len(names) != count:
            raise ShapeError(f"from_sequential2d: {count} names were needed, got {len(names)}")
        if sizes is not None and len(sizes) != count:
            raise ShapeError(f"from_sequential2d: {count} sizes were needed, got {len(sizes)}")
        grid: dict[Key, Structure | Block] = {}
        bias: dict[str, Tensor] = {}
        for i, line in enumerate(blocks):
            for j, entry in enumerate(line):
                if entry is None:
                    continue
                grid[names[j], names[i]] = _sequential2d_entry(entry, f"blocks[{i}][{j}]", sizes, i)
                if isinstance(entry, nn.Linear) and entry.bias is not None:
                    bias[names[j]] = bias.get(names[j], 0) + entry.bias.detach()
        for row, vector in bias.items():
            grid[row, ONE] = Column(vector.contiguous())
        return cls(grid, _infer_sizes(grid, names, sizes))


def check_fit(who: str, block: Block, target: Part, source: Part) -> None:
    """Raise ShapeError unless the block maps the source part to the target part."""
    m, n = block.structure.shape
    a = block.structure.name
    if block.on == "all":
        if (target.features, source.features) != (m, n):
            hint = "; on='last' acts on the last dimension only" if len(source.shape) > 1 else ""
            raise ShapeError(
                f"{who}: {a} is {m}×{n}, the parts need {target.features}×{source.features}{hint}",
                needed=(target.features, source.features),
                got=(m, n),
            )
        return
    above, below = leading(target, m), leading(source, n)
    if above is None or below is None or below not in (above, ()):
        raise ShapeError(
            f"{who}: {a} is {m}×{n} on the last dimensions, which does not fit {target.shape} from {source.shape}"
        )


def operand_shape(who: str, block: Block, source: Part) -> tuple[Size, ...]:
    """Shape of A x by itself: that of x for an identity, else the leading dimensions of x and m."""
    m, n = block.structure.shape
    if isinstance(block.structure, Identity):
        before = leading(source, n) if block.on == "last" else () if source.features == n else None
        if before is not None:
            return source.shape
    elif block.on == "last" and (before := leading(source, n)) is not None:
        return (*before, m)
    elif block.on == "all" and source.features == n:
        return (m,)
    raise ShapeError(f"{who}: {block.structure.name} is {m}×{n}, which does not fit {source.shape}")


def leading(part: Part, width: Size) -> tuple[Size, ...] | None:
    """The dimensions before the trailing ones that multiply to `width`; None when none do."""
    for split in range(len(part.shape) - 1, -1, -1):
        if multiply_sizes(*part.shape[split:]) == width:
            return part.shape[:split]
    return None


def _width(size: Size, sizes: Mapping[str, int]) -> int:
    from onematrix.structures.sizes import evaluate_size

    return evaluate_size(size, sizes)


def _whole(block: Block, m: int, n: int, sizes: Mapping[str, int]) -> Tensor:
    dense = block.structure.at(**sizes).to_dense(torch.float64)
    return dense if dense.shape == (m, n) else torch.kron(torch.eye(n // dense.shape[1]).double(), dense)


def _sequential2d_entry(
    entry: Structure | Tensor | nn.Module, who: str, sizes: Sequence[int] | None, i: int
) -> Structure:
    if isinstance(entry, Structure):
        return entry
    if isinstance(entry, Tensor):
        return Dense(entry)
    if isinstance(entry, nn.Linear):
        return Dense(entry.weight)
    if isinstance(entry, nn.Identity) and sizes is not None:
        return Identity(sizes[i])
    remedy = (
        "give sizes=[...] as well" if isinstance(entry, nn.Identity) else "wrap its matrix in a structure"
    )
    raise ConversionError(f"from_sequential2d: {who} is {type(entry).__name__}; {remedy}")


def _infer_sizes(
    grid: Mapping[Key, Structure | Block], names: Sequence[str], sizes: Sequence[int] | None
) -> dict[str, int]:
    found: dict[str, int] = dict(zip(names, sizes, strict=True)) if sizes is not None else {}
    for key, structure in grid.items():
        assert isinstance(structure, Structure), "entries are structures here"
        for name, size in zip(key, structure.fixed_shape, strict=True):
            if name != ONE and found.setdefault(name, size) != size:
                raise ShapeError(
                    f"from_sequential2d: part {name!r} is {found[name]} wide in one block, {size} in another"
                )
    if missing := [name for name in names if name not in found]:
        raise ShapeError(f"from_sequential2d: no block tells the size of {missing}; give sizes=[...]")
    return {name: found[name] for name in names}
