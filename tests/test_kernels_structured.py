"""Structured products in every form: the definition's outputs and gradients, and the choice among them."""

import copy
import json

import pytest
import torch
from torch.testing import assert_close

import onematrix as om
from onematrix.errors import OneMatrixError
from onematrix.kernels import structured_choice, structured_forms
from onematrix.kernels.structured_choice import Measured, Product, fastest, freeze
from onematrix.kernels.structured_forms import forms_of
from onematrix.kernels.structured_memory import product_key, recall
from onematrix.structures import STRUCTURES, grouped_product
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity
from onematrix.structures.tree import leaves, map_tensors
from structure_cases import generator, normal

CONTRACTED = ("blast", "block_kronecker", "kronecker", "low_rank", "monarch")
GRADIENTS = "gradients"
CASES = [
    pytest.param(name, number, form, id=f"{name}-{number}-{form}")
    for name in (
        *CONTRACTED,
        "block_tensor_train",
        "tensor_train",
        "butterfly",
        "csr",
        "toeplitz",
        "canonical",
    )
    for number, a in enumerate(STRUCTURES[name].examples(generator()))
    for form in forms_of(a)
]


def example(name, number):
    return list(STRUCTURES[name].examples(generator()))[number]


def differentiate(multiply, a, x, back):
    """Output and gradients of the input and of every number."""
    free = map_tensors(a, lambda t: t.detach().clone().requires_grad_() if t.is_floating_point() else t)
    x = x.clone().requires_grad_()
    y = multiply(free, x)
    inputs = [x, *(t for _, t in leaves(free) if t.requires_grad)]
    return [y, *torch.autograd.grad(y, inputs, back, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize(
    ("few", "small", "large"),
    [(0, 0, 0), (0, 1 << 14, 0), (12, 0, 1 << 16), (12, 0, 0)],
    ids=["in place", "copied", "groups as rows", "columns as rows"],
)
@pytest.mark.parametrize(("name", "number", "form"), CASES)
def test_every_form_is_the_definition_with_its_gradients(name, number, form, few, small, large, monkeypatch):
    monkeypatch.setattr(grouped_product, "FEW", few)
    monkeypatch.setattr(grouped_product, "LARGE", large)
    monkeypatch.setattr(grouped_product, "SMALL", small)
    a = example(name, number)
    m, n = a.fixed_shape
    for batch in ((4,), (), (2, 3), (0,)):
        x, back = normal(*batch, n), normal(*batch, m, seed=2)
        ours = differentiate(forms_of(a)[form].multiply, a, x, back)
        theirs = differentiate(lambda s, v: v @ s.to_dense().mT, a, x, back)
        for mine, wanted in zip(ours, theirs, strict=True):
            assert_close(mine, wanted)


@pytest.mark.parametrize("name", ["monarch", "block_tensor_train", "block_kronecker"])
def test_products_written_in_place_have_every_derivative(name, monkeypatch):
    monkeypatch.setattr(grouped_product, "FEW", 0)
    monkeypatch.setattr(grouped_product, "SMALL", 0)
    a = example(name, 1)
    x = normal(3, a.fixed_shape[1]).requires_grad_()
    paths, weights = zip(*leaves(a), strict=True)

    def product(x, *new):
        table = dict(zip(map(id, weights), new, strict=True))
        return map_tensors(a, lambda t: table[id(t)]).matmul(x)

    free = [w.clone().requires_grad_() for w in weights]
    assert torch.autograd.gradcheck(product, (x, *free), check_forward_ad=True), paths
    assert torch.autograd.gradgradcheck(product, (x, *free))
    assert_close(torch.func.vmap(a.matmul)(normal(2, 3, x.shape[1])), a.matmul(normal(2, 3, x.shape[1])))


def test_contraction_is_offered_where_it_is_known():
    for name in CONTRACTED:
        assert "contracted" in forms_of(example(name, 1))
    assert list(forms_of(example("toeplitz", 0))) == ["own", "densified"]
    assert list(forms_of(Dense(torch.eye(2)))) == ["own"]
    assert list(forms_of(Identity("time"))) == ["own"], "a named size cannot be written out"


def test_matrices_too_large_to_write_out_are_not(monkeypatch):
    monkeypatch.setattr(structured_forms, "LARGEST", 30)
    a = STRUCTURES["low_rank"].random(6, 6, rank=1, generator=generator())
    assert list(forms_of(a)) == ["own", "contracted"]


@pytest.fixture
def monarch():
    return STRUCTURES["monarch"].random(16, 16, blocks=4, rank=1, generator=generator())


def pretend(monkeypatch, seconds):
    """Timings as given, by name of the form: the choice, not this machine, is what is tested."""
    names = {}
    monkeypatch.setattr(
        structured_choice, "_forward", lambda multiply, a, x: names.setdefault(multiply, multiply)
    )
    forms = structured_forms.FORMS.values()
    table = {form.multiply: seconds[form.name] for form in forms if form.name in seconds}
    monkeypatch.setattr(structured_choice, "seconds_per_call", lambda call, repeats: table[call])


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"own": 1.0, "densified": 0.5, "contracted": 0.8}, "densified"),
        ({"own": 1.0, "densified": 2.0, "contracted": 0.8}, "contracted"),
        ({"own": 1.0, "densified": 0.98, "contracted": 0.99}, "own"),
        ({"own": 9.0, "densified": 1.0, "contracted": 5.0}, "densified"),
    ],
)
def test_another_form_has_to_be_clearly_faster(seconds, chosen, monarch, monkeypatch, tmp_path):
    pretend(monkeypatch, seconds)
    product = fastest(monarch, 4, folder=tmp_path)
    assert product.form == chosen
    assert product.seconds["own"] == seconds["own"], "the structure's own is always timed"
    hopeless = {name for name, s in seconds.items() if s > 3 * min(seconds.values())} - {"own"}
    assert set(product.seconds) == set(seconds) - hopeless


