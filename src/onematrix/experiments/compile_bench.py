"""onematrix bench compile: compiled programs beside native modules, in one run, with their distance to the floor."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onematrix.compiler.compilation import compile
from onematrix.compiler.module import Compiled
from onematrix.errors import VerificationError
from onematrix.experiments.compile_cases import Case, cases
from onematrix.records.timing import Ratio, compare, time_call
from onematrix.reports.figures import new_figure, save, targets

TOLERANCE = 2e-4
TICKS = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)


@dataclass(frozen=True)
class Line:
    """One measured row: seconds of ours ÷ peer with its 95 % interval, the target, and ours ÷ floor."""

    case: str
    peer: str
    what: str
    ratio: float
    low: float
    high: float
    target: float
    milliseconds: float
    floor: float

    @property
    def met(self) -> bool:
        """Whether the lower end of the interval reaches the target."""
        return self.low <= self.target

    def facts(self) -> dict[str, object]:
        """The row as JSON holds it."""
        return {**vars(self), "met": self.met}

    def __str__(self) -> str:
        verdict = "met" if self.met else "NOT met"
        return (
            f"{self.case:<52}{self.what:<10}{self.milliseconds:9.3f} ms{self.ratio:7.2f} "
            f"[{self.low:.2f}, {self.high:.2f}]  target {self.target:.2f} {verdict:<8}"
            f"{self.floor:6.2f} × floor   {self.peer}"
        )


def measure_compiled(pairs: int = 11, scale: int = 1, only: str = "", measure: bool = True) -> Iterator[Line]:
    """Every case whose name contains `only`, forward and with gradients. Raises VerificationError when wrong."""
    for make in cases(scale):
        torch.manual_seed(0)
        case = make()
        if only.lower() not in case.name.lower():
            continue
        ours = compile(case.program, *case.inputs, prove=False, measure=measure)
        check(case, ours)
        yield from _lines(case, ours, pairs)


def check(case: Case, ours: Compiled) -> None:
    """Raise VerificationError unless outputs and input gradients are the peer's: nothing wrong is timed."""
    inputs = [x.clone().requires_grad_() for x in case.inputs]
    mine, theirs = _first(ours(*inputs)), case.peer(*inputs)
    _close(f"{case.name}: output", mine, theirs)
    a, b = (torch.autograd.grad(out.square().sum(), inputs[0])[0] for out in (mine, theirs))
    _close(f"{case.name}: gradient of the input", a, b)


def _close(who: str, ours: Tensor, theirs: Tensor) -> None:
    ours, theirs = ours.detach(), theirs.detach()
    error = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))
    if not error <= TOLERANCE:
        raise VerificationError(
            f"{who}: relative error {error:.2e}, allowed {TOLERANCE:.0e}; no time is reported", error=error
        )


def _first(value: Tensor | tuple[Tensor, ...]) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def _lines(case: Case, ours: Compiled, pairs: int) -> Iterator[Line]:
    parameters = [p for p in ours.parameters() if p.requires_grad]
    with torch.no_grad():
        floor = _floor(case)
        ratio = compare(lambda: ours(*case.inputs), lambda: case.peer(*case.inputs), pairs)
        yield _line(case, "forward", ratio, case.targets[0], floor)
    ratio = compare(
        lambda: _slopes(_first(ours(*case.inputs)), parameters),
        lambda: _slopes(case.peer(*case.inputs), case.peer_parameters),
        pairs,
    )
    yield _line(case, "gradients", ratio, case.targets[1], 3 * floor)


def _slopes(output: Tensor, parameters: Sequence[Tensor]) -> None:
    torch.autograd.grad(output.square().sum(), list(parameters), allow_unused=True)


def _line(case: Case, what: str, ratio: Ratio, target: float, floor: float) -> Line:
    seconds = ratio.candidate_seconds
    return Line(
        case.name,
        case.peer_name,
        what,
        1 / ratio.median,
        1 / ratio.high,
        1 / ratio.low,
        target,
        seconds * 1e3,
        seconds / floor,
    )


def _floor(case: Case) -> float:
    """Seconds of the matrix products alone on prepared operands."""
    different: dict[tuple[int, int, int], int] = {}
    for shape in case.products:
        different[shape] = different.get(shape, 0) + 1
    return sum(count * time_call(_product(*shape)) for shape, count in different.items())


def _product(rows: int, inputs: int, outputs: int) -> Callable[[], Tensor]:
    x, w, y = torch.randn(rows, inputs), torch.randn(inputs, outputs), torch.empty(rows, outputs)
    return lambda: torch.mm(x, w, out=y)


def draw_lines(lines: Sequence[Line], path: Path) -> list[Path]:
    """A chart: per row the ratio with its interval, and the target as a bar across."""
    figure = new_figure(8.5, 0.6 + 0.24 * len(lines))
    axes = figure.add_axes((0.46, 0.1, 0.5, 0.86))
    for place, line in enumerate(reversed(lines)):
        colour = "#0072B2" if line.met else "#D55E00"
        axes.plot([line.low, line.high], [place, place], color=colour, linewidth=2)
        axes.plot([line.ratio], [place], "o", color=colour, markersize=4)
        axes.plot([line.target] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1)
    axes.axvline(1.0, color="grey", linewidth=0.6)
    axes.set_yticks(
        range(len(lines)), [f"{line.case}: {line.what}" for line in reversed(lines)], fontsize=6.5
    )
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_xlabel("seconds of the compiled program ÷ peer (left is faster; black: target)")
    return save(figure, targets(path))
