"""What a run measured: running sums of an epoch, one record per epoch, and the history handed back."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onematrix.records.files import read_lines, write_text

Record = dict[str, Any]
NAME = "records.jsonl"


@dataclass
class Tally:
    """Running sums of the epoch under way; `loss` is Σ loss · examples, `rows` counts rows with a class."""

    steps: int = 0
    examples: int = 0
    loss: float = 0.0
    rows: int = 0
    correct: int = 0
    seconds: float = 0.0

    def add(self, examples: int, loss: float, rows: int, correct: int, seconds: float) -> None:
        self.steps += 1
        self.examples += examples
        self.loss += loss * examples
        self.rows += rows
        self.correct += correct
        self.seconds += seconds

    def means(self) -> dict[str, float | None]:
        """Train loss, train accuracy (None without classes) and seconds per step, over the epoch so far."""
        return {
            "train_loss": self.loss / self.examples,
            "train_accuracy": self.correct / self.rows if self.rows else None,
            "seconds_per_step": self.seconds / self.steps,
        }

    def numbers(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class History:
    """The end of a call of `train`.

    `records`: one per epoch (keys epoch, step, examples, complete, train_loss, train_accuracy, evaluation,
    seconds, seconds_per_step); the last has complete = False when the run ended inside an epoch.
    `steps`, `seconds` (wall clock inside `train`): since the first step, resumed parts included.
    `interrupted`: Ctrl-C ended it. `resumed_from`: the step of the checkpoint it went on from, or 0.
    `evaluation`: the numbers of the last evaluation, {} when there was none.
    """

    records: tuple[Record, ...]
    steps: int
    seconds: float
    interrupted: bool = False
    resumed_from: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)


def keep_records(folder: Path, step: int) -> list[Record]:
    """Rewrite the records file with the whole epochs up to this step, and give them.

    Later ones were written after the checkpoint and come again; so does that of an epoch ended half-way.
    """
    path = folder / NAME
    lines: list[Record] = read_lines(path)
    kept = [line for line in lines if line.get("complete") and line.get("step", step + 1) <= step]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
    return kept


def last_evaluation(records: list[Record]) -> dict[str, float]:
    """The numbers of the last record that has some."""
    return next((dict(line["evaluation"]) for line in reversed(records) if line["evaluation"]), {})
