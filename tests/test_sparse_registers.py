"""The sparse loops that keep a row of the batch in registers, against the dense definition in float64."""

import gc

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import onematrix as om
from onematrix.structures import sparse_kernels, sparse_loops, sparse_product
from onematrix.structures.compressed import CSC, CSR
from onematrix.structures.sparse_kernels import transposed_pattern
from onematrix.structures.sparse_loops import fills_registers, turned_gradients, turned_product
from onematrix.structures.sparse_product import csr_matmul, csr_rmatmul
from structure_cases import generator, near, normal

pytestmark = pytest.mark.skipif(not sparse_loops._has_numba(), reason="numba is not installed")

F32, F64, I32, I64 = torch.float32, torch.float64, torch.int32, torch.int64


@pytest.fixture
def taken(monkeypatch):
    """Small products go through the registers too; counts how often the loops ran."""
    monkeypatch.setattr(sparse_loops, "LEAST", 1)
    counts = {"product": 0, "gradients": 0}

    def counted(name, function):
        def run(*arguments):
            counts[name] += 1
            return function(*arguments)

        return run

    for module in (sparse_product, sparse_kernels):
        monkeypatch.setattr(module, "turned_product", counted("product", turned_product))
    monkeypatch.setattr(sparse_product, "turned_gradients", counted("gradients", turned_gradients))
    return counts


def pattern(indices=I32):
    """19 × 37 with rows and columns without entries, rows out of order and an entry named twice."""
    g = generator(3)
    rows = torch.randint(0, 19, (150,), generator=g).clamp_(2, 17).sort().values
    cols = torch.randint(0, 36, (150,), generator=g)
    cols[1] = cols[0]
    rows[1] = rows[0]
    crow = torch.zeros(20, dtype=I64)
    crow[1:] = rows.bincount(minlength=19).cumsum(0)
    return crow.to(indices), cols.to(indices), rows


def dense(v, rows, cols):
    return torch.zeros(19, 37, dtype=F64).index_put((rows, cols.long()), v.double(), accumulate=True)


def layouts(x):
    """The same numbers row-major, feature-major, and with gaps in memory."""
    gaps = torch.stack([x, x], dim=2).reshape(len(x), -1)[:, ::2]
    return [x, x.t().contiguous().t(), gaps]


CASES = [
    *((F32, I32, batch) for batch in (16, 48, 64, 128, 160)),
    (F32, I64, 32),
    *((F64, I64, batch) for batch in (8, 32, 64)),
    (F64, I32, 16),
]


@pytest.mark.parametrize(("dtype", "indices", "batch"), CASES, ids=str)
@pytest.mark.parametrize("form", ["matmul", "rmatmul"])
def test_products_and_gradients_are_the_definition(taken, form, dtype, indices, batch):
    crow, col, rows = pattern(indices)
    v = normal(150, dtype=dtype).requires_grad_()
    n, m = (37, 19) if form == "matmul" else (19, 37)
    for k, x in enumerate(layouts(normal(batch, n, dtype=dtype, seed=1))):
        x, g = x.detach().requires_grad_(), layouts(normal(batch, m, dtype=dtype, seed=2))[k - 1]
        y = csr_matmul(v, crow, col, x) if form == "matmul" else csr_rmatmul(v, crow, col, x, 37)
        got = torch.autograd.grad(y, (v, x), g)
        free, weight = x.detach().double().requires_grad_(), dense(v.detach(), rows, col).requires_grad_()
        expected = free @ (weight.mT if form == "matmul" else weight)
        dx, dw = torch.autograd.grad(expected, (free, weight), g.double())
        for actual, wanted in ((y, expected), (got[0], dw[rows, col.long()]), (got[1], dx)):
            near(actual.double(), wanted, dtype)
    assert taken == {"product": 3, "gradients": 3}


@pytest.mark.parametrize("needed", ["values", "input"])
@pytest.mark.parametrize("form", [CSR, CSC])
def test_only_the_gradient_that_is_asked_for(taken, form, needed):
    a = form.random(21, 18, 0.3, generator(2))
    layer = om.Linear(a).double()
    x = normal(16, 18).requires_grad_(needed == "input")
    layer.values.requires_grad_(needed == "values")
    asked = x if needed == "input" else layer.values
    (actual,) = torch.autograd.grad(layer(x).sin().sum(), asked)
    weight = layer.structure.to_dense()
    (expected,) = torch.autograd.grad((x @ weight.mT).sin().sum(), asked)
    near(actual, expected)
    assert taken["gradients"] == (needed == "values")
    assert taken["product"] == (1 if needed == "values" else 2)


