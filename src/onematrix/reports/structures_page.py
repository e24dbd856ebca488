"""The table of structures, generated from the registry: python -m onematrix.reports.structures_page."""

import sys
from pathlib import Path

from onematrix.records.files import write_text
from onematrix.reports.tables import Table
from onematrix.structures import list_structures

INTRODUCTION = """# Structures

Every kind of matrix there is, generated from the registry by
`python -m onematrix.reports.structures_page docs/structures.md`.
A structure is a value: `to_dense()` is its definition, `matmul(x)` the fast x Aᵀ. `om.fit(W, name, budget=E)` gives the
best member for a dense matrix, `om.Linear(structure)` a layer. The definition is the first line of its docstring;
`help(om.list_structures()["low_rank"])` shows the rest.
"""


def structures_table() -> Table:
    """name, definition, what it can do, laws it is exempt from, source; of the library's own, not of `define`."""
    rows = [
        {
            "name": f"`{name}`",
            "definition": (cls.__doc__ or "").strip().splitlines()[0],
            "fit": "yes" if cls.can_fit else "",
            "random": "yes" if cls.can_random else "",
            "of structures": "yes" if cls.composite else "",
            "square": "yes" if cls.square_only else "",
            "exempt from": ", ".join(sorted(cls.exempt)),
            "source": cls.source,
        }
        for name, cls in list_structures().items()
        if not hasattr(cls, "definition")
    ]
    return Table.from_rows(rows)


def structures_page() -> str:
    """The page docs/structures.md."""
    return f"{INTRODUCTION}\n{structures_table().to_markdown()}\n"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), structures_page())
