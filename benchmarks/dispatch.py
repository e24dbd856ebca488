"""What the compiled code adds to torch's own calls, per node, and what compiling costs per part. One thread.

python benchmarks/dispatch.py
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import onematrix as om
from measure import conditions, require_close
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.program import Program
from onematrix.programs.schedule import Seq, Step
from onematrix.structures.dense import Dense

WIDTH = 4
REPEATS = 50
NODES = (50, 500)
PARTS = (50, 500, 5000)
DISPATCH, COMPILING = 2.0, 5.0  # µs a node, ms a part


def main(nodes: tuple[int, ...] = NODES, parts: tuple[int, ...] = PARTS) -> None:
    """One line per number of nodes, then one per number of parts."""
    torch.set_num_threads(1)
    print(conditions().split(", float32")[0])
    for count in nodes:
        dispatch(count)
    for count in parts:
        compiling(count)


def chain(count: int) -> tuple[Program, list[nn.Parameter]]:
    """x_k = sin(W_k x_{k−1}): no two nodes are one call."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(WIDTH, WIDTH) + 1) for _ in range(count)]
    steps = []
    for k, weight in enumerate(weights):
        before, after = f"x{k}", f"x{k + 1}"
        matrix = BlockMatrix({(after, before): Dense(weight)}, {before: WIDTH, after: WIDTH})
        steps.append(Step(matrix, activations={after: "sin"}))
    return Program(Seq(*steps), ["x0"], [f"x{count}"]), weights


def dispatch(count: int) -> None:
    """Seconds of the compiled program less those of the same calls, one after the other."""
    program, weights = chain(count)
    ours = om.compile(program, prove=False)
    x = torch.randn(1, WIDTH)

    def calls() -> Tensor:
        y = x
        for weight in weights:
            y = torch.sin(linear(y, weight))
        return y

    with torch.no_grad():
        require_close("chain", ours(x), calls(), 1e-5)
        own, alone = fastest(lambda: ours(x)), fastest(calls)
        for _ in range(REPEATS):
            own, alone = min(own, fastest(lambda: ours(x))), min(alone, fastest(calls))
    added = (own - alone) / count * 1e6
    met = "met" if added <= DISPATCH else "NOT met"
    print(
        f"{count:>6} nodes: {own / count * 1e6:.2f} µs a node, {added:+.2f} µs of it ours, target {DISPATCH}: {met}"
    )


def fastest(run: Callable[[], object], calls: int = 5) -> float:
    """Least seconds of the processor of one call."""
    times = []
    for _ in range(calls):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def compiling(count: int) -> None:
    """Milliseconds a part of om.compile without measuring."""
    program, _ = chain(count)
    start = time.process_time()
    om.compile(program, measure=False, prove=False)
    spent = (time.process_time() - start) * 1e3 / count
    print(
        f"{count:>6} parts: {spent:.2f} ms a part, target {COMPILING}: {'met' if spent <= COMPILING else 'NOT met'}"
    )


if __name__ == "__main__":
    main()
