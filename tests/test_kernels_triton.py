"""Triton kernels: their laws in Triton's interpreter, their code for a GPU, and where they are chosen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hopper
from onematrix.errors import CompileError
from onematrix.kernels import elementwise_loop, elementwise_triton, scan_triton, triton_language
from onematrix.kernels.blast_triton import blast_product
from onematrix.kernels.elementwise_code import ElementwiseLoop
from onematrix.kernels.elementwise_loop import run_elementwise_loop
from onematrix.kernels.linear_scan import linear_scan
from onematrix.kernels.monarch_triton import monarch_product
from onematrix.structures.blast import Blast
from onematrix.structures.monarch import Monarch
from onematrix.structures.tree import with_dtype
from recurrence_cases import SRU, flat, tensors

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(not triton_language.HAS_TRITON, reason="triton is not installed")


def run_cases(selection):
    """The tests of `triton_cases` so named, in the interpreter, in a process of their own."""
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", "-x"]
    done = subprocess.run(
        [*command, str(HERE / "triton_cases.py"), "-k", selection],
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped: nothing" in done.stdout


@needs_triton
def test_one_law_of_each_kernel_in_the_interpreter():
    run_cases("values and (sru-shared1-True or 25-8-True) or float32 and (2x3-1-True or 21by20)")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("selection", ["elementwise", "scan", "blast or monarch or products"])
def test_laws_in_the_interpreter(selection):
    run_cases(selection)


@needs_triton
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize(
    "sizes", [(3, 1, 1), pytest.param((7, 5, 33), marks=pytest.mark.slow), (32, 64, 256)], ids=str
)
def test_recurrences_compile_as_they_are_launched(sizes, dtype, monkeypatch, tmp_path):
    """Forward and backward, both directions, sizes of 1, which Triton makes constants; no register goes to memory."""
    wide, row, vector = (hopper.normal(*shape, dtype=dtype) for shape in (sizes, sizes[1:], sizes[2:]))
    given, valid = [wide, wide, vector, row], torch.ones(sizes[:2], dtype=torch.bool)
    with hopper.compiling(monkeypatch) as launched:
        for reverse, mask in ((False, None), (True, valid)):
            outputs, final, courses = elementwise_triton.run_forward(
                SRU, given, sizes, reverse, mask, keep=True
            )
            grads = [*outputs, *final]
            elementwise_triton.run_backward(SRU, given, courses, grads, [True] * 4, sizes, reverse, mask)
            scan_triton.scan(wide, wide, row, reverse)
            scan_triton.scan_backward(wide, row, wide, wide, reverse)
    assert {name for name, _ in launched} == {"forward", "backward", "apply"}
    assert {hopper.stack_bytes(kernel, tmp_path) for _, kernel in launched} <= {0, None}


@needs_triton
def test_a_long_scan_is_cut_into_chunks(monkeypatch, tmp_path):
    wide, row = hopper.normal(4096, 1, 64), hopper.normal(1, 64)
    with hopper.compiling(monkeypatch) as launched:
        scan_triton.scan(wide, wide, row, False)
        scan_triton.scan_backward(wide, row, wide, wide, False)
    assert [name for name, _ in launched] == ["ends", "apply"] * 2
    assert {hopper.stack_bytes(kernel, tmp_path) for _, kernel in launched} <= {0, None}


@needs_triton
@pytest.mark.parametrize("blocks", [4, 16])
def test_products_compile_to_matrix_instructions_of_hopper(blocks, monkeypatch, tmp_path):
    """bfloat16 layers of 2048: every product by wgmma, its operands on their way while others are multiplied."""
    half = torch.bfloat16
    blast = Blast(
        *(hopper.normal(*s, dtype=half) for s in ((blocks, 2048 // blocks, 128), (128, blocks, blocks))),
        hopper.normal(blocks, 128, 2048 // blocks, dtype=half),
    )
    monarch = Monarch(
        hopper.normal(blocks, 2048 // blocks, 32, blocks, dtype=half),
        hopper.normal(blocks, blocks, 32, 2048 // blocks, dtype=half),
    )
    x = hopper.normal(512, 2048, dtype=half)
    with hopper.compiling(monkeypatch) as launched:
        for y in (blast_product(blast, x, kernel="triton"), monarch_product(monarch, x, kernel="triton")):
            y.sum().backward()
    names = [name for name, _ in launched]
    fused = "project_and_couple" if blocks == 4 else "couple"
    assert (names.count("gradient"), names.count(fused), names.count("coupling_gradient")) == (4, 2, 1)
    for name, kernel in launched:
        assert hopper.stack_bytes(kernel, tmp_path) in (0, None), name
        if name not in ("couple", "coupling_gradient"):
            assert "wgmma" in kernel.asm["ptx"], name
            assert "cp.async" in kernel.asm["ptx"], name


# Where the kernels are chosen.


def test_on_a_cpu_nothing_of_triton_runs():
    message = "'triton' cannot run: tensors on a CUDA device are needed, got cpu"
    if not triton_language.HAS_TRITON:
        message = "'triton' cannot run: triton is not installed"
    with pytest.raises(CompileError, match=f"loop: kernel {message}"):
        run_elementwise_loop(SRU, *tensors(SRU), kernel="triton")
    a, b, init = torch.ones(2, 1, 1), torch.ones(2, 1, 1), torch.ones(1, 1)
    with pytest.raises(CompileError, match=f"linear scan: kernel {message}"):
        linear_scan(a, b, init, kernel="triton")
    g = torch.Generator().manual_seed(0)
    for cls, run in ((Blast, blast_product), (Monarch, monarch_product)):
        member = list(cls.examples(g))[1]
        x = torch.ones(2, member.shape[1]).double()
        torch.testing.assert_close(run(member, x), member.matmul(x))
        with pytest.raises(CompileError, match=f"{member.name}: kernel {message}"):
            run(member, x, kernel="triton")


def test_unknown_kernels_and_dtypes_are_refused(monkeypatch):
    member = list(Blast.examples(torch.Generator().manual_seed(0)))[1]
    x = torch.ones(2, member.shape[1]).double()
    with pytest.raises(CompileError, match="blast: kernel 'numba' is unknown; there are: torch, triton"):
        blast_product(member, x, kernel="numba")
    with pytest.raises(
        CompileError, match="linear scan: kernel 'numba' is unknown; there are: torch, triton"
    ):
        linear_scan(torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1), kernel="numba")
    monkeypatch.setattr(triton_language, "HAS_TRITON", True)
    monkeypatch.setattr(triton_language, "INTERPRETED", True)
    with pytest.raises(
        CompileError, match="blast: kernel 'triton' cannot run: 16 or 32 bits are needed, got float64"
    ):
        blast_product(member, x, kernel="triton")
    assert triton_language.refusal(torch.ones(1)) is None
    assert not triton_language.serves(torch.ones(1))
    whole = torch.ones(1, dtype=torch.int64)
    assert triton_language.refusal(whole) == "a floating-point dtype of 16 to 64 bits is needed, got int64"


def test_the_default_on_a_gpu_is_triton(monkeypatch):
    """Where nothing refuses it, for tensors that are on no CPU."""
    calls = []
    monkeypatch.setattr(triton_language, "refusal", lambda like: None)
    monkeypatch.setattr(elementwise_loop, "is_ordinary", lambda *tensors: True)
    monkeypatch.setattr(
        elementwise_loop, "run_compiled", lambda loop, tensors, *rest: calls.append(rest[-1]) or tensors
    )
    loop = ElementwiseLoop(1, 0, 1, (("add", 0, 1),), outputs=(2,), carry=(2,))
    for device in ("meta", "cpu"):
        for dtype in (torch.float32, torch.bfloat16):
            parts = [[t.detach().to(device, dtype) for t in p] for p in tensors(loop, (64, 8, 8))]
            run_elementwise_loop(loop, *parts)
    numba = ["numba"] * bool(flat([tensors(loop)])) if elementwise_loop.numba_arrays.HAS_NUMBA else []
    assert calls == ["triton", "triton", *numba]


def test_the_form_of_structures_says_where_it_runs(monkeypatch):
    from onematrix.kernels import structured_triton

    g = torch.Generator().manual_seed(0)
    for cls in (Blast, Monarch):
        wide = list(cls.examples(g))[1]
        a = with_dtype(wide, torch.float32)
        assert structured_triton.triton_refusal(wide) == "16 or 32 bits are needed, got float64"
        assert structured_triton.triton_refusal(a) is not None
        monkeypatch.setattr(structured_triton, "refusal", lambda like: None)
        assert structured_triton.triton_refusal(a) is None
        with pytest.raises(CompileError, match=f"{cls.name}: kernel 'triton' cannot run"):
            structured_triton.multiply_by_triton(a, torch.ones(1, a.shape[1]))
        monkeypatch.undo()
