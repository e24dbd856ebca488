"""One data set in all regimes: same data, optimiser and steps; runs, their table, their figure."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

import torch
from torch import nn

from onematrix.errors import DataError
from onematrix.experiments.base import Options, Outcome
from onematrix.experiments.unified.regimes import REGIMES, count_nonzeros, in_regime
from onematrix.experiments.unified.sets import Sets
from onematrix.records.files import append_line
from onematrix.reports.curves import curves
from onematrix.reports.tables import Table
from onematrix.training.budgets import Epochs, Steps
from onematrix.training.data import Examples
from onematrix.training.evaluation import evaluate
from onematrix.training.loop import train
from onematrix.training.recipe import Recipe

SEEDS = 3
QUICK_STEPS = 4
SHORT = 4  # points of a curve up to which its start is drawn; it hides the differences later
ROUNDING = 1e-10  # between native and tied parameters in float64; Adam divides rounding errors by 1e-8
METRICS = {  # name → (from the numbers of an evaluation, whether more is better)
    "accuracy": (lambda found: found["accuracy"], True),
    "mean squared error": (lambda found: found["loss"], False),
    "perplexity": (lambda found: math.exp(found["loss"]), False),
}
PROTOCOL = (
    "Regimes. native: torch's layers. tied: every convolution, recurrence or attention layer is its explicit "
    "matrix, made from the native parameters. untied: every non-zero of that matrix is a parameter of its own, "
    "started from the native value. triangular: so is every entry of its triangular envelope. The other layers "
    "are alike. All start from the same function of the same seed and see the same batches in the same order.\n\n"
    "Non-zeros: entries of the explicit matrices of these layers. Epochs to reach: first epoch at whose end the "
    "run is as good as the best epoch of native with the same seed, less one percentage point of accuracy or "
    "one per cent of an error or perplexity; in brackets in how many runs. Metrics are those of the test set."
)


@dataclass(frozen=True)
class Specification:
    """An experiment on a set: how it is loaded (quick or not), what is measured, and how it is trained."""

    name: str
    title: str
    load: Callable[[bool], Sets]
    metric: str
    epochs: int = 8
    batch: int = 64
    learning_rate: float = 2e-3
    regimes: tuple[str, ...] = REGIMES

    @property
    def loss(self) -> str:
        """The loss of `training` it is trained with."""
        return "mse" if self.metric == "mean squared error" else "cross_entropy"

    def recipe(self, seed: int) -> Recipe:
        """Adam at one rate, no bound on gradients: norms of tied and untied ones do not compare."""
        return Recipe(self.loss, "adam", self.batch, self.learning_rate, None, seed)

    def network(self, sets: Sets, regime: str, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The native network drawn with the seed, in a regime."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            native = sets.build().to(dtype)
        x = sets.example
        return in_regime(native, regime, x.to(dtype) if x.is_floating_point() else x)


@dataclass(frozen=True)
class Measured:
    """One run: regime, seed, the metric at the end of each epoch (x in epochs), and what it took."""

    regime: str
    seed: int
    epochs: Sequence[float]
    values: Sequence[float]
    parameters: int
    seconds_per_epoch: float


def run_specification(spec: Specification, options: Options, outcome: Outcome) -> None:
    """Train the set in every regime and seed; table, figure and the check of the tied regime.

    Raises DataError saying "skipped: no data" where the set is not there.
    """
    try:
        sets = spec.load(options.quick)
    except DataError as error:
        raise DataError(f"{spec.name}: skipped: no data. {error}", experiment=spec.name) from error
    outcome.add_check("tied follows native", *check_tied(spec, sets, 3 if options.quick else 20))
    seeds = range(options.seeds or (2 if options.quick else SEEDS))
    measured = _run_all(spec, sets, options, outcome, seeds)
    if not measured:
        return
    counts = {regime: _nonzeros(spec, sets, regime) for regime in spec.regimes}
    outcome.add_table(spec.title, summarise(spec, measured, counts), f"{sets.note}.\n\n{PROTOCOL}")
    outcome.report.add_figure(
        "Learning", draw(spec, measured, outcome), f"{sets.note}. Native lies under tied."
    )


def _run_all(
    spec: Specification, sets: Sets, options: Options, outcome: Outcome, seeds: range
) -> list[Measured]:
    steps = options.steps or (QUICK_STEPS if options.quick else None)
    (outcome.folder / "records.jsonl").unlink(missing_ok=True)
    measured = []
    for seed in seeds:
        for regime in spec.regimes:
            run = measure(spec, sets, regime, seed, steps)
            if run is None:
                outcome.interrupted = True
                return measured
            append_line(outcome.folder / "records.jsonl", vars(run))
            options.say(
                f"{spec.name}, {regime}, seed {seed}: {spec.metric} {run.values[-1]:.4f}, "
                f"{run.parameters:,} parameters, {run.seconds_per_epoch:.2f} s per epoch"
            )
            measured.append(run)
    return measured


def measure(
    spec: Specification, sets: Sets, regime: str, seed: int, steps: int | None = None
) -> Measured | None:
    """Train one network for spec.epochs epochs, or so many steps; None when Ctrl-C ended it."""
    network, value = spec.network(sets, regime, seed), METRICS[spec.metric][0]
    first = value(evaluate(network, sets.test, loss=spec.loss))
    budget = Epochs(spec.epochs) if steps is None else Steps(steps)
    history = train(network, sets.train, spec.recipe(seed), budget=budget, evaluate=sets.test, progress=False)
    if history.interrupted:
        return None
    per_epoch = math.ceil(len(sets.train) / spec.batch)
    return Measured(
        regime,
        seed,
        [0.0, *(r["step"] / per_epoch for r in history.records)],
        [first, *(value(r["evaluation"]) for r in history.records)],
        sum(p.numel() for p in network.parameters()),
        median(r["seconds_per_step"] for r in history.records) * per_epoch,
    )


def check_tied(spec: Specification, sets: Sets, steps: int) -> tuple[bool, str]:
    """Whether so many float64 steps leave the tied parameters at the native ones, and how far they are."""
    x = sets.train.x[:256]
    target = sets.train.target[:256]
    data = Examples(*(t.double() if t.is_floating_point() else t for t in (x, target)))
    native, tied = (spec.network(sets, regime, 0, torch.float64) for regime in ("native", "tied"))
    for network in (native, tied):
        train(network, data, spec.recipe(0), budget=Steps(steps), progress=False)
    found = dict(tied.named_parameters())
    far = max(float((found[name] - p).detach().abs().max()) for name, p in native.named_parameters())
    return far <= ROUNDING, f"largest difference of a parameter after {steps} steps in float64: {far:.1e}"


def summarise(spec: Specification, measured: Sequence[Measured], nonzeros: dict[str, int]) -> Table:
    """One row per regime, means over the seeds."""
    groups: dict[str, list[Measured]] = defaultdict(list)
    for run in measured:
        groups[run.regime].append(run)
    goals = {run.seed: goal(spec, run) for run in groups["native"]}
    return Table.from_rows(
        {
            "regime": regime,
            f"{spec.metric} at the end": spread([run.values[-1] for run in runs], spec.metric),
            f"best {spec.metric}": spread([_best(spec, run) for run in runs], spec.metric),
            "epochs to reach native's best − 1 %": _reached(spec, runs, goals),
            "parameters": runs[0].parameters,
            "non-zeros": nonzeros[regime],
            "seconds per epoch": round(median(run.seconds_per_epoch for run in runs), 2),
            "seeds": len(runs),
        }
        for regime, runs in groups.items()
    )


def _best(spec: Specification, run: Measured) -> float:
    return (max if METRICS[spec.metric][1] else min)(run.values)


def goal(spec: Specification, native: Measured) -> float:
    """The native best less a point of accuracy, or with a hundredth more error."""
    best = _best(spec, native)
    return best - 0.01 if METRICS[spec.metric][1] else best * 1.01


def epochs_to_reach(spec: Specification, run: Measured, needed: float) -> float | None:
    """Epochs until the metric is at least as good as needed; None when it never is."""
    more = METRICS[spec.metric][1]
    good = (x for x, y in zip(run.epochs, run.values, strict=True) if (y >= needed if more else y <= needed))
    return next(good, None)


def _reached(spec: Specification, runs: Sequence[Measured], goals: dict[int, float]) -> str:
    found = [epochs_to_reach(spec, run, goals[run.seed]) for run in runs if run.seed in goals]
    kept = [x for x in found if x is not None]
    mean = f"{fmean(kept):.2g}" if kept else "never"
    return f"{mean} ({len(kept)} of {len(found)})"


def spread(values: Sequence[float], metric: str) -> str:
    """Mean ± standard deviation over the runs.

    >>> spread([0.5, 0.52], "accuracy")
    '51.0 % ± 1.4 %'
    """
    if metric == "accuracy":
        mean, deviation = f"{100 * fmean(values):.1f} %", (lambda d: f"{100 * d:.1f} %")
    else:
        mean, deviation = f"{fmean(values):.4g}", (lambda d: f"{d:.2g}")
    return mean + (f" ± {deviation(stdev(values))}" if len(values) > 1 else "")


def _nonzeros(spec: Specification, sets: Sets, regime: str) -> int:
    return count_nonzeros(spec.network(sets, "native", 0), regime, sets.example)


def draw(spec: Specification, measured: Sequence[Measured], outcome: Outcome) -> list[Any]:
    """The metric over the epochs with a band over the seeds, as files; long runs without their common start."""
    series: dict[str, list[tuple[Sequence[float], Sequence[float]]]] = defaultdict(list)
    share = 100 if spec.metric == "accuracy" else 1
    for run in measured:
        first = 1 if len(run.epochs) > SHORT else 0
        series[run.regime].append((run.epochs[first:], [share * v for v in run.values[first:]]))
    label = f"test {spec.metric}" + (" in %" if share == 100 else "")
    return list(curves(series, outcome.folder / "learning", "epochs", label, title=spec.title))
