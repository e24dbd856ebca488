"""Dense recurrences s ← σ(a + W s) over all ticks: one product per tick, one for the weight gradient."""

from itertools import accumulate

import torch
from torch import Tensor

from onematrix.errors import DTypeError, ProgramError, ShapeError
from onematrix.kernels.dense_final import run_to_final
from onematrix.kernels.dense_plan import Activations, DensePlan
from onematrix.kernels.dense_states import DenseStates, returned, run_in_place
from onematrix.kernels.dense_torch import run_dense_by_torch
from onematrix.kernels.elementwise_code import ACTIVATIONS
from onematrix.programs.activations import RULES
from onematrix.structures.ordinary import is_ordinary

__all__ = ["run_dense_loop"]

ALLOWED = (*(name for name in ACTIVATIONS if RULES[name].arguments == 0), "softmax")


def run_dense_loop(
    inputs: Tensor,
    weight: Tensor,
    init: Tensor,
    activations: Activations,
    *,
    ticks: int | None = None,
    after: str = "zero",
    reverse: bool = False,
    valid: Tensor | None = None,
    last_only: bool = False,
    zero: bool = False,
    read: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """s_t = σ(inputs_t + s_{t-1} weightᵀ): all states (ticks, B, n) and the final one (B, n).

    inputs: (T, B, n) or (T, 1, n). weight: (n, n). init: (B, n). activations: (width, name) of consecutive
    slices of the n features, elementwise or softmax over the slice.
    ticks: their number, T unless given; past the end the inputs are zero or, with after="hold", the last
    ones. reverse: from the last tick to the first; the states stay in the order of time.
    valid: (T, B) bool, where False a sample's state holds and its output is 0, by selection.
    last_only: the states are not returned but (0, B, n).
    zero: init is known to be zero, so that the first tick needs no product.
    read: (start, stop) of the features of the final state that are returned, whole slices of activations; without
    gradients and with last_only the others are not computed at the last tick.
    Under autocast the dtypes may differ: products are computed in its dtype, sums in the wider one, as torch does.
    ticks · B · n² multiply-adds.

    >>> ones = torch.ones(3, 1, 1)
    >>> run_dense_loop(ones, torch.full((1, 1), 0.5), torch.zeros(1, 1), ((1, "identity"),))[0].flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    count = len(inputs) if ticks is None else ticks
    plan = DensePlan(activations, count, after, reverse, last_only, zero, read)
    return run_plan(inputs, weight, init, plan, valid)


def run_plan(
    inputs: Tensor, weight: Tensor, init: Tensor, plan: DensePlan, valid: Tensor | None, own: bool = False
) -> tuple[Tensor, Tensor]:
    """`run_dense_loop` of what its options say; own: nothing else reads the inputs, states may be written there."""
    check_dense(inputs, weight, init, plan, valid)
    if valid is not None or plan.ticks == 0 or not is_ordinary(inputs, weight, init) or _is_autocast(inputs):
        return run_dense_by_torch(inputs, weight, init, plan, valid)
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (inputs, weight, init))):
        if plan.last_only:
            return init.new_empty(0, *init.shape), run_to_final(inputs, weight, init, plan)
        return returned(run_in_place(inputs, weight, init, plan, own)[0], plan)
    return DenseStates.apply(inputs, weight, init, plan)  # type: ignore[no-any-return, no-untyped-call]


def check_dense(inputs: Tensor, weight: Tensor, init: Tensor, plan: DensePlan, valid: Tensor | None) -> None:
    """Raise ShapeError, DTypeError or ProgramError where the tensors and the plan are no dense recurrence."""
    _check_shapes(inputs, weight, init, valid)
    _check_activations(plan.activations, weight.shape[0])
    _check_plan(plan, inputs)


def _is_autocast(tensor: Tensor) -> bool:
    """Kernels that write into given memory do not take part in autocast; torch's own operations do."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def _check_shapes(inputs: Tensor, weight: Tensor, init: Tensor, valid: Tensor | None) -> None:
    given = [t for t in (inputs, weight, init, valid) if t is not None]
    shapes = [tuple(t.shape) for t in given]
    if [t.dim() for t in given] == [3, 2, 2, 2][: len(given)]:
        (ticks, _, _), (n, _), (batch, _) = shapes[:3]
        fits = inputs.shape[2] == n and inputs.shape[1] in (1, batch) and weight.shape[1] == n
        if fits and init.shape[1] == n and (valid is None or shapes[3] == (ticks, batch)):
            return _check_dtypes(inputs, weight, init, valid)
    raise ShapeError(
        "dense loop: inputs (T, B, n) or (T, 1, n), weight (n, n), init (B, n) and valid (T, B) needed, "
        f"got {shapes}",
        got=shapes,
    )


def _check_dtypes(inputs: Tensor, weight: Tensor, init: Tensor, valid: Tensor | None) -> None:
    if not inputs.dtype == weight.dtype == init.dtype and not _is_autocast(inputs):
        raise DTypeError(
            f"dense loop: one dtype needed, got inputs {inputs.dtype}, weight {weight.dtype}, init {init.dtype}"
        )
    if valid is not None and valid.dtype != torch.bool:
        raise DTypeError(f"dense loop: valid has to be torch.bool, got {valid.dtype}", got=valid.dtype)


def _check_activations(activations: Activations, width: int) -> None:
    for _, name in activations:
        if name not in ALLOWED:
            raise ProgramError(f"dense loop: activation {name!r} is none of {', '.join(ALLOWED)}", got=name)
    widths = [w for w, _ in activations]
    if sum(widths) != width or any(w < 0 for w in widths):
        raise ShapeError(
            f"dense loop: activations of {width} features needed, got widths {widths}",
            needed=width,
            got=widths,
        )


def _check_plan(plan: DensePlan, inputs: Tensor) -> None:
    if plan.after not in ("zero", "hold"):
        raise ProgramError(f"dense loop: after='zero' or 'hold' needed, got {plan.after!r}", got=plan.after)
    if plan.ticks < 0:
        raise ShapeError(f"dense loop: a number of ticks ≥ 0 needed, got {plan.ticks}", got=plan.ticks)
    edges = list(accumulate((width for width, _ in plan.activations), initial=0))
    if plan.read is not None and not (set(plan.read) <= set(edges) and plan.read[0] < plan.read[1]):
        raise ShapeError(f"dense loop: read= between two of {edges} needed, got {plan.read}", got=plan.read)
    if plan.after == "hold" and plan.ticks > 0 == len(inputs):
        raise ShapeError(
            f"dense loop: nothing to hold, inputs have no tick and {plan.ticks} are asked", needed=plan.ticks
        )
