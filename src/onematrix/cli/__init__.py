"""The command line `onematrix VERB`: one file per verb; `--help` never imports torch."""

from onematrix.cli.main import main

__all__ = ["main"]
