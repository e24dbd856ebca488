"""Iterated networks on Random Anomaly: one network built, trained, measured; shared by demo and figures."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from onematrix.datasets.random_anomaly import RandomAnomaly
from onematrix.datasets.splits import random_anomaly_splits
from onematrix.networks import inn
from onematrix.programs.iterated import Iterated
from onematrix.programs.program import Program
from onematrix.structures.tree import stored_bytes
from onematrix.training import Budget, History, Recipe, train

CHANCE = 0.1


@dataclass(frozen=True)
class Task:
    """Random Anomaly: which of ten images is the odd one. pixels = size²; test images are never trained on."""

    data: str = "digits"
    profile: str = "ra8"
    size: int = 20
    train: int = 4000
    test: int = 1000
    seed: int = 0

    @property
    def pixels(self) -> int:
        """Width of one image as a vector."""
        return self.size * self.size

    def load(self) -> tuple[RandomAnomaly, RandomAnomaly]:
        """(training, test) sequences, kept as bytes."""
        train_set, test_set = random_anomaly_splits(
            source=self.data,
            train=self.train,
            test=self.test,
            profile=self.profile,
            size=self.size,
            seed=self.seed,
        )
        return train_set.cached(), test_set.cached()


@dataclass(frozen=True)
class Variant:
    """One network: the structure of its blocks, the budget E, hidden sizes, seed of its first values."""

    structure: str
    budget: float = 0.2
    hidden: tuple[int, ...] = (300, 20)
    seed: int = 0
    per_block: bool = False

    @property
    def name(self) -> str:
        """How tables and curves call it."""
        return self.structure.replace("_", "-") if self.structure != "csr" else "sparse (CSR)"

    def build(self, pixels: int) -> Program:
        """[pixels, hidden …, 10]: dense blocks use every entry, others the budget E."""
        generator = torch.Generator().manual_seed(self.seed)
        budget = 1.0 if self.structure == "dense" else self.budget
        return inn(
            [pixels, *self.hidden, 10], self.structure, budget, per_block=self.per_block, generator=generator
        )


def decayed_adam(parameters: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """AdamW with weight decay 1: on 4,000 sequences of 2,500 pixels plain Adam fits the training set exactly."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=1.0)


@dataclass(frozen=True)
class Measured:
    """What one run gave."""

    variant: Variant
    program: Program
    history: History
    record: dict[str, Any]


def measure(
    task: Task,
    data: tuple[RandomAnomaly, RandomAnomaly],
    variant: Variant,
    budget: Budget,
    folder: Path,
    recipe: Recipe | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> Measured:
    """Train one variant and record accuracy, stored numbers, bytes, seconds per step."""
    program = variant.build(task.pixels)
    net = Iterated(program)
    history = train(
        net,
        data[0],
        recipe or Recipe(seed=variant.seed),
        budget=budget,
        folder=folder,
        resume=resume,
        evaluate=data[1],
        progress=progress,
        label=variant.name,
    )
    counts = program.counts(time=10)
    last = history.records[-1] if history.records else {}
    record = {
        "structure": variant.name,
        "E": variant.budget if variant.structure != "dense" else 1.0,
        "test accuracy": history.evaluation.get("accuracy"),
        "train accuracy": last.get("train_accuracy"),
        "stored numbers": counts.stored_numbers,
        "bytes with indices": stored_bytes(*program.structures),
        "multiply-adds per sequence": counts.multiply_adds,
        "ms per step": 1e3 * last["seconds_per_step"] if last else None,
        "steps": history.steps,
        "seconds": round(history.seconds, 1),
        "seed": variant.seed,
    }
    return Measured(variant, net.program, history, record)


def describe(task: Task) -> dict[str, Any]:
    """The task as plain data, for records."""
    return asdict(task)
