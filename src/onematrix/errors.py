"""All errors of the package. Each message says who, what was needed, what came, and the remedy.

Numbers a program may want to read are attributes: `error.needed`, `error.got`, …
"""


class OneMatrixError(Exception):
    """Base of every error raised on purpose by this package; keyword arguments become attributes.

    >>> OneMatrixError("h: width 3 needed, got 4", needed=3, got=4).got
    4
    """

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> object:  # only reached for names no fact was given for
        raise AttributeError(f"{type(self).__name__} carries no fact {name!r}; it has {sorted(self.facts)}")


class ShapeError(OneMatrixError):
    """Sizes that do not fit together."""


class DTypeError(OneMatrixError):
    """Element types that do not fit together."""


class ProgramError(OneMatrixError):
    """A program that has no meaning: unknown or duplicate parts, undefined reads, unwritten outputs."""


class ConversionError(OneMatrixError):
    """A torch module, or a part of one, that has no form as a program here."""


class FitError(OneMatrixError):
    """A matrix that cannot be fitted (not finite, wrong size, no member of the structure)."""


class BudgetError(OneMatrixError):
    """A budget outside (0, 1], or below the smallest member of a structure."""


class BypassedModuleError(OneMatrixError):
    """A replaced module whose forward never ran."""


class CompileError(OneMatrixError):
    """A program the compiler cannot keep exact."""


class FormatError(OneMatrixError):
    """A text or a file that is not in the format it should be in."""


class VerificationError(OneMatrixError):
    """Two results that should be equal and are not."""


class DataError(OneMatrixError):
    """A data file that is missing, truncated, corrupt, or of the wrong checksum."""


class TrainingError(OneMatrixError):
    """A training run that cannot start, continue or be resumed."""
