"""Laws beyond the first derivative and the plain example: transforms, nested structures, work, dtypes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from onematrix.errors import DTypeError
from onematrix.structures import STRUCTURES, sparse_kernels
from onematrix.structures.algebra import Transposed
from onematrix.structures.base import randomisable, relative_error
from onematrix.structures.dense import Dense
from onematrix.structures.permutation import Permutation, Selection
from onematrix.structures.rules import multiply
from onematrix.structures.tree import leaves, map_tensors, stored_numbers, with_dtype
from structure_cases import ALL, NESTED, generator, law, near, normal, rebuilt, weights

UNIT = {"block_sparse": 16 * 16}  # numbers a random member is rounded to
nested = pytest.mark.parametrize("a", NESTED)


def product(a, new, x):
    return rebuilt(a, new).matmul(x)


def definition(a, new, x):
    return x @ rebuilt(a, new).to_dense(torch.float64).mT


@nested
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (0,), (2, 0)], ids=str)
def test_both_products_are_the_definition(a, batch):
    m, n = a.fixed_shape
    x, y = normal(*batch, n), normal(*batch, m, seed=2)
    kept = x.clone(), y.clone()
    near(a.matmul(x), x @ a.to_dense(torch.float64).mT)
    near(a.rmatmul(y), y @ a.to_dense(torch.float64))
    assert torch.equal(x, kept[0]), "matmul wrote into its input"
    assert torch.equal(y, kept[1]), "rmatmul wrote into its input"


@law
def test_products_read_any_memory_layout(a):
    m, n = a.fixed_shape
    dense = a.to_dense(torch.float64)
    for x in (normal(n, 4).mT, normal(4, 2 * n)[:, ::2], normal(2, n, 3).mT, normal(1, n).expand(3, n)):
        near(a.matmul(x), x @ dense.mT)
    for y in (normal(m, 4).mT, normal(4, 2 * m)[:, ::2], normal(2, m, 3).mT, normal(1, m).expand(3, m)):
        near(a.rmatmul(y), y @ dense)


@nested
def test_the_transpose_is_the_dense_transpose_over_the_same_tensors(a):
    t = a.transpose()
    near(t.to_dense(torch.float64), a.to_dense(torch.float64).mT)
    assert t.shape == a.shape[::-1]
    assert {id(v) for _, v in leaves(t)} == {id(v) for _, v in leaves(a)}
    near(t.transpose().to_dense(torch.float64), a.to_dense(torch.float64))
    assert isinstance(a, Transposed) or t.transpose() is a, "the transpose of a transpose is the thing itself"
    assert stored_numbers(t) == stored_numbers(a)
    assert t.multiply_adds() == a.multiply_adds()


@nested
@pytest.mark.parametrize("side", ["matmul", "rmatmul"])
def test_gradients_are_those_of_the_definition(a, side):
    if side == "rmatmul":
        a = a.transpose()
    x = normal(3, a.fixed_shape[1])
    y, pull = torch.func.vjp(lambda w, x: product(a, w, x), weights(a), x)
    _, expected = torch.func.vjp(lambda w, x: definition(a, w, x), weights(a), x)
    cotangent = normal(*y.shape, seed=3)
    near(pull(cotangent), expected(cotangent))


def eager_derivatives(a, form):
    """First and second derivatives by torch.autograd, without functional transforms."""
    inputs = [*(w.clone().requires_grad_() for w in weights(a)), normal(3, a.fixed_shape[1]).requires_grad_()]
    value = form(a, inputs[:-1], inputs[-1]).sin().sum() + 0 * inputs[-1].sum()
    options = {"allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad(value, inputs, create_graph=True, **options)
    length = sum(g.square().sum() for g in first) + 0 * inputs[-1].sum()
    return [g.detach() for g in first], torch.autograd.grad(length, inputs, **options)


@law
def test_first_and_second_derivatives_by_autograd(a):
    near(eager_derivatives(a, product), eager_derivatives(a, definition))


@law
def test_forward_mode(a):
    x, tx = normal(3, a.fixed_shape[1]), normal(3, a.fixed_shape[1], seed=4)
    tangents = [normal(*w.shape, seed=5) for w in weights(a)]

    def push(form):
        return torch.func.jvp(lambda w, x: form(a, w, x), (weights(a), x), (tangents, tx))

    near(push(product), push(definition))


@law
def test_forward_over_reverse(a):
    x, tx = normal(3, a.fixed_shape[1]), normal(3, a.fixed_shape[1], seed=4)
    tangents = [normal(*w.shape, seed=5) for w in weights(a)]

    def push(form):
        gradient = torch.func.grad(lambda w, x: form(a, w, x).sin().sum(), argnums=(0, 1))
        return torch.func.jvp(gradient, (weights(a), x), (tangents, tx))

    near(push(product), push(definition))


@law
def test_mapping_over_inputs_and_over_weights(a):
    x = normal(4, 3, a.fixed_shape[1])
    many = [torch.stack([w, 2 * w, -w, w + 1]) for w in weights(a)]
    for of_weights, of_x in ((None, 0), (0, None), (0, 0), (None, 1)):
        if of_weights == 0 and not many:
            continue
        dims = ([of_weights] * len(many), of_x)
        given = many if of_weights == 0 else weights(a)
        inputs = x if of_x is not None else x[0]

        def mapped(form, dims=dims, given=given, inputs=inputs):
            return torch.func.vmap(lambda w, x: form(a, w, x), in_dims=dims)(given, inputs)

        near(mapped(product), mapped(definition))


@law
def test_jacobians(a):
    x = normal(2, a.fixed_shape[1])
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        actual = jacobian(lambda w, x: product(a, w, x), argnums=(0, 1))(weights(a), x)
        near(actual, jacobian(lambda w, x: definition(a, w, x), argnums=(0, 1))(weights(a), x))


@nested
def test_nonzeros_bound_the_true_number(a):
    m, n = a.fixed_shape
    assert int((a.to_dense(torch.float64) != 0).sum()) <= a.nonzeros() <= m * n


@nested
def test_the_relative_error_is_the_definition(a):
    target, x = normal(*a.fixed_shape), normal(4, a.fixed_shape[1], seed=2)
    rest = target - a.to_dense(torch.float64)
    assert relative_error(a, target) == pytest.approx(float(rest.norm() / target.norm()))
    weighted = float((rest @ x.mT).norm() / (target @ x.mT).norm())
    assert relative_error(a, target, gram=x.mT @ x) == pytest.approx(weighted)
    nothing = torch.zeros_like(target)
    assert relative_error(a, nothing) == pytest.approx(float(a.to_dense(torch.float64).norm()))


class Work(TorchDispatchMode):
    """Counts multiplications in matrix products and elementwise products, and the inputs of sums."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.count += out.numel() * args[0].shape[-1]
        elif name == "mv":
            self.count += args[0].numel()
        elif name == "mul":
            self.count += out.numel()
        elif name == "sum":
            self.count += args[0].numel()
        elif name == "convolution":
            self.count += out.numel() * args[1][0].numel()
        return out


