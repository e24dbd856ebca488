"""The experiment unified-solvers: exactness, work and time of every solver, and how fast sweeps and Newton converge."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onematrix.experiments.base import Options, Outcome
from onematrix.experiments.unified.solvers import (
    SOLVERS,
    Recurrence,
    solve,
    solve_by_levels,
    solve_by_newton,
    solve_by_sweeps,
)
from onematrix.records.timing import time_call
from onematrix.reports.curves import Run, curves
from onematrix.reports.tables import Table

BATCH, WIDTH = 4, 16
TICKS = (16, 64, 256)
GAIN = 0.9  # spectral radius of the drawn weight, about
EQUAL = 1e-10  # outputs, and gradients relative to the largest one
TEXT = (
    "h_t = f(W h_(t−1) + z_t), f = tanh, for the scan f(a) = a; {batch} samples, state size {width}, W normal "
    "with spectral radius about {gain}, float64, one thread. Differences from the loop over the ticks and its "
    "back-propagation by autograd; gradients of all solvers are one transposed block bidiagonal solve, relative "
    "to the largest gradient. Rounds: products over all ticks that depend on each other (sweeps, Newton steps, "
    "doublings) or levels. Newton and doubling cost more work for fewer rounds: on one thread they are slower."
)


def draw_recurrence(ticks: int, activation: str, seed: int = 0, width: int = WIDTH) -> Recurrence:
    """Random weight, drive and first state, float64, with gradients."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    tensors = (
        GAIN / math.sqrt(width) * normal(width, width),
        normal(ticks, BATCH, width),
        normal(BATCH, width),
    )
    return Recurrence(*(t.requires_grad_() for t in tensors), activation)


def run_solvers(options: Options, outcome: Outcome) -> None:
    """The table over solvers and ticks, the check of each, and two figures."""
    ticks = TICKS[:2] if options.quick else TICKS
    seeds = range(options.seeds or (2 if options.quick else 3))
    rows = [measure_solver(name, n, len(seeds), options) for n in ticks for name in SOLVERS]
    text = TEXT.format(batch=BATCH, width=WIDTH, gain=GAIN)
    outcome.add_table("Solvers of one recurrence", Table.from_rows(rows), text)
    for name in SOLVERS:
        worst = [
            max(row[f"{what} difference"] for row in rows if row["solver"] == name)
            for what in ("output", "gradient")
        ]
        said = f"outputs {worst[0]:.1e}, gradients {worst[1]:.1e}"
        outcome.add_check(f"{name} equals the loop", max(worst) <= EQUAL, said)
    count = min(options.steps or ticks[-1], ticks[-1])
    convergence = {name: [trace(name, ticks[-1], s, count) for s in seeds] for name in TRACED}
    path = outcome.folder / "convergence"
    pictures = curves(
        convergence,
        path,
        "rounds",
        "largest error of a state",
        log_x=True,
        log_y=True,
        title="Rounds to the solution",
    )
    caption = f"{ticks[-1]} ticks. Errors of exactly 0 are not drawn."
    outcome.report.add_figure("Convergence", pictures, caption)
    times: dict[str, list[Run]] = {
        name: [tuple(zip(*[(r["ticks"], r["ms"]) for r in rows if r["solver"] == name], strict=True))]
        for name in SOLVERS
    }
    pictures = curves(
        times, outcome.folder / "time", "ticks", "milliseconds", log_x=True, log_y=True, title="Time"
    )
    outcome.report.add_figure("Time of a forward solve", pictures, "Medians of repeated calls, one thread.")


def measure_solver(name: str, ticks: int, seeds: int, options: Options) -> dict[str, Any]:
    """One row: largest differences over the seeds, rounds, and the median time of a forward solve."""
    activation = "identity" if name == "scan" else "tanh"
    differences = [compare(name, draw_recurrence(ticks, activation, seed)) for seed in range(seeds)]
    r = draw_recurrence(ticks, activation)
    with torch.no_grad():
        seconds = time_call(lambda: SOLVERS[name](r), timings=3 if options.quick else 5)
    row = {
        "ticks": ticks,
        "solver": name,
        "output difference": max(d[0] for d in differences),
        "gradient difference": max(d[1] for d in differences),
        "rounds": count_rounds(name, r),
        "ms": round(1e3 * seconds, 3),
    }
    options.say(", ".join(f"{key} {value}" for key, value in row.items()))
    return row


def compare(name: str, r: Recurrence) -> tuple[float, float]:
    """Largest difference of outputs and (relative) gradients from the loop with autograd."""
    tensors = r.weight, r.drive, r.init
    got, needed = solve(r, name), solve_by_levels(r)
    seed = torch.linspace(-1, 1, needed.numel(), dtype=needed.dtype).view(needed.shape)
    ours, theirs = (torch.autograd.grad(h, tensors, seed) for h in (got, needed))
    gradient = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    return float((got - needed).detach().abs().max()), gradient


def count_rounds(name: str, r: Recurrence) -> int:
    """Dependent rounds over all ticks: T for sweeps and levels, Newton's steps, ⌈log₂ T⌉ doublings."""
    ticks = len(r.drive)
    if name == "scan":
        return math.ceil(math.log2(ticks))
    if not name.startswith("newton"):
        return ticks
    steps: list[Tensor] = []
    with torch.no_grad():
        solve_by_newton(r, seen=steps.append)
    return len(steps)


def _trace_sweeps(r: Recurrence, count: int) -> list[Tensor]:
    states = [torch.zeros_like(r.drive)]
    for _ in range(count):
        states.append(solve_by_sweeps(r, 1, states[-1]))
    return states[1:]


def _trace_newton(r: Recurrence, count: int) -> list[Tensor]:
    states: list[Tensor] = []
    solve_by_newton(r, at_most=count, seen=states.append)
    return states


TRACED: dict[str, Callable[[Recurrence, int], list[Tensor]]] = {
    "sweeps": _trace_sweeps,
    "newton": _trace_newton,
}


def trace(name: str, ticks: int, seed: int, count: int) -> Run:
    """(round, largest error of a state) over at most so many rounds."""
    r = draw_recurrence(ticks, "tanh", seed)
    with torch.no_grad():
        needed = solve_by_levels(r)
        errors = [float((h - needed).abs().max()) for h in TRACED[name](r, count)]
    return list(range(1, len(errors) + 1)), errors
