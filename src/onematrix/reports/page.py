"""The report: one HTML file that needs nothing else."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onematrix.errors import OneMatrixError
from onematrix.records.files import write_text
from onematrix.records.machine import describe_machine
from onematrix.reports.embedding import embed
from onematrix.reports.style import HEAD, STYLE
from onematrix.reports.tables import Table

ROOM = 1_400_000  # bytes of sections after which pictures are embedded as PNG: a page stays under 2 MB

EXPLAIN_E = """<h2>What E means</h2>
<p><b>E</b>, the effective weight of a block, is the number of floating-point numbers it stores divided by
m·n, the entries of the matrix it stands for. It counts what is learned and kept, not what is multiplied, and it may
exceed 100 %. A 300 × 400 block has 120,000 entries:</p>
<div class="wide"><table><thead><tr><th>stored as</th><th class=n>numbers</th><th class=n>E</th>
<th class=n>index bytes</th><th class=n>bytes in all</th><th>why</th></tr></thead><tbody>
<tr><td>dense</td><td class=n>120,000</td><td class=n>100 %</td><td class=n>0</td><td class=n>480,000</td>
<td>every entry, 4 bytes each</td></tr>
<tr><td>sparse (csr)</td><td class=n>24,000</td><td class=n>20 %</td><td class=n>97,204</td><td class=n>193,204</td>
<td>24,000 entries, a 4-byte column for each, and 301 row pointers of 4 bytes</td></tr>
<tr><td>low-rank</td><td class=n>23,800</td><td class=n>19.8 %</td><td class=n>0</td><td class=n>95,200</td>
<td>a 300 × 34 times a 34 × 400 matrix: 34 × 700 numbers</td></tr></tbody></table></div>
<p>Positions are integers and no part of E, but they take room: bytes are therefore given with indices.</p>"""


@dataclass
class Report:
    """A page under construction; `write` may be called at any time and then shows what there is."""

    title: str
    summary: str
    command: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    duration_seconds: float | None = None
    sections: list[str] = field(default_factory=list)
    checks: list[tuple[str, bool, str]] = field(default_factory=list)

    def add_text(self, title: str, text: str) -> None:
        """A section of text; blank lines separate paragraphs."""
        self.sections.append(f"<h2>{html.escape(title)}</h2>{_paragraphs(text)}")

    def add_table(self, title: str, table: Table, text: str = "") -> None:
        """A section with a table. Raises OneMatrixError for anything but a Table."""
        if not isinstance(table, Table):
            raise OneMatrixError(
                f"table {title!r}: a Table was needed, got {type(table).__name__}; use Table.from_rows(rows)"
            )
        body = f'{_paragraphs(text)}<div class="wide">{table.to_html()}</div>'
        self.sections.append(f"<h2>{html.escape(title)}</h2>{body}")

    def add_figure(self, title: str, paths: str | Path | Sequence[str | Path], caption: str = "") -> None:
        """A section with a picture, inlined from its SVG file, or from the PNG where the SVG is large.

        Raises OneMatrixError where no such file is there.
        """
        files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        room = ROOM - sum(map(len, self.sections))
        picture = embed(files, title, f"f{len(self.sections)}", room)
        body = f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"
        self.sections.append(f"<h2>{html.escape(title)}</h2>{body}")

    def add_check(self, name: str, passed: bool, detail: str) -> None:
        """A check with its outcome; all stand at the top of the page."""
        self.checks.append((name, passed, detail))

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        return write_text(path, self.to_html())

    def to_html(self) -> str:
        """The page as one string."""
        banner = '<p class="banner">This run was interrupted; the report shows what was finished.</p>'
        parts = [
            f"{HEAD}<title>{html.escape(self.title)}</title><style>{STYLE}</style>",
            f"<h1>{html.escape(self.title)}</h1>",
            banner if self.interrupted else "",
            _paragraphs(self.summary),
            self._checks(),
            *self.sections,
            EXPLAIN_E,
            self._facts(),
        ]
        return "\n".join(part for part in parts if part) + "\n</html>\n"

    def _checks(self) -> str:
        rows = "".join(
            f"<li class={'ok' if passed else 'bad'}>{'✓' if passed else '✗ FAILED:'} {html.escape(name)}"
            f" <small>{html.escape(detail)}</small></li>"
            for name, passed, detail in self.checks
        )
        return f"<h2>Checks</h2><ul class=checks>{rows}</ul>" if rows else ""

    def _facts(self) -> str:
        facts: dict[str, Any] = {"command": self.command} | self.facts
        facts["written"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        if self.duration_seconds is not None:
            facts["duration"] = f"{self.duration_seconds:.1f} s"
        machine = describe_machine()
        versions = machine.pop("versions")
        facts |= machine
        if isinstance(versions, dict):
            facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
        rows = "".join(
            f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(_say(v))}</td></tr>"
            for k, v in facts.items()
            if v not in ("", None)
        )
        return f'<h2>How this was measured</h2><div class="wide"><table>{rows}</table></div>'


def _say(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _paragraphs(text: str) -> str:
    pieces = [piece.strip() for piece in text.split("\n\n") if piece.strip()]
    return "".join(f"<p>{html.escape(piece).replace(chr(10), '<br>')}</p>" for piece in pieces)
