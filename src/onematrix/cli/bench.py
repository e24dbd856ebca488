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
    inductor: Annotated[
        bool, typer.Option("--inductor", help="Also both sides under torch.compile; half a minute a case.")
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
    for line in measure_compiled(pairs, 8 if quick else 1, only, inductor=inductor):
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


@app.command("structures")
def bench_structures(
    out: Out = None,
    only: Annotated[str, typer.Option(help="Only structures whose name contains this.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes, in seconds: a check, no result.")
    ] = False,
    pairs: Annotated[int, typer.Option(min=10, help="Alternating timings of both sides.")] = 11,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Structured products beside the dense layer of their size, over n and batch, and where they break even.

    "own" is the structure's product, "chosen" what `kernels.structured_choice.freeze` takes for weights that no
    longer change: the structure's own or dense, whichever is faster here.

    Example: onematrix bench structures --only monarch
    """
    from onematrix.experiments import structure_bench as bench
    from onematrix.records.files import make_folder, write_json
    from onematrix.records.timing import conditions

    set_threads(threads)
    folder = make_folder(out or Path("runs") / "bench-structures")
    shown = conditions(pairs).replace("peer ÷ candidate", "seconds ÷ dense")
    say(shown, as_json)
    sizes, batches = (bench.QUICK_SIZES, bench.QUICK_BATCHES) if quick else (bench.SIZES, bench.BATCHES)
    lines = []
    for line in bench.measure_structures(sizes, batches, pairs, only, calls=2 if quick else None):
        lines.append(line)
        say(str(line), as_json)
    facts = {"conditions": shown, "rows": [line.facts() for line in lines]}
    write_json(folder / "structures.json", facts)
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    if not lines:
        say(f"no structure's name contains {only!r}", as_json)
        return
    bench.draw_lines(lines, folder / "structures")
    tables = {
        "own product, seconds ÷ dense": bench.grid(lines),
        "chosen for weights that stay, seconds ÷ dense": bench.grid(lines, True),
        "batch from which the own product is faster": bench.break_even(lines),
    }
    for title, table in tables.items():
        say(f"\n{title}\n{table.to_text()}", as_json)
    say(f"chart: {folder / 'structures.svg'}; GPU: not measured", as_json)