@pytest.mark.parametrize("mode", ["forward", "gradients", "frozen"])
def test_choices_are_measured_once_and_kept_on_disk(mode, monarch, monkeypatch, tmp_path):
    monkeypatch.setenv("ONEMATRIX_CACHE", str(tmp_path))
    product = fastest(monarch, 4, mode)
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text())["form"] == product.form
    monkeypatch.setattr(structured_choice, "measure", None)
    assert fastest(monarch, 4, mode) == product
    x = torch.randn(3, 16, generator=generator())
    assert_close(product(monarch, x), x @ monarch.to_dense().mT)


def test_keys_tell_apart_what_may_differ(monarch):
    other = STRUCTURES["monarch"].random(16, 16, blocks=4, rank=2, generator=generator())
    keys = {
        product_key(monarch, 4, "forward"),
        product_key(monarch, 8, "forward"),
        product_key(monarch, 4, "gradients"),
        product_key(other, 4, "forward"),
        product_key(map_tensors(monarch, torch.Tensor.double), 4, "forward"),
    }
    assert len(keys) == 5
    again = STRUCTURES["monarch"].random(16, 16, blocks=4, rank=1, generator=generator())
    assert product_key(again, 4, "forward") in keys, "the numbers do not matter"


TEXTS = {
    "empty": "",
    "list": "[]",
    "deep": "[" * 100_000,
    "other key": '{"key": "x", "form": "own", "seconds": {}}',
}


@pytest.mark.parametrize("text", [*TEXTS.values(), '{"form": 3}'], ids=[*TEXTS, "no text"])
def test_files_that_are_something_else_are_measured_again(text, monarch, tmp_path):
    key = product_key(monarch, 2, "forward")
    (tmp_path / f"{key}.json").write_text(text)
    assert recall(tmp_path, key) is None
    assert fastest(monarch, 2, folder=tmp_path).form in forms_of(monarch)
    assert recall(tmp_path, key) is not None


def test_a_folder_that_cannot_be_written_to_is_no_hindrance(monarch, tmp_path):
    (tmp_path / "file").write_text("")
    assert fastest(monarch, 2, folder=tmp_path / "file" / "inside").form in forms_of(monarch)


def test_a_batch_below_one_is_refused(monarch):
    with pytest.raises(OneMatrixError, match="fastest: batch must be at least 1, got 0"):
        fastest(monarch, 0)


@pytest.mark.parametrize("form", ["own", "densified", "contracted"])
def test_layers_compute_and_learn_with_the_product_they_are_given(form, monarch):
    x = torch.randn(5, 16, generator=generator())
    plain, layer = om.Linear(monarch, bias=True), om.Linear(monarch, bias=True, product=Product(form))
    assert_close(layer(x), plain(x))
    for ours, theirs in zip(*(slopes(m, x) for m in (layer, plain)), strict=True):
        assert_close(ours, theirs)


def slopes(layer, x):
    return torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))


def test_layers_measure_each_batch_at_first_sight(monarch, monkeypatch, tmp_path):
    seen = []

    def chosen(a, batch, mode, folder):
        seen.append((batch, mode, folder))
        return Product("densified" if batch > 2 else "contracted")

    monkeypatch.setattr(structured_choice, "fastest", chosen)
    layer = om.Linear(monarch, product=Measured(tmp_path))
    x = torch.randn(7, 16, generator=generator())
    for rows in (x, x[:5], x[:2], x.reshape(7, 1, 16), x[0], x[:0]):
        assert_close(layer(rows), rows @ monarch.to_dense().mT)
    with torch.no_grad():
        layer(x)
    assert seen == [
        (b, m, tmp_path) for b, m in ((8, GRADIENTS), (2, GRADIENTS), (1, GRADIENTS), (8, "forward"))
    ]
    assert copy.deepcopy(layer).product.choices == layer.product.choices
    with pytest.raises(OneMatrixError, match=r"monarch is 16×16: input must end in 16, got \(2, 3\)"):
        layer(torch.ones(2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_measured_layers_compile_whole(monarch, tmp_path):
    layer = om.Linear(monarch, product=Measured(tmp_path))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(3, 16, generator=generator())
    assert_close(compiled(x), x @ monarch.to_dense().mT)
    assert not list(tmp_path.iterdir()), "nothing is measured while it is traced"


@pytest.mark.parametrize(("dense_seconds", "name"), [(0.5, "dense"), (2.0, "monarch")])
def test_freezing_takes_the_dense_matrix_where_that_is_faster(
    dense_seconds, name, monarch, monkeypatch, tmp_path
):
    monkeypatch.setattr(structured_choice, "_forward", lambda multiply, a, x: a.name)
    times = {"monarch": 1.0, "dense": dense_seconds}
    monkeypatch.setattr(structured_choice, "seconds_per_call", lambda call, repeats: times[call])
    frozen = freeze(monarch, 8, tmp_path)
    assert frozen.name == name
    assert_close(frozen.to_dense(), monarch.to_dense())
    assert frozen is monarch or not frozen.weight.requires_grad
