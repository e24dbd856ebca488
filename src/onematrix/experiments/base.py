"""What an experiment is, how one is found, and how one is run into a report."""

import importlib
import pkgutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from onematrix.errors import OneMatrixError
from onematrix.records.files import make_folder, write_json
from onematrix.reports.figures import require_matplotlib
from onematrix.reports.page import Report
from onematrix.reports.tables import Table

Say = Callable[[str], object]


@dataclass(frozen=True)
class Options:
    """How to run an experiment; None means the experiment's own choice."""

    folder: Path
    quick: bool = False
    seeds: int | None = None
    steps: int | None = None
    data: str = "digits"
    say: Say = print


@dataclass
class Outcome:
    """What an experiment found: its page under construction, its tables and checks, written at any moment."""

    report: Report
    folder: Path
    tables: dict[str, Table] = field(default_factory=dict)
    checks: list[tuple[str, bool, str]] = field(default_factory=list)
    interrupted: bool = False

    @property
    def passed(self) -> bool:
        """Whether every check passed and nothing was cut short."""
        return not self.interrupted and all(passed for _, passed, _ in self.checks)

    def add_table(self, title: str, table: Table, text: str = "") -> None:
        """A table in the page, and as a CSV file beside it."""
        self.tables[title] = table
        self.report.add_table(title, table, text)

    def add_check(self, name: str, passed: bool, detail: str) -> None:
        """A check in the page; a failed one makes the command exit with 1."""
        self.checks.append((name, passed, detail))
        self.report.add_check(name, passed, detail)

    def facts(self) -> dict[str, object]:
        """Everything as plain data, for --json and result.json."""
        return {
            "passed": self.passed,
            "interrupted": self.interrupted,
            "checks": [{"check": n, "passed": p, "detail": d} for n, p, d in self.checks],
            "tables": {title: list(table.rows) for title, table in self.tables.items()},
        }

    def write(self) -> Path:
        """Write report.html, result.json; each whole or not at all."""
        write_json(self.folder / "result.json", self.facts())
        return self.report.write(self.folder / "report.html")


@dataclass(frozen=True)
class Experiment:
    """A table or figure of a paper: its name, what it shows, its source, and how to run it."""

    id: str
    title: str
    source: str
    run: Callable[[Options, Outcome], None]


def list_experiments() -> dict[str, Experiment]:
    """Name → experiment, found in the files of this folder."""
    import onematrix.experiments as folder

    found: dict[str, Experiment] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(folder.__path__)):
        place = importlib.import_module(f"onematrix.experiments.{module}")
        for experiment in getattr(place, "EXPERIMENTS", ()):
            found[experiment.id] = experiment
    return dict(sorted(found.items()))


def run(name: str, options: Options) -> Outcome:
    """Run an experiment into `options.folder`: report.html, result.json, figures, tables.

    Ctrl-C leaves a partial report that says so. Raises OneMatrixError for an unknown name or a folder that
    cannot be written.
    """
    known = list_experiments()
    if name not in known:
        raise OneMatrixError(f"no experiment is called {name!r}; there are: {', '.join(known)}", name=name)
    experiment = known[name]
    outcome = begin(experiment.title, experiment.source, options.folder)
    return finish(outcome, lambda: experiment.run(options, outcome))


def begin(title: str, summary: str, folder: Path) -> Outcome:
    """An empty outcome whose folder can be written to; what is missing for pictures is said before any work."""
    require_matplotlib()
    folder = make_folder(folder)
    return Outcome(Report(title, summary, command=" ".join(["onematrix", *sys.argv[1:]])), folder)


def finish(outcome: Outcome, work: Callable[[], None]) -> Outcome:
    """Do the work and write the page, also when Ctrl-C or an error ends it early."""
    started = time.perf_counter()
    whole = False
    try:
        work()
        whole = not outcome.interrupted
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        outcome.report.duration_seconds = time.perf_counter() - started
        outcome.report.interrupted = not whole
        outcome.write()
    return outcome
