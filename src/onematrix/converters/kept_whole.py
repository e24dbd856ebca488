"""Layers the export would unroll, fix or hide: kept whole as one operator, or written so that it can be traced."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from onematrix.converters.padded import Padded, padded_sequences
from onematrix.errors import ConversionError

MAMBA = "transformers.models.mamba.modeling_mamba"


@torch.library.custom_op("onematrix::recurrence", mutates_args=())
def recurrence(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    mode: str,
    layers: int,
    dropout: float,
    bidirectional: bool,
    batch_first: bool,
    bias: bool,
    valid: Tensor | None = None,
) -> list[Tensor]:
    """A recurrent layer as one operator of the graph: output and final states. It is traced, never run.

    valid: (batch, time), where False a sample's state holds and its output is 0, as in a packed sequence.
    """
    raise NotImplementedError("onematrix::recurrence stands in a graph; convert the module to run it")


@recurrence.register_fake
def _recurrence_shapes(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    mode: str,
    layers: int,
    dropout: float,
    bidirectional: bool,
    batch_first: bool,
    bias: bool,
    valid: Tensor | None = None,
) -> list[Tensor]:
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    return [x.new_empty(x.shape[0], x.shape[1], width), *(torch.empty_like(s) for s in states)]


@torch.library.custom_op("onematrix::scan", mutates_args=())
def scan(decay: Tensor, drive: Tensor, place: int) -> Tensor:
    """h_t = decay_t h_(t−1) + drive_t along one dimension, from 0. It is traced, never run."""
    raise NotImplementedError("onematrix::scan stands in a graph; convert the module to run it")


@scan.register_fake
def _scan_shapes(decay: Tensor, drive: Tensor, place: int) -> Tensor:
    return torch.empty_like(drive)


@contextlib.contextmanager
def kept_whole(module: nn.Module) -> Iterator[None]:
    """While inside, layers of the table are traced as one operator, or by an equal formula."""
    changed: list[nn.Module] = []
    try:
        for path, layer in module.named_modules():
            if (forward := _replacement(layer, path)) is not None and "forward" not in vars(layer):
                layer.forward = forward  # type: ignore[method-assign]
                changed.append(layer)
        with _scans(), padded_sequences(module):
            yield
    finally:
        for layer in changed:
            del layer.forward


def _replacement(layer: nn.Module, path: str) -> Callable[..., Any] | None:
    if isinstance(layer, nn.LSTM | nn.GRU | nn.RNN) and type(layer).forward in _NATIVE:
        return lambda input, hx=None: _recurrent(layer, path, input, hx)  # the names export knows
    if _is_experts(layer):
        return lambda hidden_states, top_k_index, top_k_weights: experts(
            layer, hidden_states, top_k_index, top_k_weights
        )
    return None


_NATIVE = (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)


def _recurrent(layer: nn.RNNBase, path: str, x: Any, hx: Any) -> tuple[Any, Any]:
    who = f"{path or 'the module'}: {type(layer).__name__}"
    if isinstance(x, PackedSequence):
        raise ConversionError(
            f"{who} reads a packed sequence made elsewhere, whose samples share one dimension; pack it in the "
            "module that reads it, or pass the padded batch and its lengths"
        )
    if isinstance(x, Padded):
        if x.batch_first != layer.batch_first:
            x = Padded(x.data.transpose(0, 1), x.lengths, layer.batch_first)
        valid = x.valid()
        out, last = _padded(layer, who, x.data, hx, valid)
        return Padded(out, x.lengths, x.batch_first), last
    return _padded(layer, who, x, hx, None)


def _padded(layer: nn.RNNBase, who: str, x: Tensor, hx: Any, valid: Tensor | None) -> tuple[Tensor, Any]:
    if x.dim() != 3:
        raise ConversionError(f"{who} needs (batch, time, features) in some order, got {x.dim()} dimensions")
    directions = 2 if layer.bidirectional else 1
    batch = x.shape[0] if layer.batch_first else x.shape[1]
    widths = [layer.proj_size or layer.hidden_size]
    widths += [layer.hidden_size] if layer.mode == "LSTM" else []
    if hx is None:
        states = [x.new_zeros(layer.num_layers * directions, batch, w) for w in widths]
    else:
        states = list(hx) if isinstance(hx, tuple | list) else [hx]
    weights = [w for line in layer.all_weights for w in line]
    dropout = layer.dropout if layer.training else 0.0
    out = recurrence(
        x,
        states,
        weights,
        layer.mode,
        layer.num_layers,
        dropout,
        layer.bidirectional,
        layer.batch_first,
        layer.bias,
        valid,
    )
    return out[0], (tuple(out[1:]) if layer.mode == "LSTM" else out[1])


def _is_experts(layer: nn.Module) -> bool:
    """Experts as the transformers library lays them out: (experts, 2 inner, width) and (experts, width, inner)."""
    up, down = getattr(layer, "gate_up_proj", None), getattr(layer, "down_proj", None)
    if not (isinstance(up, Tensor) and isinstance(down, Tensor) and up.dim() == down.dim() == 3):
        return False
    named = type(layer).__name__.endswith("Experts") and callable(getattr(layer, "act_fn", None))
    e, twice, width = up.shape
    return (
        named
        and tuple(down.shape) == (e, width, twice // 2)
        and not (hasattr(layer, "gate_up_proj_bias"))
        and not getattr(layer, "is_transposed", False)
    )


def experts(layer: Any, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Σ_k w_k E_(index k)(x), every expert computed and those not chosen left out by selection.

    x: (tokens, width), index and weights: (tokens, k) → (tokens, width).
    """
    up, down = layer.gate_up_proj, layer.down_proj
    e, twice, width = up.shape
    hit = index.unsqueeze(-1) == torch.arange(e, device=x.device)  # (tokens, k, experts)
    share = torch.where(hit, weights.unsqueeze(-1), 0.0).sum(1)
    both = functional.linear(x, up.reshape(e * twice, width)).unflatten(-1, (e, twice))
    gate, rest = both.chunk(2, dim=-1)
    each = torch.einsum("sei,ehi->seh", layer.act_fn(gate) * rest, down)
    weighted = each * share.unsqueeze(-1)
    return torch.where(hit.any(1).unsqueeze(-1), weighted, 0.0).sum(1).to(x.dtype)


