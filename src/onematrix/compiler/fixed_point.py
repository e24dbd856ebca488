"""Loops until they stand still, with the gradient of the point they stand at instead of that of the way there.

At z = f(z, θ) the adjoint v = g + (∂f/∂z)ᵀ v gives dL/dθ = vᵀ ∂f/∂θ: one more evaluation of the body and a solve
by the same kind of iteration. Memory does not grow with the number of rounds.
S. Bai, J. Z. Kolter, V. Koltun, Deep Equilibrium Models, NeurIPS 2019, theorem 1.
"""

import torch
from torch import Tensor

from onematrix.programs.interpreter import _run_node
from onematrix.programs.run import Run, State, Tick
from onematrix.programs.wiring import WiredLoop


def run_to_fixed_point(node: WiredLoop, state: State, run: Run, tick: Tick, outermost: bool) -> None:
    """As the interpreter runs the loop; gradients are those of the fixed point.

    Exact where every sample stood still to the loop's tolerance; a sample that did not within `at_most` rounds
    gets the gradient of a point it has not reached.
    """
    with torch.no_grad():
        found = dict(state)
        _run_node(node, found, run, tick, outermost)
    state.update(found)
    names = [n for n in node.written if state[n].is_floating_point()]
    if not torch.is_grad_enabled() or not names:
        return
    at = {n: run.whole(state[n]).detach().requires_grad_() for n in names}
    after = _once(node, {**state, **at}, run, tick, names)
    flat = torch.cat([value.flatten(1) for value in after], 1)
    if not flat.requires_grad:
        return
    linear = _once(node, {**state, **at}, run, tick, names)

    def solve(slope: Tensor) -> Tensor:
        adjoint = slope
        for _ in range(node.loop.at_most):
            pulled = _pull(linear, [at[n] for n in names], adjoint)
            new = slope + pulled
            still = (new - adjoint).abs() <= (node.loop.until or 0.0) * (1 + slope.abs().max())
            adjoint = new
            if bool(still.all()):
                break
        return adjoint

    # The hook sees the gradient of the body's value and hands on the adjoint instead.
    joined = flat.clone()
    joined.register_hook(solve)  # type: ignore[no-untyped-call]
    pieces = joined.split([value.flatten(1).shape[1] for value in after], 1)  # type: ignore[no-untyped-call]
    for name, piece in zip(names, pieces, strict=True):
        state[name] = piece.reshape(at[name].shape)


def _once(node: WiredLoop, state: State, run: Run, tick: Tick, names: list[str]) -> list[Tensor]:
    """One more round from the fixed point."""
    _run_node(node.body, state, run, (*tick, 0), False)
    return [run.whole(state[name]) for name in names]


def _pull(outputs: list[Tensor], points: list[Tensor], adjoint: Tensor) -> Tensor:
    """(∂f/∂z)ᵀ v."""
    pieces = adjoint.split([p.flatten(1).shape[1] for p in points], 1)  # type: ignore[no-untyped-call]
    slopes = [piece.reshape(p.shape) for piece, p in zip(pieces, points, strict=True)]
    used = [(o, s) for o, s in zip(outputs, slopes, strict=True) if o.requires_grad]
    pulled = torch.autograd.grad(
        [o for o, _ in used],
        points,
        [s for _, s in used],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return torch.cat([p.flatten(1) for p in pulled], 1)
