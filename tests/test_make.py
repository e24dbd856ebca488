"""The Makefile: what it says before it installs, what it refuses, and that an interrupted install is redone."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def script(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, env=environment)


def test_an_old_python_is_refused_in_one_line(checkout):
    old = script(checkout / "old", 'case "$2" in *version_info*) exit 1;; *) echo 3.8.10;; esac\n')
    result = make(checkout, "install", f"PYTHON={old}")
    assert result.returncode != 0
    assert "onematrix needs Python 3.11 or newer" in result.stdout
    assert "is 3.8.10" in result.stdout


def test_a_missing_python_and_a_missing_venv_are_named(checkout):
    result = make(checkout, "install", "PYTHON=no-such-python")
    assert result.returncode != 0
    assert "no-such-python was not found" in result.stdout
    bare = script(checkout / "bare", 'case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac\n')
    result = make(checkout, "install", f"PYTHON={bare}")
    assert result.returncode != 0
    assert "venv module" in result.stdout


def test_the_stamp_is_written_last_and_an_interrupted_install_is_done_again(checkout):
    """A Python whose venv has a pip that fails at first, then works."""
    installer = (
        'if [ "$1" = -m ] && [ "$2" = venv ]; then mkdir -p "$3/bin"; '
        'printf \'#!/bin/sh\\n[ -e "%s/ready" ]\\n\' "$PWD" > "$3/bin/python"; chmod +x "$3/bin/python"; fi\n'
    )
    fake = script(checkout / "fake", installer)
    assert make(checkout, "install", f"PYTHON={fake}").returncode != 0
    assert not (checkout / ".venv" / ".installed").exists()
    (checkout / "ready").touch()
    result = make(checkout, "install", f"PYTHON={fake}")
    assert result.returncode == 0
    assert "GB on disk" in result.stdout
    assert (checkout / ".venv" / ".installed").exists()
    assert "Installing" not in make(checkout, "install", f"PYTHON={fake}").stdout
