"""Products one loop alone reads are left to its kernel: which programs, and that they mean what they meant."""

import pytest
import torch

import onematrix as om
from onematrix.compiler.form import Form
from onematrix.kernels import dense_fed, dense_numba, fed_product
from onematrix.networks import inn, sru
from onematrix.networks.examples import examples
from onematrix.networks.recurrent import over_time
from onematrix.programs.interpreter import interpret
from onematrix.programs.part import ONE
from onematrix.records.memory import peak_bytes
from onematrix.structures.column import Column
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity
from onematrix.structures.low_rank import LowRank
from test_programs_random import as_tuple, inputs_of

NETWORKS = examples(torch.Generator().manual_seed(0))
FED = {
    "elman": "dense",
    "elman_reversed": "dense",
    "sru_14": "elementwise",
    "sru_14_changed": "elementwise",
    "inn_dense": "dense",
}


def kernels(net):
    return [kind for kind in ("elementwise", "dense") if f"run_fed_{kind}_loop(" in net.text]


@pytest.fixture(autouse=True)
def in_pieces(monkeypatch):
    """Products in pieces and compiled loops at any size."""
    monkeypatch.setattr(fed_product, "LEAST", 1)
    monkeypatch.setattr(fed_product, "ROWS", 1)
    monkeypatch.setattr("onematrix.kernels.elementwise_loop.WORTHWHILE", 1)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_without_gradients(name):
    program = NETWORKS[name]
    net = om.compile(program, prove=False)
    assert kernels(net) == ([FED[name]] if name in FED else [])
    for ticks, batch in ((1, 1), (2, 3), (9, 1), (9, 3)) if "time" in program.free_sizes() else ((None, 2),):
        ins = inputs_of(program, 1, ticks=ticks, batch=batch)
        with torch.no_grad():
            ours = as_tuple(net(*ins))
        theirs = as_tuple(interpret(program, *ins))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("serves", [False, True])
@pytest.mark.parametrize("widths", [[5, 6, 4, 3], [5, 6, 3], [5, 40, 40, 40, 3]])
def test_iterated_nets_by_blocks_or_not(widths, serves, monkeypatch):
    monkeypatch.setattr(dense_numba, "FEW", 512 if serves else 0)
    monkeypatch.setattr(dense_numba, "WORTHWHILE", 1)
    monkeypatch.setattr(dense_fed, "LARGE", 1)
    program = inn(widths, generator=torch.Generator().manual_seed(3))
    net = om.compile(program, prove=False).double()
    assert kernels(net) == ["dense"]
    for ticks, batch in ((1, 1), (4, 1), (3, 5)):
        x = torch.randn(batch, ticks, 5, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(net(x), interpret(net.program, x), rtol=1e-9, atol=1e-9)


def gate(read_again=False, activation="sigmoid", mixing=False, twice=False, rank=0):
    """c ← f ∘ c + w of two products of x; read_again: one of them is an output too. mixing: f reads U c.

    twice: f reads a second product of x, of a part of its own. rank: of all but one product, dense where 0.
    """
    g = torch.Generator().manual_seed(4)
    parts = dict.fromkeys(("c", "a", "f", "w", "kept", "c_new"), 4) | {"x": 3}
    dense = [Dense.random(4, 3, generator=g) for _ in range(3)]
    other = Dense.random(4, 4, generator=g) if mixing else Diagonal(torch.randn(4, generator=g))
    if rank:
        dense[::2] = [LowRank.random(4, 3, rank=rank, generator=g) for _ in range(2)]
    blocks = {("w", "x"): dense[0], ("w", ONE): Column(torch.ones(4))} | (
        {("a", "x"): dense[2]} if twice else {}
    )
    first = om.Step(om.BlockMatrix(blocks, parts))
    blocks = {("f", "c"): other, ("f", "x"): dense[1]} | ({("f", "a"): Identity(4)} if twice else {})
    second = om.Step(om.BlockMatrix(blocks, parts), activations={"f": activation})
    third = om.Step(
        om.BlockMatrix({("kept", "f"): Identity(4)}, parts),
        om.BlockMatrix({("kept", "c"): Identity(4)}, parts),
    )
    fourth = om.Step(om.BlockMatrix({("c_new", "kept"): Identity(4), ("c_new", "w"): Identity(4)}, parts))
    read = {"hidden": ("c_new", 4)} | ({"again": ("w", 4)} if read_again else {})
    body = om.Seq(first, second, third, fourth)
    loop = over_time(body, {"x": 3}, read, {"c": ("c_new", 4, "c0")}, parts)
    return om.Program(loop, ["inputs", "c0"], [*read, "c"])


@pytest.mark.parametrize(
    ("changed", "kinds"),
    [
        ({}, ["elementwise"]),
        ({"read_again": True}, []),  # a product that is an output is in memory anyway
        ({"activation": "softmax"}, []),  # no elementwise loop: its rows are written as before
        ({"mixing": True}, []),
        ({"twice": True}, []),  # what is fed is no product alone
        ({"twice": True, "rank": 1}, []),
        ({"rank": 1}, ["elementwise"]),
    ],
)
def test_only_what_a_kernel_alone_reads(changed, kinds):
    program = gate(**changed)
    net = om.compile(program, prove=False).double()
    assert kernels(net) == kinds
    ins = [torch.randn(2, 7, 3).double(), torch.randn(2, 4).double()]
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            ours, theirs = net(*ins), interpret(net.program, *ins)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["sru_14", "inn_dense"])
def test_the_kernel_says_whether_products_are_one(name):
    net = om.compile(NETWORKS[name], prove=False)
    assert net.is_written_alike(Form(merge=False))


def test_streaming_in_pieces():
    net = om.compile(sru(4, "14"), prove=False).double()
    x, c = torch.randn(2, 9, 4).double(), torch.randn(2, 4).double()
    with torch.no_grad():
        whole, _ = net(x, c)
        first, state = net.forward_with_state(x[:, :5], c)
        second, _ = net.forward_with_state(x[:, 5:], c, state=state)
    torch.testing.assert_close(torch.cat([first[0], second[0]], 1), whole, rtol=1e-12, atol=1e-12)


def test_memory_without_gradients_is_that_of_the_equations(monkeypatch):
    """Beside the outputs: a quarter of the products, and what is cut of the inputs."""
    monkeypatch.undo()
    net = om.compile(sru(128, "14"), prove=False, measure=False)
    x, c = torch.randn(16, 128, 128), torch.randn(16, 128)
    with torch.no_grad():
        held = peak_bytes(lambda: net(x, c))
    outputs = x.numel() * 4
    assert held <= 1.1 * 2 * outputs  # the equations hold every tick's output, then all of them once more
