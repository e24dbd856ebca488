"""Structures as the hidden layer of an MNIST network: trained from scratch, and compressed without retraining."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from onematrix.datasets.digits import load_digits
from onematrix.datasets.images import Images
from onematrix.datasets.mnist import load_mnist
from onematrix.errors import BudgetError
from onematrix.experiments.base import Experiment, Options, Outcome
from onematrix.programs.linear import Linear
from onematrix.reports.curves import curves
from onematrix.reports.tables import Table
from onematrix.structures.base import STRUCTURES, Fit, Structure
from onematrix.structures.dense import Dense
from onematrix.structures.tree import effective_weight, stored_numbers
from onematrix.training.budgets import Budget, Epochs, Steps
from onematrix.training.data import Examples
from onematrix.training.evaluation import accuracy
from onematrix.training.loop import train
from onematrix.training.parameter_groups import parameter_groups
from onematrix.training.recipe import Recipe

BATCH = 128
RATE = 1e-3  # of dense layers
PLAIN = (1e-3, 3e-3)  # rates tried for all tensors alike
WITHIN = (
    0.002  # points a plain rate may fall behind grouped rates, and a compressed network behind its source
)
FLOOR = 0.97  # of the block tensor train of rank 1 after one epoch
BLAST_ERROR = 0.38  # at half the numbers
EPOCHS = 6  # of the network that is compressed
BUDGETS = (0.5, 0.25, 0.125, 0.06, 0.02)
QUARTER = 0.25
GRID = 16  # blocks of BLAST down and across

Draw = Callable[[int], dict[str, Any]]
TRAINED: dict[str, tuple[str, Draw]] = {  # row → structure, its size options at width n
    "dense": ("dense", lambda n: {}),
    "block tensor train r = 1": ("block_tensor_train", lambda n: {"rank": 1}),
    "block tensor train r = 4": ("block_tensor_train", lambda n: {"rank": 4}),
    "Monarch b = 4, E = 1/2": ("monarch", lambda n: {"blocks": 4, "budget": 0.5}),
    "Kronecker": ("kronecker", lambda n: {}),
    "low-rank r = 32": ("low_rank", lambda n: {"rank": n // 32}),
    "BLAST b = 16, E = 1/4": ("blast", lambda n: {"blocks": (GRID, GRID), "budget": 0.25}),
    "sparse E = 1/10": ("masked", lambda n: {"budget": 0.1}),
}
CHECKED = ("block tensor train r = 1", "Monarch b = 4, E = 1/2", "Kronecker", "low-rank r = 32")
BALANCED = (*CHECKED, "block tensor train r = 4", "BLAST b = 16, E = 1/4")
# What is fitted at every budget. The others are the same matrices (CSR, block Kronecker) or cannot spend a
# quarter of the numbers on a square matrix (Kronecker, circulant, diagonal).
FITTED: dict[str, dict[str, Any]] = {
    "low_rank": {},
    "monarch": {"blocks": 4},
    "block_tensor_train": {},
    "tensor_train": {},
    "canonical": {},
    "butterfly": {},
    "blast": {"blocks": (GRID, GRID)},
    "masked": {},
    "block_sparse": {"tile": (2, 2)},
}
LONGER = 3  # times the seconds of the others for BLAST, whose three cores are searched for
DAMPING = 0.1  # of the mean of XᵀX, for directions the training images seldom excite
Sizes = tuple[int, int, int]  # inputs, hidden units, classes


@dataclass(frozen=True)
class Sets:
    """Training and test images as vectors, and the widths of the network."""

    train: Examples
    test: Examples
    sizes: Sizes


def load(quick: bool = False) -> Sets:
    """MNIST with 1024 hidden units; quick: digits with 64. Raises DataError where MNIST cannot be had."""
    if not quick:
        return _sets(load_mnist("train"), load_mnist("test"), 1024)
    images = load_digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return _sets(images.select(order[:1400]), images.select(order[1400:]), 64)


def _sets(training: Images, test: Images, hidden: int) -> Sets:
    """Pixels to mean 0 and variance 1 over the training images."""
    pixels = training.pixels.float()
    mean, deviation = pixels.mean(), pixels.std()
    first, second = (
        Examples(((part.pixels.float() - mean) / deviation).flatten(1), part.labels)
        for part in (training, test)
    )
    return Sets(first, second, (pixels[0].numel(), hidden, 10))


def draw(row: str, n: int, seed: int = 0) -> Structure:
    """The random n × n member of a row of the table."""
    name, options = TRAINED[row]
    return STRUCTURES[name].random(n, n, generator=torch.Generator().manual_seed(seed), **options(n))


def make_network(sizes: Sizes, hidden: Structure, seed: int = 0) -> nn.Sequential:
    """Dense layer, the structure between two relus, dense layer."""
    inputs, n, classes = sizes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, last = nn.Linear(inputs, n), nn.Linear(n, classes)
    return nn.Sequential(first, nn.ReLU(), Linear(hidden, bias=True), nn.ReLU(), last)


def train_network(
    network: nn.Module,
    sets: Sets,
    rate: float,
    budget: Budget,
    steps: int,
    *,
    grouped: bool,
    seed: int = 0,
) -> float:
    """Accuracy on the test images after AdamW with a rate that falls to 0 over so many steps."""

    def maker(parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
        groups = parameter_groups(network, lr) if grouped else [{"params": list(parameters)}]
        optimizer = torch.optim.AdamW(groups, lr=lr)
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
        optimizer.register_step_post_hook(lambda *_: falling.step())
        return optimizer

    recipe = Recipe(optimizer=maker, batch=BATCH, learning_rate=rate, clip=None, seed=seed)
    train(network, sets.train, recipe, budget=budget, progress=False)
    return accuracy(network, sets.test)


def train_row(
    row: str, sets: Sets, rate: float, *, grouped: bool, seed: int = 0, steps: int | None = None
) -> float:
    """Test accuracy of one row of the table after one epoch (or so many steps)."""
    per_epoch = -(-len(sets.train) // BATCH)
    network = make_network(sets.sizes, draw(row, sets.sizes[1], seed), seed)
    budget = Epochs(1) if steps is None else Steps(steps)
    return train_network(network, sets, rate, budget, steps or per_epoch, grouped=grouped, seed=seed)


def trained_rows(
    sets: Sets, seeds: Sequence[int], steps: int | None, say: Callable[[str], object] = print
) -> list[dict[str, Any]]:
    """One row per structure: accuracy with rates per tensor and with one rate for all, means over seeds."""
    rows = []
    for row in TRAINED:
        started = time.perf_counter()
        found: dict[str, Any] = {
            "hidden layer": row,
            "stored numbers": stored_numbers(draw(row, sets.sizes[1])),
        }
        for what, rate, grouped in [("own rates", RATE, True)] + [(plain_name(r), r, False) for r in PLAIN]:
            runs = [train_row(row, sets, rate, grouped=grouped, seed=seed, steps=steps) for seed in seeds]
            found[f"accuracy, {what}"] = fmean(runs)
        found["seconds a run"] = round((time.perf_counter() - started) / (len(seeds) * (1 + len(PLAIN))), 1)
        say(", ".join(f"{k} {v:.2%}" if "accuracy" in k else f"{v}" for k, v in found.items()))
        rows.append(found)
    return rows


def plain_name(rate: float) -> str:
    """How the table calls one rate for all tensors."""
    return f"one rate {rate:g}"


def train_dense(sets: Sets, epochs: int = EPOCHS, steps: int | None = None) -> tuple[nn.Sequential, float]:
    """The dense network that is compressed, and its accuracy on the test images."""
    network = make_network(sets.sizes, draw("dense", sets.sizes[1]))
    total = steps or epochs * -(-len(sets.train) // BATCH)
    return network, train_network(network, sets, RATE, Steps(total), total, grouped=False)


def compressed_rows(
    network: nn.Sequential,
    sets: Sets,
    budgets: Sequence[float] = BUDGETS,
    seconds: float = 20.0,
    say: Callable[[str], object] = print,
) -> list[dict[str, Any]]:
    """One row per structure and budget: error of the hidden layer, accuracy of the network without retraining.

    Fitted to the matrix, and to its outputs on training images (gram = XᵀX); seconds: limit of a search.
    """
    layer = network[2]
    assert isinstance(layer, Linear)
    dense = layer.structure.to_dense().detach()
    gram = gram_of(network, sets)
    rows = []
    for budget in budgets:
        for name in FITTED:
            found = _fit(name, dense, budget, seconds)
            if found is None:
                continue
            row = {"structure": name, "budget": budget, "E": round(effective_weight(found.structure), 4)}
            row["relative error"] = round(found.error, 4)
            row["accuracy"] = _accuracy(network, found, sets)
            weighted = _fit(name, dense, budget, seconds, gram)
            assert weighted is not None
            row["accuracy, weighted fit"] = _accuracy(network, weighted, sets)
            say(
                f"{name} at {budget:.1%}: error {found.error:.3f}, accuracy {row['accuracy']:.2%}, "
                f"weighted fit {row['accuracy, weighted fit']:.2%}"
            )
            rows.append(row)
    return rows


def gram_of(network: nn.Sequential, sets: Sets) -> Tensor:
    """XᵀX of what the hidden layer reads on training images, damped."""
    images = sets.train.x
    assert isinstance(images, Tensor)
    with torch.no_grad():
        inputs = network[:2](images[:10000]).double()
    gram = inputs.mT @ inputs
    return gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def _accuracy(network: nn.Sequential, found: Fit, sets: Sets) -> float:
    """Of the network with the fit, as a matrix, in place of its hidden layer."""
    hidden = Linear(Dense(found.structure.to_dense(torch.float32).contiguous()), network[2].bias)
    return accuracy(nn.Sequential(*network[:2], hidden, *network[3:]), sets.test)


def _fit(name: str, dense: Tensor, budget: float, seconds: float, gram: Tensor | None = None) -> Fit | None:
    """None where the structure has no member so small."""
    limit = LONGER * seconds if name == "blast" else seconds
    try:
        return STRUCTURES[name].fit(dense, budget, gram=gram, seconds=limit, **FITTED[name])
    except BudgetError:
        return None


def run_structures(options: Options, outcome: Outcome) -> None:
    """Both tables with their checks and the figure; quick runs are too small to check."""
    sets = load(options.quick)
    steps = options.steps or (30 if options.quick else None)
    seeds = range(options.seeds or (1 if options.quick else 2))
    rows = trained_rows(sets, list(seeds), steps, options.say)
    text = (
        f"Test accuracy after one epoch of AdamW, batches of {BATCH}, rates falling to 0; {len(seeds)} seeds. Own "
        f"rates: `om.parameter_groups(model, {RATE:g})`. One rate: the same for every tensor of the network."
    )
    outcome.add_table("Trained from scratch", Table.from_rows(rows), text)
    network, whole = train_dense(sets, steps=steps)
    options.say(f"dense network: {whole:.2%}")
    budgets, seconds = (BUDGETS[:2], 0.3) if options.quick else (BUDGETS, 20.0)
    small = compressed_rows(network, sets, budgets, seconds, options.say)
    text = (
        f"The hidden layer of a dense network of {whole:.2%} test accuracy fitted, nothing trained after it."
    )
    outcome.add_table("Compressed without retraining", Table.from_rows(small), text)
    _draw_errors(outcome, small)
    if not options.quick:
        for name, passed, detail in [*check_trained(rows), *check_compressed(small, whole)]:
            outcome.add_check(name, passed, detail)


def _draw_errors(outcome: Outcome, rows: Sequence[Mapping[str, Any]]) -> None:
    """The relative error over the numbers that are stored."""
    series = {
        name: [
            tuple(
                zip(
                    *[(100 * r["E"], r["relative error"]) for r in rows if r["structure"] == name],
                    strict=True,
                )
            )
        ]
        for name in dict.fromkeys(r["structure"] for r in rows)
    }
    paths = curves(
        series, outcome.folder / "errors", "stored numbers in % of dense", "relative error", log_x=True
    )
    outcome.report.add_figure("Error of the hidden layer", paths, "Fits to the trained 1024 × 1024 matrix.")


def check_trained(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool, str]]:
    """Own rates at least as good as the same rate for all; one plain rate within a fifth of a point of them."""
    by_name = {row["hidden layer"]: row for row in rows}
    checks = []
    for name in CHECKED:
        own, plain = (by_name[name][f"accuracy, {what}"] for what in ("own rates", plain_name(RATE)))
        checks.append((f"{name}: own rates help", own >= plain, f"{own:.2%} with, {plain:.2%} without"))
    for name in BALANCED:
        own = by_name[name]["accuracy, own rates"]
        plain = max(by_name[name][f"accuracy, {plain_name(rate)}"] for rate in PLAIN)
        passed = plain >= own - WITHIN - 1e-9
        checks.append((f"{name}: one rate is nearly as good", passed, f"{plain:.2%} against {own:.2%}"))
    own = by_name[CHECKED[0]]["accuracy, own rates"]
    checks.append((f"{CHECKED[0]} reaches {FLOOR:.0%}", own >= FLOOR, f"{own:.2%}"))
    return checks


def check_compressed(rows: Sequence[Mapping[str, Any]], whole: float) -> list[tuple[str, bool, str]]:
    """BLAST near enough at half the numbers, and every structure as accurate as the network at a quarter."""
    half = next(
        r["relative error"] for r in rows if r["structure"] == "blast" and r["budget"] == max(BUDGETS)
    )
    checks = [(f"BLAST at half the numbers: error at most {BLAST_ERROR}", half <= BLAST_ERROR, f"{half:.3f}")]
    for row in rows:
        if row["budget"] == QUARTER:
            plain, weighted = row["accuracy"], row["accuracy, weighted fit"]
            passed = max(plain, weighted) >= whole - WITHIN - 1e-9
            detail = f"{plain:.2%} of {whole:.2%}" + (
                "" if plain == weighted else f", {weighted:.2%} weighted"
            )
            checks.append((f"{row['structure']} at a quarter keeps the accuracy", passed, detail))
    return checks


EXPERIMENTS = (
    Experiment(
        "structures-mnist",
        "structures as a hidden layer: trained at rates of their own, and compressed without retraining",
        "Qiu et al. 2024, arXiv:2406.06248; Lee et al. 2024, arXiv:2410.21262",
        run_structures,
    ),
)
