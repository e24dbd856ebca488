"""The sparse kernels on every path they can take, and the pattern they remember."""

import copy
import gc
import importlib.util

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from onematrix.structures import sparse_kernels, sparse_loops
from onematrix.structures.compressed import CSC, CSR
from onematrix.structures.sparse_kernels import transposed_pattern, turn
from onematrix.structures.sparse_product import csr_matmul, csr_rmatmul, csr_sampled
from structure_cases import generator, near, normal

# 5×4 with an empty row, an empty column, a row out of order and an entry named twice.
CROW, COL = torch.tensor([0, 2, 2, 5, 6, 8]), torch.tensor([3, 0, 1, 1, 3, 0, 0, 1])
ROWS = torch.tensor([0, 0, 2, 2, 2, 3, 4, 4])


def dense(v):
    return torch.zeros(5, 4, dtype=v.dtype).index_put((ROWS, COL), v, accumulate=True)


def patterns():
    return [pytest.param(CROW.to(t), COL.to(t), id=str(t)) for t in (torch.int32, torch.int64)]


both_index_types = pytest.mark.parametrize(("crow", "col"), patterns())


@pytest.fixture(params=["torch kernels", "no kernels", "no kernels, small chunks", "no numba"])
def path(request, monkeypatch):
    """Each way the products can run."""
    if request.param.startswith("no kernels"):
        monkeypatch.setattr(sparse_kernels, "uses_torch_kernels", lambda tensor: False)
    if request.param.endswith("chunks"):
        monkeypatch.setattr(sparse_kernels, "CHUNK", 7)
    if request.param == "no numba":
        monkeypatch.setattr(sparse_loops, "_has_numba", lambda: False)
    return request.param


@both_index_types
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 2, 5])
def test_the_three_products_are_the_definition(path, crow, col, dtype, batch):
    v, x, y = (normal(*s, dtype=dtype, seed=i) for i, s in enumerate([(8,), (batch, 4), (batch, 5)]))
    for layout in (lambda t: t, lambda t: t.t().contiguous().t()):
        near(csr_matmul(v, crow, col, layout(x)), x @ dense(v).mT, dtype)
        near(csr_rmatmul(v, crow, col, layout(y), 4), y @ dense(v), dtype)
        near(csr_sampled(crow, col, layout(x), layout(y)), (y.mT @ x)[ROWS, COL], dtype)


def test_long_rows_and_no_rows_at_all(path):
    for crow, col, m, n in (
        ([0, 9], list(range(9)), 1, 9),
        ([0, 0, 0], [], 2, 3),
        ([0, 0, 3], [0, 1, 2], 2, 3),
    ):
        crow, col = torch.tensor(crow), torch.tensor(col, dtype=torch.int64)
        v, x, y = normal(len(col)), normal(3, n), normal(3, m, seed=2)
        a = CSR(v, crow, col, n)
        near(a.matmul(x), x @ a.to_dense().mT)
        near(a.rmatmul(y), y @ a.to_dense())
        rows = torch.repeat_interleave(torch.arange(m), crow.diff())
        near(csr_sampled(crow, col, x, y), (y.mT @ x)[rows, col])


@both_index_types
@pytest.mark.parametrize("form", ["matmul", "rmatmul", "sampled"])
def test_derivatives_of_both_orders_by_differences(path, crow, col, form):
    v, x, y = (normal(*s).requires_grad_() for s in [(8,), (3, 4), (3, 5)])
    function, inputs = {
        "matmul": (lambda v, x: csr_matmul(v, crow, col, x), (v, x)),
        "rmatmul": (lambda v, y: csr_rmatmul(v, crow, col, y, 4), (v, y)),
        "sampled": (lambda x, y: csr_sampled(crow, col, x, y), (x, y)),
    }[form]
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
@pytest.mark.parametrize("form", [CSR, CSC])
def test_only_the_gradient_that_is_asked_for(form, needed):
    a = form.random(5, 4, 0.4, generator(2))
    values, x = a.values.double().requires_grad_(needed[0]), normal(3, 4).requires_grad_(needed[1])
    new = {CSR: lambda: CSR(values, a.crow_indices, a.col_indices, 4)}.get(
        form, lambda: CSC(values, a.ccol_indices, a.row_indices, 5)
    )()
    asked = values if needed[0] else x
    (actual,) = torch.autograd.grad(new.matmul(x).sin().sum(), asked)
    (expected,) = torch.autograd.grad((x @ new.to_dense().mT).sin().sum(), asked)
    near(actual, expected)