@pytest.mark.parametrize("form", ["matmul", "rmatmul"])
def test_derivatives_of_both_orders_by_differences(taken, form):
    crow, col = torch.tensor([0, 2, 2, 5, 6]), torch.tensor([2, 0, 1, 1, 2, 0])
    v, x, y = (normal(*s).requires_grad_() for s in [(6,), (8, 3), (8, 4)])
    function, inputs = {
        "matmul": (lambda v, x: csr_matmul(v, crow, col, x), (v, x)),
        "rmatmul": (lambda v, y: csr_rmatmul(v, crow, col, y, 3), (v, y)),
    }[form]
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)
    assert taken["product"] > 4
    assert taken["gradients"] > 0


def test_transforms_and_compilers_still_take_the_operator(taken):
    a = CSR.random(21, 18, 0.3, generator(2))
    layer, x = om.Linear(a).double(), normal(16, 18)
    weight = layer.structure.to_dense().detach()
    near(torch.func.vmap(lambda row: layer(row[None])[0])(x), x @ weight.mT)
    tangent = normal(16, 18, seed=5)
    near(torch.func.jvp(layer, (x,), (tangent,))[1], tangent @ weight.mT)
    near(torch.export.export(layer, (x,)).module()(x), x @ weight.mT)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    free = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(compiled(free).sum(), free)
    near(dx, torch.ones(16, 21, dtype=F64) @ weight)


def served(**changed):
    """The arguments of `fills_registers`, one of them changed."""
    crow, col, _ = pattern()
    return {"v": normal(150, dtype=F32), "crow": crow, "col": col, "x": normal(16, 37, dtype=F32), **changed}


@pytest.mark.parametrize(
    ("why", "changed"),
    [
        ("a batch that is no whole register", {"x": normal(20, 37, dtype=F32)}),
        ("a batch of 0", {"x": normal(0, 37, dtype=F32)}),
        ("a batch wider than a piece", {"x": normal(272, 37, dtype=F32)}),
        ("features that leave the cache", {"x": normal(16, 20_000, dtype=F32)}),
        ("half precision", {"x": normal(32, 37).bfloat16(), "v": normal(150).bfloat16()}),
        ("two dtypes", {"v": normal(150)}),
        ("values with gaps", {"v": normal(300, dtype=F32)[::2]}),
        ("values that are lazily negative", {"v": torch._neg_view(normal(150, dtype=F32))}),
        ("two kinds of indices", {"crow": pattern(I64)[0]}),
        ("short indices", {"crow": pattern(torch.int16)[0], "col": pattern(torch.int16)[1]}),
        ("indices with gaps", {"col": pattern()[1].repeat_interleave(2)[::2]}),
        ("another device", {"x": normal(16, 37, dtype=F32).to("meta")}),
    ],
)
def test_what_the_loops_do_not_serve(taken, why, changed):
    assert fills_registers(**served())
    assert not fills_registers(**served(**changed)), why


def test_threads_sizes_and_numba_decide(taken, monkeypatch):
    monkeypatch.setattr(sparse_loops, "LEAST", 150 * 16 + 1)
    assert not fills_registers(**served())
    monkeypatch.setattr(sparse_loops, "LEAST", 150 * 16)
    assert fills_registers(**served())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not fills_registers(**served())
    monkeypatch.undo()
    monkeypatch.setattr(sparse_loops, "LEAST", 1)
    monkeypatch.setattr(sparse_loops, "_has_numba", lambda: False)
    assert not fills_registers(**served())


def test_many_values_take_two_passes_backwards(taken, monkeypatch):
    monkeypatch.setattr(sparse_product, "shares_passes", lambda v: False)
    crow, col, rows = pattern()
    v, x = normal(150, dtype=F32).requires_grad_(), normal(16, 37, dtype=F32, seed=1).requires_grad_()
    dv, dx = torch.autograd.grad(csr_matmul(v, crow, col, x).sum(), (v, x))
    weight = dense(v.detach(), rows, col)
    near(dx.double(), weight.sum(0).expand(16, 37), F32)
    near(dv.double(), x.detach().double().sum(0)[col.long()], F32)
    assert taken == {"product": 2, "gradients": 0}


@pytest.mark.parametrize("form", ["matmul", "rmatmul"])
def test_a_batch_that_fills_no_registers_takes_the_other_kernels(taken, form):
    crow, col, rows = pattern()
    n, m = (37, 19) if form == "matmul" else (19, 37)
    v, x, g = normal(150).requires_grad_(), normal(9, n, seed=1).requires_grad_(), normal(9, m, seed=2)
    y = csr_matmul(v, crow, col, x) if form == "matmul" else csr_rmatmul(v, crow, col, x, 37)
    dv, dx = torch.autograd.grad(y, (v, x), g)
    weight = dense(v.detach(), rows, col)
    near(dx, g @ (weight if form == "matmul" else weight.mT))
    left, right = (g, x) if form == "matmul" else (x, g)
    near(dv, (left.mT @ right).detach()[rows, col.long()])
    assert taken == {"product": 0, "gradients": 0}


