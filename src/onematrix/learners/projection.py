"""om.fit: one dense matrix to the best member of a structure, or the table of all structures."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

from torch import Tensor

from onematrix.errors import FitError, OneMatrixError
from onematrix.learners.fit_table import FitTable, mark_optimal
from onematrix.learners.trials import fit_all, time_products
from onematrix.structures.base import SECONDS, STRUCTURES, Structure, fittable
from onematrix.structures.sizes import check_seconds


@overload
def fit(dense: Tensor, structure: str, budget: float | None = None, **options: Any) -> Structure: ...
@overload
def fit(dense: Tensor, structure: None = None, budget: float | None = None, **options: Any) -> FitTable: ...
def fit(
    dense: Tensor, structure: str | None = None, budget: float | None = None, **options: Any
) -> Structure | FitTable:
    """argmin over members A of ‖W − A‖_F within E = stored numbers ÷ m n ≤ budget.

    dense: (m, n), real and finite. structure: a name of `list_structures()`, or None for the table of every
    structure that has a member within the budget, best error first, the rows no other beats marked.
    options: gram=XᵀX (n, n), and exact sizes such as rank=, nonzeros=; for the table also seconds=30.0, the
    time all fits share (None: no limit, and the same table each time), batch=64, how many vectors the timed
    products have (None: not timed), names=, those to try, and progress= (None: past two seconds, on a
    terminal). Fits run at once on as many threads as torch has.
    Raises FitError (unknown name, not finite, not fittable, a rank above the largest of use), BudgetError
    (outside (0, 1], below minimum).

    >>> import torch
    >>> fit(torch.eye(4), "csr", budget=0.25).nonzeros()
    4
    >>> fit(torch.eye(4), budget=0.5, names=["low_rank", "diagonal"])[0].name
    'diagonal'
    """
    if structure is not None:
        return find_structure(structure).fit(dense, budget, **options).structure
    return compare_fits(dense, budget, **options)


def compare_fits(
    dense: Tensor,
    budget: float | None = None,
    *,
    seconds: float | None = SECONDS,
    batch: int | None = 64,
    names: Sequence[str] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> FitTable:
    """The table of `fit`: every structure (or those named) tried at once, then timed one after the other."""
    check_seconds("fit", seconds)
    if batch is not None and batch < 1:
        raise FitError(f"fit: batch must be at least 1 (or None: not timed), got {batch!r}", got=batch)
    tried = fittable() if names is None else [find_structure(name).name for name in names]
    rows, errors = fit_all(tried, dense, budget, seconds, progress, options)
    if not rows:
        raise _nothing(dense, budget, errors)
    dense_seconds = None
    if batch is not None:
        rows, dense_seconds = time_products(rows, dense, batch)
    m, n = dense.shape
    skipped = {name: str(error).splitlines()[0] for name, error in errors.items()}
    return FitTable(mark_optimal(rows), (m, n), budget, skipped, batch, dense_seconds)


def _nothing(dense: Tensor, budget: float | None, errors: Mapping[str, OneMatrixError]) -> OneMatrixError:
    """The error to raise where no structure has a member: the matrix's or the budget's own, or all of them."""
    if len(errors) == 1:
        return next(iter(errors.values()))
    try:
        STRUCTURES["dense"].fit(dense, budget)
    except OneMatrixError as error:
        return error
    return FitError("fit: no structure has a member: " + "; ".join(map(str, errors.values())))


def find_structure(name: str) -> type[Structure]:
    """The class of a structure by its name. Raises FitError listing the names there are."""
    if name not in STRUCTURES:
        raise FitError(
            f"no structure is called {name!r}; there are: {', '.join(sorted(STRUCTURES))}", name=name
        )
    return STRUCTURES[name]
