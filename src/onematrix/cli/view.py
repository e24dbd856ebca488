"""onematrix view: a network as one block matrix, in numbers and as a picture."""

import json
import re
from typing import Annotated, Any

import typer

from onematrix.cli.model import Batch, Inputs, Meta, Model
from onematrix.cli.options import Json, Out

WIDE = 140  # columns of a terminal that has room for whole names and numbers
NARROW = 100  # columns of one that has no room for shapes


def view(
    model: Model,
    out: Out = None,
    inputs: Inputs = None,
    batch: Batch = 2,
    meta: Meta = False,
    zoom: Annotated[
        str | None,
        typer.Option(help='Only parts whose name fits, as "encoder.layer.0.*".', show_default=False),
    ] = None,
    fold: Annotated[
        bool, typer.Option(help="Equal layers as one, and lines without numbers left out.")
    ] = True,
    area: Annotated[str, typer.Option(help="What the area of a block shows: size, bytes or equal.")] = "size",
    sizes: Annotated[
        list[str] | None, typer.Option("--size", help="A named size, as time=10; give it again for more.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Print the program's text instead of the table.")
    ] = False,
    as_json: Json = False,
) -> None:
    """A network as one block matrix: a table of its parts and, with --out, a picture (.svg, .png, .html).

    Example: onematrix view onematrix.networks:sru --size time=10 --out sru.svg
    """
    from onematrix.cli.model import as_program, find_example
    from onematrix.cli.model_inputs import Example, sizes_of
    from onematrix.reports.folding import match_parts, written_parts

    given = _sizes(sizes or [])
    found = find_example(model, inputs or [], batch, meta)
    program = as_program(found)
    if text:
        print(program.text(), end="")
    else:
        usual = sizes_of(program, found.tensors) if isinstance(found, Example) else {}
        fixed = dict.fromkeys(sorted(program.free_sizes()), 1) | usual | given
        rows, total = describe(program, fixed, zoom, fold)
        if as_json:
            print(json.dumps({"blocks": rows, "total": total, "sizes": fixed}, indent=2, ensure_ascii=False))
        else:
            matching = len(written_parts(program) if zoom is None else match_parts(program, zoom))
            _print(program, rows, total, fixed, matching)
    if out is not None:
        from onematrix.reports.drawing import draw
        from onematrix.structures.base import Structure

        what = found if isinstance(found, Structure) else program
        options = {} if isinstance(found, Structure) else {"zoom": zoom, "fold": fold}
        written = draw(what, out, area=area, **options)
        if not as_json:
            print(f"wrote {', '.join(str(path) for path in written)}")


def _sizes(texts: list[str]) -> dict[str, int]:
    sizes = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not number.isdigit():
            raise typer.BadParameter(f"--size {text!r}: name=integer was needed, as in time=10")
        sizes[name] = int(number)
    return sizes


