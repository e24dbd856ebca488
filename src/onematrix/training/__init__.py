"""Training of any torch module: budgets with units, records, checkpoints from which a run resumes exactly.

Example: `train(net, Examples(x, labels), Recipe(batch=50), budget=Epochs(3), folder="run", evaluate=test)`.
"""

from onematrix.training.budgets import Budget, Epochs, Seconds, Steps
from onematrix.training.data import Data, Examples, batch_order
from onematrix.training.evaluation import accuracy, evaluate
from onematrix.training.history import History
from onematrix.training.loop import train
from onematrix.training.losses import LOSSES, cross_entropy, mse, softmax_mse
from onematrix.training.parameter_groups import parameter_groups
from onematrix.training.recipe import OPTIMIZERS, Recipe

__all__ = [
    "LOSSES",
    "OPTIMIZERS",
    "Budget",
    "Data",
    "Epochs",
    "Examples",
    "History",
    "Recipe",
    "Seconds",
    "Steps",
    "accuracy",
    "batch_order",
    "cross_entropy",
    "evaluate",
    "mse",
    "parameter_groups",
    "softmax_mse",
    "train",
]
