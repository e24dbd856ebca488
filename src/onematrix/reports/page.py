"""The report: one HTML file that needs nothing else."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onematrix.records.files import write_text
from onematrix.records.machine import describe_machine
from onematrix.reports.tables import Table

LARGEST_SVG = 250_000  # bytes inlined as SVG; above that the PNG stands in, so that a page stays under 2 MB

STYLE = """
:root{color-scheme:light dark;--line:#8884;--good:#1a7f37;--bad:#c62828}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{line-height:1.2}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;font-size:.9rem}
.wide{overflow-x:auto}th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:left}
td.n{text-align:right;white-space:nowrap}
figure{margin:1rem 0;padding:1rem;background:#fff;color:#222;border:1px solid var(--line);border-radius:.4rem}
figure svg,figure img{max-width:100%;height:auto;display:block;margin:auto}figcaption{font-size:.9rem;color:#444}
.ok{color:var(--good)}.bad{color:var(--bad);font-weight:600}
.banner{background:#b58900;color:#000;padding:.6rem 1rem;border-radius:.4rem}
code,pre{font-family:ui-monospace,monospace;font-size:.85rem;white-space:pre-wrap}
@media print{figure,table{break-inside:avoid}}
"""

EXPLAIN_E = """<h2>What E means</h2>
<p><b>E</b>, the effective weight of a block, is the number of floating-point numbers it stores divided by
m·n, the entries of the matrix it stands for. A 300 × 400 block has 120,000 entries. Stored
densely E = 100 %. As a sparse block with 24,000 entries E = 20 %; the positions of those entries are integers and
are not part of E, but they take room, so bytes are given with indices: 24,000 × (4 + 4) + 301 × 4
= 193,204. As a product of a 300 × 34 and a 34 × 400 matrix it stores
34 × 700 = 23,800 numbers, E = 19.8 %, and no index.</p>"""


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
        """A section with a table."""
        body = f'{_paragraphs(text)}<div class="wide">{table.to_html()}</div>'
        self.sections.append(f"<h2>{html.escape(title)}</h2>{body}")

    def add_figure(self, title: str, paths: Sequence[Path], caption: str = "") -> None:
        """A section with a picture, inlined from its SVG file, or from the PNG where the SVG is large."""
        body = f"<figure>{_picture(paths, title)}<figcaption>{html.escape(caption)}</figcaption></figure>"
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
            "<!doctype html><html lang=en><meta charset=utf-8>",
            "<meta name=viewport content='width=device-width,initial-scale=1'>",
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style>",
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
        return f"<h2>Checks</h2><ul>{rows}</ul>" if rows else ""

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
            f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>"
            for k, v in facts.items()
            if v != ""
        )
        return f"<h2>How this was measured</h2><table>{rows}</table>"


def _paragraphs(text: str) -> str:
    pieces = [piece.strip() for piece in text.split("\n\n") if piece.strip()]
    return "".join(f"<p>{html.escape(piece).replace(chr(10), '<br>')}</p>" for piece in pieces)


def _picture(paths: Sequence[Path], title: str) -> str:
    by_kind = {path.suffix: path for path in paths}
    svg = by_kind.get(".svg")
    if svg is not None and (".png" not in by_kind or svg.stat().st_size <= LARGEST_SVG):
        return _inline(svg.read_text(encoding="utf-8"), re.sub(r"\W+", "-", title.lower()))
    data = base64.b64encode(by_kind[".png"].read_bytes()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'


def _inline(svg: str, prefix: str) -> str:
    """The <svg> element, its ids made different from those of other pictures on the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{prefix}-\2"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
