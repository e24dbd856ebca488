"""Well-known networks as programs: each equal to its equations, outputs and gradients."""

from onematrix.networks.feedforward import mlp

__all__ = ["mlp"]
