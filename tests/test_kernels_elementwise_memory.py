"""What compiled elementwise recurrences hold in memory, and that outputs which share it are right."""

import pytest
import torch

from onematrix.compiler.form import Form
from onematrix.compiler.module import Compiled
from onematrix.compiler.pipeline import lower
from onematrix.experiments.sru_check import sru_equations, sru_weights
from onematrix.kernels.elementwise_code import ElementwiseLoop
from onematrix.kernels.elementwise_loop import run_elementwise_loop
from onematrix.networks import sru
from onematrix.records.memory import peak_bytes
from recurrence_cases import KERNELS, SRU, flat, gradients, literal, tensors

# c1 ← c1 + u, c2 ← c2 c1: outputs are the old c1 twice, the old c2, and the new c1
TWICE = ElementwiseLoop(1, 0, 2, (("add", 0, 1), ("mul", 1, 2)), outputs=(1, 1, 2, 3), carry=(3, 4))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("loop", [SRU, TWICE], ids=["sru", "twice"])
@pytest.mark.parametrize("sizes", [(5, 3, 4), (1, 2, 3), (0, 2, 3), (4, 1, 2)])
def test_outputs_that_share_memory_are_right(sizes, loop, reverse, kernel):
    given = tensors(loop, sizes)
    run = {"reverse": reverse, "overlap": True, "kernel": kernel}
    if not sizes[0]:
        outputs, final = run_elementwise_loop(loop, *given, **run)
        assert [o.shape for o in outputs] == [sizes] * len(loop.outputs)
        return torch.testing.assert_close(final, given[2])
    expected = flat(literal(loop, *given, reverse=reverse))
    ours = flat(run_elementwise_loop(loop, *given, **run))
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, flat(given)), gradients(expected, flat(given)))
    with torch.no_grad():
        torch.testing.assert_close(flat(run_elementwise_loop(loop, *given, **run)), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_valid_leaves_out_of_an_old_value_is_zero_though_memory_might_be_shared(kernel):
    given, valid = tensors(SRU), torch.arange(5)[:, None] < torch.tensor([5, 2, 0])
    ours = run_elementwise_loop(SRU, *given, valid=valid, overlap=True, kernel=kernel)
    torch.testing.assert_close(flat(ours), flat(literal(SRU, *given, valid=valid)))


def test_an_old_value_and_a_new_one_are_one_memory_where_they_may_be():
    pytest.importorskip("numba")
    given = tensors(SRU, (6, 2, 3))
    for overlap in (False, True):
        (new, old), _ = run_elementwise_loop(SRU, *given, overlap=overlap, kernel="numba")
        shared = new.untyped_storage().data_ptr() == old.untyped_storage().data_ptr()
        assert shared == overlap
        loss = (old * given[0][0]).sum()
        if overlap:  # `old` is kept for the gradient
            new.detach().zero_()
            with pytest.raises(RuntimeError, match="another view of its base has been modified inplace"):
                loss.backward()


def test_gradients_take_memory_for_what_is_wanted_alone_and_lie_as_their_series():
    """In numbers (T, B, n): the loop's gradients are those of two series, or of one; a row or two beside."""
    pytest.importorskip("numba")
    ticks, batch, n = sizes = (64, 2, 32)
    (u, w), vectors, init = tensors(SRU, sizes, dtype=torch.float32)
    lying = u.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    unit = ticks * batch * n * 4
    for series, leaves in (((u, w), [u, w]), ((u, w.detach()), [u]), ((lying, w.detach()), [lying])):
        given = series, [v.detach() for v in vectors], [c.detach() for c in init]
        new = run_elementwise_loop(SRU, *given, kernel="numba")[0][0]
        grad = torch.ones_like(new)

        def backward(new=new, leaves=leaves, grad=grad):
            return torch.autograd.grad(new, leaves, grad, retain_graph=True)

        assert len(leaves) <= peak_bytes(backward) / unit < len(leaves) + 0.1
        assert [g.stride() for g in backward()] == [leaf.stride() for leaf in leaves]


@pytest.mark.parametrize("merge", [True, False])
def test_the_matrix_sru_with_gradients_takes_less_memory_than_its_equations(merge):
    """Kept are the gates' pre-activations, the course of c and h: r, 1 − r and c before every tick are not."""
    pytest.importorskip("numba")
    n, batch, ticks = 32, 4, 48
    program = sru(n, "14", generator=torch.Generator().manual_seed(0))
    ours = Compiled(program, lower(program), Form(merge=merge))
    x, c = torch.randn(batch, ticks, n), torch.zeros(batch, n)
    weights = {k: w.detach().clone().requires_grad_() for k, w in sru_weights(program).items()}
    leaves, theirs = [p for p in ours.parameters() if p.requires_grad], list(weights.values())

    def peak(run, wanted):
        return peak_bytes(lambda: torch.autograd.grad(run(x, c).square().sum(), wanted))

    mine = peak(lambda x, c: ours(x, c)[0], leaves)
    assert mine <= 0.95 * peak(lambda x, c: sru_equations(x, c, weights)[0], theirs)
