"""onematrix experiment: the tables and figures of papers, run here, theirs beside ours."""

import json
from pathlib import Path
from typing import Annotated

import typer

from onematrix.cli.options import Json, Out, Threads, set_threads

app = typer.Typer(help="List or run the experiments: tables and figures of papers.", no_args_is_help=True)


@app.command("list")
def list_experiments(as_json: Json = False) -> None:
    """Every experiment: its name, what it shows, where it comes from.

    Example: onematrix experiment list
    """
    from onematrix.experiments import list_experiments as find

    rows = [{"id": e.id, "title": e.title, "source": e.source} for e in find().values()]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        print(f"{row['id']:<16} {row['title']}  [{row['source']}]")


@app.command("run")
def run_experiment(
    name: Annotated[str, typer.Argument(help="A name of `onematrix experiment list`.")],
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="The smallest size, in seconds.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds; the spread is over them.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps per run.")] = None,
    data: Annotated[str, typer.Option(help="Source of images: digits or mnist.")] = "digits",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run one experiment and write its report, tables, figures and records.

    Example: onematrix experiment run kale-table-7
    """
    from onematrix.experiments import Options, run

    set_threads(threads)
    folder = out or Path("runs") / name
    outcome = run(name, Options(folder, quick=quick, seeds=seeds, steps=steps, data=data, say=_say(as_json)))
    if as_json:
        print(json.dumps(outcome.facts(), indent=2, ensure_ascii=False))
    else:
        print(f"report: {folder / 'report.html'}")
    if outcome.interrupted:
        raise typer.Exit(130)
    if not outcome.passed:
        raise typer.Exit(1)


def _say(quiet: bool) -> object:
    return (lambda _: None) if quiet else (lambda text: print(text, flush=True))
