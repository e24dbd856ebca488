"""om.fit: one dense matrix to the best member of a structure, or the table of all structures."""

from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor

from onematrix.errors import BudgetError, FitError
from onematrix.structures.base import STRUCTURES, Fit, Structure, fittable
from onematrix.structures.tree import index_bytes, stored_numbers


@dataclass(frozen=True)
class Candidate:
    """One row of the table of fits: what a structure needs and how near it comes."""

    name: str
    fit: Fit
    stored_numbers: int
    index_bytes: int
    multiply_adds: int

    @property
    def error(self) -> float:
        """Relative Frobenius error reached."""
        return self.fit.error


@overload
def fit(dense: Tensor, structure: str, budget: float | None = None, **options: Any) -> Structure: ...
@overload
def fit(
    dense: Tensor, structure: None = None, budget: float | None = None, **options: Any
) -> list[Candidate]: ...
def fit(
    dense: Tensor, structure: str | None = None, budget: float | None = None, **options: Any
) -> Structure | list[Candidate]:
    """argmin over members A of ‖W − A‖_F within E = stored numbers ÷ m n ≤ budget.

    dense: (m, n), real and finite. structure: a name of `list_structures()`, or None for a table of
    every structure that has a member within the budget, best error first. options: gram=XᵀX (n, n), and
    exact sizes such as rank=, nonzeros=. `STRUCTURES[name].fit` gives the error with the structure.
    Raises FitError (unknown name, not finite, not fittable), BudgetError (outside (0, 1], below minimum).

    >>> import torch
    >>> fit(torch.eye(4), "csr", budget=0.25).nonzeros()
    4
    >>> fit(torch.eye(4), budget=0.5)[0].name
    'diagonal'
    """
    if structure is not None:
        return find_structure(structure).fit(dense, budget, **options).structure
    candidates = []
    for name in fittable():
        try:
            found = STRUCTURES[name].fit(dense, budget, **options)
        except (BudgetError, FitError):
            continue  # no member of this structure fits the size or the budget
        a = found.structure
        candidates.append(Candidate(name, found, stored_numbers(a), index_bytes(a), a.multiply_adds()))
    if not candidates:
        STRUCTURES["dense"].fit(dense, budget, **options)  # says what is wrong with matrix or budget
    return sorted(candidates, key=lambda c: (c.error, c.stored_numbers, c.name))


def find_structure(name: str) -> type[Structure]:
    """The class of a structure by its name. Raises FitError listing the names there are."""
    if name not in STRUCTURES:
        raise FitError(
            f"no structure is called {name!r}; there are: {', '.join(sorted(STRUCTURES))}", name=name
        )
    return STRUCTURES[name]
