"""The demo: three iterated networks on real digits, drawn as one matrix, measured and checked."""

from dataclasses import dataclass
from pathlib import Path

import torch

from onematrix.experiments.anomaly import CHANCE, Measured, Task, Variant, decayed_adam, measure
from onematrix.experiments.base import Outcome, Say, begin, finish
from onematrix.experiments.sru_check import check_sru
from onematrix.networks import sru
from onematrix.reports.curves import curves
from onematrix.reports.drawing import draw
from onematrix.reports.tables import Table
from onematrix.training import Budget, Recipe, Seconds, Steps

STRUCTURES = ("dense", "low_rank", "csr")
CLEARLY = (
    2 * CHANCE
)  # an accuracy that 1,000 test sequences cannot show by chance: 10 standard errors above it


@dataclass(frozen=True)
class Plan:
    """What the demo will do; said before it starts."""

    task: Task
    budget: Budget
    expected: str
    out: Path
    E: float = 0.2
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        """Cross-entropy, clipped gradients, Adam; the larger images of MNIST want smaller steps and decay."""
        if self.task.data == "digits":
            return Recipe(learning_rate=2e-3, seed=self.seed)
        return Recipe(learning_rate=3e-4, optimizer=decayed_adam, seed=self.seed)

    def text(self) -> str:
        """What, for how long, and where files go."""
        t, count = self.task, torch.get_num_threads()
        threads = "1 thread" if count == 1 else f"{count} threads"
        return (
            f"Task: Random Anomaly from {t.data}: which of ten {t.size}×{t.size} images is the odd one out "
            f"({t.train:,} training and {t.test:,} test sequences, chance {CHANCE:.0%}).\n"
            f"Three iterated networks [{t.pixels}, 300, 20, 10]: dense blocks, low-rank and sparse blocks at "
            f"E = {self.E:.0%}.\n"
            f"Takes {self.expected} on {threads}. Files go to {self.out.resolve()}."
        )


def make_plan(data: str, quick: bool, minutes: float | None, out: Path, seed: int) -> Plan:
    """The plan for the demo's options: steps unless minutes (per network) are given."""
    train = 2000 if quick else 4000
    size = 20 if data == "digits" else 50
    task = Task(data=data, size=size, train=train, test=500 if quick else 1000, seed=seed)
    if minutes is not None:
        return Plan(
            task,
            Seconds(60 * minutes),
            f"{minutes:g} minutes per network, {3 * minutes:g} in all",
            out,
            seed=seed,
        )
    steps = (200 if quick else 600) if data == "digits" else (100 if quick else 500)
    expected = {("digits", True): "about 20 seconds", ("digits", False): "about 1 minute"}
    return Plan(task, Steps(steps), expected.get((data, quick), "a few minutes"), out, seed=seed)


def run_demo(plan: Plan, say: Say = print, progress: bool | None = None) -> Outcome:
    """Train, draw, check and write the report; a partial one after Ctrl-C."""
    outcome = begin("onematrix demo: every network is one matrix", plan.text(), plan.out)
    return finish(outcome, lambda: _work(plan, outcome, say, progress))


def _work(plan: Plan, outcome: Outcome, say: Say, progress: bool | None) -> None:
    outcome.report.facts |= {
        "seed": plan.seed,
        "task": plan.task.profile,
        "structures": ", ".join(STRUCTURES),
    }
    _check_sru(outcome, say)
    data = plan.task.load()
    measured: list[Measured] = []
    for structure in STRUCTURES:
        variant = Variant(structure, plan.E, seed=plan.seed)
        say(f"training {variant.name} …")
        measured.append(
            measure(
                plan.task, data, variant, plan.budget, plan.out / structure, plan.recipe, progress=progress
            )
        )
        _tell(measured[-1], say)
        if measured[-1].history.interrupted:
            outcome.interrupted = True
            break
    _show(plan, outcome, measured)


def _tell(m: Measured, say: Say) -> None:
    accuracy = m.record["test accuracy"]
    shown = "no evaluation yet" if accuracy is None else f"test accuracy {accuracy:.1%}"
    say(
        f"  {m.variant.name}: {shown}, {m.record['stored numbers']:,} numbers, "
        f"{m.record['bytes with indices']:,} bytes, {m.record['ms per step'] or 0:.1f} ms per step"
    )


def _check_sru(outcome: Outcome, say: Say) -> None:
    error, ticks = check_sru()
    passed = error < 1e-12
    detail = f"14-part matrix against its equations, float64, {ticks} ticks: largest difference {error:.1e}"
    say(f"SRU {detail}")
    outcome.add_check("the SRU as one matrix computes the SRU", passed, detail)


def _show(plan: Plan, outcome: Outcome, measured: list[Measured]) -> None:
    table = Table.from_rows([m.record for m in measured])
    text = (
        "Accuracy on test sequences from images no network has seen. Stored numbers are all floating-point "
        "numbers of the network, biases included; bytes count the index arrays of sparse blocks as well. "
        "The dense network is the baseline: it stores every entry (E = 100 %)."
    )
    if measured:
        outcome.add_table("Three structures, one task", table, text)
    for m in measured:
        accuracy = m.record["test accuracy"]
        if accuracy is not None and not m.history.interrupted:
            outcome.add_check(
                f"{m.variant.name} clearly beats chance",
                accuracy >= CLEARLY,
                f"{accuracy:.1%} on {plan.task.test:,} sequences; chance is {CHANCE:.0%}, {CLEARLY:.0%} was needed",
            )
    _show_learning(outcome, measured)
    for m in measured:
        paths = draw(m.program, outcome.folder / m.variant.structure)
        caption = (
            f"{m.record['stored numbers']:,} numbers, {m.record['bytes with indices']:,} bytes with indices. "
            "Rows: what a part becomes; columns: what it reads."
        )
        outcome.report.add_figure(f"The {m.variant.name} network as one matrix", paths, caption)
    paths = draw(sru(units=8), outcome.folder / "sru")
    outcome.report.add_figure(
        "The SRU as one matrix",
        paths,
        "Simple recurrent unit as G and H over 14 parts; a tick applies G, G, F, F, F, F; F(x) = σ(Gx) ∘ Hx.",
    )


def _show_learning(outcome: Outcome, measured: list[Measured]) -> None:
    series = {}
    for m in measured:
        points = [(r["step"], r["evaluation"]["accuracy"]) for r in m.history.records if r["evaluation"]]
        if points:
            series[m.variant.name] = [([s for s, _ in points], [100 * a for _, a in points])]
    if series:
        paths = curves(series, outcome.folder / "accuracy", "training steps", "test accuracy in %")
        outcome.report.add_figure("Learning", paths, "Test accuracy after each epoch.")
