"""onematrix bench: the speed tables, on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer

from onematrix.cli.options import Json, Out, Threads, say, set_threads

app = typer.Typer(help="Measure speed on this machine, beside native torch.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure speed on this machine, beside native torch."""


@app.command("compile")
def bench_compile(
    out: Out = None,
    only: Annotated[str, typer.Option(help="Only cases whose name contains this.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes, in seconds: a check, no result.")
    ] = False,
    pairs: Annotated[int, typer.Option(min=10, help="Alternating timings of both sides.")] = 11,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Compiled programs beside the native modules they equal: ratio, target, distance to the floor, a chart.

    Example: onematrix bench compile --only sru
    """
    from onematrix.experiments.compile_bench import draw_lines, measure_compiled
    from onematrix.records.files import make_folder, write_json
    from onematrix.records.timing import conditions

    set_threads(threads)
    folder = make_folder(out or Path("runs") / "bench-compile")
    shown = conditions(pairs).replace("peer ÷ candidate", "ours ÷ peer")
    say(shown, as_json)
    lines = []
    for line in measure_compiled(pairs, 8 if quick else 1, only):
        lines.append(line)
        say(str(line), as_json)
    facts = {"conditions": shown, "rows": [line.facts() for line in lines]}
    write_json(folder / "compile.json", facts)
    if lines:
        draw_lines(lines, folder / "compile")
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        say(f"chart: {folder / 'compile.svg'}; GPU: not measured")
