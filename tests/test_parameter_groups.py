"""om.parameter_groups: every parameter once, at the rate its sum needs, whatever its gauge."""

import copy
import math

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.errors import TrainingError
from onematrix.networks import mlp
from onematrix.structures import STRUCTURES
from onematrix.structures.algebra import BlockDiagonal, HorizontalStack, Product, Sum, Transposed
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity
from onematrix.structures.low_rank import LowRank
from onematrix.training.parameter_groups import parameter_groups, rate_scales
from structure_cases import generator, normal


def linear(name, m=64, n=64, bias=False, **size):
    return om.Linear(STRUCTURES[name].random(m, n, generator=generator(), **size), bias=bias)


def rates(groups):
    return {id(p): group["lr"] for group in groups for p in group["params"]}


def source_gauge(m, n, rank):
    """Low rank with factors of deviation one over the root of their inputs, as the sources draw them."""
    left = torch.full((m, rank), rank**-0.5) * torch.sign(normal(m, rank, dtype=torch.float32))
    right = torch.full((rank, n), n**-0.5) * torch.sign(normal(rank, n, dtype=torch.float32))
    return LowRank(left, right)


def test_every_trainable_parameter_comes_once_and_a_plain_model_in_two_groups():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    model[0].weight.requires_grad_(False)
    groups = parameter_groups(model, 1e-3, weight_decay=0.1)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (1e-3, 0.1, 1),
        (1e-3, 0.0, 4),
    ]


def test_cores_of_the_size_of_the_sources_get_the_rates_of_the_sources():
    layer = om.Linear(source_gauge(96, 64, 4))
    found = rates(parameter_groups(layer, 0.01))
    assert found[id(layer.left)] == pytest.approx(0.01 * 64 / (2 * 4))
    assert found[id(layer.right)] == pytest.approx(0.01 / 2)


