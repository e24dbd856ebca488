"""What the package imports is what its own files install."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "src").rglob("*.py"))
MODULE_OF = {"scikit_learn": "sklearn", "pillow": "PIL"}


def declared() -> tuple[set[str], set[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements):
        found = {re.match(r"[\w-]+", r)[0].lower().replace("-", "_") for r in requirements}
        return {MODULE_OF.get(n, n) for n in found}

    extras = [r for rs in project["optional-dependencies"].values() for r in rs]
    return names(project["dependencies"]), names(extras)


def imports(tree: ast.AST, top_only: bool):
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT / "src" / "onematrix")))
def test_imports_are_declared(file):
    needed, extra = declared()
    known = set(sys.stdlib_module_names) | {"onematrix"} | needed
    tree = ast.parse(file.read_text())
    assert not set(imports(tree, top_only=True)) - known, (
        "needs a dependency (or an import inside the function)"
    )
    assert not set(imports(tree, top_only=False)) - known - extra


def test_torch_is_pinned_by_file():
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
    assert "constraints.txt" in (ROOT / "Makefile").read_text()
