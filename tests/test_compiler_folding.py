"""Frozen programs have no normalisation by fixed numbers left, and compute what the module computes."""

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.compiler.folding import fold_scales
from onematrix.compiler.pipeline import lower
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.interpreter import interpret
from onematrix.programs.schedule import Seq, Step
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity
from onematrix.structures.per_axis import PerAxis

EXACT = {"rtol": 1e-11, "atol": 1e-12}


def settled(module):
    """In evaluation, with statistics that are not those of a fresh norm."""
    g = torch.Generator().manual_seed(5)
    for inner in module.modules():
        if isinstance(inner, nn.modules.batchnorm._BatchNorm):
            inner.running_mean.copy_(torch.randn(inner.running_mean.shape, generator=g))
            inner.running_var.copy_(torch.rand(inner.running_var.shape, generator=g) + 0.5)
            if inner.affine:
                nn.init.uniform_(inner.weight, -1.5, 1.5, generator=g)
                nn.init.normal_(inner.bias, generator=g)
    return module.double().eval()


class Halved(nn.Module):
    """relu(−½ norm(conv x))."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(x) * -0.5)


class Residual(nn.Module):
    """x + norm(conv(relu(norm(conv x)))), with a norm before all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(3)
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3, affine=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        return torch.relu(x + self.second(torch.relu(self.first(x))))


MODULES = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), (3, 6, 6)),
    "biased, no affine": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4, affine=False)),
        (3, 6, 6),
    ),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU6()),
        (4, 6, 6),
    ),
    "series": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Tanh()),
        (3, 8),
    ),
    "dense": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
        (5,),
    ),
    "two norms": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()),
        (3, 5, 5),
    ),
    "split": (
        lambda: nn.Sequential(nn.Linear(5, 12), nn.Unflatten(1, (4, 3)), nn.BatchNorm1d(4), nn.ReLU()),
        (5,),
    ),
    "halved": (Halved, (3, 6, 6)),
    "residual": (Residual, (3, 6, 6)),
}


@pytest.mark.parametrize("name", MODULES)
def test_norms_are_folded_and_nothing_else_changes(name):
    make, shape = MODULES[name]
    torch.manual_seed(2)
    module = settled(make())
    x = torch.randn(3, *shape, dtype=torch.float64)
    compiled = om.compile(module, x, measure=False, prove=False)
    frozen = compiled.freeze()
    assert "rsqrt" in compiled.text
    assert "rsqrt" not in frozen.text
    assert frozen.lowered.counts().work.joined == 0
    torch.testing.assert_close(frozen(x), module(x).detach(), **EXACT)
    assert frozen.lowered.counts().work.multiply_adds < compiled.lowered.counts().work.multiply_adds


def test_rows_of_a_dense_matrix_are_scaled_by_their_channel():
    g = torch.Generator().manual_seed(0)
    parts = {"x": (5,), "y": (4, 3), "z": (4, 3)}
    scale = PerAxis((Diagonal(torch.rand(4, generator=g, dtype=torch.float64) + 1), Identity(3)))
    dense = Dense(torch.randn(12, 5, generator=g, dtype=torch.float64))
    steps = [Step(BlockMatrix({("y", "x"): dense}, parts)), Step(BlockMatrix({("z", "y"): scale}, parts))]
    program = om.Program(Seq(*steps), ["x"], ["z"])
    folded = fold_scales(program)
    assert folded.counts().stored_numbers == 60
    x = torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(interpret(folded, x), interpret(program, x), **EXACT)


def test_a_value_others_read_keeps_its_numbers():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.norm(y) + torch.tanh(y)

    torch.manual_seed(2)
    module = settled(Twice())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    frozen = om.compile(module, x, measure=False, prove=False).freeze()
    torch.testing.assert_close(frozen(x), module(x).detach(), **EXACT)
    assert frozen.text.count("conv2d(") == 1


def test_nothing_to_fold_is_the_program_itself():
    program = om.convert(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), torch.randn(2, 3))
    assert fold_scales(program) is program
    assert fold_scales(lower(program)).text() == lower(program).text()