@contextlib.contextmanager
def _scans() -> Iterator[None]:
    """The selective scan of a loaded transformers library as one operator."""
    loaded: Any = sys.modules.get(MAMBA)
    native = getattr(loaded, "mamba_selective_scan", None)
    if native is None:
        yield
        return
    loaded.mamba_selective_scan = selective_scan
    try:
        yield
    finally:
        loaded.mamba_selective_scan = native


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **options: object,
) -> Any:
    """y_t = C_t h_t + D x_t, h_t = exp(A Δ_t) h_(t−1) + Δ_t B_t x_t, times silu(z).

    x, dt, z: (batch, width, time); A: (width, state); B, C: (batch, state, time). A. Gu, T. Dao, arXiv:2312.00752.
    """
    dtype = x.dtype
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    if delta_softplus:
        dt = functional.softplus(dt)
    B, C = B.transpose(1, 2), C.transpose(1, 2)
    decay = torch.exp(A[None, :, None, :] * dt[:, :, :, None])
    drive = dt[:, :, :, None] * B[:, None, :, :].float() * x[:, :, :, None].float()
    common = torch.promote_types(dtype, torch.promote_types(decay.dtype, drive.dtype))
    states = scan(decay.to(common), drive.to(common), 2)  # (batch, width, time, state)
    y = torch.einsum("bdtn,btn->bdt", states.to(dtype), C.to(dtype))
    if D is not None:
        y = y + x * D[None, :, None]
    if z is not None:
        y = y * functional.silu(z)
    return (y, states[:, :, -1]) if return_last_state else y
