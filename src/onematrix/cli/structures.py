"""onematrix structures: the kinds of matrices there are."""

import json

from onematrix.cli.options import Json


def structures(as_json: Json = False) -> None:
    """Every structure: its definition, what it can do, where it comes from.

    Example: onematrix structures
    """
    from onematrix.structures import list_structures

    rows = [
        {
            "name": name,
            "definition": (cls.__doc__ or "").strip().splitlines()[0],
            "fit": cls.can_fit,
            "random": cls.can_random,
            "composite": cls.composite,
            "source": cls.source,
        }
        for name, cls in list_structures().items()
    ]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "definition", "fit", "random", title=f"{len(rows)} structures")
    for row in rows:
        table.add_row(
            row["name"], row["definition"], "yes" if row["fit"] else "", "yes" if row["random"] else ""
        )
    Console().print(table)