@law
def test_multiply_adds_are_those_the_product_does(a, monkeypatch):
    if "counted work" in type(a).exempt:
        pytest.skip("FFTs are counted in test_structures_spectral.py")
    monkeypatch.setattr(sparse_kernels, "uses_torch_kernels", lambda tensor: False)
    x = normal(1, a.fixed_shape[1])
    a.transpose().rmatmul(x)  # derives the pattern of the transpose, once
    with Work() as work, torch.no_grad():
        a.matmul(x)
    assert work.count == a.multiply_adds()


@law
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes(a, dtype):
    narrow, x = with_dtype(a, dtype), normal(4, a.fixed_shape[1], dtype=dtype).requires_grad_()
    wide = with_dtype(narrow, torch.float64)
    y = narrow.matmul(x)
    assert y.dtype == dtype
    near(y.double(), x.detach().double() @ wide.to_dense(torch.float64).mT, dtype)
    if y.requires_grad:
        cotangent = normal(*y.shape, dtype=dtype)
        (gradient,) = torch.autograd.grad(y, x, cotangent)
        near(gradient.double(), cotangent.double() @ wide.to_dense(torch.float64), dtype)


@law
def test_autocast(a):
    narrow = with_dtype(a, torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        x = normal(4, a.fixed_shape[1], dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            y = narrow.matmul(x)
        near(y.double(), x.double() @ narrow.to_dense(torch.float64).mT, torch.bfloat16)


@law
def test_the_meta_device_gives_shapes(a):
    empty = map_tensors(a, lambda t: t.to("meta"))
    assert empty.shape == a.shape
    assert all(t.device.type == "meta" for _, t in leaves(empty))
    x = torch.empty(3, a.fixed_shape[1], dtype=torch.float64, device="meta")
    assert empty.matmul(x).shape == (3, a.fixed_shape[0])


@pytest.mark.parametrize("a", [c for c in ALL if weights(c.values[0])])
def test_mixed_dtypes_are_refused(a):
    for dtype in (torch.float32, torch.int64):
        with pytest.raises(DTypeError, match=f"weights are torch.float64, input is {dtype}"):
            a.matmul(torch.ones(2, a.fixed_shape[1], dtype=dtype))


@pytest.mark.parametrize("name", randomisable())
def test_random_members_honour_the_budget_and_the_seed(name):
    cls = STRUCTURES[name]
    m, n = (96, 96) if cls.square_only else (64, 96)
    for budget in [1.0] if name == "dense" else [0.14, 0.29, 1.0]:
        a, again = (cls.random(m, n, budget, generator(3)) for _ in range(2))
        assert a.shape == (m, n)
        assert stored_numbers(a) <= budget * m * n + UNIT.get(name, 1) / 2
        assert torch.equal(a.to_dense(), again.to_dense())
        assert not torch.equal(a.to_dense(), cls.random(m, n, budget, generator(4)).to_dense())


@pytest.mark.parametrize("outer", [Permutation, Selection])
@pytest.mark.parametrize("inner", [Permutation, Selection, Dense])
def test_the_order_of_index_rules(outer, inner):
    """Examples of one size are often the same permutation, which commutes with itself; these do not."""
    index = {Permutation: torch.tensor([1, 2, 0, 3]), Selection: torch.tensor([3, 3, 0])}[outer]
    a = Permutation(index) if outer is Permutation else Selection(index, 4)
    b = {
        Permutation: Permutation(torch.tensor([0, 3, 1, 2])),
        Selection: Selection(torch.tensor([2, 0, 1, 1]), 3),
        Dense: Dense(normal(4, 2)),
    }[inner]
    near(multiply(a, b).to_dense(torch.float64), a.to_dense(torch.float64) @ b.to_dense(torch.float64))
