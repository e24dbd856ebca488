"""Convolution, recurrence and attention as the matrices of the literature, and where each claim ends."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

import onematrix as om
from onematrix.errors import ShapeError
from onematrix.networks.attention_matrix import attention_matrix, score_factors, score_tensor
from onematrix.networks.convolution_matrix import convolution_factors, toeplitz_frame
from onematrix.networks.recurrence_matrix import recurrence_inverse, recurrence_matrix

torch.set_num_threads(1)
GRID = list(itertools.product((1, 2, 3), (1, 2), (0, 1, 2), (1, 2)))


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def is_upper(matrix):
    return torch.equal(matrix, matrix.triu())


@pytest.mark.parametrize(("taps", "stride", "padding", "dilation"), GRID)
def test_convolution_in_one_dimension(taps, stride, padding, dilation):
    w, x = numbers(taps), numbers(7)
    factors = convolution_factors(w, [7], stride, padding, dilation)
    expected = functional.conv1d(x[None, None], w[None, None], None, stride, padding, dilation)[0, 0]
    torch.testing.assert_close(factors.matrix @ x, expected, rtol=0, atol=1e-14)
    assert is_upper(factors.toeplitz)
    assert not factors.toeplitz.triu((taps - 1) * dilation + 1).any()


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), ([1, 2], [2, 1], [2, 1])])
def test_convolution_in_two_dimensions(stride, padding, dilation):
    w, x = numbers(2, 3), numbers(5, 6)
    factors = convolution_factors(w, [5, 6], stride, padding, dilation)
    expected = functional.conv2d(x[None, None], w[None, None], None, stride, padding, dilation)[0, 0]
    torch.testing.assert_close(factors.matrix @ x.reshape(-1), expected.reshape(-1), rtol=0, atol=1e-14)
    assert is_upper(factors.toeplitz)


def test_transposed_convolution_is_the_transpose():
    w, y = numbers(3), numbers(4)
    matrix = convolution_factors(w, [7], 2, 1).matrix
    expected = functional.conv_transpose1d(y[None, None], w[None, None], None, 2, 1)[0, 0]
    torch.testing.assert_close(matrix.mT @ y, expected, rtol=0, atol=1e-14)


def test_products_on_the_frame_are_convolutions_of_kernels():
    w, v = numbers(2), numbers(3)
    both = functional.conv1d(w[None, None], v.flip(0)[None, None], padding=2)[0, 0]
    product = toeplitz_frame(w, [8], [1]) @ toeplitz_frame(v, [8], [1])
    torch.testing.assert_close(product, toeplitz_frame(both, [8], [1]), rtol=0, atol=1e-14)


def test_counter_example_padding_is_not_triangular():
    matrix = convolution_factors(numbers(3), [5], padding=1).matrix
    assert matrix.shape == (5, 5)
    assert not is_upper(matrix)
    assert not is_upper(matrix.mT)


def test_counter_example_causal_padding_is_lower_triangular():
    w, x = numbers(3), numbers(6)
    matrix = convolution_factors(w, [6], padding=2).matrix[:6]
    assert torch.equal(matrix, matrix.tril())
    expected = functional.conv1d(functional.pad(x, (2, 0))[None, None], w[None, None])[0, 0]
    torch.testing.assert_close(matrix @ x, expected, rtol=0, atol=1e-14)


def test_counter_example_a_stride_is_not_square_nor_toeplitz():
    matrix = convolution_factors(torch.tensor([1.0, 2.0]), [6], stride=2).matrix
    assert matrix.shape == (3, 6)
    assert matrix[0, 0] != matrix[1, 1]


def test_counter_example_two_same_convolutions_are_not_one():
    w, v = numbers(3), numbers(3) * 2
    twice = convolution_factors(w, [6], padding=1).matrix @ convolution_factors(v, [6], padding=1).matrix
    kernel = functional.conv1d(w[None, None], v.flip(0)[None, None], padding=2)[0, 0]
    once = convolution_factors(kernel, [6], padding=2).matrix
    different = (twice - once).abs() > 1e-12
    assert different.nonzero().tolist() == [[0, 0], [5, 5]]
    torch.testing.assert_close((twice - once)[0, 0], -w[0] * v[2])
    torch.testing.assert_close((twice - once)[5, 5], -w[2] * v[0])


def test_convolution_refuses():
    with pytest.raises(ShapeError, match=r"kernel that spans \[3\] does not fit the frame \[2\]"):
        convolution_factors(numbers(3), [2])
    with pytest.raises(
        ShapeError, match=r"1 or 2 dimensions were needed, got a kernel \(3,\) and sizes \(2, 2\)"
    ):
        convolution_factors(numbers(3), [2, 2])


def linear_rnn(weight, x):
    h, states = torch.zeros(len(weight), dtype=torch.float64), []
    for row in x:
        h = weight @ h + row
        states.append(h)
    return torch.cat(states)


@pytest.mark.parametrize("ticks", [1, 2, 6])
def test_recurrence(ticks):
    w, x = numbers(3, 3), numbers(ticks, 3)
    h = linear_rnn(w, x)
    matrix, inverse = recurrence_matrix(w, ticks), recurrence_inverse(w, ticks)
    torch.testing.assert_close(matrix @ h, x.reshape(-1), rtol=0, atol=1e-11)
    torch.testing.assert_close(inverse @ x.reshape(-1), h, rtol=0, atol=1e-11)
    torch.testing.assert_close(inverse @ matrix, torch.eye(3 * ticks).double(), rtol=0, atol=1e-11)
    blocks = matrix.reshape(ticks, 3, ticks, 3).permute(0, 2, 1, 3)
    for t, s in itertools.product(range(ticks), repeat=2):
        if t - s not in (0, 1):
            assert not blocks[t, s].any()


def test_recurrence_is_the_tanh_cell_only_without_its_tanh():
    """A nonlinear recurrence is no matrix of its input: it does not add up. With the identity it does."""
    cell = nn.RNN(2, 2, batch_first=True, bias=False).double()
    with torch.no_grad():
        cell.weight_ih_l0.copy_(torch.eye(2))
        a, b = numbers(1, 4, 2), numbers(1, 4, 2) * 3
        assert (cell(a)[0] + cell(b)[0] - cell(a + b)[0]).abs().max() > 0.1
        inverse = recurrence_inverse(cell.weight_hh_l0, 4)
        tiny = 1e-6 * a  # where tanh is its own argument
        torch.testing.assert_close(inverse @ tiny.reshape(-1), cell(tiny)[0].reshape(-1), rtol=1e-9, atol=0)


def test_fixed_point_takes_one_sweep_per_tick():
    w, x = numbers(2, 2), numbers(4, 2).reshape(-1)
    n, h = torch.eye(8).double() - recurrence_matrix(w, 4), torch.zeros(8).double()
    exact = torch.zeros(2).double()
    states = []
    for row in x.reshape(4, 2):
        exact = torch.tanh(w @ exact + row)
        states.append(exact)
    errors = []
    for _ in range(4):
        h = torch.tanh(n @ h + x)
        errors.append(float((h - torch.cat(states)).abs().max()))
    assert errors[3] < 1e-14
    assert errors[2] > 1e-4


def test_recurrence_refuses():
    with pytest.raises(ShapeError, match=r"square W and at least 1 tick were needed, got \(2, 3\) and 4"):
        recurrence_matrix(numbers(2, 3), 4)
    with pytest.raises(ShapeError, match=r"got \(2, 2\) and 0"):
        recurrence_inverse(numbers(2, 2), 0)


def split_attention(heads=2, d=6, t=5):
    module = nn.MultiheadAttention(d, heads, bias=False, batch_first=True).double()
    e = d // heads
    q, k, v = module.in_proj_weight.detach().reshape(3, heads, e, d)
    return (
        module,
        q,
        k,
        v,
        module.out_proj.weight.detach().reshape(d, heads, e).movedim(1, 0),
        numbers(1, t, d),
    )


@pytest.mark.parametrize("causal", [False, True])
def test_attention_for_given_weights(causal):
    torch.manual_seed(0)
    module, _, _, v, o, x = split_attention()
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    with torch.no_grad():
        y, p = module(x, x, x, attn_mask=mask, average_attn_weights=False)
    g = attention_matrix(p[0], v, o)
    torch.testing.assert_close(g @ x.reshape(-1), y.reshape(-1), rtol=0, atol=1e-13)
    upper = g.reshape(5, 6, 5, 6).permute(0, 2, 1, 3)[0, 1]
    assert bool(upper.any()) != causal


def test_scores_are_a_third_order_tensor_with_a_cp_form():
    torch.manual_seed(0)
    module, q, k, _, _, x = split_attention()
    m = score_tensor(q, k)
    scores = torch.einsum("ia,hab,jb->hij", x[0], m, x[0])
    with torch.no_grad():
        p = module(x, x, x, average_attn_weights=False)[1][0]
    torch.testing.assert_close(torch.softmax(scores, -1), p, rtol=0, atol=1e-13)
    factors = score_factors(q, k)
    assert factors.query.shape == (6, 6)
    torch.testing.assert_close(factors.tensor(), m, rtol=0, atol=1e-13)


def test_counter_example_the_matrix_of_attention_depends_on_its_input():
    torch.manual_seed(0)
    module, _, _, v, o, x = split_attention()
    other = 3 * numbers(2, 5, 6)[1:]
    with torch.no_grad():
        p = module(x, x, x, average_attn_weights=False)[1][0]
        y = module(other, other, other)[0]
    assert (attention_matrix(p, v, o) @ other.reshape(-1) - y.reshape(-1)).abs().max() > 0.01


def test_counter_example_two_sets_of_weights_have_one_score_tensor():
    _, q, k, *_ = split_attention()
    g = numbers(3, 3)
    other = score_tensor(g @ q, torch.linalg.inv(g).mT @ k)
    torch.testing.assert_close(other, score_tensor(q, k), rtol=0, atol=1e-12)


def test_attention_refuses():
    with pytest.raises(ShapeError, match=r"W_q and W_k must share heads.*\(2, 3, 6\) and \(1, 3, 6\)"):
        score_tensor(numbers(2, 3, 6), numbers(1, 3, 6))
    with pytest.raises(ShapeError, match=r"W_q and W_k must share heads.*\(2, 3, 6\) and \(2, 2, 6\)"):
        score_factors(numbers(2, 3, 6), numbers(2, 2, 6))
    with pytest.raises(ShapeError, match=r"weights \(2, T, S\) were needed, got \(1, 4, 4\)"):
        attention_matrix(numbers(1, 4, 4), numbers(2, 3, 6), numbers(2, 6, 3))


def test_attention_without_its_softmax_is_of_order_three():
    _, q, k, v, o, x = split_attention()

    def bare(x):
        scores = torch.einsum("ia,hab,jb->hij", x, score_tensor(q, k), x)
        return attention_matrix(scores, v, o) @ x.reshape(-1)

    torch.testing.assert_close(bare(2 * x[0]), 8 * bare(x[0]))


def test_circular_padding_makes_a_circulant():
    """Each column is the one before it, turned one step down; with zeros around it is not."""
    program = om.convert(
        nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"), torch.zeros(1, 1, 6), free={}
    )
    matrix = program.to_dense()
    assert torch.equal(matrix[:, 1:], matrix[:, :-1].roll(1, 0))
    zeros = convolution_factors(numbers(3), [6], padding=1).matrix
    assert not torch.equal(zeros[:, 1:], zeros[:, :-1].roll(1, 0))
