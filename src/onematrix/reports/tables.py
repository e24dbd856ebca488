"""A table: rows of named cells, as text, Markdown, HTML and CSV."""

import csv
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from onematrix.errors import OneMatrixError
from onematrix.records.files import write_text

if TYPE_CHECKING:
    import rich.table

SHARES = ("accuracy", "share", "density")  # words in the name of a column whose numbers are shown in %
UNITS = ("kB", "MB", "GB", "TB")


class Link(str):
    """A text cell that leads to `target` in HTML."""

    target: str

    def __new__(cls, text: str, target: str) -> Self:
        """A cell reading `text`."""
        link = super().__new__(cls, text)
        link.target = target
        return link


@dataclass(frozen=True)
class Table:
    """Columns in order, and rows as mappings; an absent cell is empty.

    >>> print(Table.from_rows([{"n": 1000, "error": 0.25}]).to_markdown())
    | n | error |
    |---:|---:|
    | 1,000 | 0.25 |
    """

    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Self:
        """A table of these rows; columns in the order of first use when not given.

        Raises OneMatrixError for a row that is no mapping of column → value.
        """
        kept = []
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise OneMatrixError(
                    f"table, row {number}: a mapping column → value was needed, got {type(row).__name__}"
                )
            kept.append(dict(row))
        names = dict.fromkeys(name for row in kept for name in row) if columns is None else columns
        return cls(tuple(names), tuple(kept))

    def cells(self) -> list[list[str]]:
        """Every cell as a person reads it."""
        return [[format_cell(name, row.get(name)) for name in self.columns] for row in self.rows]

    def is_number(self, name: str) -> bool:
        """Whether a column holds numbers, which are set to the right."""
        values = [row.get(name) for row in self.rows if row.get(name) is not None]
        return bool(values) and all(isinstance(v, Real) and not isinstance(v, bool) for v in values)

    def to_text(self) -> str:
        """Aligned columns as plain text."""
        cells = [list(self.columns), *self.cells()]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.columns))]
        numeric = [self.is_number(name) for name in self.columns]
        lines = [
            "  ".join(
                c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in cells
        ]
        return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])

    def to_rich(self, title: str = "") -> "rich.table.Table":
        """A table for a terminal, which wraps long cells to its width."""
        import rich.table
        import rich.text

        table = rich.table.Table(title=title or None)
        for name in self.columns:
            table.add_column(rich.text.Text(name), justify="right" if self.is_number(name) else "left")
        for line in self.cells():
            table.add_row(*map(rich.text.Text, line))
        return table

    def to_markdown(self) -> str:
        """A Markdown table."""
        rule = ["---:" if self.is_number(name) else "---" for name in self.columns]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in [list(self.columns), *self.cells()]]
        lines = ["| " + " | ".join(line) + " |" for line in cells]
        return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])

    def to_html(self) -> str:
        """An HTML table."""
        mark = {name: " class=n" if self.is_number(name) else "" for name in self.columns}
        head = "".join(f"<th{mark[name]}>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            f"<tr>{''.join(f'<td{mark[n]}>{_html_cell(n, row.get(n))}</td>' for n in self.columns)}</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_csv(self) -> str:
        """Comma-separated values at full precision."""
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([row.get(name, "") for name in self.columns] for row in self.rows)
        return lines.getvalue()

    def write_csv(self, path: str | Path) -> Path:
        """Write the CSV file, whole or not at all."""
        return write_text(path, self.to_csv())


def _html_cell(name: str, value: Any) -> str:
    text = html.escape(format_cell(name, value))
    return f'<a href="{html.escape(value.target)}">{text}</a>' if isinstance(value, Link) else text


def format_cell(name: str, value: Any) -> str:
    """A value as a person reads it: 1,234; 12.3 % for shares; 1.2 kB for bytes; four significant digits.

    The column's name tells the unit: accuracy, share, density and E are in %, a name with "bytes" in bytes.

    >>> format_cell("test accuracy", 0.1234), format_cell("index bytes", 12345), format_cell("x", None)
    ('12.3 %', '12.3 kB', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return format_bytes(int(value)) if "bytes" in name.split() else f"{int(value):,}"
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    if name == "E":
        return f"{100 * number:.3g} %"
    if any(word in name for word in SHARES):
        return f"{100 * number:.1f} %"
    return f"{number:,.1f}" if abs(number) >= 1000 else f"{number:.4g}"


def format_bytes(number: int) -> str:
    """Bytes with a decimal unit: 1 kB = 1,000 bytes.

    >>> format_bytes(999), format_bytes(193_204), format_bytes(999_960)
    ('999 B', '193.2 kB', '1.0 MB')
    """
    if abs(number) < 1000:
        return f"{number} B"
    size = float(number)
    for unit in UNITS:
        size /= 1000
        if abs(size) < 999.95 or unit == UNITS[-1]:
            break
    return f"{size:,.1f} {unit}"
