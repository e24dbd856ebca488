"""Recurrence solvers: every one equals the loop over the ticks and its autograd, in float64."""

import pytest
import torch
from torch.testing import assert_close

from onematrix.errors import OneMatrixError, ShapeError
from onematrix.experiments.unified.solvers import (
    ACTIVATIONS,
    LINEAR,
    SOLVERS,
    Recurrence,
    solve,
    solve_by_newton,
    solve_by_scan,
    solve_by_sweeps,
    solve_diagonal,
    substitute_back,
)

REFERENCE = {
    "identity": lambda a: a,
    "tanh": torch.tanh,
    "relu": lambda a: a.clamp(min=0),
    "sigmoid": lambda a: 1 / (1 + (-a).exp()),
}
CASES = [
    (solver, activation) for solver in SOLVERS for activation in ACTIVATIONS
    if solver != "scan" or activation == "identity"
]  # fmt: skip
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def numbers(ticks=7, batch=3, width=4, own=False, seed=0, scale=0.7):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    weight = normal(*((ticks,) if own else ()), width, width) * scale
    tensors = weight, normal(ticks, batch, width), normal(batch, width)
    return [tensor.requires_grad_() for tensor in tensors]


def loop(weight, drive, init, f):
    """The recurrence as it is written: one sample, one tick after the other."""
    samples = []
    for b in range(drive.shape[1]):
        h, states = init[b], []
        for t in range(drive.shape[0]):
            h = f((weight[t] if weight.dim() == 3 else weight).mv(h) + drive[t, b])
            states.append(h)
        samples.append(torch.stack(states))
    return torch.stack(samples, 1)


def gradients(outputs, tensors):
    seed = torch.linspace(-1, 2, outputs.numel(), dtype=torch.float64).view(outputs.shape)
    return torch.autograd.grad((outputs * seed).sum(), tensors)


