"""Figures 8 and 9 of the Kale report with a budget of steps: accuracy against stored numbers, and learning."""

from collections import defaultdict
from statistics import mean, stdev
from typing import Any

from onematrix.experiments.anomaly import Measured, Task, Variant, measure
from onematrix.experiments.base import Experiment, Options, Outcome
from onematrix.records.files import append_line
from onematrix.reports.curves import curves
from onematrix.reports.tables import Table
from onematrix.training import Recipe, Steps

SOURCE = "Kale 2024, iterated networks and Sequential2D"
BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
PROTOCOL = (
    "The report gives every run 300 s and puts the nominal E on the axis; here every run gets the same number "
    "of steps, the axis is the stored numbers, sparse blocks have exactly round(E m n) entries drawn without "
    "replacement, test images are disjoint from training images, rows are activated after the complete sum, "
    "and the loss is the cross-entropy. "
)


def _task(options: Options) -> Task:
    size = 20 if options.data == "digits" else 50
    return Task(
        options.data, size=size, train=500 if options.quick else 4000, test=200 if options.quick else 1000
    )


def _run_all(options: Options, outcome: Outcome, variants: list[Variant]) -> list[Measured]:
    """Every variant on one task; each finished run is one line of records.jsonl."""
    task = _task(options)
    data = task.load()
    steps = options.steps or (6 if options.quick else 400)
    (outcome.folder / "records.jsonl").unlink(missing_ok=True)
    measured = []
    for number, variant in enumerate(variants, start=1):
        name = f"{variant.structure}-{variant.budget:g}-{variant.seed}"
        m = measure(
            task, data, variant, Steps(steps), outcome.folder / "runs" / name, resume=True, progress=False
        )
        if m.history.interrupted:
            outcome.interrupted = True
            break
        append_line(outcome.folder / "records.jsonl", m.record)
        options.say(
            f"{number}/{len(variants)} {m.variant.name} E = {m.record['E']:.0%} seed {variant.seed}: "
            f"{m.record['test accuracy']:.1%}, {m.record['stored numbers']:,} numbers"
        )
        measured.append(m)
    return measured


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1%} ± {stdev(values):.1%}" if len(values) > 1 else f"{mean(values):.1%}"


def _summary(measured: list[Measured]) -> Table:
    groups: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for m in measured:
        groups[m.variant.name, m.record["E"]].append(m.record)
    rows = [
        {
            "structure": name,
            "E": f"{budget:.0%}",
            "stored numbers": round(mean(r["stored numbers"] for r in records)),
            "bytes with indices": round(mean(r["bytes with indices"] for r in records)),
            "test accuracy (mean ± sd)": _spread([r["test accuracy"] for r in records]),
            "ms per step": round(mean(r["ms per step"] for r in records), 1),
            "seeds": len(records),
        }
        for (name, budget), records in sorted(groups.items())
    ]
    return Table.from_rows(rows)


def figure_8(options: Options, outcome: Outcome) -> None:
    """Test accuracy against stored numbers for dense, low-rank and sparse blocks."""
    seeds = range(options.seeds or (2 if options.quick else 3))
    budgets = (0.1, 0.5) if options.quick else BUDGETS
    variants = [Variant("dense", 1.0, seed=s) for s in seeds]
    variants += [Variant(k, e, seed=s) for k in ("low_rank", "csr") for e in budgets for s in seeds]
    measured = _run_all(options, outcome, variants)
    if not measured:
        return
    outcome.add_table("Accuracy against stored numbers", _summary(measured), PROTOCOL)
    series: dict[str, list[tuple[list[float], list[float]]]] = {}
    for name in dict.fromkeys(m.variant.name for m in measured):
        for seed in seeds:
            runs = [m.record for m in measured if m.variant.name == name and m.variant.seed == seed]
            runs.sort(key=lambda r: r["stored numbers"])
            x, y = [r["stored numbers"] for r in runs], [100 * r["test accuracy"] for r in runs]
            series.setdefault(name, []).append((x, y))
    paths = curves(series, outcome.folder / "figure-8", "stored numbers", "test accuracy in %", log_x=True)
    outcome.report.add_figure(
        "Figure 8 by stored numbers", paths, f"{len(seeds)} seeds; band: spread over seeds."
    )


def figure_9(options: Options, outcome: Outcome) -> None:
    """Learning at E = 20 %: accuracy on training and test sequences against steps."""
    seeds = range(options.seeds or (2 if options.quick else 3))
    variants = [Variant(k, 0.2, seed=s) for k in ("dense", "low_rank", "csr") for s in seeds]
    measured = _run_all(options, outcome, variants)
    if not measured:
        return
    outcome.add_table("At the end of training", _summary(measured), PROTOCOL)
    for what, key in (("test", None), ("training", "train_accuracy")):
        series: dict[str, list[tuple[list[float], list[float]]]] = {}
        for m in measured:
            series.setdefault(m.variant.name, []).append(_learning(m, key))
        path = outcome.folder / f"figure-9-{what}"
        paths = curves(series, path, "training steps", f"{what} accuracy in %")
        outcome.report.add_figure(f"Figure 9, {what} accuracy", paths, f"E = 20 %, {len(seeds)} seeds.")


def forms(options: Options, outcome: Outcome) -> None:
    """Row activation with cross-entropy, and the per-block activation with squared error of the public code."""
    task = _task(options)
    data = task.load()
    steps = options.steps or (6 if options.quick else 400)
    rows, series = [], {}
    cases = ((False, "cross_entropy"), (False, "softmax_mse"), (True, "cross_entropy"), (True, "mse"))
    for per_block, loss in cases:
        name = f"{'block' if per_block else 'row'} activation, {loss.replace('_', ' ')}"
        runs = []
        for seed in range(options.seeds or (1 if options.quick else 3)):
            variant = Variant("dense", seed=seed, per_block=per_block)
            folder = outcome.folder / "runs" / f"{'block' if per_block else 'row'}-{loss}-{seed}"
            recipe = Recipe(loss=loss, seed=seed)
            m = measure(task, data, variant, Steps(steps), folder, recipe, resume=True, progress=False)
            if m.history.interrupted:
                outcome.interrupted = True
                return
            runs.append(m)
            options.say(f"{name}, seed {seed}: {m.record['test accuracy']:.1%}")
        rows.append(
            {"form": name, "test accuracy (mean ± sd)": _spread([m.record["test accuracy"] for m in runs])}
        )
        series[name] = [_learning(m, None) for m in runs]
    text = (
        "Equal data, steps and optimiser. The public code is the last row; the text of the report the first."
    )
    outcome.add_table("Two forms, two losses", Table.from_rows(rows), text)
    paths = curves(series, outcome.folder / "forms", "training steps", "test accuracy in %")
    outcome.report.add_figure("Learning", paths, "Band: spread over seeds; chance is 10 %.")


def _learning(m: Measured, key: str | None) -> tuple[list[float], list[float]]:
    """(steps, accuracy in %) of a run: on test sequences, or the record named."""
    records = [r for r in m.history.records if r["evaluation"]]
    y = [100 * (r["evaluation"]["accuracy"] if key is None else r[key]) for r in records]
    return [r["step"] for r in records], y


EXPERIMENTS = (
    Experiment(
        "kale-figure-8", "test accuracy against stored numbers: dense, low-rank, sparse", SOURCE, figure_8
    ),
    Experiment("kale-figure-9", "learning at E = 20 %: dense, low-rank, sparse", SOURCE, figure_9),
    Experiment("kale-forms", "row activation against per-block activation, two losses", SOURCE, forms),
)
