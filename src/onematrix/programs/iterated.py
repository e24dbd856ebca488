"""om.Iterated: a program as a torch module, run by the interpreter."""

from collections.abc import Mapping

from torch import Tensor, nn

from onematrix.programs.interpreter import interpret_with_state
from onematrix.programs.ownership import adopt, rebuild_all
from onematrix.programs.program import Program
from onematrix.programs.run import State
from onematrix.programs.substitution import replace_structures


class Iterated(nn.Module):
    """The module x ↦ interpret(program, x) that owns the program's tensors and trains.

    Parameters carry the names of `program.parameters`; `program` gives the program over the parameters
    as they are now. forward returns the outputs; `forward_with_state` also the state to hand over.

    >>> import torch, onematrix as om
    >>> from onematrix.networks import mlp
    >>> net = om.Iterated(mlp([4, 8, 2], generator=torch.Generator().manual_seed(0)))
    >>> net(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._source = program
        self._ownership = adopt(self, program.structures, program.parameters)

    def forward(self, *inputs: Tensor, seed: int = 0) -> Tensor | tuple[Tensor, ...]:
        """Each input (batch, *shape of its part) → output, or a tuple of outputs."""
        return self.forward_with_state(*inputs, seed=seed)[0]

    def forward_with_state(
        self, *inputs: Tensor, state: Mapping[str, Tensor] | None = None, seed: int = 0
    ) -> tuple[Tensor | tuple[Tensor, ...], State]:
        """The outputs and the carried state, for streaming and truncated back-propagation."""
        structures = rebuild_all(self, self._ownership)
        return interpret_with_state(self._source, *inputs, state=state, seed=seed, structures=structures)

    @property
    def program(self) -> Program:
        """The program over the tensors the module holds now."""
        new = rebuild_all(self, self._ownership)
        return replace_structures(self._source, dict(zip(map(id, self._source.structures), new, strict=True)))

    def extra_repr(self) -> str:
        """Inputs, outputs and sizes."""
        return repr(self._source)
