"""The forms code may take."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Form:
    """How code is written: a yes or no per question, each with the same value; and what the caller asked for.

    merge: products of one value as one, where it has a free dimension. kernels: recurrences fused over their
    ticks. cells: torch's own LSTM and GRU. attend: torch's scaled dot product attention.
    norms: layer and RMS norms that are written out as torch's.
    bands: attention masks that are causal or a band at every length are used as such, not computed.
    spectral: long convolutions by FFT. whole_kernels: short depthwise convolutions as torch's, not as one shifted
    multiply per tap. channels_first: images as torch lays them out, not channels last.
    native: the module the program was converted from runs instead, where it was measured to be faster.

    Asked for, not measured:
    implicit: loops until they stand still take the gradient of the point they stand at.
    never_empty: no row of attention is masked entirely, so that torch's attention is used under any mask.
    fixed: the weights stay as they are, so that what they alone decide is put together once; of frozen programs.
    """

    merge: bool = True
    kernels: bool = True
    cells: bool = True
    attend: bool = True
    norms: bool = True
    bands: bool = True
    spectral: bool = True
    whole_kernels: bool = True
    channels_first: bool = True
    native: bool = False
    implicit: bool = False
    never_empty: bool = False
    fixed: bool = False


QUESTIONS = tuple(field.name for field in fields(Form) if field.default)
MEASURED = (*QUESTIONS, "native")
