"""A network in a regime: its convolutions, recurrences and attention layers replaced by explicit matrices."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from onematrix.errors import OneMatrixError
from onematrix.experiments.unified.attention import FreeAttention, SelfAttention, TiedAttention
from onematrix.experiments.unified.convolution import FreeConvolution, TiedConvolution
from onematrix.experiments.unified.patterns import as_structure, triangular_entries
from onematrix.experiments.unified.recurrence import FreeRecurrence, TiedRecurrence

REGIMES = ("native", "tied", "untied", "triangular")
MIXING = (nn.Conv2d, nn.RNN, nn.LSTM, SelfAttention)


def in_regime(network: nn.Module, regime: str, *example: Tensor) -> nn.Module:
    """A copy of the network in a regime; what mixes places (MIXING) becomes a matrix, the rest stays as it is.

    native: the copy itself; tied: explicit matrices made from the native parameters, under the same names;
    untied: every entry of these matrices its own parameter; triangular: every entry of their triangular
    envelope. All compute the same function until they are trained. Sizes are those of the example inputs.
    Raises OneMatrixError for another regime.
    """
    if regime not in REGIMES:
        raise OneMatrixError(f"regime: one of {', '.join(REGIMES)} was needed, got {regime!r}", got=regime)
    network = deepcopy(network)
    if regime != "native":
        for name, (part, shape) in mixing_layers(network, *example).items():
            network.set_submodule(name, _matrix(part, shape, regime))
    return network


def mixing_layers(network: nn.Module, *example: Tensor) -> dict[str, tuple[nn.Module, torch.Size]]:
    """Name → (layer, shape of the input it got) of every native layer of MIXING."""
    found: dict[str, tuple[nn.Module, torch.Size]] = {}

    def recorder(name: str) -> Callable[..., None]:
        return lambda part, inputs: found.update({name: (part, inputs[0].shape)})

    named = [(name, part) for name, part in network.named_modules() if type(part) in MIXING]
    hooks = [part.register_forward_pre_hook(recorder(name)) for name, part in named]
    with torch.no_grad():
        network(*example)
    for hook in hooks:
        hook.remove()
    return found


def _matrix(native: nn.Module, shape: torch.Size, regime: str) -> nn.Module:
    if isinstance(native, nn.Conv2d):
        size = (shape[2], shape[3])
        return TiedConvolution(native, size) if regime == "tied" else FreeConvolution(native, size, regime)
    if isinstance(native, SelfAttention):
        return TiedAttention(native) if regime == "tied" else FreeAttention(native, shape[1], regime)
    return TiedRecurrence(native, shape[1]) if regime == "tied" else FreeRecurrence(native, shape[1], regime)


def count_nonzeros(network: nn.Module, regime: str, *example: Tensor) -> int:
    """Entries of the explicit matrices of a native network's mixing layers, without bias; in a regime.

    native, tied and untied share one pattern. The data-dependent attention matrix itself is not counted.
    """
    layers = mixing_layers(network, *example).values()
    return sum(_count(part, shape, regime == "triangular") for part, shape in layers)


def _count(native: nn.Module, shape: torch.Size, triangular: bool) -> int:
    if isinstance(native, nn.Conv2d):
        a = as_structure(native, (shape[2], shape[3]))
        return len(triangular_entries(a)) if triangular else a.nonzeros()
    n = shape[1]
    on, below = (n * (n + 1) // 2, n * (n - 1) // 2) if triangular else (n, n - 1)
    if isinstance(native, SelfAttention):
        return 4 * on * native.out.weight.numel()
    return on * native.weight_ih_l0.numel() + below * native.weight_hh_l0.numel()
