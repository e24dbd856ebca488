"""onematrix demo: the first thing to run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from onematrix.cli.options import Json, Out, Seed, Threads, say, set_threads


def demo(
    data: Annotated[str, typer.Option(help="Source of images: digits (bundled) or mnist.")] = "digits",
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer sequences and steps: under half a minute.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Train each network this long instead of a number of steps."),
    ] = None,
    out: Out = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train three iterated networks on real digits, draw them as one matrix, check and report.

    Example: onematrix demo --quick --out my-demo
    """
    if data not in ("digits", "mnist"):
        raise typer.BadParameter(f"--data {data!r}: digits or mnist was needed")
    # Small networks gain nothing from a second thread, and lose much where another job has the core.
    set_threads(threads or (1 if data == "digits" else None))
    from onematrix.experiments.demo import make_plan, run_demo

    plan = make_plan(data, quick, minutes, out or Path("onematrix-demo"), seed)
    say(plan.text(), as_json)
    outcome = run_demo(plan, say=lambda text: say(text, as_json), progress=False if as_json else None)
    if as_json:
        print(json.dumps(outcome.facts(), indent=2, ensure_ascii=False))
    else:
        _summarise(outcome)
    if outcome.interrupted:
        raise typer.Exit(130)
    if not outcome.passed:
        raise typer.Exit(1)


def _summarise(outcome: object) -> None:
    for title, table in outcome.tables.items():  # type: ignore[attr-defined]
        print(f"\n{title}\n{table.to_text()}")
    for name, passed, detail in outcome.checks:  # type: ignore[attr-defined]
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {detail}")
    state = "partial report" if outcome.interrupted else "report"  # type: ignore[attr-defined]
    print(f"{state}: {(outcome.folder / 'report.html').resolve()}")  # type: ignore[attr-defined]
