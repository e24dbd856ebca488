"""What runs on a GPU is what runs on a CPU: structures, programs, compiled modules, saved files, training.

Skipped without one. ONEMATRIX_TEST_DEVICE=cpu rehearses the tests themselves on any machine. The Triton
kernels have their laws in `triton_cases`, to be run there too: python -m pytest tests/triton_cases.py
"""

import copy
import functools
import os

import pytest
import torch

import onematrix as om
from onematrix.experiments.compile_cases import cases
from onematrix.structures.tree import map_tensors
from onematrix.training import Examples, Recipe, Steps, train
from structure_cases import ALL, rebuilt, weights

DEVICE = os.environ.get("ONEMATRIX_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU of CUDA at hand"
)
CASES = cases(8)


def near(ours, theirs, tolerance=1e-9):
    """Within the tolerance of the largest number, whatever the devices."""
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.detach().cpu(), b.detach().cpu()
        assert a.shape == b.shape
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


def on(device, tensors):
    return [t.detach().to(device).requires_grad_(t.is_floating_point()) for t in tensors]


def slopes(outputs, leaves, back):
    """Gradients of all leaves; zero where an output depends on none."""
    total = sum((o * b.to(o.device)).sum() for o, b in zip(outputs, back, strict=True))
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves if leaf.requires_grad]
    free = [leaf for leaf in leaves if leaf.requires_grad]
    return torch.autograd.grad(total, free, materialize_grads=True, allow_unused=True)


@pytest.mark.parametrize("a", ALL)
def test_products_and_gradients_of_structures(a):
    """matmul and rmatmul on the device against the definition on the CPU, with every gradient."""
    m, n = a.shape
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(2, 3, size, generator=g, dtype=torch.float64) for size in (n, m))
    plain = on("cpu", [x, y, *weights(a)])
    dense = rebuilt(a, plain[2:]).to_dense(dtype=torch.float64)
    expected = [plain[0] @ dense.mT, plain[1] @ dense]
    there = on(DEVICE, [x, y, *weights(a)])
    moved = map_tensors(rebuilt(a, there[2:]), lambda t: t if t.device.type == DEVICE else t.to(DEVICE))
    found = [moved.matmul(there[0]), moved.rmatmul(there[1])]
    assert all(f.device.type == DEVICE for f in found)
    near(found, expected)
    back = [torch.randn(e.shape, generator=g, dtype=torch.float64) for e in expected]
    near(slopes(found, there, back), slopes(expected, plain, back))


def flat(value):
    return list(value) if isinstance(value, tuple | list) else [value]


def run(module, inputs):
    """Outputs, then the gradients of the inputs and of every parameter."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    outputs = flat(module(*inputs))
    slopes = [t for t in (*inputs, *parameters) if t.requires_grad]
    total = sum(o.square().sum() for o in outputs)
    return [*outputs, *torch.autograd.grad(total, slopes, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("place", range(len(CASES)))
def test_compiled_programs(place):
    """In float64, and in float32 within what its digits allow."""
    torch.manual_seed(0)
    case = CASES[place]()
    ours = om.compile(case.program, *case.inputs, measure=False, prove=False)
    moved = copy.deepcopy(ours).to(DEVICE)
    near(run(moved, on(DEVICE, case.inputs)), run(ours, on("cpu", case.inputs)), 2e-4)
    wide = [x.double() for x in case.inputs]
    near(run(moved.double(), on(DEVICE, wide)), run(ours.double(), on("cpu", wide)))


@pytest.mark.parametrize("place", [0, 3, 7, 12])
def test_interpreted_programs(place):
    torch.manual_seed(0)
    case = CASES[place]()
    module = om.Iterated(case.program).double()
    wide = [x.double() for x in case.inputs]
    expected = run(module, on("cpu", wide))
    near(run(copy.deepcopy(module).to(DEVICE), on(DEVICE, wide)), expected)


@pytest.mark.parametrize("place", [0, 3, 7, 10, 12])
def test_compiled_programs_replay_as_a_graph(place):
    """One CUDA graph of the forward pass, replayed on inputs it has not seen."""
    if DEVICE != "cuda":
        pytest.skip("graphs are those of CUDA")
    torch.manual_seed(0)
    case = CASES[place]()
    module = om.compile(case.program, *case.inputs, measure=False, prove=False).to(DEVICE)
    inputs = [x.to(DEVICE) for x in case.inputs]
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                module(*inputs)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = flat(module(*inputs))
        for x in inputs:
            x.copy_(torch.randn_like(x))
        graph.replay()
        near(outputs, flat(module(*inputs)), 1e-6)


def test_saved_there_loaded_here(tmp_path):
    torch.manual_seed(0)
    case = CASES[0]()
    om.save(om.Iterated(case.program).to(DEVICE), tmp_path / "net")
    program = om.load(tmp_path / "net").program
    assert all(t.device.type == "cpu" for t in program.parameters.values())
    for name, t in program.parameters.items():
        assert torch.equal(t, case.program.parameters[name].cpu())
    x = case.inputs[0]
    near(flat(om.compile(program, measure=False, prove=False)(x)), [case.peer.cpu()(x)], 1e-5)


def test_a_checkpoint_of_the_gpu_resumes_on_the_cpu(tmp_path):
    """Half there, half here: the numbers of a run that was here all the time, as far as float64 says."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(23, 6, generator=g, dtype=torch.float64)
    data, recipe = Examples(x, x[:, :3].argmax(-1)), Recipe(batch=5, learning_rate=0.01)
    step = functools.partial(train, data=data, recipe=recipe, progress=False, evaluate=data)

    def new(device):
        torch.manual_seed(5)
        net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
        return net.double().to(device)

    whole, here = new("cpu"), new("cpu")
    expected = step(whole, budget=Steps(12))
    step(new(DEVICE), budget=Steps(6), folder=tmp_path)
    found = step(here, budget=Steps(12), folder=tmp_path)
    assert found.steps == expected.steps == 12
    near(here.state_dict().values(), whole.state_dict().values())
    there = new(DEVICE)
    step(there, budget=Steps(12), folder=tmp_path)  # at its end already: only read
    near(there.state_dict().values(), here.state_dict().values())
