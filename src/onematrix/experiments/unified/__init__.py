"""Convolution, recurrence and attention as matrices, trained beside their native forms."""

from onematrix.experiments.unified.specifications import EXPERIMENTS

__all__ = ["EXPERIMENTS"]
