"""The first screen, the verbs, and what an error looks like to a person."""

import sys

import typer

from onematrix.cli import bench, demo, doctor, experiment, fit, structures, train, view
from onematrix.errors import BudgetError, OneMatrixError

app = typer.Typer(
    name="onematrix",
    help="Every network is one matrix: x ← σ(Gx) ∘ Hx. See it, shrink it, run it fast, prove it right.",
    epilog="Start with: onematrix demo --quick",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FIRST, MORE = "First", "More"
app.command("demo", rich_help_panel=FIRST)(demo.demo)
app.command("view", rich_help_panel=FIRST)(view.view)
app.command("fit", rich_help_panel=MORE)(fit.fit)
app.command("train", rich_help_panel=MORE)(train.train_model)
app.command("structures", rich_help_panel=MORE)(structures.structures)
app.command("doctor", rich_help_panel=MORE)(doctor.doctor)
app.add_typer(bench.app, name="bench", rich_help_panel=MORE)
app.add_typer(experiment.app, name="experiment", rich_help_panel=MORE)


def main() -> None:
    """Run a verb. Exit 0 fine, 1 a check or the work failed, 2 usage, 3 budget infeasible, 130 Ctrl-C."""
    try:
        app()
    except BudgetError as error:
        _fail(error, 3)
    except OneMatrixError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(error: OneMatrixError, code: int) -> None:
    print(f"onematrix: {error}", file=sys.stderr)
    sys.exit(code)