def describe(
    program: Any, sizes: dict[str, int], zoom: str | None = None, fold: bool = True
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per line of the table with its shares of the whole program, and the totals."""
    from onematrix.reports.model_table import table_lines

    counts = program.counts(**sizes)
    rows = [
        {
            "part": line.label,
            "parts": line.parts,
            "reads": list(line.reads),
            "shape": line.shape,
            "structure": line.structure,
            "stored numbers": line.stored_numbers,
            "tied": line.tied,
            "index bytes": line.index_bytes,
            "share": line.stored_numbers / max(counts.stored_numbers, 1),
            "multiply-adds": line.work.multiply_adds,
            "in products": line.work.in_products,
            "share of multiply-adds": line.work.multiply_adds / max(counts.multiply_adds, 1),
        }
        for line in table_lines(program, sizes, zoom, fold)
    ]
    total = {
        "blocks": counts.blocks,
        "stored numbers": counts.stored_numbers,
        "index bytes": counts.index_bytes,
        "non-zeros": counts.nonzeros,
        "multiply-adds": counts.multiply_adds,
        "in products": counts.work.in_products,
        "opaque": {part: f"{f.name}: {f.reason}" for part, f in program.opaque().items()},
    }
    return rows, total


def _print(
    program: Any, rows: list[dict[str, Any]], total: dict[str, Any], sizes: dict[str, int], matching: int
) -> None:
    _print_table(program, rows, bool(total["index bytes"]))
    if rest := matching - sum(row["parts"] for row in rows):
        print(f"and {rest} parts that store nothing and multiply nothing (--no-fold lists them)")
    at = f" at {', '.join(f'{k}={v}' for k, v in sizes.items())}" if sizes else ""
    print(
        f"{total['stored numbers']:,} stored numbers in {total['blocks']:,} blocks, "
        f"{total['multiply-adds']:,} multiply-adds per sample{at}"
    )
    print(
        f"of these {total['in products']:,} in matrix products, as torch.utils.flop_counter counts them (2 flops "
        "each); the others are biases, scales, sums and means"
    )
    for part, reason in total["opaque"].items():
        print(f"opaque: {part}: {reason}")


def _print_table(program: Any, rows: list[dict[str, Any]], index: bool) -> None:
    """All columns and digits where the terminal has room; else short numbers, on a narrow one no shapes."""
    from rich import box
    from rich.console import Console

    from onematrix.reports.tables import Table, format_cell

    console = Console()
    narrow, short = console.width < NARROW, console.width < WIDE
    room = 24 if narrow else 28 if short else 1000
    lines = [_shown(row, program, room, short) for row in rows]
    hidden = {"shape"} if narrow else set()
    hidden |= set() if index else {"index bytes"}
    kept = [name for name in (lines[0] if lines else {}) if name not in hidden]
    table = Table.from_rows(lines, kept).to_rich()
    if narrow:
        table.box, table.pad_edge = box.SIMPLE_HEAD, False
    for name, column in zip(kept, table.columns, strict=True):
        column.overflow = "fold"
        if name not in ("shape", "structure"):  # names and numbers stay whole
            cells = [part for line in lines for part in format_cell(name, line[name]).split("\n")]
            column.min_width = max(map(len, [name, *cells]))
            column.justify = "left" if name == "part" else "right"
    if narrow and lines:
        taken = sum((column.min_width or 0) + 3 for column in table.columns)
        table.columns[kept.index("structure")].max_width = max(8, console.width - taken)
    console.print(table)


def _shown(row: dict[str, Any], program: Any, room: int, short: bool) -> dict[str, Any]:
    """The cells a person reads. A program written by hand has short names: what they read stands beside them."""
    reads = "" if program.source_names or not row["reads"] else f" ← {', '.join(row['reads'])}"
    say = short_number if short else (lambda number: number)
    return {
        "part": _broken(row["part"] + reads, room),
        "shape": row["shape"],
        "structure": row["structure"] + (" (tied)" if row["tied"] else ""),
        "numbers" if short else "stored numbers": say(row["stored numbers"]),
        "share": row["share"],
        "index bytes": row["index bytes"],
        "work" if short else "multiply-adds": say(row["multiply-adds"]),
        "work share": row["share of multiply-adds"],
    }


def short_number(number: int) -> str:
    """Three digits and a letter for thousands, millions, …

    >>> short_number(999), short_number(38_597_376), short_number(1_367_507_136)
    ('999', '38.6 M', '1.37 G')
    """
    size, letter = float(number), ""
    for following in ("k", "M", "G", "T", "P"):
        if size < 999.5:
            break
        size, letter = size / 1000, f" {following}"
    return f"{number}" if not letter else f"{size:.3g}{letter}"


def _broken(name: str, room: int) -> str:
    """A long name in lines that end at a dot or a space."""
    lines = [""]
    for word in re.findall(r"[^. ]*[. ]?", name):
        if lines[-1].strip() and len(lines[-1]) + len(word) > room:
            lines.append("  ")
        lines[-1] += word
    return "\n".join(lines)
