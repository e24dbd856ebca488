"""Tables 3, 4 and 7 of the Kale report, computed from programs, beside the printed values."""

from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

import torch

from onematrix.experiments.base import Experiment, Options, Outcome
from onematrix.networks import inn, sru
from onematrix.programs.counts import work_of
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop
from onematrix.reports.tables import Table
from onematrix.structures.base import Structure
from onematrix.structures.compressed import CSR
from onematrix.structures.dense import Dense
from onematrix.structures.low_rank import LowRank
from onematrix.structures.tree import stored_numbers

SOURCE = "Kale 2024, iterated networks and Sequential2D"
SIZES = (10, 50, 100, 576, 1000)
PRINTED_3 = {10: 17.86, 50: 10.92, 100: 10.05, 576: 9.33, 1000: 9.27}
WIDTHS = (2500, 300, 20, 10)
PRINTED_LOW_RANK = {1: 16180, 2: 22380, 5: 47780, 10: 94340, 20: 188430, 30: 279770, 50: 467340}
PRINTED_SPARSE = {1: 10803, 2: 19978, 5: 47024, 10: 90412, 20: 170789, 30: 243481, 50: 368956}
PER_BLOCK_BIASES = 4 * 300 + 4 * 20 + 3 * 10  # one per block; the dense block (y, h2) has none


def table_3() -> list[dict[str, Any]]:
    """Entries of the ten products of one tick of the 14-part SRU, all and not zero: 1960 n², 18 n² + 170 n."""
    rows = []
    for n in SIZES:
        program = sru(n)
        assert isinstance(program.schedule, Loop)
        work = work_of(program.schedule.body, program, {"time": 1})
        rows.append(
            {
                "n": n,
                "entries": work.dense_entries,
                "non-zero": work.nonzeros,
                "computed in %": round(100 * work.nonzeros / work.dense_entries, 4),
                "printed in %": PRINTED_3[n],
                "printed ÷ computed": round(PRINTED_3[n] * work.dense_entries / work.nonzeros / 100, 3),
            }
        )
    return rows


def table_4() -> list[dict[str, Any]]:
    """Numbers a compressed-column copy of G and of H holds: values, row indices, 14 n + 1 pointers.

    Beside it the same with the 14 n pointers of the report, one fewer for each matrix.
    """
    rows = []
    for n in SIZES:
        G, H = sru(n).steps()[2].matrices
        held = [2 * sum(block.structure.nonzeros() for _, block in M) + 14 * n + 1 for M in (G, H)]
        dense = (14 * n) ** 2
        rows.append(
            {
                "n": n,
                "dense, each": dense,
                "G": held[0],
                "G, 14 n pointers": held[0] - 1,
                "H": held[1],
                "H, 14 n pointers": held[1] - 1,
                "both ÷ both dense in %": round(100 * sum(held) / (2 * dense), 3),
            }
        )
    return rows


def table_7(seed: int = 0) -> list[dict[str, Any]]:
    """Stored numbers of [2500, 300, 20, 10] by the rules of the report's code, and by exact counts.

    Low rank per block: k = max(1, round(E m n ÷ (m + n))), no bias. Sparse per block: int(E m n) draws with
    replacement, so m n (1 − (1 − 1/(m n))^draws) different entries on average; 200 of the dense block (y, h2);
    a bias per block. Exact: round(E m n) entries without replacement and a bias per row.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for percent in PRINTED_LOW_RANK:
        budget = percent / 100
        expected, deviation = expected_draws(budget)
        drawn = weights_of(inn(WIDTHS, _except_last(_with_replacement(budget, generator)))) + PER_BLOCK_BIASES
        z = (PRINTED_SPARSE[percent] - expected) / deviation
        rows.append(
            {
                "E in %": percent,
                "low rank": weights_of(inn(WIDTHS, _except_last(_ranked(budget)))),
                "low rank, printed": PRINTED_LOW_RANK[percent],
                "sparse, expected": round(expected),
                "± sd": round(deviation),
                "sparse, drawn here": drawn,
                "sparse, printed": PRINTED_SPARSE[percent],
                "z of printed": round(z, 1),
                "entries kept in %": round(100 * (1 - (1 - 1 / 750_000) ** int(budget * 750_000)), 1),
                "sparse, exact": inn(WIDTHS, "csr", budget, generator=generator)
                .counts(time=1)
                .stored_numbers,
            }
        )
    return rows


def expected_draws(budget: float) -> tuple[float, float]:
    """Mean and standard deviation of the report's sparse counts: different values among draws, per block."""
    mean, variance = 200.0 + PER_BLOCK_BIASES, 0.0
    for i, m in enumerate(WIDTHS[1:], start=1):
        for j, n in enumerate(WIDTHS):
            if (i, j) == (3, 2):
                continue
            places, draws = m * n, int(budget * m * n)
            missed = (1 - 1 / places) ** draws
            both = (1 - 2 / places) ** draws
            mean += places * (1 - missed)
            variance += places * missed + places * (places - 1) * both - (places * missed) ** 2
    return mean, max(variance, 1.0) ** 0.5