@pytest.mark.parametrize("own", [False, True], ids=["one weight", "weight per tick"])
@pytest.mark.parametrize(("solver", "activation"), CASES)
def test_every_solver_is_the_loop_and_its_autograd(solver, activation, own):
    tensors = numbers(own=own)
    needed = loop(*tensors, REFERENCE[activation])
    got = solve(Recurrence(*tensors, activation), solver)
    assert_close(got, needed, **EXACT)
    assert_close(gradients(got, tensors), gradients(needed, tensors), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_steps_of_a_solver_are_differentiable_too(solver):
    tensors = numbers()
    activation = "identity" if solver == "scan" else "tanh"
    got = SOLVERS[solver](Recurrence(*tensors, activation))
    needed = loop(*tensors, REFERENCE[activation])
    assert_close(gradients(got, tensors), gradients(needed, tensors), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("ticks", [1, 2, 5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_short_recurrences(solver, ticks):
    tensors = numbers(ticks=ticks, batch=1, width=1)
    got = solve(Recurrence(*tensors, "identity"), solver)
    needed = loop(*tensors, REFERENCE["identity"])
    assert_close(got, needed, **EXACT)
    assert_close(gradients(got, tensors), gradients(needed, tensors), **EXACT)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_ticks_give_no_states_and_no_gradient(solver):
    tensors = numbers(ticks=0)
    got = solve(Recurrence(*tensors, "identity"), solver)
    assert got.shape == (0, 3, 4)
    weight, _, init = torch.autograd.grad(got.sum(), tensors)
    assert not weight.any()
    assert not init.any()


def test_sweep_k_makes_k_ticks_final_and_one_sweep_fewer_is_not_enough():
    tensors = numbers(scale=1.0)
    r, needed = Recurrence(*tensors), loop(*tensors, torch.tanh)
    for k in range(8):
        got = solve_by_sweeps(r, sweeps=k, start=torch.full_like(r.drive, 9.0))
        assert_close(got[:k], needed[:k], **EXACT)
    assert (solve_by_sweeps(r, sweeps=6)[6] - needed[6]).abs().max() > 1e-3


@pytest.mark.parametrize("linear", LINEAR)
def test_newton_is_quadratic_and_ends_by_itself(linear):
    tensors = numbers(ticks=40, width=8, scale=0.25)
    needed, errors = loop(*tensors, torch.tanh), []

    def note(h):
        errors.append(float((h - needed).abs().max().detach()))

    solve_by_newton(Recurrence(*tensors), linear=linear, seen=note)
    assert len(errors) <= 8  # of 40 that are enough in any case
    assert errors[-1] < 1e-13
    assert min(errors[:2]) > 1e-6


def test_newton_is_exact_after_as_many_steps_as_ticks_where_it_wanders():
    tensors = numbers(ticks=9, width=5, scale=3.0)
    needed, got = loop(*tensors, torch.tanh), []
    solve_by_newton(Recurrence(*tensors), at_most=9, tolerance=-1.0, seen=got.append)
    assert len(got) == 9
    assert_close(got[-1], needed, rtol=1e-9, atol=1e-9)
    assert (got[1] - needed).abs().max() > 1e-3


def test_linear_recurrences_are_the_inverse_of_a_triangular_matrix():
    weight, drive, init = numbers(ticks=5, width=3)
    shift = torch.diag(torch.ones(4, dtype=torch.float64), -1)
    n = torch.kron(shift, weight.detach())
    right = drive.detach().clone()
    right[0] += init.detach() @ weight.detach().T
    stacked = torch.linalg.solve(torch.eye(15) - n, right.transpose(1, 2).reshape(15, 3))
    got = solve_by_scan(Recurrence(weight, drive, init, "identity"))
    assert_close(got.detach(), stacked.view(5, 3, 3).transpose(1, 2), **EXACT)


def test_back_substitution_is_the_transposed_solve():
    weights, drive, _ = (t.detach() for t in numbers(ticks=4, width=3, batch=2, own=True))
    slope = torch.rand(4, 2, 3, dtype=torch.float64)
    got = substitute_back(weights, slope, drive)
    for b in range(2):
        n = torch.zeros(12, 12, dtype=torch.float64)
        for t in range(1, 4):
            n[3 * t : 3 * t + 3, 3 * t - 3 : 3 * t] = slope[t, b, :, None] * weights[t]
        needed = torch.linalg.solve((torch.eye(12) - n).T, drive[:, b].flatten())
        assert_close(got[:, b].flatten(), needed, **EXACT)


def test_a_diagonal_recurrence_is_a_scan():
    _, drive, init = numbers(ticks=9)
    decay = torch.rand(9, 3, 4, dtype=torch.float64, requires_grad=True)
    tensors = decay, drive, init
    got = solve_diagonal(*tensors)
    state, needed = init, []
    for t in range(9):
        state = decay[t] * state + drive[t]
        needed.append(state)
    needed = torch.stack(needed)
    assert_close(got, needed, **EXACT)
    assert_close(gradients(got, tensors), gradients(needed, tensors), **EXACT)


def test_what_does_not_fit_is_refused():
    weight, drive, init = numbers()
    with pytest.raises(ShapeError, match=r"\(T, B, H\) .* got \[\(4, 4\), \(7, 3, 4\), \(2, 4\)\]"):
        Recurrence(weight, drive, init[:2])
    with pytest.raises(ShapeError, match=r"got \[\(4, 3\)"):
        Recurrence(weight[:, :3], drive, init)
    with pytest.raises(ShapeError, match=r"\(7, 3\)"):
        Recurrence(weight, drive[..., 0], init)
    with pytest.raises(OneMatrixError, match="identity, tanh, relu, sigmoid was needed, got 'swish'"):
        Recurrence(weight, drive, init, "swish")
    with pytest.raises(OneMatrixError, match=r"'identity'.* got 'tanh'; use levels"):
        solve(Recurrence(weight, drive, init), "scan")
    with pytest.raises(OneMatrixError, match=r"sweeps, levels, newton, .* got 'guess'"):
        solve(Recurrence(weight, drive, init), "guess")
