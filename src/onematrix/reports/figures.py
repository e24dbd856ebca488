"""One look for every picture, and equal bytes for equal input."""

from collections.abc import Sequence
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

    Raises OneMatrixError for another suffix or a folder that cannot be written to.
    """
    path = Path(path)
    if path.suffix and path.suffix not in known:
        raise OneMatrixError(
            f"{path}: a picture ends in {', '.join(known)} or has no suffix (then SVG and PNG)"
        )
    make_folder(path.parent)
    return [path] if path.suffix else [path.with_suffix(s) for s in FORMATS]


def save(figure: "Figure", paths: Sequence[Path]) -> list[Path]:
    """Write the figure to every path, each whole or not at all."""
    matplotlib = require_matplotlib()
    for path in paths:
        kind = path.suffix[1:]
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        with matplotlib.rc_context(LOOK), replacing(path) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata, bbox_inches="tight", facecolor="white")
    return list(paths)
