"""Structures as the 1024 × 1024 hidden layer of an MNIST network, trained and compressed. One thread.

The same as `onematrix experiment run structures-mnist`, without its page. MNIST comes from ONEMATRIX_DATA or is
downloaded. About 3 minutes on an idle core for `train` with one seed, up to 20 for `compress`, whose searches end by
the clock: beside other work their errors are larger.

python benchmarks/mnist_structures.py [train | compress] [SEEDS]
"""

import sys

import torch

from onematrix.experiments import structures_mnist as work


def main(what: str = "", seeds: int = 1) -> None:
    """The rows of both tables, or of the one named, and the checks on them."""
    torch.set_num_threads(1)
    sets = work.load()
    if what != "compress":
        report(work.check_trained(work.trained_rows(sets, range(seeds), None)))
    if what != "train":
        network, whole = work.train_dense(sets)
        print(f"dense network: {whole:.2%}")
        report(work.check_compressed(work.compressed_rows(network, sets), whole))


def report(checks: list[tuple[str, bool, str]]) -> None:
    """One line per check."""
    for name, passed, detail in checks:
        print(f"{'met' if passed else 'NOT met':<8}{name}: {detail}")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
