"""om.Linear over every structure: what it owns, saves, exports, trains and refuses."""

import copy
import io

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import onematrix as om
from onematrix.errors import DTypeError, ShapeError
from onematrix.structures import STRUCTURES
from onematrix.structures.algebra import BlockDiagonal, Product
from onematrix.structures.compressed import CSR
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Scaled
from onematrix.structures.tree import leaves, with_dtype
from structure_cases import ALL, ONE_EACH, examples, near, normal, weights


def layer(a) -> om.Linear:
    return om.Linear(a, normal(a.fixed_shape[0], seed=9))


@pytest.mark.parametrize("a", ALL)
def test_the_layer_is_the_definition_and_holds_the_same_numbers(a):
    module = layer(a)
    x = normal(2, 3, a.fixed_shape[1])
    near(module(x), x @ a.to_dense(torch.float64).mT + module.bias)
    near(module.structure.to_dense(torch.float64), a.to_dense(torch.float64))
    assert module.structure.shape == a.shape
    assert sum(p.numel() for p in module.parameters()) == sum(w.numel() for w in weights(a)) + len(
        module.bias
    )
    assert len(list(module.buffers())) == len({id(t) for _, t in leaves(a) if not t.is_floating_point()})
    assert f"{a.name} {a.shape[0]}×{a.shape[1]}" in repr(module)


@pytest.mark.parametrize("a", ALL)
def test_the_state_survives_safetensors_and_deepcopy(a):
    module = layer(a)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    x = normal(3, a.fixed_shape[1])
    near(module(x), x @ a.to_dense(torch.float64).mT + module.bias)
    other.load_state_dict(load(save(module.state_dict())))
    assert torch.equal(other(x), module(x))


@pytest.mark.parametrize("name", ["masked", "transposed", "block_diagonal"])
def test_export_survives_saving(name):
    module = layer(examples(STRUCTURES[name])[1])
    n = module.structure.fixed_shape[1]
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(module, (normal(3, n),), dynamic_shapes=({0: batch},))
    held = io.BytesIO()
    torch.export.save(program, held)
    held.seek(0)
    again = torch.export.load(held).module()
    for size in (3, 7):
        near(again(normal(size, n)), module(normal(size, n)))


@pytest.mark.parametrize("a", [c for c in ONE_EACH if weights(c.values[0])])
def test_a_step_changes_the_numbers_and_keeps_the_pattern(a):
    module = layer(with_dtype(a, torch.float32)).float()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(normal(3, a.fixed_shape[1], dtype=torch.float32)).square().sum().backward()
    optimiser.step()
    for name, t in module.state_dict().items():
        assert torch.equal(t, before[name]) != t.is_floating_point(), name


def test_functional_call_reaches_the_gradient():
    module = layer(examples(CSR)[1])
    x = normal(3, 3)

    def total(values):
        return torch.func.functional_call(module, {"values": values}, (x,)).sin().sum()

    actual = torch.func.grad(total)(module.values.detach())
    expected = torch.autograd.grad(module(x).sin().sum(), module.values)[0]
    near(actual, expected)


def test_from_torch_shares_the_parameters():
    source = nn.Linear(4, 3)
    module = om.Linear.from_torch(source)
    assert module.weight is source.weight
    assert module.bias is source.bias
    assert torch.equal(module(torch.ones(2, 4)), source(torch.ones(2, 4)))
    assert om.Linear.from_torch(nn.Linear(4, 3, bias=False)).bias is None


def test_a_tensor_used_twice_is_one_parameter():
    a = examples(CSR)[1]
    tied = om.Linear(om.list_structures()["product"](a, a.transpose()))
    assert [name for name, _ in tied.named_parameters()] == ["left.values"]
    (gradient,) = torch.autograd.grad(tied(normal(2, 5)).sum(), tied.parameters())
    whole = a.to_dense().requires_grad_()
    dense = torch.autograd.grad((normal(2, 5) @ (whole @ whole.mT).mT).sum(), whole)[0]
    rows = torch.repeat_interleave(torch.arange(5), a.crow_indices.diff().long())
    near(gradient, dense[rows, a.col_indices.long()])


def test_names_are_the_paths_of_the_fields():
    a = BlockDiagonal((Dense(torch.ones(2, 2)), Product(Dense(torch.ones(3, 2)), Diagonal(torch.ones(2)))))
    assert list(om.Linear(a).state_dict()) == [
        "terms.0.weight",
        "terms.1.left.weight",
        "terms.1.right.vector",
    ]


def test_bias_kinds():
    a = Dense(torch.ones(2, 3, dtype=torch.float64))
    assert om.Linear(a).bias is None
    assert om.Linear(a, False).bias is None
    zeros = om.Linear(a, True).bias
    assert zeros.dtype == torch.float64
    assert zeros.tolist() == [0, 0]
    assert om.Linear(Identity(2), True).bias.dtype == torch.float32
    kept = nn.Parameter(torch.ones(2))
    assert om.Linear(a, kept).bias is kept
    with pytest.raises(ShapeError, match=r"bias must be \(2,\), got \(3,\)"):
        om.Linear(a, torch.ones(3))


def test_scaling_integers_needs_an_integer_factor():
    assert Scaled(Identity(2), -3).matmul(torch.tensor([1, 2])).tolist() == [-3, -6]
    with pytest.raises(DTypeError, match=r"factor 1/2, got torch.int64"):
        Scaled(Identity(2), 1, 2).matmul(torch.tensor([1, 2]))
