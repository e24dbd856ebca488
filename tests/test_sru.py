"""The SRU as one matrix: exact in its corrected form, wrong as printed, with the counts of the literature."""

import pytest
import torch
from torch.testing import assert_close

from onematrix.errors import ProgramError
from onematrix.experiments.sru_check import check_sru, sru_equations, sru_weights
from onematrix.networks import sru
from onematrix.networks.examples import in_double
from onematrix.networks.sru import FORMS, fourteen_matrices
from onematrix.programs.flow import depth, live_rows
from onematrix.programs.interpreter import interpret
from onematrix.programs.schedule import Seq, Step

N = 8


@pytest.fixture
def program():
    return in_double(sru(N, generator=torch.Generator().manual_seed(0)))


def matrices(program):
    """G, H in float64 over the 14 slots, and the slots' places."""
    G, H = program.steps()[2].matrices
    names = [name for name in G.parts if name not in ("one", "inputs", "hidden", "c0")]
    place = {name: slice(i * N, i * N + N) for i, name in enumerate(names)}
    return G.to_dense(names, names), H.to_dense(names, names), place


def apply(G, H, place, state, use_h):
    """σ(G x) ∘ H x, written with the whole 14 n × 14 n matrices."""
    total = G @ state
    for name in ("f", "r"):
        total[place[name]] = torch.sigmoid(total[place[name]])
    return total * (H @ state) if use_h else total


def one_tick(program, x, c, slots):
    """G, G, F, F, F, F from a state given slot by slot."""
    G, H, place = matrices(program)
    state = torch.zeros(14 * N, dtype=torch.float64)
    for name, value in slots.items():
        state[place[name]] = value
    state[place["x"]] = x
    for k in range(6):
        state = apply(G, H, place, state, use_h=k >= 2)
    expected_h, expected_c = sru_equations(x[None, None], c[None], sru_weights(program))
    return {n: state[s] for n, s in place.items()}, expected_h[0, 0], expected_c[0]


def vectors(seed=3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, generator=g, dtype=torch.float64), torch.randn(N, generator=g, dtype=torch.float64)


def corrected(c):
    ones, half = torch.ones(N, dtype=torch.float64), c / 2
    return {"c_prev": c, "ones": ones, "f": half, "not_f": half, "c1": half, "c2": half, "c": c}


def test_the_corrected_start_gives_the_state_in_slot_2_and_garbage_in_slot_9(program):
    x, c = vectors()
    end, h, c_new = one_tick(program, x, c, corrected(c))
    assert_close(end["h"], h, atol=1e-14, rtol=0)
    assert_close(end["c_prev"], c_new, atol=1e-14, rtol=0)
    assert (end["c"] - c_new).abs().max() > 0.1


def test_the_printed_start_with_zero_in_slot_2_gives_another_hidden_state(program):
    x, c = vectors()
    end, h, c_new = one_tick(program, x, c, corrected(c) | {"c_prev": 0 * c})
    assert (end["h"] - h).abs().max() > 0.01
    assert_close(end["c_prev"], c_new, atol=1e-14, rtol=0)


