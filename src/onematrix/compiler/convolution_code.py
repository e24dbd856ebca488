"""Code of a convolution: torch's own, on channels last, by FFT, or as shifted multiplies."""

from dataclasses import replace
from itertools import chain

from onematrix.compiler.code import Code
from onematrix.compiler.costs import GAIN, convolution_slope
from onematrix.compiler.form import Form
from onematrix.compiler.merging import unscale
from onematrix.kernels.channels_last import channels_last
from onematrix.kernels.convolution_shifted import shifted_convolution
from onematrix.kernels.convolution_spectral import convolution_by_length, spectral_convolution
from onematrix.programs.program import Program
from onematrix.programs.wiring import every_row
from onematrix.structures.convolution import Convolution
from onematrix.structures.spectral import fast_size

TRANSFORM = 2.0  # nanoseconds per number of a real FFT and its inverse, measured
MIXED = 0.6  # nanoseconds per number and pair of channels, of the product of spectra
CALLS = 50_000  # nanoseconds of torch's calls around the transforms
BATCH = 8  # vectors one transform of the weights is shared by
ALONE = 10.0  # times: an FFT against torch's forward pass alone, whose gradients are much dearer than it, measured
LONGEST = 24  # powers of 2 up to which a free length is looked at
FEW = 7  # taps up to which shifted multiplies are a candidate


def convolution_text(a: Convolution, x: str, weight: str, bias: str, form: Form, code: Code) -> str:
    """The call for x: (B, channels, *sizes); bias: ", vector" or ", None"."""
    one = may_transform(a)
    if one and form.spectral and (least := long_from(a)) is not None:
        options = f"{x}, {weight}{bias}, {a.paddings[0]}, {a.dilations[0]}, {a.groups}"
        if isinstance(a.height, int) and is_long(a, ALONE):
            return f"{code.constant(spectral_convolution)}({options})"
        return f"{code.constant(convolution_by_length)}({options}, {least}, {long_from(a, ALONE)})"
    if one and not form.whole_kernels and is_short(a):
        kernel = code.constant(shifted_convolution)
        return f"{kernel}({x}, {weight}{bias}, {a.paddings[0]}, {a.dilations[0]})"
    if a.dimensions == 2 and not form.channels_first:
        last = code.constant(channels_last)
        x, weight = f"{last}({x})", code.first(f"{last}({weight})")
    padding = [before for before, _ in a.paddings]
    if any(before != after or before < 0 for before, after in a.paddings):
        frame = [side for pair in reversed(a.paddings) for side in pair]
        x, padding = f"torch.nn.functional.pad({x}, {frame})", [0] * a.dimensions
    return (
        f"torch.conv{a.dimensions}d({x}, {weight}{bias}, {a.strides}, {padding}, {a.dilations}, {a.groups})"
    )


def may_transform(a: Convolution) -> bool:
    """Whether FFTs can take the place of the convolution at all."""
    return a.dimensions == 1 and a.strides == [1] and (a.mode == "zeros" or a.paddings == [(0, 0)])


def refused_transforms(program: Program) -> list[str]:
    """Of every convolution along one dimension that does not run by FFT, a line that says why."""
    lines = []
    for wire in {w.slot: w for row in every_row(program.wiring) for w in chain(*row.sums)}.values():
        a = unscale(program.structures[wire.slot])[1]
        if not isinstance(a, Convolution) or a.dimensions != 1 or (may_transform(a) and long_from(a)):
            continue
        taps = a.weight.shape[2]
        why = (
            "multiplying every tap out costs less by the model"
            if may_transform(a)
            else ("it has a stride, or a padding that is not zero")
        )
        lines.append(f"convolution of {wire.column!r}, {taps} taps: no FFT: {why}")
    return lines


def long_from(a: Convolution, dearer: float = 1.0) -> int | None:
    """The length from which on FFTs cost clearly less than every tap multiplied out, by the model.

    dearer: than the model says, an FFT. None where they do not, or never do (at a power of 2 up to 2²⁴, when the
    length is free).

    >>> import torch
    >>> a = Convolution(torch.zeros(64, 1, 512), "time", padding="511 0", groups=64)
    >>> long_from(a), long_from(a, ALONE), long_from(a.at(time=4096)), long_from(a.at(time=8))
    (32, 512, 4096, None)
    """
    if isinstance(a.height, int):
        return a.height if is_long(a, dearer) else None
    span = a.dilations[0] * (a.weight.shape[2] - 1) + 1 - sum(a.paddings[0])
    least = None
    for length in (1 << k for k in reversed(range(LONGEST + 1)) if 1 << k >= span):
        if not is_long(replace(a, height=length), dearer):
            break
        least = length
    return least


def is_long(a: Convolution, dearer: float = 1.0) -> bool:
    """Whether FFTs cost clearly less than every tap multiplied out, by the model; sizes have to be fixed.

    dearer: than the model says, an FFT.

    >>> import torch
    >>> [is_long(Convolution(torch.zeros(64, 1, k), 4096, padding=f"{k - 1} 0", groups=64)) for k in (3, 4096)]
    [False, True]
    """
    if isinstance(a.height, str) or min(a.paddings[0]) < 0:
        return False
    size = fast_size(max(a.height + max(a.paddings[0]), a.dilations[0] * (a.weight.shape[2] - 1) + 1))
    outputs, inner = a.weight.shape[:2]
    transforms = a.channels + outputs + outputs * inner / BATCH
    spectral = CALLS / BATCH + size * (TRANSFORM * transforms + MIXED * outputs * inner)
    return dearer * spectral < GAIN * a.multiply_adds() * convolution_slope(a)


def is_short(a: Convolution) -> bool:
    """Whether a convolution is depthwise with a few taps."""
    few = a.weight.shape[2] <= FEW and min(a.paddings[0]) >= 0
    return few and a.weight.shape[1] == 1 and a.weight.shape[0] == a.groups
