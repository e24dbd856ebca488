"""Solvers of h_t = f(W_t h_{t−1} + z_t), t = 1 … T: one block lower bidiagonal system, solved in five ways.

Stacked over the ticks it reads h = f(N h + z) with N = Z ⊗ W, strictly block lower triangular, so N^T = 0.
Y. Zhu, arXiv:2506.01966v3, recurrence as a triangular matrix; Newton over time: Y. H. Lim et al., ICLR 2024.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onematrix.errors import OneMatrixError, ShapeError
from onematrix.kernels.linear_scan import linear_scan

Activation = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
ACTIVATIONS: dict[str, Activation] = {  # f(a), and f'(a) from a and f(a)
    "identity": (lambda a: a, lambda a, h: torch.ones_like(a)),
    "tanh": (torch.tanh, lambda a, h: 1 - h * h),
    "relu": (torch.relu, lambda a, h: (a > 0).to(a.dtype)),
    "sigmoid": (torch.sigmoid, lambda a, h: h * (1 - h)),
}

ROUNDING = 64  # epsilons by which a step of Newton at the solution still moves a state


@dataclass(frozen=True, eq=False)
class Recurrence:
    """weight (H, H), the same at every tick, or (T, H, H); drive z = U x + b (T, B, H); init h_0 (B, H).

    Raises ShapeError when these do not fit, OneMatrixError for an activation not in ACTIVATIONS.
    """

    weight: Tensor
    drive: Tensor
    init: Tensor
    activation: str = "tanh"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise OneMatrixError(f"recurrence: activation one of {known} was needed, got {self.activation!r}")
        ticks, batch, width = self.drive.shape if self.drive.dim() == 3 else (-1, -1, -1)
        weights = {(width, width), (ticks, width, width)}
        if tuple(self.weight.shape) not in weights or tuple(self.init.shape) != (batch, width):
            got = [tuple(t.shape) for t in (self.weight, self.drive, self.init)]
            raise ShapeError(
                "recurrence: weight (H, H) or (T, H, H), drive (T, B, H) and init (B, H) were needed, "
                f"got {got}",
                got=got,
            )

    @property
    def weights(self) -> Tensor:
        """(T, H, H): W_t of every tick, a view."""
        return self.weight.expand(len(self.drive), *self.weight.shape[-2:])

    def apply(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(a, f(a)) with a = N h + z: every tick reads the one before it in h (T, B, H)."""
        a = self.drive + torch.bmm(delayed(h, self.init), self.weights.mT)
        return a, ACTIVATIONS[self.activation][0](a)

    def slope(self, a: Tensor, h: Tensor) -> Tensor:
        """f'(a) where h = f(a): the diagonal D."""
        return ACTIVATIONS[self.activation][1](a, h)


def delayed(h: Tensor, init: Tensor) -> Tensor:
    """h_{t−1} at place t: (T, B, H)."""
    return torch.cat([init[None], h[:-1]]) if len(h) else h


def solve_by_sweeps(r: Recurrence, sweeps: int | None = None, start: Tensor | None = None) -> Tensor:
    """Jacobi: h ← f(N h + z) for all ticks at once; exact after T sweeps (the default) from any start.

    Sweep k makes h_1 … h_k final. T² B H² multiply-adds, T dependent products.
    """
    h = torch.zeros_like(r.drive) if start is None else start
    for _ in range(len(r.drive) if sweeps is None else sweeps):
        h = r.apply(h)[1]
    return h


def solve_by_levels(r: Recurrence) -> Tensor:
    """Forward substitution: block row t is applied once, at level t. T B H² multiply-adds."""
    f = ACTIVATIONS[r.activation][0]
    before, states = r.init, []
    for drive, weight in zip(r.drive, r.weights, strict=True):
        before = f(torch.addmm(drive, before, weight.T))
        states.append(before)
    return torch.stack(states) if states else r.drive


