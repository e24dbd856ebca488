"""The contract every structure fulfils. A structure is a value: a kind of matrix and its numbers."""

import abc
import inspect
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from onematrix.errors import BudgetError, DTypeError, FitError, OneMatrixError, ShapeError
from onematrix.structures.fit_input import check_matrix
from onematrix.structures.sizes import (
    Size,
    check_budget,
    check_rank,
    check_seconds,
    evaluate_size,
    numbers_within,
)

SECONDS = 30.0  # of a search or a descent, where no other limit is given
STRUCTURES: dict[str, type["Structure"]] = {}

S = TypeVar("S", bound="Structure")


@dataclass(frozen=True)
class Fit:
    """A fitted structure, its relative Frobenius error, and the error theory predicts (None: not known)."""

    structure: "Structure"
    error: float
    predicted: float | None = None


class Structure(abc.ABC):
    """A matrix A: (m, n). Subclasses are frozen, final dataclasses; vectors are rows, y = x Aᵀ.

    Fields are tensors (contiguous, at least 1-d), structures, tuples of structures, int, str or bool.
    A subclass defines `shape`, `_to_dense`, `_matmul`, `_rmatmul`, `multiply_adds` and `examples`.
    """

    name: ClassVar[str]
    source: ClassVar[str] = "definition"
    composite: ClassVar[bool] = False
    square_only: ClassVar[bool] = False
    can_fit: ClassVar[bool] = False
    can_random: ClassVar[bool] = False
    searches: ClassVar[bool] = False  # whether a fit without a gram is a search that takes seconds too
    exempt: ClassVar[frozenset[str]] = frozenset()
    sizes_are_free: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if parent := next((p for p in cls.__mro__[1:] if p in STRUCTURES.values()), None):
            raise TypeError(f"{parent.__name__} is final: wrap it or share a function, do not subclass it")
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        if cls.name in STRUCTURES:
            raise TypeError(f"there is already a structure called {cls.name!r}")
        STRUCTURES[cls.name] = cls

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            _check_field(self, field.name, getattr(self, field.name))
        _check_alike(self)
        self.check()

    def check(self) -> None:  # noqa: B027
        """Raise ShapeError when the fields do not fit each other."""

    # What a subclass defines.

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[Size, Size]:
        """(m, n): rows = outputs, columns = inputs; integers or expressions of named sizes."""

    @abc.abstractmethod
    def _to_dense(self) -> Tensor:
        """The definition, literally: (m, n)."""

    @abc.abstractmethod
    def _matmul(self, x: Tensor) -> Tensor:
        """x Aᵀ for x: (..., n) → (..., m)."""

    @abc.abstractmethod
    def _rmatmul(self, y: Tensor) -> Tensor:
        """y A for y: (..., m) → (..., n)."""

    @abc.abstractmethod
    def multiply_adds(self) -> int:
        """Multiply-adds of one product with one vector (1 multiply-add = 2 flops)."""

    @classmethod
    @abc.abstractmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        """Small instances in float64, edge sizes included; every law is checked on each."""

    # What a subclass may define.

    def exact_size(self) -> dict[str, Any]:
        """The size options of `fit` and `random` that lead to a member of this size."""
        return {}

    def nonzeros(self) -> int:
        """Entries of the definition that are not structurally zero."""
        m, n = self.fixed_shape
        return m * n

    def learning_rate_scale(self) -> dict[str, float]:
        """Factor on the learning rate per tensor, by field path; 1.0 where the source names none."""
        return {}

    def decays(self) -> dict[str, bool]:
        """Whether weight decay applies, per tensor, by field path; True where not named."""
        return {}

    def solve(self, y: Tensor) -> Tensor:
        """x with x Aᵀ = y, where a fast way exists. Raises OneMatrixError otherwise."""
        raise OneMatrixError(
            f"{self.name} has no fast solve; torch.linalg.solve(a.to_dense(), y.mT) is dense"
        )

    def logdet(self) -> Tensor:
        """log |det A|, where a fast way exists. Raises OneMatrixError otherwise."""
        raise OneMatrixError(f"{self.name} has no fast logdet; torch.linalg.slogdet(a.to_dense()) is dense")

    @classmethod
    def _fit(cls, dense: Tensor, gram: Tensor | None, *args: Any, **size: Any) -> Fit:
        raise FitError(
            f"{cls.name} cannot be fitted to a matrix; structures that can: {', '.join(fittable())}"
        )

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """Random member with output variance 1 for inputs of variance 1 (float32)."""
        raise FitError(f"{cls.name} has no random form; structures that have: {', '.join(randomisable())}")

    # What every structure has: final.

    @property
    def fixed_shape(self) -> tuple[int, int]:
        """(m, n) as integers. Raises ShapeError when a named size is still free."""
        m, n = self.shape
        if isinstance(m, str) or isinstance(n, str):
            raise ShapeError(f"{self.name} is {m}×{n}: fix the named sizes first, as in a.at(time=128)")
        return m, n

    def matmul(self, x: Tensor) -> Tensor:
        """x Aᵀ for x: (..., n) → (..., m). Never writes into x.

        Raises ShapeError on a wrong width, DTypeError when x and the weights differ in dtype.
        """
        self._check_input(x, 1)
        return self._matmul(x)

    def rmatmul(self, y: Tensor) -> Tensor:
        """y A for y: (..., m) → (..., n). Raises as `matmul`."""
        self._check_input(y, 0)
        return self._rmatmul(y)

    def to_dense(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """The matrix as its definition reads, (m, n); for checking and drawing, never used to compute.

        dtype and device: those of the weights when not given; the default dtype where nothing is stored.
        """
        weight = self.any_weight()
        if weight is not None:
            dtype, device = dtype or weight.dtype, device or weight.device
        return self._to_dense().to(dtype=dtype or torch.get_default_dtype(), device=device)

    def transpose(self) -> "Structure":
        """Aᵀ, sharing every tensor."""
        from onematrix.structures.algebra import Transposed

        return self.inner if isinstance(self, Transposed) else Transposed(self)

    def at(self, **sizes: int) -> "Structure":
        """The member with its named sizes fixed, as in `identity.at(time=128)`."""
        from onematrix.structures.tree import map_fields

        return map_fields(self, lambda s, f, v: evaluate_size(v, sizes) if f in s.sizes_are_free else v)

    @classmethod
    def fit(
        cls,
        dense: Tensor,
        budget: float | None = None,
        *,
        gram: Tensor | None = None,
        seconds: float | None = SECONDS,
        **size: Any,
    ) -> Fit:
        """Best member for a dense matrix within the budget E (or an exact size: rank=, nonzeros=, …).

        dense: (m, n), real and finite. gram: (n, n) = XᵀX weights the error ‖(W − A) G^½‖ ÷ ‖W G^½‖.
        seconds: what a search, or the descent on a weighted error, has reached by then stands (None: no limit,
        and the same result each time); exact projections are not cut short.
        Raises FitError (also for a rank above the largest of use, which it names), BudgetError (outside (0, 1]
        or below the structure's minimum, which it names).
        """
        check_matrix(cls.name, dense, gram)
        check_seconds(cls.name, seconds)
        if takes_seconds(cls):
            size["seconds"] = seconds
        if budget is not None:
            check_budget(budget, cls.name)
            size["budget"] = budget
        rank = size.get("rank")
        if rank is not None and not isinstance(rank, tuple | list):  # several are checked where they are read
            check_rank(cls.name, rank)
        found = cls._fit(dense, gram, **size)
        if budget is not None:
            _check_within(found.structure, budget)
        return found

    def _check_input(self, x: Tensor, side: int) -> None:
        width = self.shape[side]
        if x.dim() == 0 or x.shape[-1] != width:
            m, n = self.shape
            if isinstance(width, str):
                self.fixed_shape  # noqa: B018 - raises with the remedy
            raise ShapeError(
                f"{self.name} is {m}×{n}: input must end in {width}, got {tuple(x.shape)}",
                needed=width,
                got=tuple(x.shape),
            )
        weight = self._first_weight()
        if weight is not None and weight.dtype != x.dtype:
            check_dtypes(self.name, weight, x)

    def any_weight(self) -> Tensor | None:
        """Some floating-point tensor of this structure or of one inside it; None where nothing is stored."""
        if (weight := self._first_weight()) is not None:
            return weight
        for value in self.__dict__.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, Structure) and (weight := inner.any_weight()) is not None:
                    return weight
        return None

    def _first_weight(self) -> Tensor | None:
        for value in self.__dict__.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                return value
        return None


