"""The experiments unified-…: one specification per data set."""

from functools import partial

from onematrix.experiments.base import Experiment
from onematrix.experiments.unified import sets
from onematrix.experiments.unified.regimes import REGIMES
from onematrix.experiments.unified.runs import Specification, run_specification
from onematrix.experiments.unified.solver_table import run_solvers

SOURCE = "Zhu 2025, arXiv:2506.01966v3, sparse-matrix form against native form; sizes and protocol are ours"
ERROR = "mean squared error"
SPECIFICATIONS = (
    Specification("unified-mnist", "MNIST: convolutions", sets.mnist, "accuracy"),
    Specification("unified-cifar10", "CIFAR-10, a selection: convolutions", sets.cifar10, "accuracy"),
    Specification(
        "unified-tiny-imagenet",
        "Tiny ImageNet, 20 of 200 classes: convolutions",
        sets.tiny_imagenet,
        "accuracy",
    ),
    Specification("unified-etth1", "ETTh1: tanh recurrence", sets.series("etth1", "rnn", 32, 24, 32), ERROR),
    Specification(
        "unified-electricity",
        "Electricity, 35 days: causal attention",
        sets.series("electricity", "attention", 48, 12, 32),
        ERROR,
        epochs=15,
    ),
    Specification(
        "unified-exchange", "Exchange rates: LSTM", sets.series("exchange_rate", "lstm", 24, 8, 24), ERROR
    ),
    # Attention that reads both ways has no triangular matrix.
    Specification(
        "unified-ag-news", "AG News: attention both ways", sets.ag_news, "accuracy", regimes=REGIMES[:3]
    ),
    Specification(
        "unified-wikitext2",
        "WikiText-2: causal attention",
        sets.text("wikitext2", "attention", 1000, 32, 32),
        "perplexity",
        epochs=6,
        batch=32,
    ),
    Specification(
        "unified-ptb",
        "Penn Treebank: LSTM",
        sets.text("ptb", "lstm", 1000, 20, 32),
        "perplexity",
        epochs=6,
        batch=32,
    ),
)
EXPERIMENTS = (
    *(Experiment(s.name, f"{s.title}, native and as matrices", SOURCE, partial(run_specification, s))
      for s in SPECIFICATIONS),
    Experiment(
        "unified-solvers", "a recurrence as one triangular system: five solvers, exact and timed", SOURCE, run_solvers
    ),
)  # fmt: skip