def test_one_pass_is_for_values_that_stay_in_the_cache():
    assert sparse_loops.shares_passes(torch.empty(1 << 18, dtype=F32))
    assert not sparse_loops.shares_passes(torch.empty((1 << 18) + 1, dtype=F32))
    assert not sparse_loops.shares_passes(torch.empty((1 << 17) + 1, dtype=F64))


@pytest.mark.parametrize("width", [64, 128])
def test_narrower_vectors_give_the_same(taken, monkeypatch, width):
    crow, col, _ = pattern()
    v, x, g = (normal(*s, dtype=F32, seed=k) for k, s in enumerate([(150,), (64, 37), (64, 19)]))
    results = []
    for widest in (256, width):
        monkeypatch.setattr(sparse_loops, "_widest_vector", lambda widest=widest: widest)
        xt, out = turned_product(v, crow, col, None, x)
        results.append([out, *turned_gradients(v, *transposed_pattern(crow, col, 37), xt, g)])
    for wide, narrow in zip(*results, strict=True):
        near(narrow, wide, F32)


@pytest.mark.parametrize("shape", [(16, 1), (16, 16), (32, 37), (16, 15), (64, 130)])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_turning_is_the_transpose(taken, shape, dtype):
    nothing = torch.zeros(2, dtype=I32), torch.zeros(0, dtype=I32)
    for x in (*layouts(normal(*shape, dtype=dtype)), torch._neg_view(normal(*shape, dtype=dtype))):
        xt, out = turned_product(torch.empty(0, dtype=dtype), *nothing, None, x)
        assert torch.equal(xt, x.t())
        assert xt.is_contiguous()
        assert out.tolist() == [[0.0] * shape[0]]


def test_nothing_uninitialised_is_read_and_infinities_stay_where_they_are(taken):
    torch.use_deterministic_algorithms(True)  # fills torch.empty with nan
    try:
        crow, col, rows = pattern()
        v, x = normal(150, dtype=F32).requires_grad_(), normal(16, 37, dtype=F32, seed=1)
        x[0, 5], x[1, 36] = torch.inf, torch.nan  # nothing reads column 36
        x.requires_grad_()
        y = csr_matmul(v, crow, col, x)
        dv, dx = torch.autograd.grad(y, (v, x), torch.ones_like(y))
    finally:
        torch.use_deterministic_algorithms(False)
    touched = torch.zeros(16, 19, dtype=torch.bool)
    touched[0, rows[col == 5]] = True
    assert torch.equal(~y.isfinite(), touched)
    assert torch.equal(~dv.isfinite(), col == 5)
    assert dx.isfinite().all()


def test_a_pattern_changed_in_place_is_derived_again(taken):
    first, second = (CSR.random(21, 18, 0.3, generator(s)) for s in (0, 1))
    layer, other = om.Linear(first), om.Linear(second)
    x = normal(16, 18, dtype=F32).requires_grad_()
    torch.autograd.grad(layer(x).sum(), (x, layer.values))
    layer.load_state_dict(other.state_dict())
    got = torch.autograd.grad((layer(x) ** 2).sum(), (x, layer.values))
    expected = torch.autograd.grad((other(x) ** 2).sum(), (x, other.values))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_pattern_is_forgotten_with_its_index_and_never_taken_for_another():
    gc.collect()
    a = CSR.random(9, 8, 0.3, generator(0))
    held, number = len(sparse_kernels._TRANSPOSED), id(a.col_indices)
    known = transposed_pattern(a.crow_indices, a.col_indices, 8)
    assert transposed_pattern(a.crow_indices, a.col_indices, 8) is known
    reference = sparse_kernels._TRANSPOSED[number][0]
    twin = a.col_indices.clone()  # the same pointers: only the identity of the index tells them apart
    transposed_pattern(a.crow_indices, twin, 8)
    sparse_kernels._TRANSPOSED[number] = sparse_kernels._TRANSPOSED[id(twin)]  # a number used again
    other = transposed_pattern(a.crow_indices, a.col_indices, 8)
    assert other is not known
    assert other is not sparse_kernels._TRANSPOSED[id(twin)][3]
    sparse_kernels._forget(reference)  # the reference of the first entry, which stands there no longer
    assert number in sparse_kernels._TRANSPOSED
    del a, twin
    gc.collect()
    assert len(sparse_kernels._TRANSPOSED) == held