def under_autocast(x: Tensor) -> bool:
    """Whether autocast decides the dtype of products with x; it knows no device "meta"."""
    return x.is_floating_point() and not x.is_meta and torch.is_autocast_enabled(x.device.type)


def check_dtypes(who: str, weight: Tensor, x: Tensor) -> None:
    """Raise DTypeError when x has another dtype than the weight and autocast does not say otherwise."""
    if weight.dtype != x.dtype and not under_autocast(x):
        raise DTypeError(
            f"{who}: weights are {weight.dtype}, input is {x.dtype}; convert one of them with .to(...)",
            needed=weight.dtype,
            got=x.dtype,
        )


def takes_seconds(cls: type[Structure]) -> bool:
    """Whether a fit, or one with a gram, is a search or a descent that can be told when to stop."""
    return "seconds" in inspect.signature(cls._fit).parameters


def fittable() -> list[str]:
    """Names of the structures `fit` works for."""
    return sorted(name for name, cls in STRUCTURES.items() if cls.can_fit)


def randomisable() -> list[str]:
    """Names of the structures `random` works for."""
    return sorted(name for name, cls in STRUCTURES.items() if cls.can_random)


def list_structures() -> dict[str, type[Structure]]:
    """Name → class of every structure there is, in alphabetical order."""
    return dict(sorted(STRUCTURES.items()))


