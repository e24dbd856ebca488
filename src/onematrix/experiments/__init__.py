"""Tables and figures of papers, run here with their values beside ours; and the demo."""

from onematrix.experiments.base import Experiment, Options, Outcome, list_experiments, run

__all__ = ["Experiment", "Options", "Outcome", "list_experiments", "run"]
