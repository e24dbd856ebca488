"""Every builder equals torch's module, or its equations, in float64: outputs and gradients."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from onematrix.errors import FitError, ProgramError, ShapeError
from onematrix.networks import (
    attention,
    bidirectional,
    dense_skips,
    elman,
    encoder_layer,
    fixed_point,
    gru,
    inn,
    lstm,
    mlp,
    residual,
    runge_kutta,
)
from onematrix.networks.attention import attention_weights, encoder_weights
from onematrix.networks.recurrent import bidirectional_weights, elman_weights, gru_weights, lstm_weights
from onematrix.programs.interpreter import interpret
from onematrix.structures.dense import Dense

EXACT = {"atol": 1e-12, "rtol": 1e-12}
LENGTHS = (1, 7, 200)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def compare(program, inputs, expected, parameters):
    """Outputs equal, and the gradients of a random functional with respect to inputs and parameters.

    parameters: pairs (tensors of the program that together are one torch parameter, how to join, parameter).
    """
    for literal in (True, False):
        outputs = interpret(program, *inputs, literal=literal)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for ours, theirs in zip(outputs, expected, strict=True):
            assert_close(ours, theirs, **EXACT)
    weights = [normal(*e.shape) for e in expected]
    theirs = sum((w * e).sum() for w, e in zip(weights, expected, strict=True))
    ours = sum((w * o).sum() for w, o in zip(weights, outputs, strict=True))
    tensors = [t for group, _, _ in parameters for t in group]
    learned = [p for _, _, p in parameters]
    free = [x for x in inputs if x.requires_grad]
    grads = torch.autograd.grad(ours, [*free, *tensors], allow_unused=True)
    wanted = torch.autograd.grad(theirs, [*free, *learned], allow_unused=True)
    for a, b in zip(grads[: len(free)], wanted[: len(free)], strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-10)
    rest = iter(grads[len(free) :])
    for (group, join, _), b in zip(parameters, wanted[len(free) :], strict=True):
        assert_close(join([next(rest) for _ in group]), b, rtol=1e-9, atol=1e-10)


def leaf(structures):
    """The tensors of the structures, made to collect gradients; the structures are changed in place."""
    tensors = []
    for s in structures:
        for name, value in vars(s).items():
            if isinstance(value, torch.Tensor):
                fresh = value.detach().requires_grad_()
                object.__setattr__(s, name, fresh)
                tensors.append(fresh)
    return tensors


def rows(grads):
    return torch.cat(grads, dim=0)


def bias(grads):
    return torch.cat([g.reshape(-1) for g in grads])


@pytest.mark.parametrize("ticks", LENGTHS)
@pytest.mark.parametrize("reverse", [False, True])
def test_elman_is_nn_rnn(ticks, reverse):
    m = nn.RNN(3, 5, batch_first=True).double()
    w = elman_weights(m)
    W, U, b = (leaf([w[k]]) for k in ("W", "U", "b"))
    program = elman(3, 5, w, reverse=reverse)
    x, h = normal(2, ticks, 3).requires_grad_(), normal(2, 5).requires_grad_()
    out, last = m(x.flip(1) if reverse else x, h[None])
    expected = (out.flip(1) if reverse else out, last[0])
    parameters = [(W, rows, m.weight_ih_l0), (U, rows, m.weight_hh_l0), (b, bias, m.bias_ih_l0)]
    compare(program, [x, h], expected, parameters)


@pytest.mark.parametrize("ticks", LENGTHS)
def test_lstm_is_nn_lstm(ticks):
    m = nn.LSTM(3, 4, batch_first=True).double()
    w = lstm_weights(m)
    W, U, b = ([t for k in "ifgo" for t in leaf([w[f"{kind}_{k}"]])] for kind in "WUb")
    x, h, c = (
        normal(2, ticks, 3).requires_grad_(),
        normal(2, 4).requires_grad_(),
        normal(2, 4).requires_grad_(),
    )
    out, (h_last, c_last) = m(x, (h[None], c[None]))
    parameters = [(W, rows, m.weight_ih_l0), (U, rows, m.weight_hh_l0), (b, bias, m.bias_hh_l0)]
    compare(lstm(3, 4, w), [x, h, c], (out, h_last[0], c_last[0]), parameters)


@pytest.mark.parametrize("ticks", LENGTHS)
def test_gru_is_nn_gru(ticks):
    m = nn.GRU(3, 4, batch_first=True).double()
    w = gru_weights(m)
    W, U = ([t for k in "rzn" for t in leaf([w[f"{kind}_{k}"]])] for kind in "WU")
    b = [t for k in ("b_r", "b_z", "c_n") for t in leaf([w[k]])]
    x, h = normal(2, ticks, 3).requires_grad_(), normal(2, 4).requires_grad_()
    out, last = m(x, h[None])
    parameters = [(W, rows, m.weight_ih_l0), (U, rows, m.weight_hh_l0), (b, bias, m.bias_hh_l0)]
    compare(gru(3, 4, w), [x, h], (out, last[0]), parameters)


def test_bidirectional_is_nn_rnn_of_two_layers():
    m = nn.RNN(3, 4, num_layers=2, bidirectional=True, batch_first=True).double()
    w = bidirectional_weights(m)
    top = [leaf([w[f"W{i}_2_b"]])[0] for i in range(2)]
    low = leaf([w["U_1_f"]])
    x = normal(2, 9, 3).requires_grad_()
    out, _ = m(x)

    def columns(grads):
        return torch.cat(grads, dim=1)

    parameters = [(top, columns, m.weight_ih_l1_reverse), (low, rows, m.weight_hh_l0)]
    compare(bidirectional(3, 4, 2, w), [x], out.split(4, dim=-1), parameters)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_nn_multihead_attention(masked):
    m = nn.MultiheadAttention(6, 2, batch_first=True).double()
    nn.init.normal_(m.in_proj_bias)
    nn.init.normal_(m.out_proj.bias)
    w = attention_weights(m)
    W = [t for k in "qkv" for t in leaf([w[f"W_{k}"]])]
    b = [t for k in "qkv" for t in leaf([w[f"b_{k}"]])]
    x = normal(2, 5, 6).requires_grad_()
    causal = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1) if masked else None
    expected, _ = m(x, x, x, attn_mask=causal, need_weights=False)
    inputs = [x, causal.expand(2, 2, 5, 5)] if masked else [x]
    compare(
        attention(6, 2, w, mask=masked),
        inputs,
        (expected,),
        [(W, rows, m.in_proj_weight), (b, bias, m.in_proj_bias)],
    )


def test_a_query_with_every_key_hidden_is_nan_as_in_the_definition():
    program = attention(4, 2, mask=True)
    mask = torch.zeros(1, 2, 3, 3)
    mask[:, :, 1] = -torch.inf
    out = interpret(program, torch.randn(1, 3, 4), mask)
    assert out[:, 1].isnan().all()
    assert out[:, [0, 2]].isfinite().all()


def test_encoder_layer_is_torchs_in_evaluation():
    m = nn.TransformerEncoderLayer(6, 2, 10, batch_first=True).double().eval()
    for p in m.parameters():
        nn.init.normal_(p, std=0.5)
    w = encoder_weights(m)
    x = normal(2, 4, 6).requires_grad_()
    parameters = [
        (leaf([w["W_1"]]), rows, m.linear1.weight),
        (leaf([w["g_2"]]), rows, m.norm2.weight),
        (leaf([w["b_2"]]), bias, m.linear2.bias),
    ]
    m.train()
    m.dropout = m.dropout1 = m.dropout2 = nn.Identity()
    m.self_attn.dropout = 0.0
    compare(encoder_layer(6, 2, 10, w), [x], (m(x),), parameters)


def test_mlp_residual_and_dense_skips_are_their_equations():
    A, B, C = normal(5, 4), normal(3, 5), normal(3, 4)
    x = normal(2, 4)
    program = mlp([4, 5, 3], [Dense(A), Dense(B)], [normal(5), None])
    b = program.parameters["blocks.x1.one.vector"].reshape(-1)
    assert_close(interpret(program, x), torch.relu(x @ A.T + b) @ B.T, **EXACT)
    V = normal(4, 5)
    assert_close(
        interpret(residual(4, 1, 5, [(Dense(A), Dense(V))]), x), x + torch.relu(x @ A.T) @ V.T, **EXACT
    )
    skips = dense_skips([4, 5, 3], {(1, 0): Dense(A), (2, 0): Dense(C), (2, 1): Dense(B)})
    assert_close(interpret(skips, x), torch.relu(x @ C.T + torch.relu(x @ A.T) @ B.T), **EXACT)


def test_runge_kutta_is_the_classical_method_over_several_steps():
    W, x, h = normal(3, 3) * 0.5, normal(2, 3).requires_grad_(), 0.1
    program = runge_kutta(3, steps=4, h=h, weights={"W": Dense(W), "b": Dense(torch.zeros(3, 1).double())})

    def f(z):
        return torch.tanh(z @ W.T)

    z = x
    for _ in range(4):
        k1 = f(z)
        k2 = f(z + h / 2 * k1)
        k3 = f(z + h / 2 * k2)
        k4 = f(z + h * k3)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    compare(program, [x], (z,), [])


def test_runge_kutta_has_six_parts_and_thirteen_blocks():
    """Hold, z from z', four k from z', three k from k, four z from k."""
    program = runge_kutta(3)
    step = program.steps()[0]
    assert len(step.rows) == 6
    assert sum(column != "one" for row in step.rows for blocks in row.sums for column, _ in blocks) == 13
    with pytest.raises(ShapeError, match=r"stage i needs i coefficients, got \[0, 2\] and 2"):
        runge_kutta(3, tableau=(((), (1, 1)), (1, 1)))


def test_the_fixed_point_solves_its_equation_and_each_sample_alone():
    g = torch.Generator().manual_seed(1)
    program = fixed_point(3, 4, generator=g, tolerance=1e-7)
    W, U = (program.parameters[f"blocks.z.{c}.weight"] for c in "zx")
    x = torch.randn(5, 3, generator=g)
    z = interpret(program, x)
    assert_close(z, torch.tanh(z @ W.T + x @ U.T), atol=1e-6, rtol=0)
    alone = torch.cat([interpret(program, x[i : i + 1]) for i in range(5)])
    assert_close(z, alone, atol=1e-6, rtol=0)


def literal_inn(program, images, after_hold, per_block=False):
    """z ← σ(G z + b), every row from the old state, T + L ticks; blocks by to_dense."""
    names = ["x", "h1", "h2", "y"]
    dense = {(r, c): b.structure.to_dense(torch.float64) for r, c, b in program.blocks()}
    batch, ticks, _ = images.shape
    state = {n: torch.zeros(batch, program.parts[n].shape[0], dtype=torch.float64) for n in names}
    for t in range(ticks + 3):
        blank = torch.zeros_like(images[:, 0])
        state["x"] = images[:, t] if t < ticks else images[:, -1] if after_hold else blank
        new = {}
        for row in names[1:]:
            terms = []
            for column in names:
                if per_block:
                    part = f"{row}_from_{column}"
                    z = state[column] @ dense[part, column].T + dense[part, "one"].T
                    last = (row, column) == ("y", "h2")
                    terms.append(torch.softmax(z, -1) if last else torch.relu(z))
                else:
                    terms.append(state[column] @ dense[row, column].T)
            total = sum(terms)
            if not per_block:
                total = total + dense[row, "one"].T
                total = torch.relu(total) if row != "y" else total
            new[row] = total
        state |= new
    return state["y"]


@pytest.mark.parametrize("structure", ["dense", "low_rank", "csr", "masked"])
@pytest.mark.parametrize("after", ["hold", "zero"])
def test_inn_is_its_equations(structure, after):
    from onematrix.networks.examples import in_double

    program = in_double(inn([6, 5, 4, 3], structure, 0.5 if structure != "dense" else 1.0, after=after))
    for t in program.parameters.values():
        if t.is_floating_point():
            t.copy_(torch.randn_like(t))
    images = normal(2, 5, 6).requires_grad_()
    compare(program, [images], (literal_inn(program, images, after == "hold"),), [])


def test_inn_per_block_activates_every_product_before_adding():
    from onematrix.networks.examples import in_double

    program = in_double(inn([6, 5, 4, 3], per_block=True))
    for t in program.parameters.values():
        t.copy_(torch.randn_like(t) * 0.3)
    images = normal(2, 4, 6).requires_grad_()
    expected = literal_inn(program, images, True, per_block=True)
    compare(program, [images], (expected,), [])
    rows_first = literal_inn(in_double(inn([6, 5, 4, 3])), images, True)
    assert not torch.allclose(rows_first, expected)


def test_bad_arguments_are_named():
    with pytest.raises(ShapeError, match=r"at least two widths were needed, got \[4\]"):
        mlp([4])
    with pytest.raises(ShapeError, match=r"\[inputs, hidden …, outputs\] was needed, got \[4, 3\]"):
        inn([4, 3])
    with pytest.raises(FitError, match="no structure is called 'fourier'"):
        inn([4, 3, 2], "fourier")
    with pytest.raises(ShapeError, match="4 heads do not divide width 6"):
        attention(6, 4)


def test_sequences_of_no_ticks_keep_the_state():
    for make, states in ((elman, 1), (gru, 1), (lstm, 2)):
        program = make(3, 4)
        state = [torch.randn(2, 4) for _ in range(states)]
        hidden, *last = interpret(program, torch.zeros(2, 0, 3), *state)
        assert hidden.shape == (2, 0, 4)
        for a, b in zip(last, state, strict=True):
            assert_close(a, b)


def test_unknown_activation_is_named():
    with pytest.raises(ProgramError, match="activation 'swoosh' is unknown"):
        mlp([2, 3, 2], activation="swoosh")


@pytest.mark.parametrize("build", [lambda n: mlp([2] * (n + 1)), lambda n: residual(2, n)])
def test_a_step_of_a_deep_network_holds_its_own_parts_alone(build):
    widest = max(len(step.matrices[0].parts) for step in build(40).schedule.body)
    assert widest <= 4, "of all parts, building would take the square of the number of layers"
