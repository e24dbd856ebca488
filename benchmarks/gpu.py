"""Kernels and compiled programs on a GPU: correct first, then timed with CUDA events against peers and floors.

python benchmarks/gpu.py [--json FILE] [--only WORD] [--rehearse]

Floors: bytes over the bandwidth of a 1 GB copy, or multiply-adds over the rate of an 8192³ bfloat16 product,
measured in the same run. --rehearse runs small sizes on a CPU: for the script, its numbers mean nothing.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import onematrix as om
from gpu_timing import Row, bandwidth, compare, gradients, product_rate, table
from measure import require_close
from onematrix.experiments.compile_bench import check as check_case
from onematrix.experiments.compile_cases import Case, cases
from onematrix.kernels.blast_triton import HELD, blast_product
from onematrix.kernels.elementwise_loop import run_elementwise_loop
from onematrix.kernels.linear_scan import linear_scan
from onematrix.kernels.monarch_triton import monarch_product
from onematrix.records.files import write_json
from onematrix.records.machine import describe_machine
from onematrix.structures import STRUCTURES, Structure
from onematrix.structures.blast import Blast
from onematrix.structures.monarch import Monarch
from onematrix.structures.tree import map_tensors
from recurrences import LINEAR, SRU

SRU_SIZES = ((32, 64, 256), (512, 32, 1024))  # ticks, batch, features
SCAN_SIZES = ((32, 64, 256), (512, 32, 1024), (4096, 1, 1024), (16384, 1, 256))
BATCHES = (256, 1024, 4096, 8192)
UNROLLED = 64  # ticks up to which torch.compile is asked to unroll a loop
PEERS = {"fla": "flash-linear-attention", "mamba_ssm": "mamba-ssm", "flashrnn": "FlashRNN"}


class Bench:
    """Where to measure, what was measured, and the two rates of the machine."""

    def __init__(self, device: str, scale: int, pairs: int) -> None:
        self.device, self.scale, self.pairs = device, scale, pairs
        self.copies = bandwidth(device, (1 << 28) // scale**2)
        self.products = product_rate(device, 8192 // scale)
        self.exact = product_rate(device, 4096 // scale, torch.float32)
        self.notes: list[str] = []

    def size(self, *numbers: int) -> list[int]:
        return [max(1, n // self.scale) for n in numbers]

    def tensors(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [torch.randn(s, device=self.device, dtype=dtype).requires_grad_() for s in shapes]

    def row(self, name: str, ours: Callable, peer_name: str, peer: Callable, floor: float | None) -> Row:
        return compare(name, ours, peer_name, peer, self.device, floor, self.pairs)

    def check(self, name: str, ours: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
        for number, (a, b) in enumerate(zip(ours, expected, strict=True)):
            require_close(f"{name}, tensor {number}", a.detach(), b.detach(), tolerance)


def both(
    bench: Bench, name: str, runs: dict[str, Callable], given: list[Tensor], floors: tuple[float, float]
) -> Iterator[Row]:
    """Forward, then forward with all gradients; the first run is ours, every other one a peer."""
    (_, ours), *peers = runs.items()
    back = torch.randn_like(ours())
    for peer_name, peer in peers:
        with torch.no_grad():
            yield bench.row(name, ours, peer_name, peer, floors[0])
        yield bench.row(
            f"{name} + gradients",
            lambda: gradients(ours, given, back),
            peer_name,
            lambda peer=peer: gradients(peer, given, back),
            floors[1],
        )


def recurrences(bench: Bench) -> Iterator[Row]:
    """f = σ(u + v c), c ← f c + (1 − f) w, given u and w: reads 2 series, writes c; backward reads u, w, c, g."""
    for ticks, batch, n in SRU_SIZES:
        ticks, batch, n = bench.size(ticks, batch, n)
        for dtype in (torch.float32, torch.bfloat16)[: 2 if bench.device == "cuda" else 1]:
            u, w, v, c = bench.tensors(*[(ticks, batch, n)] * 2, (n,), (batch, n), dtype=dtype)

            def run(kernel: str | None = None, given: tuple[Tensor, ...] = (u, w, v, c)) -> Tensor:
                a, b, d, e = given
                return run_elementwise_loop(SRU, [a, b], [d], [e], kernel=kernel)[0][0]

            name = f"SRU loop T={ticks} B={batch} n={n} {str(dtype)[6:]}"
            wide = tuple(t.detach().double().requires_grad_() for t in (u, w, v, c))
            back = torch.randn_like(u)
            ours = [run(), *gradients(run, [u, w, v, c], back)]
            exact = [
                run("torch", wide),
                *gradients(lambda wide=wide: run("torch", wide), wide, back.double()),
            ]
            bench.check(name, ours, exact, 1e-5 if dtype == torch.float32 else 2e-2)
            floor = u.numel() * u.element_size() / bench.copies
            runs = {"ours": run, "the same by torch": lambda run=run: run("torch")}
            if ticks <= UNROLLED and dtype == torch.float32:
                compiled = torch.compile(lambda *given: run("torch", given))
                runs["torch.compile of that"] = lambda compiled=compiled, given=(u, w, v, c): compiled(*given)
            # Forward writes c and the c before it; with gradients 3 + 3 more reads and 2 writes.
            yield from both(bench, name, runs, [u, w, v, c], (4 * floor, 10 * floor))


def scans(bench: Bench) -> Iterator[Row]:
    """c ← a c + b: reads a, b, writes c; backward reads a, c, g and writes two gradients."""
    for ticks, batch, n in SCAN_SIZES:
        ticks, batch, n = bench.size(ticks, batch * bench.scale, n)
        shapes = (ticks, batch, n), (ticks, batch, n), (batch, n)
        a, b, c = bench.tensors(*shapes)
        with torch.no_grad():
            a.sigmoid_()

        def run(kernel: str | None = None, given: tuple[Tensor, ...] = (a, b, c)) -> Tensor:
            return linear_scan(*given, kernel=kernel)

        name = f"linear scan T={ticks} B={batch} n={n}"
        wide = tuple(t.detach().double().requires_grad_() for t in (a, b, c))
        back = torch.randn_like(b)
        exact = [run("torch", wide), *gradients(lambda wide=wide: run("torch", wide), wide, back.double())]
        bench.check(name, [run(), *gradients(run, [a, b, c], back)], exact, 1e-5)
        floor = a.numel() * a.element_size() / bench.copies
        runs = {"ours": run, "one loop over the ticks": lambda run=run, given=(a, b, c): loop(*given)}
        runs |= {"chunks by torch": lambda run=run: run("torch")} | foreign_scans(a, b, bench)
        yield from both(bench, name, runs, [a, b, c], (3 * floor, 8 * floor))


def loop(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The same by a thread per number, however few there are."""
    return run_elementwise_loop(LINEAR, [a, b], [], [c], kernel="triton" if a.is_cuda else None)[0][0]