def require_square(cls: type[Structure], m: int, n: int) -> int:
    """The common size. Raises FitError naming both sizes when m ≠ n."""
    if m != n:
        raise FitError(f"{cls.name} is square, the matrix is {m}×{n}; pad it or choose another structure")
    return n


def below_minimum(cls: type[Structure], budget: float, needed: int, m: int, n: int, what: str) -> BudgetError:
    """The error for a budget below the smallest member, naming that member and its budget."""
    smallest = round_up(Fraction(needed, m * n))
    return BudgetError(
        f"{cls.name} {m}×{n}: budget {budget:g} is below the smallest member ({what}: {needed} numbers, "
        f"E = {needed / (m * n):.4g}); ask for budget={smallest!r} or more",
        budget=budget,
        smallest=smallest,
    )


def round_up(value: Fraction, digits: int = 4) -> float:
    """The smallest decimal of so many significant digits that is not below the value; a remedy one can paste.

    >>> round_up(Fraction(8, 15))
    0.5334
    """
    unit = Fraction(10) ** (math.floor(math.log10(value)) + 1 - digits)
    return float(math.ceil(value / unit) * unit)


def relative_error(structure: Structure, dense: Tensor, gram: Tensor | None = None) -> float:
    """‖(W − A) G^½‖_F ÷ ‖W G^½‖_F in float64; G = I when no gram is given; 0 for an exactly fitted zero."""
    target = dense.detach().double()
    rest = target - structure.to_dense().detach().double()
    if gram is None:
        top, bottom = rest.norm(), target.norm()
    else:
        g = gram.detach().double()
        top = torch.einsum("ij,jk,ik->", rest, g, rest).clamp(min=0).sqrt()
        bottom = torch.einsum("ij,jk,ik->", target, g, target).clamp(min=0).sqrt()
    return float(top / bottom) if bottom > 0 else float(top)


def _check_field(owner: Structure, name: str, value: object) -> None:
    who = f"{owner.name}.{name}"
    if isinstance(value, Tensor):
        if value.dim() == 0 or not value.is_contiguous():
            raise ShapeError(
                f"{who}: a contiguous tensor of at least one dimension was needed, "
                f"got shape {tuple(value.shape)} strides {value.stride()}; call .contiguous()"
            )
    elif isinstance(value, tuple):
        if not value or not all(isinstance(v, Structure) for v in value):
            raise ShapeError(f"{who}: a tuple of one or more structures was needed, got {value!r}")
    elif not isinstance(value, Structure | int | str | bool):
        raise ShapeError(
            f"{who}: a tensor, structure, int, str or bool was needed, got {type(value).__name__}"
        )


def _check_alike(owner: Structure) -> None:
    """Raise DTypeError unless all numbers are real, of one dtype and on one device."""
    weights = [(name, v) for name, v in owner.__dict__.items() if isinstance(v, Tensor)]
    for name, value in weights:
        if value.is_complex():
            raise DTypeError(
                f"{owner.name}.{name}: real numbers were needed, got {value.dtype}; hold real and imaginary "
                "part in structures of their own",
                got=value.dtype,
            )
    check_alike(owner.name, [(name, v) for name, v in weights if v.is_floating_point()])


def check_alike(who: str, weights: Sequence[tuple[str, Tensor]]) -> None:
    """Raise DTypeError unless these numbers, each with its field, are of one dtype and on one device."""
    for name, value in weights[1:]:
        head, first = weights[0]
        if (value.dtype, value.device) != (first.dtype, first.device):
            raise DTypeError(
                f"{who}: {head} is {first.dtype} on {first.device}, {name} is {value.dtype} on "
                f"{value.device}; convert one of them with .to(...)",
                needed=first.dtype,
                got=value.dtype,
            )


def check_cores(who: str, what: str, cores: Sequence["Structure"]) -> None:
    """Raise DTypeError unless the numbers of all cores, or modes, are alike: one product takes them all."""
    weights = [(f"{what}.{t}.weight", core._first_weight()) for t, core in enumerate(cores)]
    check_alike(who, [(name, weight) for name, weight in weights if weight is not None])


def _check_within(a: Structure, budget: float) -> None:
    """Raise BudgetError where sizes that were asked for beside the budget store more numbers than it allows."""
    from onematrix.structures.tree import stored_numbers

    (m, n), numbers = a.fixed_shape, stored_numbers(a)
    if numbers > numbers_within(budget, m, n, a.name):
        raise BudgetError(
            f"{a.name} {m}×{n}: the sizes asked for store {numbers} numbers (E = {numbers / (m * n):.4g}), above "
            f"budget {budget:g}; leave out the budget, or ask for smaller sizes",
            budget=budget,
            numbers=numbers,
        )
