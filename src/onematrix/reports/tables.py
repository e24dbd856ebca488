"""A table: rows of named cells, as text, Markdown, HTML and CSV."""

import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from onematrix.records.files import write_text


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
        """A table of these rows; columns in the order of first use when not given."""
        kept = tuple(dict(row) for row in rows)
        names = columns or dict.fromkeys(name for row in kept for name in row)
        return cls(tuple(names), kept)

    def cells(self) -> list[list[str]]:
        """Every cell as a person reads it."""
        return [[format_cell(name, row.get(name)) for name in self.columns] for row in self.rows]

    def is_number(self, name: str) -> bool:
        """Whether a column holds numbers, which are set to the right."""
        values = [row.get(name) for row in self.rows if row.get(name) is not None]
        return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)

    def to_text(self) -> str:
        """Aligned columns for a terminal."""
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

    def to_markdown(self) -> str:
        """A Markdown table."""
        rule = ["---:" if self.is_number(name) else "---" for name in self.columns]
        lines = ["| " + " | ".join(line) + " |" for line in [list(self.columns), *self.cells()]]
        return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])

    def to_html(self) -> str:
        """An HTML table."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        numeric = [self.is_number(name) for name in self.columns]
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{' class=n' if n else ''}>{html.escape(c)}</td>"
                for c, n in zip(line, numeric, strict=True)
            )
            + "</tr>"
            for line in self.cells()
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


def format_cell(name: str, value: Any) -> str:
    """A value as a person reads it: 1,234; 12.3 % for accuracies and shares; four significant digits.

    >>> format_cell("test accuracy", 0.1234), format_cell("bytes", 12345), format_cell("x", None)
    ('12.3 %', '12,345', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if any(word in name for word in ("accuracy", "share", "density")) or name == "E":
            return f"{100 * value:.1f} %" if name != "E" else f"{100 * value:g} %"
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