def foreign_scans(a: Tensor, b: Tensor, bench: Bench) -> dict[str, Callable]:
    """The same recurrence from 0 by other libraries, where they can be imported: else a note."""
    found: dict[str, Callable] = {}
    for module, name in PEERS.items():
        if importlib.util.find_spec(module) is None:
            note = f"{name}: not installed on this machine"
            bench.notes += [note] if note not in bench.notes else []
        elif module == "flashrnn":
            bench.notes.append(f"{name}: recurrences with matrices only, no elementwise one to compare with")
        else:
            found[name] = {"fla": fla_scan, "mamba_ssm": mamba_scan}[module](a, b)
    return found


def fla_scan(a: Tensor, b: Tensor) -> Callable:
    """h ← e^g h + x of its HGRU, batch first."""
    from fla.ops.hgru import fused_recurrent_hgru

    def run() -> Tensor:
        return fused_recurrent_hgru(b.transpose(0, 1), a.log().transpose(0, 1))[0].transpose(0, 1)

    return run


def mamba_scan(a: Tensor, b: Tensor) -> Callable:
    """h ← e^{Δ A} h + Δ B u with one state per channel, A = −1, B = C = 1, Δ = −log a."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def run() -> Tensor:
        steps = -a.log().permute(1, 2, 0)
        ones = torch.ones(a.shape[1], 1, a.shape[0], device=a.device)
        decay = -torch.ones(a.shape[2], 1, device=a.device)
        return selective_scan_fn(b.permute(1, 2, 0) / steps, steps, decay, ones, ones).permute(2, 0, 1)

    return run


def structures(bench: Bench) -> Iterator[Row]:
    """BLAST and Monarch of bfloat16 against the dense layer; the floor is multiply-adds or bytes, the larger."""
    n = 4096 // bench.scale
    g = torch.Generator().manual_seed(0)
    members = [blast_member(n, blocks, g, bench) for blocks in (4, 16)]
    root = 1 << (n.bit_length() - 1) // 2
    for name, size in (
        ("Monarch b=4, half", {"blocks": 4}),
        ("Monarch b=√n, t=1", {"blocks": root, "rank": 1}),
    ):
        a = on(Monarch.random(n, n, 0.5, g, **size), bench)
        runs = {"ours": lambda x, a=a: monarch_product(a, x), "its batched products": a.matmul}
        members.append((name, a, runs))
    dense = torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) / n**0.5
    dense.requires_grad_()
    compiled = torch.compile(functional.linear)
    for batch in BATCHES:
        batch = max(4, batch // bench.scale)
        (x,) = bench.tensors((batch, n), dtype=torch.bfloat16)
        for name, a, runs in members:
            weights = [t for t in vars(a).values() if isinstance(t, Tensor)]
            wide = map_tensors(a, lambda t: t.detach().double())
            for run in runs.values():
                bench.check(f"{name}, batch {batch}", [run(x)], [wide.matmul(x.double())], 2e-2)
            slopes = lambda run, x=x, w=weights: gradients(lambda: run(x), [x, *w], x.detach())  # noqa: E731
            bench.check(f"{name}: gradients", slopes(runs["ours"]), slopes(a.matmul), 3e-2)
            moved = 2 * (2 * batch * n + sum(w.numel() for w in weights)) / bench.copies
            floor = max(batch * a.multiply_adds() / bench.products, moved)
            peers = {k: (lambda f=f, x=x: f(x)) for k, f in runs.items()}
            peers |= {
                "dense": lambda x=x: functional.linear(x, dense),
                "dense, torch.compile": lambda x=x: compiled(x, dense),
            }
            yield from against_dense(
                bench, f"{name} n={n} batch={batch}", peers, [x, *weights], [x, dense], floor
            )


def blast_member(
    n: int, blocks: int, g: torch.Generator, bench: Bench
) -> tuple[str, Structure, dict[str, Callable]]:
    """Rank n ÷ 8 on blocks × blocks, with the stages fused as chosen and the other way."""
    a = on(Blast.random(n, n, generator=g, rank=n // 8, blocks=(blocks, blocks)), bench)
    runs = {
        "ours": lambda x: blast_product(a, x),
        "ours, the other fusion": lambda x: blast_product(a, x, fused=blocks > HELD),
        "its batched products": a.matmul,
    }
    return f"BLAST b={blocks} r=n/8", a, runs


def against_dense(
    bench: Bench,
    name: str,
    runs: dict[str, Callable],
    given: list[Tensor],
    theirs: list[Tensor],
    floor: float,
) -> Iterator[Row]:
    """As `both`; the dense peers have gradients of their own weights."""
    (_, ours), *peers = runs.items()
    back = torch.randn_like(ours())
    for peer_name, peer in peers:
        leaves = theirs if peer_name.startswith("dense") else given
        with torch.no_grad():
            yield bench.row(name, ours, peer_name, peer, floor)
        yield bench.row(
            f"{name} + gradients",
            lambda: gradients(ours, given, back),
            peer_name,
            lambda peer=peer, leaves=leaves: gradients(peer, leaves, back),
            3 * floor,
        )


def on(a: Structure, bench: Bench) -> Structure:
    return map_tensors(a, lambda t: t.to(bench.device, torch.bfloat16).requires_grad_())


def compiled_programs(bench: Bench) -> Iterator[Row]:
    """Every case of `onematrix bench compile`, built on the device; the peer is native, as it is called."""
    for make in cases(1 if bench.scale == 1 else 8):
        torch.manual_seed(0)
        with torch.device(bench.device):
            case = make()
            ours = om.compile(case.program, *case.inputs, prove=False, measure=False)
        check_case(case, ours)
        yield from program_rows(bench, case, ours)


def program_rows(bench: Bench, case: Case, ours: torch.nn.Module) -> Iterator[Row]:
    """Forward, and forward with the gradients of all parameters; the floor is the products in float32."""
    parameters = [p for p in ours.parameters() if p.requires_grad]
    floor = sum(rows * inputs * outputs for rows, inputs, outputs in case.products) / bench.exact

    def first(call: Callable) -> Tensor:
        made = call(*case.inputs)
        return made[0] if isinstance(made, tuple) else made

    def slopes(call: Callable, of: Sequence[Tensor]) -> object:
        return torch.autograd.grad(first(call).square().sum(), of, allow_unused=True)

    with torch.no_grad():
        yield bench.row(case.name, lambda: first(ours), case.peer_name, lambda: first(case.peer), floor)
    yield bench.row(
        f"{case.name} + gradients",
        lambda: slopes(ours, parameters),
        case.peer_name,
        lambda: slopes(case.peer, case.peer_parameters),
        3 * floor,
    )


def sparse(bench: Bench) -> Iterator[Row]:
    """A CSR layer of 5 % against the dense one: correct on the GPU, and its time."""
    n, batch = bench.size(4096, 256)
    g = torch.Generator().manual_seed(0)
    here = STRUCTURES["csr"].random(n, n, 0.05, g)
    a = map_tensors(here, lambda t: t.to(bench.device).requires_grad_(t.is_floating_point()))
    (x,) = bench.tensors((batch, n))
    weights = [t for t in vars(a).values() if isinstance(t, Tensor) and t.requires_grad]
    dense = here.to_dense().to(bench.device).requires_grad_()
    bench.check("CSR", [a.matmul(x)], [x.double() @ dense.double().mT], 1e-5)
    slope = gradients(lambda: a.matmul(x), [x, *weights], x.detach())
    exact = gradients(lambda: functional.linear(x, dense), [x, dense], x.detach())
    bench.check("CSR: gradient of the input", slope[:1], exact[:1], 1e-4)
    stored = sum(t.numel() * t.element_size() for t in vars(a).values() if isinstance(t, Tensor))
    floor = (stored + 2 * x.numel() * x.element_size()) / bench.copies
    runs = {"ours": lambda: a.matmul(x), "dense": lambda: functional.linear(x, dense)}
    yield from against_dense(bench, f"CSR 5 % n={n} batch={batch}", runs, [x, *weights], [x, dense], floor)


PARTS = {
    "recurrences": recurrences,
    "scans": scans,
    "structures": structures,
    "programs": compiled_programs,
    "sparse": sparse,
}


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Check, measure and print the parts asked for. Stops without a number where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--rehearse", action="store_true", help="small sizes on a CPU")
    parser.add_argument("--pairs", type=int, default=11, help="timings of each side")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        raise SystemExit("GPU: not measured: no CUDA device at hand (--rehearse runs the script on a CPU)")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bench = Bench("cpu" if options.rehearse else "cuda", 32 if options.rehearse else 1, options.pairs)
    rows = [row for name, part in PARTS.items() if options.only in (None, name) for row in part(bench)]
    machine = describe_machine()
    print(json.dumps(machine, ensure_ascii=False))
    rates = {"copy": bench.copies, "bfloat16": 2 * bench.products, "float32": 2 * bench.exact}
    print(*(f"{name} {rate / 1e12:.2f} T/s" for name, rate in rates.items()), sep=", ")
    print(table(rows), *bench.notes, sep="\n")
    if options.json:
        facts = [vars(row) for row in rows]
        write_json(options.json, {"machine": machine, "rates": rates, "notes": bench.notes, "rows": facts})
    return rows


if __name__ == "__main__":
    main()
