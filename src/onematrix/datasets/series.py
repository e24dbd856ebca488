"""Series of several channels over time, for forecasting, and the windows cut from them.

Sources: ETTh1: H. Zhou et al., "Informer", AAAI 2021; electricity and exchange rate: G. Lai et al.,
"Modeling long- and short-term temporal patterns with deep neural networks", SIGIR 2018 (LSTNet).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onematrix.datasets.arrays import read_arrays
from onematrix.datasets.content import read_lines
from onematrix.datasets.download import fetch, kept
from onematrix.errors import DataError, ShapeError

ETTH1 = (
    "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07/"
    "ETT-small/ETTh1.csv"
)
ETTH1_SHA256 = "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"
EXCHANGE = (
    "https://raw.githubusercontent.com/laiguokun/multivariate-time-series-data/"
    "7f402f185cc2435b5e66aed13a3b560ed142e023/exchange_rate/exchange_rate.txt.gz"
)
EXCHANGE_SHA256 = "0127465b51e3cd3c360f8eb2be30cfd294689a2a55903eb8245aafc396626c7f"
ELECTRICITY_SHA256 = "6c537973a52738746622db632337667f7a148ae978c56406916f817dd306a77e"
ELECTRICITY = (
    "it holds the last 840 hours of the 321 clients of "
    "https://archive.ics.uci.edu/dataset/321/electricityloaddiagrams20112014 as an array load (840, 321)"
)
COUNTRIES = (
    "Australia",
    "Britain",
    "Canada",
    "Switzerland",
    "China",
    "Japan",
    "New Zealand",
    "Singapore",
)


@dataclass(frozen=True, eq=False)
class Series:
    """values float32 (T, channels), one name per channel, and the rows first … last − 1 of each split.

    Values are those of the source, not standardised. Raises ShapeError when names, values and splits do not
    fit, DataError when a value is not finite.
    """

    values: Tensor
    names: tuple[str, ...]
    splits: dict[str, tuple[int, int]]

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        if len(shape) != 2 or shape[1] != len(self.names):
            raise ShapeError(
                f"Series: values must be (T, {len(self.names)}), one column per name, got {shape}", got=shape
            )
        for split, (start, stop) in self.splits.items():
            if not 0 <= start < stop <= shape[0]:
                raise ShapeError(
                    f"Series: split {split!r} is rows {start} … {stop} of {shape[0]}", start=start, stop=stop
                )
        if not torch.isfinite(self.values).all():
            row = int((~torch.isfinite(self.values)).any(1).nonzero()[0])
            raise DataError(
                f"Series: finite values needed, got {self.values[row].tolist()} in row {row}", row=row
            )


def load_series(name: str) -> Series:
    """ "etth1" (17,420 hours × 7), "exchange_rate" (7,588 days × 8) or "electricity" (840 hours × 321).

    Splits: ETTh1 by months of 30 days, 12 train, 4 val, 4 test (rows 0 … 14399; the rest is unused, as in
    the Informer paper); the others 70 % train, 20 % test at the end, the rows between val (as in Wu et al.,
    "Autoformer", NeurIPS 2021). The electricity is a selection, its last five weeks: not comparable with
    published errors. Raises DataError for another name, as `fetch`, and for a damaged file.
    """
    if name not in LOADERS:
        raise DataError(f"load_series: name must be one of {', '.join(LOADERS)}, got {name!r}", name=name)
    return LOADERS[name]()


def windows(values: Tensor, length: int, horizon: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """(inputs (N, length, c), targets (N, horizon, c)): all windows inside rows start … stop − 1.

    N = stop − start − length − horizon + 1; window i's inputs are rows start + i … start + i + length − 1,
    its targets the `horizon` rows that follow. Both are views of `values` (T, c): no copy. For a split whose
    first target is its first row, start `length` rows before it. Raises ShapeError when no window fits.

    >>> inputs, targets = windows(torch.arange(6.0)[:, None], length=3, horizon=1, start=1, stop=6)
    >>> inputs[:, :, 0].tolist(), targets[:, :, 0].tolist()
    ([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], [[4.0], [5.0]])
    """
    rows = len(values)
    if values.ndim != 2 or min(length, horizon) < 1 or not 0 <= start < stop <= rows:
        raise ShapeError(
            f"windows: values (T, c), length and horizon ≥ 1 and 0 ≤ start < stop ≤ T needed, got "
            f"{tuple(values.shape)}, length={length}, horizon={horizon}, start={start}, stop={stop}",
            length=length,
            horizon=horizon,
            start=start,
            stop=stop,
        )
    if stop - start < length + horizon:
        raise ShapeError(
            f"windows: {length} + {horizon} rows needed, got {stop - start} (rows {start} … {stop})",
            needed=length + horizon,
            got=stop - start,
        )
    cut = values[start:stop].unfold(0, length + horizon, 1).mT  # (N, length + horizon, c)
    return cut[:, :length], cut[:, length:]


def read_table(
    path: str | Path, columns: int, skip: int = 0, header: bool = False
) -> tuple[list[str], Tensor]:
    """(names, values float32 (T, columns)) of a text with one row per line, split at commas.

    The first `skip` fields of a row are left out; names are those of the header ([] without one). Raises
    DataError naming the line: another number of fields (needed, got) or a field that is no number.
    """
    rows = [line.split(",") for line in read_lines(path)]
    for number, row in enumerate(rows, start=1):
        if len(row) != skip + columns:
            raise DataError(
                f"{path}: line {number}: {skip + columns} fields needed, got {len(row)}",
                line=number,
                needed=skip + columns,
                got=len(row),
            )
    names = rows.pop(0)[skip:] if header and rows else []
    return names, _numbers(path, [row[skip:] for row in rows], first_line=1 + header)


def _numbers(path: str | Path, rows: list[list[str]], first_line: int) -> Tensor:
    values = []
    for number, row in enumerate(rows, start=first_line):
        try:
            values.append([float(field) for field in row])
        except ValueError as error:
            raise DataError(
                f"{path}: line {number}: numbers needed, got {','.join(row)}", line=number
            ) from error
    return torch.tensor(values, dtype=torch.float32)


def shares(rows: int) -> dict[str, tuple[int, int]]:
    """70 % train, the last 20 % test (both rounded down), the rows between val.

    >>> shares(840)
    {'train': (0, 588), 'val': (588, 672), 'test': (672, 840)}
    """
    train, test = 7 * rows // 10, 2 * rows // 10
    return {"train": (0, train), "val": (train, rows - test), "test": (rows - test, rows)}


def _etth1() -> Series:
    path = fetch(ETTH1, ETTH1_SHA256, "etth1/ETTh1.csv")
    names, values = read_table(path, columns=7, skip=1, header=True)
    month = 30 * 24
    ends = 12 * month, 16 * month, 20 * month
    return Series(
        values, tuple(names), {"train": (0, ends[0]), "val": (ends[0], ends[1]), "test": (ends[1], ends[2])}
    )


def _exchange_rate() -> Series:
    path = fetch(EXCHANGE, EXCHANGE_SHA256, "exchange_rate/exchange_rate.txt.gz")
    values = read_table(path, columns=len(COUNTRIES))[1]
    return Series(values, COUNTRIES, shares(len(values)))


def _electricity() -> Series:
    path = kept("electricity35d/electricity35.npz", ELECTRICITY_SHA256, ELECTRICITY)
    values = torch.from_numpy(read_arrays(path, ["load"])[0]).to(torch.float32)
    names = tuple(f"client {number}" for number in range(values.shape[1]))
    return Series(values, names, shares(len(values)))


LOADERS: dict[str, Callable[[], Series]] = {
    "etth1": _etth1,
    "electricity": _electricity,
    "exchange_rate": _exchange_rate,
}