def test_any_split_of_the_state_over_the_slots_works(program):
    x, c = vectors()
    slots = corrected(c) | {"f": 0.9 * c, "not_f": 0.1 * c, "c1": 0.3 * c, "c2": 0.7 * c}
    end, h, _ = one_tick(program, x, c, slots)
    assert_close(end["h"], h, atol=1e-14, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ticks", [0, 1, 200])
def test_every_form_equals_the_equations_outputs_and_gradients(form, ticks):
    g = torch.Generator().manual_seed(1)
    program = in_double(sru(N, form, generator=g))
    for t in program.parameters.values():
        t.requires_grad_()
    x = torch.randn(2, ticks, N, generator=g, dtype=torch.float64, requires_grad=True)
    c = torch.randn(2, N, generator=g, dtype=torch.float64, requires_grad=True)
    if ticks == 0:
        hidden, state = interpret(program, x, c)
        assert hidden.shape == (2, 0, N)
        assert_close(state, c)
        return
    expected = sru_equations(x, c, sru_weights(program))
    free = [x, c, *program.parameters.values()]
    wanted = torch.autograd.grad(expected[0].sin().sum() + expected[1].sum(), free, retain_graph=True)
    for literal in (True, False):
        outputs = interpret(program, x, c, literal=literal)
        for ours, theirs in zip(outputs, expected, strict=True):
            assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
        grads = torch.autograd.grad(outputs[0].sin().sum() + outputs[1].sum(), free)
        for a, b in zip(grads, wanted, strict=True):
            assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_the_check_of_the_demo_is_exact():
    error, ticks = check_sru()
    assert error < 1e-12
    assert ticks == 200


@pytest.mark.parametrize(("form", "rounds"), [("14'", 6), ("10", 4)])
def test_the_changed_forms_are_powers_from_any_content(form, rounds):
    """F^K from garbage is exact, and F^(K+1) = F^K bit for bit."""
    program = in_double(sru(N, form, generator=torch.Generator().manual_seed(2)))
    step = program.steps()[0]
    assert depth(step, ones=["ones"]) == rounds
    parts = {row.part for row in step.rows}
    x, c = vectors()
    held = {"x": x[None], "c_prev": c[None], "ones": torch.ones(1, N, dtype=torch.float64)}
    outputs = []
    for seed, power in ((5, rounds), (6, rounds), (5, rounds + 1)):
        g = torch.Generator().manual_seed(seed)
        state = {
            name: 10 * torch.randn(1, N, generator=g, dtype=torch.float64) for name in sorted(parts)
        } | held
        from onematrix.programs.program import Program

        names = sorted(parts)
        powered = Program(Seq(*[step] * power), names, names)
        outputs.append(torch.cat(interpret(powered, *(state[name] for name in names))))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    expected, c_new = sru_equations(x[None, None], c[None], sru_weights(program))
    end = dict(zip(sorted(parts), outputs[0], strict=True))
    assert_close(end["h"], expected[0, 0], atol=1e-14, rtol=0)
    assert_close(end["c"], c_new[0], atol=1e-14, rtol=0)


@pytest.mark.parametrize("n", [4, 9])
def test_the_blocks_and_non_zeros_are_those_of_the_report(n):
    w = sru_blocks(n)
    G, H = fourteen_matrices(n, w)
    assert (len(G), len(H)) == (22, 14)
    kinds = [block.structure.name for _, block in G]
    assert (kinds.count("dense"), kinds.count("diagonal"), len(kinds) - 7) == (3, 4, 15)
    assert sum(block.structure.nonzeros() for _, block in G) == 3 * n * n + 19 * n
    assert sum(block.structure.nonzeros() for _, block in H) == 14 * n
    names = [name for name in G.parts if name != "one"]
    assert int((G.to_dense(names, names) != 0).sum()) == 3 * n * n + 19 * n


def sru_blocks(n):
    program = sru(n)
    from onematrix.structures.dense import Dense
    from onematrix.structures.diagonal import Diagonal

    made = sru_weights(program)
    return {k: Dense(t) if t.dim() == 2 else Diagonal(t) for k, t in made.items()}


def test_the_ten_part_form_has_sixteen_and_thirteen_blocks():
    G, H = sru(N, "10").steps()[0].matrices
    assert (len(G), len(H)) == (16, 13)
    assert sum(block.structure.nonzeros() for _, block in G) == 3 * N * N + 13 * N


def test_what_is_live_is_the_table_of_the_specification(program):
    """Outputs c_prev and h: blocks of G and H per step, and the dense products among them."""
    body = program.schedule.body
    assert isinstance(body, Seq)
    steps, _ = live_rows(body, {"c_prev", "h"})
    blocks = [
        [sum(len(row.sums[i]) for row in rows if len(row.sums) > i) for i in (0, 1)] for _, rows in steps
    ]
    assert blocks == [[10, 0], [11, 0], [14, 9], [11, 7], [5, 4], [3, 2]]
    dense = [
        sum(b.structure.name == "dense" for row in rows for b in (block for s in row.sums for _, block in s))
        for _, rows in steps
    ]
    assert dense == [1, 2, 3, 1, 0, 0]
    assert all(isinstance(step, Step) for step, _ in steps)


def test_an_unknown_form_is_named():
    with pytest.raises(ProgramError, match="sru form '13' is unknown; there are: 14, 14', 10"):
        sru(4, "13")
