"""What the README and the documents show runs, and their commands are those of the Makefile."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_python_blocks_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "document"}
    for block in blocks(document, "python"):
        exec(compile(block, document.name, "exec"), names)


def test_the_readme_shows_python():
    assert blocks(ROOT / "README.md", "python")


def test_the_readme_gives_the_commands_of_the_makefile():
    """The raw commands of the README are the ones `make` runs, word for word."""
    plan = subprocess.run(
        ["make", "-n", "-B", "demo", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    shown = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    raw = [line for line in shown if line.startswith((".venv/bin/", "OMP_NUM", "python3 -m venv"))]
    assert len(raw) >= 4
    done = " ".join(plan.replace("--quiet --disable-pip-version-check ", "").split())
    for line in raw:
        assert line.split("  #")[0].strip() in done, line


def test_links_of_the_documents_lead_to_files():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_help_does_not_import_torch():
    code = (
        "import sys, onematrix.cli; from typer.testing import CliRunner; "
        "from onematrix.cli.main import app; r = CliRunner().invoke(app, ['--help']); "
        "assert r.exit_code == 0, r.output; assert 'torch' not in sys.modules; print(r.output)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "demo" in out.stdout