def test_half_precision_is_multiplied_and_added_in_single_precision():
    ones = torch.ones(4096, dtype=torch.bfloat16)
    a = CSR(ones, torch.tensor([0, 4096], dtype=torch.int32), torch.arange(4096, dtype=torch.int32), 4096)
    assert a.matmul(ones[None]).item() == 4096  # sums of bfloat16 ones stop at 256
    x, y = torch.tensor([[129 / 128, 65 / 64], [129 / 128, -1]], dtype=torch.bfloat16)[:, :, None]
    kept = csr_sampled(torch.tensor([0, 1]), torch.tensor([0]), x, y)
    assert kept.item() == 2**-14  # (1 + 1/128)² - (1 + 1/64); rounded to bfloat16 the square is 1 + 1/64


def test_nothing_uninitialised_is_read(path):
    """Results are written into empty memory: with nan standing there, empty rows must still give zero."""
    torch.use_deterministic_algorithms(True)  # fills torch.empty with nan
    try:
        assert torch.empty(3).isnan().all()
        crow, col = (
            torch.tensor([0, 0, 1, 1, 1, 2, 2], dtype=torch.int32),
            torch.tensor([1, 0], dtype=torch.int32),
        )
        v, x, y = (normal(*s, dtype=torch.float32) for s in [(2,), (3, 3), (3, 6)])
        a = CSR(v, crow, col, 3)
        near(a.matmul(x), x @ a.to_dense().mT, torch.float32)
        near(a.rmatmul(y), y @ a.to_dense(), torch.float32)
        assert csr_sampled(crow, col, x, y).isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 7), (33, 70), (64, 130), (0, 3), (3, 0)])
def test_turning_is_the_transpose(shape, dtype):
    x = normal(*shape, dtype=dtype)
    for layout in (x, x.t().contiguous().t(), normal(shape[0], 2 * shape[1], dtype=dtype)[:, ::2]):
        turned = turn(layout)
        assert torch.equal(turned, layout.t())
        assert turned.is_contiguous()


def test_loop_is_used_where_numba_is_and_only_on_one_thread(monkeypatch):
    x = torch.ones(1)
    monkeypatch.setattr(sparse_loops, "_has_numba", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert sparse_loops.sampled_loop(x) is not None
    assert sparse_loops.sampled_loop(x.to("meta")) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert sparse_loops.sampled_loop(x) is None
    monkeypatch.undo()
    assert sparse_loops._has_numba() == (importlib.util.find_spec("numba") is not None)


def test_the_pattern_is_remembered_as_long_as_its_indices_live():
    a = CSR.random(6, 5, 0.4, generator(1))
    first = transposed_pattern(a.crow_indices, a.col_indices, 5)
    assert transposed_pattern(a.crow_indices, a.col_indices, 5) is first
    other = transposed_pattern(a.crow_indices.clone(), a.col_indices, 5)
    assert other is not first
    assert len(transposed_pattern(a.crow_indices, a.col_indices, 7)[0]) == 8
    twin = copy.deepcopy(a)
    assert transposed_pattern(twin.crow_indices, twin.col_indices, 5) is not first
    held = len(sparse_kernels._TRANSPOSED)
    del a, first, other
    gc.collect()
    assert len(sparse_kernels._TRANSPOSED) < held


@pytest.mark.parametrize("place", ["crow_indices", "col_indices"])
def test_a_pattern_changed_in_place_is_derived_again(place):
    first = CSR(normal(2), torch.tensor([0, 1, 1, 2]), torch.tensor([0, 3]), 4)
    second = CSR(first.values, torch.tensor([0, 0, 1, 2]), torch.tensor([2, 1]), 4)
    y = normal(2, 3)
    near(first.rmatmul(y), y @ first.to_dense())
    before = first.to_dense()
    getattr(first, place).copy_(getattr(second, place))
    assert not torch.equal(first.to_dense(), before)
    near(first.rmatmul(y), y @ first.to_dense())


def test_inference_tensors_are_never_remembered():
    with torch.inference_mode():
        a = CSR.random(6, 5, 0.4, generator(1))
        x, y = torch.ones(2, 5), torch.ones(2, 6)
        for _ in range(2):
            near(a.matmul(x), x @ a.to_dense().mT, torch.float32)
            near(a.rmatmul(y), y @ a.to_dense(), torch.float32)
            a.col_indices.copy_(4 - a.col_indices)


def test_fake_tensors_reach_the_operator_only():
    from torch._subclasses.fake_tensor import FakeTensorMode

    a = CSC.random(6, 5, 0.4, generator(1))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(torch.ones(3, 5)).requires_grad_()
        values = mode.from_tensor(a.values)
        y = csr_rmatmul(values, mode.from_tensor(a.ccol_indices), mode.from_tensor(a.row_indices), x, 6)
        assert y.shape == (3, 6)
        assert torch.autograd.grad(y.sum(), x)[0].shape == (3, 5)
