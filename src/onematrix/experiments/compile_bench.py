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
from onematrix.records.memory import peak_bytes
from onematrix.records.timing import Ratio, compare, time_call
from onematrix.reports.figures import new_figure, save, targets

TOLERANCE = 2e-4
MEMORY = 1.10  # peak bytes of ours ÷ peer
TICKS = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)


@dataclass(frozen=True)
class Line:
    """One measured row: seconds (or peak bytes) of ours ÷ peer, 95 % interval, target, and ours ÷ floor.

    what: "forward" and "gradients" (with those) are times, "memory" (with gradients) and "held" (without) peak bytes.
    amount: of ours, in `unit` (ms or MB). floor: seconds of ours ÷ those of its matrix products; None for memory.
    """

    case: str
    peer: str
    what: str
    ratio: float
    low: float
    high: float
    target: float
    amount: float
    floor: float | None = None
    unit: str = "ms"

    @property
    def met(self) -> bool:
        """Whether the lower end of the interval reaches the target."""
        return self.low <= self.target

    def facts(self) -> dict[str, object]:
        """The row as JSON holds it."""
        return {**vars(self), "met": self.met}

    def __str__(self) -> str:
        verdict = "met" if self.met else "NOT met"
        floor = f"{self.floor:6.2f} × floor" if self.floor is not None else " " * 14
        return (
            f"{self.case:<52}{self.what:<10}{self.amount:9.3f} {self.unit}{self.ratio:7.2f} "
            f"[{self.low:.2f}, {self.high:.2f}]  target {self.target:.2f} {verdict:<8}{floor}   {self.peer}"
        )


def measure_compiled(
    pairs: int = 11, scale: int = 1, only: str = "", measure: bool = True, inductor: bool = False
) -> Iterator[Line]:
    """Every case whose name contains `only`, forward, with gradients, and memory; VerificationError when wrong.

    inductor: also both sides under torch.compile, for the cases it is aimed at; half a minute each.
    """
    for make in cases(scale):
        torch.manual_seed(0)
        case = make()
        if only.lower() not in case.name.lower():
            continue
        ours = compile(case.program, *case.inputs, prove=False, measure=measure)
        check(case, ours)
        yield from _lines(case, ours, pairs)
        if inductor and case.fuses:
            yield _fused(case, ours, pairs)


def check(case: Case, ours: Compiled) -> None:
    """Raise VerificationError unless outputs and input gradients are the peer's: nothing wrong is timed."""
    inputs = [x.clone().requires_grad_() for x in case.inputs]
    mine, theirs = _first(ours(*inputs)), case.peer(*inputs)
    _close(f"{case.name}: output", mine, theirs)
    a, b = (torch.autograd.grad(out.sin().sum(), inputs[0])[0] for out in (mine, theirs))
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

    def forward() -> object:
        return ours(*case.inputs)

    def gradients() -> object:
        return _slopes(_first(ours(*case.inputs)), parameters)

    def peer_gradients() -> object:
        return _slopes(case.peer(*case.inputs), case.peer_parameters)

    products, slopes = _products(case, False), _products(case, True)
    with torch.no_grad():
        floors = time_call(products), time_call(slopes)
        ratio = compare(forward, lambda: case.peer(*case.inputs), pairs)
        yield _line(case, "forward", ratio, case.targets[0], floors[0])
        if case.floor_targets is not None:
            ratio = compare(forward, products, pairs)
            yield _line(case, "forward", ratio, case.floor_targets[0], floors[0], PRODUCTS)
    yield _line(case, "gradients", compare(gradients, peer_gradients, pairs), case.targets[1], floors[1])
    if case.floor_targets is not None:
        ratio = compare(gradients, slopes, pairs)
        yield _line(case, "gradients", ratio, case.floor_targets[1], floors[1], PRODUCTS)
    yield _memory(case, "memory", gradients, peer_gradients)
    with torch.no_grad():
        yield _memory(case, "held", forward, lambda: case.peer(*case.inputs))


def _memory(case: Case, what: str, ours: Callable[[], object], theirs: Callable[[], object]) -> Line:
    """Peak bytes of both."""
    mine, peer = peak_bytes(ours), peak_bytes(theirs)
    ratio = mine / peer
    return Line(case.name, case.peer_name, what, ratio, ratio, ratio, MEMORY, mine / 1e6, unit="MB")


INDUCTOR = 'torch.compile(mode="max-autotune") of both'


def _fused(case: Case, ours: Compiled, pairs: int) -> Line:
    """Forward with both sides under torch.compile."""
    mine, theirs = (torch.compile(f, mode="max-autotune") for f in (ours, case.peer))
    with torch.no_grad():
        _close(f"{case.name}: output under torch.compile", _first(mine(*case.inputs)), theirs(*case.inputs))
        ratio = compare(lambda: mine(*case.inputs), lambda: theirs(*case.inputs), pairs)
        return _line(case, "forward", ratio, 1.0, time_call(_products(case, False)), INDUCTOR)


def _slopes(output: Tensor, parameters: Sequence[Tensor]) -> None:
    torch.autograd.grad(output.square().sum(), list(parameters), allow_unused=True)


def _line(case: Case, what: str, ratio: Ratio, target: float, floor: float, peer: str = "") -> Line:
    seconds = ratio.candidate_seconds
    return Line(
        case.name,
        peer or case.peer_name,
        what,
        1 / ratio.median,
        1 / ratio.high,
        1 / ratio.low,
        target,
        seconds * 1e3,
        seconds / floor,
    )


PRODUCTS = "its matrix products"


def _products(case: Case, gradients: bool) -> Callable[[], None]:
    """The matrix products of a case alone, on prepared operands; with those of both gradients."""
    different = dict.fromkeys(case.products)
    work = []
    for rows, inputs, outputs in different:
        x, w, y = torch.randn(rows, inputs), torch.randn(inputs, outputs), torch.empty(rows, outputs)
        work.append((x, w, y, torch.empty_like(x), torch.empty_like(w)))
    counts = [case.products.count(shape) for shape in different]

    def run() -> None:
        for (x, w, y, dx, dw), count in zip(work, counts, strict=True):
            for _ in range(count):
                torch.mm(x, w, out=y)
                if gradients:
                    torch.mm(y, w.t(), out=dx)
                    torch.mm(x.t(), y, out=dw)

    return run


def draw_lines(lines: Sequence[Line], path: Path) -> list[Path]:
    """A chart: per row the ratio with its interval, and the target as a bar across."""
    lines = [line for line in lines if line.unit == "ms"]
    figure = new_figure(8.5, 0.6 + 0.24 * len(lines))
    axes = figure.add_axes((0.46, 0.1, 0.5, 0.86))
    for place, line in enumerate(reversed(lines)):
        colour = "#0072B2" if line.met else "#D55E00"
        axes.plot([line.low, line.high], [place, place], color=colour, linewidth=2)
        axes.plot([line.ratio], [place], "o", color=colour, markersize=4)
        axes.plot([line.target] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1)
    axes.axvline(1.0, color="grey", linewidth=0.6)
    axes.set_yticks(range(len(lines)), [_label(line) for line in reversed(lines)], fontsize=6.5)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_xlabel("seconds of the compiled program ÷ peer (left is faster; black: target)")
    return save(figure, targets(path))


def _label(line: Line) -> str:
    return f"{line.case}: {line.what}" + (f" ÷ {PRODUCTS}" if line.peer == PRODUCTS else "")