def solve_by_newton(
    r: Recurrence,
    tolerance: float | None = None,
    at_most: int | None = None,
    linear: str = "levels",
    seen: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """h ← h − (I − D N)⁻¹ (h − f(N h + z)), D = diag f'(N h + z): exact after at most T steps, often 3 to 5.

    Ends after a step that moves no number by more than `tolerance` (by itself: ROUNDING times the dtype's epsilon
    times 1 + max |h|), at the latest after `at_most` (T) steps.
    linear: how the block lower bidiagonal system is solved, a name of LINEAR. seen: called with h after every
    step. The steps are differentiable but long; `solve` takes the gradient at the solution instead.
    """
    h = torch.zeros_like(r.drive)
    for _ in range(len(r.drive) if at_most is None else at_most):
        a, image = r.apply(h)
        move = LINEAR[linear](r.weights, r.slope(a, image), image - h)
        h = h + move
        if seen is not None:
            seen(h)
        bound = ROUNDING * torch.finfo(h.dtype).eps * (1 + h.abs().max()) if tolerance is None else tolerance
        if move.abs().max() <= bound:
            break
    return h


def substitute(weights: Tensor, slope: Tensor, right: Tensor) -> Tensor:
    """δ with (I − D N) δ = right: δ_t = right_t + d_t ∘ W_t δ_{t−1}, tick after tick; all (T, B, H)."""
    found: list[Tensor] = []
    for weight, d, b in zip(weights, slope, right, strict=True):
        found.append(b + d * (found[-1] @ weight.T) if found else b)
    return torch.stack(found) if found else right


def substitute_back(weights: Tensor, slope: Tensor, right: Tensor) -> Tensor:
    """λ with (I − D N)ᵀ λ = right, block upper bidiagonal: λ_t = right_t + W_{t+1}ᵀ (d_{t+1} ∘ λ_{t+1})."""
    found: list[Tensor] = []
    for t in reversed(range(len(right))):
        later = (slope[t + 1] * found[-1]) @ weights[t + 1] if found else 0
        found.append(right[t] + later)
    return torch.stack(found[::-1]) if found else right


def double(weights: Tensor, slope: Tensor, right: Tensor) -> Tensor:
    """`substitute` in ⌈log₂ T⌉ steps, each over all ticks; T B H³ log T multiply-adds instead of T B H²."""
    return scan_pairs(slope[..., None] * weights[:, None], right)


LINEAR = {"levels": substitute, "doubling": double}


def scan_pairs(factors: Tensor, values: Tensor) -> Tensor:
    """h_t = A_t h_{t−1} + b_t from h_0 = 0 by doubling; A (T, B or 1, H, H), b (T, B, H).

    Pairs are combined as (A₂ A₁, A₂ b₁ + b₂), which is associative. G. Blelloch, "Prefix sums and their
    applications", 1990, section 1.4.
    """
    step, ticks = 1, len(values)
    while step < ticks:
        moved = torch.einsum("tbij, tbj -> tbi", *_matched(factors[step:], values[:-step]))
        values = torch.cat([values[:step], values[step:] + moved])
        factors = torch.cat([factors[:step], factors[step:] @ factors[:-step]])
        step *= 2
    return values


def _matched(factors: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return factors.expand(len(values), values.shape[1], *factors.shape[-2:]), values


def solve_by_scan(r: Recurrence) -> Tensor:
    """A linear recurrence (activation "identity") by doubling over its pairs (W_t, z_t): ⌈log₂ T⌉ steps.

    Raises OneMatrixError for another activation.
    """
    if r.activation != "identity":
        raise OneMatrixError(
            f"scan: a linear recurrence (activation 'identity') was needed, got {r.activation!r}; "
            "use levels, sweeps or newton",
            got=r.activation,
        )
    if len(r.drive) == 0:
        return r.drive
    first = r.drive[:1] + r.init @ r.weights[0].T
    return scan_pairs(r.weights[:, None], torch.cat([first, r.drive[1:]]))


def solve_diagonal(decay: Tensor, drive: Tensor, init: Tensor) -> Tensor:
    """c_t = a_t ∘ c_{t−1} + z_t: the scan of a diagonal N, as of a gated cell given its gates; a, z (T, B, H)."""
    return linear_scan(decay, drive, init)


SOLVERS: dict[str, Callable[[Recurrence], Tensor]] = {
    "sweeps": solve_by_sweeps,
    "levels": solve_by_levels,
    "newton": solve_by_newton,
    "newton, doubling": lambda r: solve_by_newton(r, linear="doubling"),
    "scan": solve_by_scan,
}


def solve(r: Recurrence, solver: str = "levels") -> Tensor:
    """h (T, B, H) by a solver of SOLVERS, with the gradient from one transposed solve, whatever the solver.

    (I − D N)ᵀ λ = dh; dz = D λ; dW_t = Σ_batch (D λ)_t h_{t−1}ᵀ; dh_0 = W_1ᵀ (D λ)_1: back-propagation through
    time as a block upper bidiagonal system. First derivatives only. Raises OneMatrixError for another solver.
    """
    if solver not in SOLVERS:
        raise OneMatrixError(
            f"solve: a solver of {', '.join(SOLVERS)} was needed, got {solver!r}", got=solver
        )
    return _Solution.apply(solver, r.activation, r.weight, r.drive, r.init)


class _Solution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, solver: str, activation: str, weight: Tensor, drive: Tensor, init: Tensor
    ) -> Tensor:
        h = SOLVERS[solver](Recurrence(weight, drive, init, activation))
        h = h.clone() if h is drive else h
        ctx.activation = activation
        ctx.save_for_backward(weight, drive, init, h)
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, drive, init, h = ctx.saved_tensors
        if len(drive) == 0:
            return None, None, torch.zeros_like(weight), grad, torch.zeros_like(init)
        r = Recurrence(weight, drive, init, ctx.activation)
        slope = r.slope(r.apply(h)[0], h)
        inner = slope * substitute_back(r.weights, slope, grad)
        by_tick = torch.bmm(inner.mT, delayed(h, init))
        weights = by_tick if weight.dim() == 3 else by_tick.sum(0)
        return None, None, weights, inner, inner[0] @ r.weights[0]