def weights_of(program: Program) -> int:
    """Stored numbers of the blocks, biases left out."""
    blocks = {id(b.structure): b.structure for _, column, b in program.blocks() if column != "one"}
    return stored_numbers(*blocks.values())


Choose = Callable[[int, int], Structure]


def _except_last(choose: Choose) -> Callable[[str, str, int, int], Structure]:
    """Dense at (y, h2), the block the report always keeps dense."""

    def block(row: str, column: str, m: int, n: int) -> Structure:
        return Dense(torch.zeros(m, n)) if (row, column) == ("y", "h2") else choose(m, n)

    return block


def _ranked(budget: float) -> Choose:
    def block(m: int, n: int) -> Structure:
        k = max(1, round(budget * m * n / (m + n)))
        return LowRank(torch.zeros(m, k), torch.zeros(k, n))

    return block


def _with_replacement(budget: float, generator: torch.Generator) -> Choose:
    def block(m: int, n: int) -> Structure:
        positions = torch.unique(torch.randint(m * n, (int(budget * m * n),), generator=generator))
        return CSR.from_positions(m, n, positions, torch.zeros(len(positions)))

    return block


def _check_table_3(outcome: Outcome, rows: list[dict[str, Any]]) -> None:
    exact = all(
        r["entries"] == 1960 * r["n"] ** 2 and r["non-zero"] == 18 * r["n"] ** 2 + 170 * r["n"] for r in rows
    )
    outcome.add_check(
        "the counts are 1960 n² and 18 n² + 170 n", exact, f"n = {', '.join(str(r['n']) for r in rows)}"
    )


def _check_table_4(outcome: Outcome, rows: list[dict[str, Any]]) -> None:
    exact = all(r["G"] == 6 * r["n"] ** 2 + 52 * r["n"] + 1 and r["H"] == 42 * r["n"] + 1 for r in rows)
    outcome.add_check("the sizes are 6 n² + 52 n + 1 and 42 n + 1", exact, f"{len(rows)} sizes")


def _check_table_7(outcome: Outcome, rows: list[dict[str, Any]]) -> None:
    same = sum(r["low rank"] == r["low rank, printed"] for r in rows)
    outcome.add_check("every printed low-rank count follows from the rule", same == 7, f"{same} of 7")
    worst = max(abs(r["z of printed"]) for r in rows)
    chance = 1 - (2 * NormalDist().cdf(worst) - 1) ** 7
    outcome.add_check(
        "the printed sparse counts are draws with replacement",
        worst < 3,
        f"largest |z| of 7 is {worst}; chance of one as large: {chance:.0%}",
    )


TABLES: Mapping[str, tuple[str, Callable[[], list[dict[str, Any]]], Callable[..., None], str]] = {
    "3": ("non-zero entries of the products of one SRU tick", table_3, _check_table_3,
          "The printed percentages divide by 196 n²; the ten products of a tick hold 1960 n² entries."),
    "4": ("numbers held by compressed columns of the SRU's matrices", table_4, _check_table_4,
          "A compressed-column matrix of 14 n columns has 14 n + 1 pointers."),
    "7": ("stored numbers of the iterated network", table_7, _check_table_7,
          "The low-rank counts follow exactly. The sparse counts are those of draws with replacement and a bias per "
          "block: at a nominal 50 % only 39.4 % of the entries are there."),
}  # fmt: skip


def _run(name: str) -> Callable[[Options, Outcome], None]:
    def run(options: Options, outcome: Outcome) -> None:
        title, compute, check, text = TABLES[name]
        rows = compute()
        table = Table.from_rows(rows)
        table.write_csv(outcome.folder / f"table-{name}.csv")
        outcome.add_table(f"Table {name}: {title}", table, text)
        check(outcome, rows)
        options.say(table.to_text())

    return run


EXPERIMENTS = tuple(
    Experiment(f"kale-table-{name}", f"{title}: printed and computed", SOURCE, _run(name))
    for name, (title, *_) in TABLES.items()
)
