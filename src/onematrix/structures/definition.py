"""om.define: a structure from its einsum alone."""

import keyword
import re
from collections.abc import Iterator
from dataclasses import field, make_dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from onematrix.errors import FitError, FormatError, ShapeError
from onematrix.structures.base import SECONDS, STRUCTURES, Fit, Structure, relative_error
from onematrix.structures.definition_fit import (
    Sizes,
    Wanted,
    choose_sizes,
    fit_cores,
    rank_bound,
    useful_sizes,
)
from onematrix.structures.definition_pattern import Pattern, read_pattern
from onematrix.structures.definition_plan import Plan, apply, plan, swapped
from onematrix.structures.deviations import core_deviations
from onematrix.structures.multilinear import Form
from onematrix.structures.multilinear_fit import Search
from onematrix.structures.sizes import Size, check_rank

NAME = re.compile(r"[a-z][a-z0-9_]*")
MOST_JACOBIAN = 2**26  # entries


def define(name: str, pattern: str, ranks: str | None = None) -> type[Structure]:
    """The structure A[(rows), (columns)] = Σ_ranks Π cores, written as one einsum; a class like any other.

    name: lower case; `om.fit(W, name)` and `om.list_structures()` then find it. pattern: the axes of every
    core, then the sides of the matrix, "p d r g a, p e r g b -> (p e d) (g b a)"; the cores are the fields
    core0, core1, … or are named, "u[i r], v[r j] -> (i) (j)". ranks: the axes that are summed, all others
    being axes of the matrix; None takes those that neither side has.

    All follows from the pattern: `matmul` core after core as batched products in the cheapest order; counts;
    `random` and `learning_rate_scale` from the number of terms each core sums; `fit` by least squares through
    lowered weight decay; `rank_bound`, `gauge_dimension`. Sizes of the axes are chosen within the budget, or
    given: `fit(W, sizes={"p": 4, …})`, `rank=8` for every rank axis. A program saved with a defined structure
    holds its pattern; it loads after the same definition.
    Raises FormatError when the pattern cannot be read, repeats or loses an axis, or uses a core twice (the
    matrix must be linear in each), and when the name is taken by another structure.

    >>> Pair = define("doc_pair", "u[i r], v[r j] -> (i) (j)", ranks="r")
    >>> a = Pair.random(6, 4, rank=2)
    >>> a.matmul(torch.ones(3, 4)).shape, a.multiply_adds(), Pair.stored_formula()
    (torch.Size([3, 6]), 20, 'i * r + r * j')
    >>> forget("doc_pair")
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise FormatError(
            f"define: a name of lower-case letters, digits and underscores was needed, got {name!r}"
        )
    if not isinstance(pattern, str) or not isinstance(ranks, str | None):
        raise FormatError(f"define: pattern and ranks are texts, got {pattern!r} and {ranks!r}")
    read = read_pattern(pattern, ranks)
    if taken := sorted(core for core, _ in read.cores if keyword.iskeyword(core) or _is_member(core)):
        raise FormatError(
            f"definition {pattern!r}: a core cannot be called {taken[0]!r}; choose another name"
        )
    known = STRUCTURES.get(name)
    if known is not None:
        if getattr(known, "definition", None) == read:
            return known
        raise FormatError(f"define: there is already a structure called {name!r}; choose another name")
    entries = [(core, Tensor) for core, _ in read.cores]
    pattern_field = ("pattern", str, field(default=str(read)))
    namespace = {
        "definition": read,
        "_form": read.form,
        "__doc__": _document(name, read),
        "source": f"define({str(read)!r})",
    }
    return make_dataclass(
        name,
        [*entries, pattern_field],
        bases=(Defined, Structure),
        namespace=namespace,
        frozen=True,
        eq=False,
    )


def forget(name: str) -> None:
    """Take a definition back, so that its name is free; values of the structure stay as they are.

    Raises FormatError for names that were not defined by `define`.
    """
    if not hasattr(STRUCTURES.get(name), "definition"):
        raise FormatError(f"forget: {name!r} was not defined by om.define")
    del STRUCTURES[name]


def _is_member(name: str) -> bool:
    """Whether every structure, or every defined one, has something of that name, so that a field would hide it."""
    return hasattr(Structure, name) or hasattr(Defined, name) or name in {"rank", *Defined.__annotations__}


def _document(name: str, pattern: Pattern) -> str:
    return (
        f"{pattern.equation()}.\n\n    Defined by `{pattern}`.\n\n"
        f"    >>> list_structures()[{name!r}].definition.ranks\n    {pattern.ranks!r}\n    "
    )


class Defined:
    """What every defined structure has: the methods of the contract, derived from `definition`."""

    definition: ClassVar[Pattern]
    _form: ClassVar[Form]
    name: ClassVar[str]
    can_fit: ClassVar[bool] = True
    can_random: ClassVar[bool] = True
    searches: ClassVar[bool] = True
    pattern: str

    @property
    def cores(self) -> tuple[Tensor, ...]:
        """The cores, in the order of the pattern."""
        return tuple([self.__dict__[core] for core, _ in self.definition.cores])

    @property
    def sizes(self) -> Sizes:
        """Size by axis."""
        pairs = zip(self.definition.cores, self.cores, strict=True)
        return {axis: size for (_, axes), core in pairs for axis, size in zip(axes, core.shape, strict=True)}

    def check(self) -> None:
        """Raise ShapeError when the cores disagree, FormatError when they were stored by another definition."""
        if self.pattern != str(self.definition):
            raise FormatError(
                f"{self.name}: stored as {self.pattern!r}, defined here as {str(self.definition)!r}; "
                "define it under another name"
            )
        seen: Sizes = {}
        for (core, axes), tensor in zip(self.definition.cores, self.cores, strict=True):
            if tensor.dim() != len(axes):
                raise ShapeError(
                    f"{self.name}.{core}: axes {' '.join(axes)} were needed, got shape {tuple(tensor.shape)}"
                )
            for axis, size in zip(axes, tensor.shape, strict=True):
                if seen.setdefault(axis, size) != size:
                    raise ShapeError(
                        f"{self.name}.{core}: axis {axis} is {size} here and {seen[axis]} in a core before"
                    )
        self._plan()  # made now, so that torch.compile finds it

    @property
    def shape(self) -> tuple[Size, Size]:
        """(m, n): the products of the axes of either side."""
        sizes, m, n = self.sizes, 1, 1
        for axis in self.definition.rows:
            m *= sizes[axis]
        for axis in self.definition.columns:
            n *= sizes[axis]
        return m, n

    def exact_size(self) -> dict[str, Any]:
        """The size of every axis, ranks as large as they are of use."""
        return {"sizes": useful_sizes(self.definition, self.sizes)}

    def _plan(self, *, back: bool = False) -> Plan:
        form = swapped(self._form) if back else self._form
        return plan(form, tuple([tuple(core.shape) for core in self.cores]))

    def _to_dense(self) -> Tensor:
        form = self.definition.form
        m, n = self.shape
        return torch.einsum(f"{','.join(form.cores)}->{form.output}", *self.cores).reshape(int(m), int(n))

    def _matmul(self, x: Tensor) -> Tensor:
        return apply(self._plan(), self.cores, x)

    def _rmatmul(self, y: Tensor) -> Tensor:
        return apply(self._plan(back=True), self.cores, y)

    def multiply_adds(self) -> int:
        """Of the cheapest order of cores."""
        return self._plan().multiply_adds()

    def multiply_adds_formula(self) -> str:
        """The multiply-adds in the sizes of the axes, stage by stage."""
        axis = {letter: name for name, letter in self.definition.letters.items()}
        stages = (s.batch + s.new + s.over + s.free for s in self._plan().stages)
        return " + ".join(" * ".join(axis[c] for c in stage if c in axis) for stage in stages)

    @classmethod
    def stored_formula(cls) -> str:
        """The stored numbers in the sizes of the axes."""
        return " + ".join(" * ".join(axes) for _, axes in cls.definition.cores)

    def learning_rate_scale(self) -> dict[str, float]:
        """For Adam, relative to a dense layer: n ÷ (cores · terms the core sums). Qiu et al. 2024, §3."""
        fans, (_, n) = self._plan().fan_in(), self.shape
        names = [core for core, _ in self.definition.cores]
        return {core: int(n) / (len(names) * fans[k]) for k, core in enumerate(names)}

    def rank_bound(self) -> int:
        """The highest rank a member of these sizes can have, by the least cut between rows and columns."""
        return rank_bound(self.definition, self.sizes)

    def certified_rank(self, generator: torch.Generator | None = None) -> int:
        """The rank at a random point: that of almost every member; equal to `rank_bound` certifies both."""
        return int(torch.linalg.matrix_rank(self._random_like(generator)._to_dense()))

    def gauge_dimension(self, generator: torch.Generator | None = None) -> int:
        """Numbers − rank of the Jacobian at a random point: how many directions leave the matrix as it is.

        Raises FitError where the Jacobian (m n × numbers) is too large.
        """
        point = self._random_like(generator)
        (m, n), form, cores = point.shape, self.definition.form, point.cores
        count = sum(core.numel() for core in cores)
        if int(m) * int(n) * count > MOST_JACOBIAN:
            raise FitError(
                f"{self.name}: a Jacobian of {int(m) * int(n)} × {count} entries is too large; "
                "take smaller sizes of the same kind"
            )
        parts = torch.func.jacrev(lambda *c: form.expand(c), argnums=tuple(range(len(cores))))(*cores)
        flat = torch.cat([p.reshape(int(m) * int(n), -1) for p in parts], dim=1)
        return count - int(torch.linalg.matrix_rank(flat))

    def _random_like(self, generator: torch.Generator | None) -> "Defined":
        shapes = [core.shape for core in self.cores]
        return type(self)(*(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes))

    @classmethod
    def _fit(
        cls,
        dense: Tensor,
        gram: Tensor | None,
        *,
        budget: float | None = None,
        rank: int | None = None,
        sizes: Sizes | None = None,
        seconds: float | None = SECONDS,
        starts: int = 4,
        seed: int = 0,
    ) -> Fit:
        """Least squares through lowered weight decay from several starts; see `multilinear_fit`."""
        m, n = dense.shape
        candidates = cls._sizes(m, n, Wanted(budget, rank, sizes))
        search = Search(seconds, starts, seed)
        _, cores = fit_cores(cls.definition, dense.detach(), gram, candidates, search)
        fitted: Any = cls(*(core.to(dense.dtype).contiguous() for core in cores))
        return Fit(fitted, relative_error(fitted, dense, gram))

    @classmethod
    def random(
        cls,
        m: int,
        n: int,
        budget: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        rank: int | None = None,
        sizes: Sizes | None = None,
        **size: Any,
    ) -> Self:
        """Cores of the deviations of `core_deviations`, by the number of terms each core sums."""
        wanted = Wanted(None if rank is not None or sizes is not None else budget, rank, sizes)
        chosen = cls._sizes(m, n, wanted)[0]
        shapes = tuple(tuple(chosen[axis] for axis in axes) for _, axes in cls.definition.cores)
        fans = plan(cls.definition.form, shapes).fan_in()
        sizes_of = core_deviations([fans[k] for k in range(len(shapes))])
        cores = [torch.randn(s, generator=generator) * d for s, d in zip(shapes, sizes_of, strict=True)]
        return cls(*cores)

    @classmethod
    def _sizes(cls, m: int, n: int, wanted: Wanted) -> list[Sizes]:
        if wanted.rank is not None:
            check_rank(cls.name, wanted.rank)
        return choose_sizes(cls.name, cls.definition, m, n, wanted)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        """Every axis of size 1; sizes 2 and 3 in turn, twice; ranks above the rest."""
        axes, ranks = cls.definition.axes, cls.definition.ranks
        for number in range(4):
            cycle = [1 if number == 0 else 2 + (k + number) % 2 for k in range(len(axes))]
            sizes = {a: s if a not in ranks else max(1, number) for a, s in zip(axes, cycle, strict=True)}
            shapes = [tuple(sizes[a] for a in core) for _, core in cls.definition.cores]
            yield cls(*(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes))
