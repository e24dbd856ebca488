"""One look for every picture, and equal bytes for equal input."""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onematrix.errors import OneMatrixError
from onematrix.records.files import make_folder, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
LOOK: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.hashsalt": "onematrix",
    "svg.fonttype": "path",
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.parse_math": False,
}


def require_matplotlib() -> Any:
    """The matplotlib package. Raises OneMatrixError with the remedy where it is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise OneMatrixError('pictures need matplotlib: pip install "onematrix[viz]"') from error
    return matplotlib


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, width and height in inches; no global state."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=None)
    FigureCanvasAgg(figure)
    return figure


def targets(path: str | Path, known: Sequence[str] = FORMATS) -> list[Path]:
    """The files to write: the one named, or one per format when the name has no suffix.

    Raises OneMatrixError for another suffix, for what is no path, or a folder that cannot be written to.
    """
    if not isinstance(path, str | Path):
        raise OneMatrixError(f"a path for the picture was needed, got {type(path).__name__} {path!r}")
    path = Path(path)
    if path.suffix and path.suffix not in known:
        raise OneMatrixError(
            f"{path}: a picture ends in {', '.join(known)} or has no suffix (then SVG and PNG)"
        )
    make_folder(path.parent)
    return [path] if path.suffix else [path.with_suffix(s) for s in FORMATS]


def save(figure: "Figure", paths: Sequence[Path], titles: Mapping[str, str] | None = None) -> list[Path]:
    """Write the figure to every path, each whole or not at all.

    titles: id of a group → the text a browser shows when the pointer rests on it (SVG).
    """
    for path in paths:
        data = render(figure, path.suffix[1:], titles)
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    return list(paths)


def render(figure: "Figure", kind: str, titles: Mapping[str, str] | None = None) -> bytes:
    """The bytes of the picture as "svg" or "png": no date and no version in them."""
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    data = io.BytesIO()
    with require_matplotlib().rc_context(LOOK):
        figure.savefig(data, format=kind, metadata=metadata, bbox_inches="tight", facecolor="white")
    return data.getvalue() if kind == "png" else _add_titles(data.getvalue().decode(), titles or {}).encode()


def _add_titles(svg: str, titles: Mapping[str, str]) -> str:
    """<g id="…"> → the same with a <title>, and open to the pointer where nothing is painted."""

    def add(match: re.Match[str]) -> str:
        text = titles.get(match[1])
        return f'<g id="{match[1]}" pointer-events="all"><title>{escape(text)}</title>' if text else match[0]

    return re.sub(r'<g id="([^"]+)">', add, svg)
