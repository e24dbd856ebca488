"""onematrix view: a network as one block matrix, in numbers and as a picture."""

import json
from typing import Annotated, Any

import typer

from onematrix.cli.options import Json, Out


def view(
    model: Annotated[str, typer.Argument(help="package.module:callable, or a folder written by om.save.")],
    out: Out = None,
    area: Annotated[str, typer.Option(help="What the area of a block shows: size, bytes or equal.")] = "size",
    sizes: Annotated[
        list[str] | None, typer.Option("--size", help="A named size, as time=10; give it again for more.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Print the program's text instead of the table.")
    ] = False,
    as_json: Json = False,
) -> None:
    """A network as one block matrix: a table of its blocks and, with --out, a picture (.svg, .png, .html).

    Example: onematrix view onematrix.networks:sru --size time=10 --out sru.svg
    """
    from onematrix.cli.model import as_program, find_model

    program = as_program(find_model(model))
    if text:
        print(program.text(), end="")
    else:
        fixed = dict.fromkeys(program.free_sizes(), 1) | _sizes(sizes or [])
        rows, total = describe_blocks(program, fixed)
        if as_json:
            print(json.dumps({"blocks": rows, "total": total}, indent=2))
        else:
            _print(rows, total, fixed)
    if out is not None:
        from onematrix.reports.drawing import draw

        written = draw(program, out, area=area)
        if not as_json:
            print(f"wrote {', '.join(str(path) for path in _listed(written))}")


def _listed(written: Any) -> list[Any]:
    return list(written) if isinstance(written, list | tuple) else [written]


def _sizes(texts: list[str]) -> dict[str, int]:
    sizes = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not number.isdigit():
            raise typer.BadParameter(f"--size {text!r}: name=integer was needed, as in time=10")
        sizes[name] = int(number)
    return sizes


def describe_blocks(program: Any, sizes: dict[str, int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per different block with its share of the stored numbers, and the totals."""
    from onematrix.structures.tree import index_bytes, stored_numbers

    counts = program.counts(**sizes)
    rows, seen = [], set()
    for row, column, block in program.blocks():
        a = block.structure
        if id(block) in seen:
            continue
        seen.add(id(block))
        fixed = a.at(**sizes)
        stored = stored_numbers(a)
        rows.append(
            {
                "block": f"{row} ← {column}",
                "structure": a.name,
                "shape": " × ".join(str(s) for s in a.shape),
                "stored numbers": stored,
                "index bytes": index_bytes(a),
                "non-zeros": fixed.nonzeros(),
                "multiply-adds": fixed.multiply_adds(),
                "share": stored / counts.stored_numbers if counts.stored_numbers else 0.0,
            }
        )
    total = {
        "blocks": counts.blocks,
        "stored numbers": counts.stored_numbers,
        "index bytes": counts.index_bytes,
        "non-zeros": counts.nonzeros,
        "multiply-adds per run": counts.multiply_adds,
    }
    return rows, total


def _print(rows: list[dict[str, Any]], total: dict[str, Any], sizes: dict[str, int]) -> None:
    from rich.console import Console
    from rich.table import Table

    heavy = [row for row in rows if row["stored numbers"]]
    table = Table(*rows[0]) if rows else Table()
    for row in heavy:
        table.add_row(
            *(f"{v:.1%}" if k == "share" else f"{v:,}" if isinstance(v, int) else v for k, v in row.items())
        )
    console = Console()
    console.print(table)
    if free := len(rows) - len(heavy):
        console.print(f"and {free} blocks that store no numbers (identities, zeros, permutations)")
    at = f" at {', '.join(f'{k}={v}' for k, v in sizes.items())}" if sizes else ""
    console.print("  ".join(f"{name} {value:,}" for name, value in total.items()) + at)