@pytest.mark.parametrize(("optimizer", "maker"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_a_step_moves_the_matrix_alike_in_every_gauge(optimizer, maker):
    """U c and V ÷ c are the same matrix; one step of the grouped optimiser must leave the same matrix."""
    a = source_gauge(24, 16, 3)
    x, direction = normal(5, 16, dtype=torch.float32), normal(5, 24, seed=2, dtype=torch.float32)
    after = []
    for c in (1.0, 8.0):
        layer = om.Linear(LowRank(a.left * c, a.right / c))
        stepper = maker(
            parameter_groups(layer, 1e-2, optimizer), lr=1e-2, **({"eps": 0} if optimizer == "adam" else {})
        )
        (layer(x) * direction).sum().backward()
        stepper.step()
        after.append(layer.structure.to_dense().detach())
    assert (after[0] - a.to_dense()).norm() > 1e-3
    torch.testing.assert_close(
        after[0], after[1], rtol=0, atol=2e-3 * float((after[0] - a.to_dense()).norm())
    )


@pytest.mark.parametrize(
    "name", ["low_rank", "monarch", "block_tensor_train", "tensor_train", "kronecker", "blast"]
)
def test_random_members_need_one_rate(name):
    """The geometric mean of the rates the source gives to the cores."""
    layer = linear(name, 256, 512)
    scales = layer.structure.learning_rate_scale().values()
    together = math.prod(scales) ** (1 / len(scales))
    assert list(rates(parameter_groups(layer, 1.0)).values()) == pytest.approx(
        [together] * len(scales), rel=0.1
    )


def test_sparse_entries_get_the_rate_of_the_entries_a_row_has():
    for name in ("csr", "csc", "masked"):
        layer = linear(name, 32, 64, budget=0.125)
        assert rates(parameter_groups(layer, 1e-3))[id(layer.values)] == pytest.approx(8e-3)
    layer = linear("block_sparse", 32, 64, budget=0.25, tile=(4, 4))
    assert rates(parameter_groups(layer, 1e-3))[id(layer.tiles)] == pytest.approx(4e-3)


def test_structures_made_of_structures_share_the_rate():
    low, dense = source_gauge(64, 64, 4), Dense(torch.ones(64, 64))
    narrow = Product(Dense(torch.ones(64, 8)), Dense(torch.ones(8, 64)))
    assert rate_scales(dense) == {}
    assert rate_scales(narrow) == {
        "left.weight": 4.0,
        "right.weight": 0.5,
    }  # as low rank: 64 ÷ (2 · 8), 1 ÷ 2
    assert rate_scales(Sum((dense, Identity(64)))) == {"terms.0.weight": 1.0}
    assert rate_scales(Sum((dense, dense))) == {"terms.0.weight": 0.5, "terms.1.weight": 0.5}
    assert rate_scales(BlockDiagonal((dense, dense))) == {"terms.0.weight": 2.0, "terms.1.weight": 2.0}
    assert rate_scales(HorizontalStack((dense, dense))) == {"terms.0.weight": 1.0, "terms.1.weight": 1.0}
    straight, turned = rate_scales(low), rate_scales(Transposed(low))
    assert turned == {"inner.left": straight["right"], "inner.right": straight["left"]}
    assert rate_scales(Product(low, dense)) == pytest.approx(
        {
            "left.left": straight["left"] * 2 / 3,
            "left.right": straight["right"] * 2 / 3,
            "right.weight": 1 / 3,
        }
    )


def test_shared_parameters_come_once_at_their_smallest_rate():
    layer = om.Linear(source_gauge(32, 32, 2))
    twin = om.Linear(LowRank(layer.right.T.contiguous(), layer.left.T.contiguous()))
    other = om.Linear(Dense(layer.left))  # as a dense matrix its rate is 1, as a core 32 ÷ 4
    assert other.weight is layer.left
    for order in ([layer, other, twin], [other, twin, layer]):
        found = rates(groups := parameter_groups(nn.ModuleList(order), 1.0))
        assert sum(len(g["params"]) for g in groups) == len({id(p) for g in groups for p in g["params"]}) == 4
        assert found[id(layer.left)] == 1.0


def test_programs_and_compiled_programs_are_read_too():
    weights = [source_gauge(32, 16, 2), Dense(torch.ones(4, 32))]
    program = mlp([16, 32, 4], weights)
    for model in (om.Iterated(program), om.compile(program, torch.zeros(2, 16), prove=False)):
        found = {name: rates(parameter_groups(model, 1.0))[id(p)] for name, p in model.named_parameters()}
        assert sorted(found.values()) == [0.5, 1.0, 1.0, 1.0, 4.0]


def test_a_core_at_zero_has_the_rate_of_its_usual_size():
    a = source_gauge(16, 16, 2)
    assert rate_scales(LowRank(torch.zeros_like(a.left), a.right)) == pytest.approx(rate_scales(a))


def test_copies_and_meta_modules_have_the_same_groups():
    model = nn.Sequential(linear("monarch", bias=True), nn.Linear(64, 3))
    for other in (copy.deepcopy(model), copy.deepcopy(model).double()):
        assert [g["lr"] for g in parameter_groups(other, 1.0)] == [
            g["lr"] for g in parameter_groups(model, 1.0)
        ]
    assert parameter_groups(model.to("meta"), 1.0)


@pytest.mark.parametrize(("optimizer", "maker"), [("adam", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_groups_train(optimizer, maker):
    model = nn.Sequential(linear("blast", bias=True, rank=8), nn.ReLU(), linear("low_rank", 4, 64, rank=2))
    stepper = maker(parameter_groups(model, 1e-2, optimizer, weight_decay=0.01), lr=1e-2)
    x, y = normal(32, 64, dtype=torch.float32), torch.arange(32) % 4
    first = None
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), y)
        first = first or loss.item()
        stepper.zero_grad()
        loss.backward()
        stepper.step()
    assert loss.item() < 0.5 * first


def test_what_cannot_be_grouped_is_refused():
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(
        TrainingError, match=r"Linear has 2 parameters, 0 of them with requires_grad; call"
    ) as e:
        parameter_groups(frozen, 1e-3)
    assert (e.value.got, e.value.frozen) == (0, 2)
    with pytest.raises(TrainingError, match="Identity has 0 parameters, 0 of them"):
        parameter_groups(nn.Identity(), 1e-3)
    with pytest.raises(TrainingError, match="LazyLinear has lazy parameters; run it once"):
        parameter_groups(nn.LazyLinear(2), 1e-3)
    layer = nn.Linear(2, 2)
    for rate in (0.0, -1.0, math.nan, math.inf, "1e-3", True):
        with pytest.raises(
            TrainingError, match=rf"parameter_groups: lr must be a finite number > 0, got {rate!r}"
        ):
            parameter_groups(layer, rate)
    with pytest.raises(TrainingError, match='optimizer must be "adam" or "sgd", got \'adamw\''):
        parameter_groups(layer, 1e-3, "adamw")
    for decay in (-0.1, math.nan, math.inf, "1"):
        with pytest.raises(
            TrainingError, match=rf"weight_decay must be a finite number >= 0 or None, got {decay!r}"
        ):
            parameter_groups(layer, 1e-3, weight_decay=decay)
