"""The sparse product: opaque operators with every derivative, two paths, and a pattern remembered rightly."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import onematrix as om
from onematrix.errors import ShapeError
from onematrix.structures import sparse_kernels, sparse_loops, sparse_product
from onematrix.structures.compressed import CSC, CSR
from onematrix.structures.sparse_product import csr_matmul, csr_rmatmul, csr_sampled
from two_ranks import run_on_two_ranks


@pytest.fixture
def a():
    return CSR.random(7, 5, 0.4, torch.Generator().manual_seed(0))


def double(a):
    return CSR(a.values.double(), a.crow_indices, a.col_indices, a.columns)


def arrays(a):
    return a.values.requires_grad_(), a.crow_indices, a.col_indices


def draws(*shapes):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes]


def test_the_operators_obey_torchs_own_rules(a):
    v, crow, col = arrays(double(a))
    x, y = draws((3, 5), (3, 7))
    torch.library.opcheck(sparse_product._matmul_op, (v, crow, col, x))
    torch.library.opcheck(sparse_product._rmatmul_op, (v, crow, col, y, 5))
    torch.library.opcheck(sparse_product._sampled_op, (crow, col, x, y))


@pytest.mark.parametrize("batch", [1, 3])
def test_numerical_gradients_first_second_and_forward(a, batch):
    v, crow, col = arrays(double(a))
    x, y = draws((batch, 5), (batch, 7))
    cases = [
        (lambda v, x: csr_matmul(v, crow, col, x), (v, x)),
        (lambda v, y: csr_rmatmul(v, crow, col, y, 5), (v, y)),
        (lambda x, y: csr_sampled(crow, col, x, y), (x, y)),
    ]
    for function, inputs in cases:
        torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
        torch.autograd.gradgradcheck(function, inputs)


def test_forward_mode_is_not_silently_zero(a):
    a = double(a)
    x, tangent = (t.detach() for t in draws((3, 5), (3, 5)))
    with torch.autograd.forward_ad.dual_level():
        y = a.matmul(torch.autograd.forward_ad.make_dual(x, tangent))
        assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, tangent @ a.to_dense().mT)


@pytest.mark.parametrize("kind", [CSR, CSC])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_portable_path_equals_the_other(kind, dtype, monkeypatch):
    a = kind.random(30, 20, 0.3, torch.Generator().manual_seed(0))
    results = []
    for portable in (False, True):
        if portable:
            monkeypatch.setattr(sparse_kernels, "uses_torch_kernels", lambda _: False)
            monkeypatch.setattr(sparse_kernels, "CHUNK", 50)
        layer = om.Linear(a).to(dtype)
        x = torch.linspace(-1, 1, 80, dtype=dtype).reshape(4, 20).requires_grad_()
        y = layer(x)
        results.append([y, *torch.autograd.grad((y**2).sum(), [x, layer.values])])
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_compiled_loop_equals_torchs_kernel(dtype, monkeypatch):
    if not sparse_loops._has_numba():
        pytest.skip("numba is not installed")
    a = CSR.random(30, 20, 0.3, torch.Generator().manual_seed(0))
    xt, yt = torch.randn(20, 9, dtype=dtype), torch.randn(30, 9, dtype=dtype)
    loop = sparse_loops.sampled_loop(xt)
    assert loop is not None
    ours = loop(a.crow_indices, a.col_indices, xt, yt)
    monkeypatch.setattr(sparse_kernels, "sampled_loop", lambda _: None)
    assert_close(ours, sparse_kernels.sampled_product(a.crow_indices, a.col_indices, xt, yt))
    rows = sparse_kernels.entry_rows(a.crow_indices, len(a.values)).long()
    assert_close(ours, (yt @ xt.mT)[rows, a.col_indices.long()])


def test_infinite_inputs_reach_only_what_reads_them():
    a = CSR.from_positions(2, 3, torch.tensor([0, 5]), torch.tensor([1.0, 2.0]))
    y = a.matmul(torch.tensor([[1.0, torch.inf, 3.0]]))
    assert_close(y, torch.tensor([[1.0, 6.0]]))


def test_another_pattern_loaded_in_place_gives_right_gradients():
    first, second = (CSR.random(9, 8, 0.3, torch.Generator().manual_seed(s)) for s in (0, 1))
    layer, other = om.Linear(first), om.Linear(second)
    x = torch.randn(4, 8, requires_grad=True)
    torch.autograd.grad(layer(x).sum(), x)  # the transposed pattern of `first` is remembered here
    layer.load_state_dict(other.state_dict())
    ours, theirs = (torch.autograd.grad((f(x) ** 2).sum(), x) for f in (layer, other))
    assert_close(ours, theirs)
    assert_close(layer(x), x @ second.to_dense().mT)


def test_the_remembered_pattern_dies_with_its_index():
    a = CSR.random(9, 8, 0.3, torch.Generator().manual_seed(0))
    before = len(sparse_kernels._TRANSPOSED)
    a.rmatmul(torch.ones(1, 9))
    assert len(sparse_kernels._TRANSPOSED) == before + 1
    del a
    assert len(sparse_kernels._TRANSPOSED) == before


def test_inference_mode_and_deepcopy(a):
    with torch.inference_mode():
        b = CSR(a.values.clone(), a.crow_indices.clone(), a.col_indices.clone(), 5)
        assert_close(b.rmatmul(torch.ones(2, 7)), torch.ones(2, 7) @ a.to_dense())
    assert_close(copy.deepcopy(a).rmatmul(torch.ones(2, 7)), torch.ones(2, 7) @ a.to_dense())


def test_rows_without_entries_and_entries_named_twice():
    empty = CSR(torch.zeros(0), torch.zeros(4, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), 5)
    x = torch.randn(2, 5, requires_grad=True)
    assert_close(empty.matmul(x), torch.zeros(2, 3))
    assert_close(empty.rmatmul(torch.ones(2, 3)), torch.zeros(2, 5))
    twice = CSR(torch.tensor([1.0, 2.0]), torch.tensor([0, 2, 2]), torch.tensor([1, 1]), 3)
    assert_close(twice.matmul(torch.eye(3)), twice.to_dense().mT)
    assert float(twice.to_dense()[0, 1]) == 3.0


def test_bad_arrays_are_named():
    i = torch.int32
    with pytest.raises(ShapeError, match=r"indices must lie in 0\.\.1, got 0\.\.2"):
        CSR(torch.ones(2), torch.tensor([0, 2], dtype=i), torch.tensor([0, 2], dtype=i), 2)
    with pytest.raises(ShapeError, match=r"pointers must rise from 0 to 2, got 0\.\.1"):
        CSR(torch.ones(2), torch.tensor([0, 1], dtype=i), torch.tensor([0, 1], dtype=i), 2)
    with pytest.raises(ShapeError, match=r"2 values need 2 indices"):
        CSR(torch.ones(2), torch.tensor([0, 2], dtype=i), torch.tensor([0], dtype=i), 2)
    with pytest.raises(ShapeError, match=r"both be int32 or int64, got torch\.int64 and torch\.int32"):
        CSR(torch.ones(1), torch.tensor([0, 1], dtype=i), torch.tensor([0]), 2)


@pytest.mark.parametrize("kind", ["csr", "csc", "block_sparse", "low_rank"])
def test_export_save_and_load(kind, tmp_path):
    dense = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    layer = om.Linear(om.fit(dense, kind, budget=0.5), bias=True)
    x = torch.randn(3, 8)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(exported, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    for batch in (3, 5):
        x = torch.randn(batch, 8)
        assert_close(loaded(x), layer(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csr", "low_rank"])
def test_the_default_compiler_takes_the_layer(kind):
    dense = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    layer = om.Linear(om.fit(dense, kind, budget=0.5), bias=True)
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(3, 8, requires_grad=True)
    grads = [torch.autograd.grad((f(x) ** 2).sum(), [x, *layer.parameters()]) for f in (layer, compiled)]
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs)


def test_safetensors_and_the_optimiser(tmp_path, a):
    layer = om.Linear(a, bias=True)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other = om.Linear(CSR(torch.zeros_like(a.values), a.crow_indices, a.col_indices, 5), bias=True)
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    x = torch.randn(4, 5)
    assert_close(other(x), layer(x))
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1)
    before = float((layer(x) ** 2).sum().detach())
    for _ in range(20):
        optimiser.zero_grad()
        (layer(x) ** 2).sum().backward()
        optimiser.step()
    assert float((layer(x) ** 2).sum().detach()) < 0.5 * before
    assert torch.equal(layer.structure.col_indices, a.col_indices)


WORKER = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
import onematrix as om
from onematrix.structures.compressed import CSR

def net():
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    sparse = CSR.random(13, 9, nonzeros=37, generator=g)
    low = om.list_structures()["low_rank"].random(13, 13, 0.5, g)
    return nn.Sequential(om.Linear(sparse, bias=True), nn.Tanh(), om.Linear(low), nn.Linear(13, 2))

def steps(module, x):
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = (module(x) ** 2).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses

torch.set_num_threads(1)
x = torch.randn(6, 9, generator=torch.Generator().manual_seed(3))
alone = steps(net(), x)
dist.init_process_group("gloo")
sharded = net()
for layer in (sharded[0], sharded[2]):
    fully_shard(layer)
fully_shard(sharded)
together = steps(sharded, x)
assert max(abs(a - b) for a, b in zip(alone, together)) < 1e-6, (alone, together)
local = sharded[0].values.to_local().numel()
print("rank", dist.get_rank(), "holds", local, "of 37 values")
assert 0 < local < 37
dist.destroy_process_group()
"""


def test_fsdp2_on_two_ranks_takes_the_steps_of_one_process(tmp_path):
    outputs = run_on_two_ranks(tmp_path, WORKER)
    assert "of 37 values" in outputs[0]
