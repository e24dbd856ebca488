"""Several products of one value, as one or apart: the same values, gradients and theirs."""

import pytest
import torch
from torch.autograd import gradgradcheck
from torch.testing import assert_close

from onematrix.compiler.module import Compiled
from onematrix.compiler.pipeline import lower
from onematrix.kernels.elementwise_fed import run_fed_elementwise_loop
from onematrix.kernels.merged_product import ALONE, FEW, grouped, merged_product
from onematrix.networks.examples import examples


def given(rows, width, heights, dtype=torch.float64):
    g = torch.Generator().manual_seed(rows + width)
    x = torch.randn(rows, width, generator=g, dtype=dtype)
    weights = [torch.randn(m, width, generator=g, dtype=dtype) for m in heights]
    return x, weights, [torch.randn(m, generator=g, dtype=dtype) for m in heights]


def literal(x, weights, biases):
    rows = torch.cat(list(weights))
    shift = torch.cat(list(biases)) if biases else 0
    return (x.unsqueeze(-2) * rows).sum(-1) + shift


@pytest.mark.parametrize("rows", [1, 128, 129])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_on_both_sides_of_the_edge(rows, with_bias):
    x, weights, biases = given(rows, 512, (1000, 20, 8))
    assert sum(w.numel() for w in weights) >= FEW[-1][0]
    tensors = [t.requires_grad_() for t in (x, *weights, *(biases if with_bias else []))]
    ours, wanted = (f(x, weights, biases if with_bias else None) for f in (merged_product, plain))
    assert_close(ours, wanted, rtol=1e-11, atol=1e-11)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), tensors) for y in (ours, wanted)), strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10)


def plain(x, weights, biases):
    return torch.cat(
        [x @ w.T + (b if biases else 0) for w, b in zip(weights, biases or weights, strict=True)], -1
    )


@pytest.mark.parametrize("shape", [(2,), (2, 3), (0,), (2, 0)])
def test_the_definition_in_every_shape(shape, monkeypatch):
    g = torch.Generator().manual_seed(1)
    x, weights = (
        torch.randn(*shape, 4, generator=g).double(),
        [torch.randn(m, 4, generator=g).double() for m in (3, 1)],
    )
    biases = [torch.randn(m, generator=g).double() for m in (3, 1)]
    for few in (FEW, ((0, 10**9),)):
        monkeypatch.setattr("onematrix.kernels.merged_product.FEW", few)
        assert_close(merged_product(x, weights, biases), literal(x, weights, biases), rtol=1e-12, atol=1e-12)
        assert_close(merged_product(x, weights, None), literal(x, weights, None), rtol=1e-12, atol=1e-12)
        for k, one in enumerate(weights):
            made = merged_product(x, [one], biases[k : k + 1])
            assert_close(made, literal(x, [one], biases[k : k + 1]), rtol=1e-12, atol=1e-12)
        free = [t.clone().requires_grad_() for t in (x, *weights, *biases)]
        assert gradgradcheck(lambda y, a, b, c, d: merged_product(y, [a, b], [c, d]), free)


def test_few_rows_of_large_matrices_copy_none(monkeypatch):
    calls = []
    monkeypatch.setattr("onematrix.kernels.merged_product.linear", lambda x, w, b: calls.append(w) or x @ w.T)
    x, weights, _ = given(128, 512, (1000, 28), torch.float32)
    merged_product(x, weights, None)
    assert [id(w) for w in calls] == [id(w) for w in weights]
    calls.clear()
    merged_product(torch.cat([x, x]), weights, None)
    assert [tuple(w.shape) for w in calls] == [(1028, 512)]


@pytest.mark.parametrize(
    ("heights", "spans"),
    [
        ((300, 20, 10), [(0, 300), (300, 330)]),
        ((20, 10, 300), [(0, 30), (30, 330)]),
        ((20, 300, 10, 5), [(0, 20), (20, 320), (320, 335)]),
        ((300, 64, 63), [(0, 300), (300, 364), (364, 427)]),
        ((3, 4), [(0, 7)]),
        ((300,), [(0, 300)]),
    ],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_groups_write_what_the_definition_says(heights, spans, with_bias):
    x, weights, biases = given(6, 512, heights)
    assert 64 * 512 == ALONE[0]
    groups = grouped(weights, biases if with_bias else None)
    assert [(group.start, group.stop) for group in groups] == spans
    out = torch.full((6, sum(heights)), torch.nan, dtype=torch.float64)
    for group in groups:
        group.write(x, out)
    assert_close(out, literal(x, weights, biases if with_bias else None), rtol=1e-12, atol=1e-12)


def test_a_frozen_program_puts_its_weights_together_once():
    program = examples(torch.Generator().manual_seed(0))["sru_14"]
    ours = Compiled(program, lower(program))
    joining = (merged_product, run_fed_elementwise_loop)
    assert any(v in joining for v in ours._emitted[False].constants.values() if callable(v))
    frozen = ours.freeze()
    assert not any(v in joining for v in frozen._emitted[False].constants.values() if callable(v))
