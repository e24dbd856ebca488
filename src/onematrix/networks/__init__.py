"""Well-known networks as programs: each equal to its equations, outputs and gradients."""

from onematrix.networks.attention import attention, encoder_layer
from onematrix.networks.feedforward import dense_skips, mlp, residual
from onematrix.networks.implicit import fixed_point, runge_kutta
from onematrix.networks.inn import inn
from onematrix.networks.recurrent import bidirectional, elman, gru, lstm
from onematrix.networks.sru import sru

__all__ = [
    "attention",
    "bidirectional",
    "dense_skips",
    "elman",
    "encoder_layer",
    "fixed_point",
    "gru",
    "inn",
    "lstm",
    "mlp",
    "residual",
    "runge_kutta",
    "sru",
]
