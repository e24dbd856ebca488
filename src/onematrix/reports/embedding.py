"""Pictures inside a page: an SVG as an element, or pixels as a data address."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

from onematrix.errors import OneMatrixError

LARGEST_SVG = 300_000  # bytes of a picture that is inlined as SVG where there is a PNG as well


def embed(paths: Sequence[Path], title: str, prefix: str, room: int) -> str:
    """The element for a picture: its SVG, or its PNG where the SVG is large or the page has less room, in bytes.

    Raises OneMatrixError for a missing file, or where there is neither.
    """
    by_kind = {path.suffix: path for path in paths if path.suffix in (".svg", ".png")}
    if not by_kind:
        raise OneMatrixError(
            f"figure {title!r}: an .svg or .png file was needed, got {[str(p) for p in paths]}"
        )
    if missing := [str(path) for path in by_kind.values() if not path.is_file()]:
        raise OneMatrixError(f"figure {title!r}: no file {', '.join(missing)}; draw it before it is added")
    label = html.escape(title, quote=True)
    svg, png = by_kind.get(".svg"), by_kind.get(".png")
    if svg is not None and (png is None or svg.stat().st_size <= min(LARGEST_SVG, room)):
        return inline_svg(svg.read_text(encoding="utf-8"), prefix, label)
    data = base64.b64encode(png.read_bytes()).decode()  # type: ignore[union-attr]
    return f'<img alt="{label}" src="data:image/png;base64,{data}">'


def inline_svg(svg: str, prefix: str = "", label: str = "") -> str:
    """The <svg> element; with a prefix its ids differ from those of other pictures on the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    if prefix:
        svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
        svg = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{prefix}-\2"', svg)
        svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"' if label else "<svg", 1)
