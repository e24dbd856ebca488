"""Recurrences as one kernel against torch operations tick by tick, and against nn.RNN. One thread.

python benchmarks/recurrences.py
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from measure import HEAD, compare, conditions, require_close, row, time_call
from onematrix.kernels.dense_loop import run_dense_loop
from onematrix.kernels.elementwise_loop import ElementwiseLoop, run_elementwise_loop
from onematrix.kernels.linear_scan import linear_scan
from onematrix.kernels.native_recurrence import native_gru, native_lstm

SEVERAL = 3.0  # times faster than an operation per tick
RNN = 1 / 0.97  # times the speed of nn.RNN
LSTM = 0.9  # times the speed of nn.LSTM, which is oneDNN's in float32: without gradients it is what runs
SIZES = ((512, 1, 256), (512, 8, 64), (32, 64, 256))  # ticks, batch, features
LINEAR = ElementwiseLoop(2, 0, 1, (("mul", 0, 2), ("add", 3, 1)), outputs=(4,), carry=(4,))
SRU = ElementwiseLoop(
    2, 1, 1,
    (
        ("mul", 2, 3), ("add", 0, 4), ("activation", 5, "sigmoid"), ("mul", 6, 3),
        ("scale", 6, -1.0), ("shift", 8, 1.0), ("mul", 9, 1), ("add", 7, 10),
    ),
    outputs=(11, 3), carry=(11,),
)  # fmt: skip
Run = Callable[[], Sequence[Tensor]]


def main(scale: int = 1, kernel: str = "numba") -> None:
    """Check, measure and print every recurrence; scale divides the sizes, for tests."""
    torch.set_num_threads(1)
    print(conditions(), "\n", HEAD, sep="")
    for ticks, batch, n in SIZES:
        sizes = (ticks // scale, batch, n // scale)
        measure_sru(*sizes, kernel)
        measure_scan(*sizes, kernel)
    for inputs, n, ticks, batch in ((64, 256, 64, 64), (32, 128, 100, 16), (32, 128, 100, 1)):
        measure_rnn(inputs // scale, n // scale, ticks // scale, batch)
    for kind, n, ticks, aim in (("gru", 64, 64, SEVERAL), ("lstm", 64, 128, LSTM)):
        measure_gated(kind, 64 // scale, n // scale, ticks // scale, 1, aim)


def measure_sru(ticks: int, batch: int, n: int, kernel: str) -> None:
    """f = σ(u + v c), c ← f c + (1 − f) w; c before and after every tick."""
    u, w, v, c = leaves((ticks, batch, n), (ticks, batch, n), (n,), (batch, n))

    def by_hand() -> Sequence[Tensor]:
        state, before, after = c, [], []
        for u_t, w_t in zip(u.unbind(0), w.unbind(0), strict=True):
            before.append(state)
            f = torch.sigmoid(u_t + v * state)
            state = f * state + (1 - f) * w_t
            after.append(state)
        return torch.stack(after), torch.stack(before)

    def candidate() -> Sequence[Tensor]:
        return run_elementwise_loop(SRU, [u, w], [v], [c], kernel=kernel)[0]

    measure(f"SRU T={ticks} B={batch} n={n}", candidate, by_hand, [u, w, v, c], SEVERAL, copies(u, 2))


def measure_scan(ticks: int, batch: int, n: int, kernel: str) -> None:
    """c ← a c + b: the chunked scan, and an operation per tick, against the compiled loop."""
    a, b, c = leaves((ticks, batch, n), (ticks, batch, n), (batch, n))

    def compiled(kernel: str = kernel) -> Sequence[Tensor]:
        return run_elementwise_loop(LINEAR, [a, b], [], [c], kernel=kernel)[0]

    def chunked() -> Sequence[Tensor]:
        return [linear_scan(a, b, c)]

    name = f"linear T={ticks} B={batch} n={n}"
    floor = copies(a, 1.5)
    measure(f"{name} / chunks", compiled, chunked, [a, b, c], 1.0, floor)
    measure(f"{name} / ticks", compiled, lambda: compiled("torch"), [a, b, c], SEVERAL, floor)


def measure_rnn(inputs: int, n: int, ticks: int, batch: int) -> None:
    """The product with the inputs for all ticks, then the dense recurrence; the floor is the products alone."""
    net = nn.RNN(inputs, n)
    (x,) = leaves((ticks, batch, inputs))
    w_ih, w_hh, b_ih, b_hh = net.all_weights[0]
    first = torch.zeros(batch, n)

    def candidate() -> Sequence[Tensor]:
        fed = functional.linear(x, w_ih, b_ih + b_hh)
        return run_dense_loop(fed, w_hh, first, ((n, "tanh"),))

    def products() -> None:
        functional.linear(x, w_ih)
        for _ in range(ticks):
            torch.mm(first, w_hh)

    def native() -> Sequence[Tensor]:
        out, last = net(x)
        return out, last[0]

    with torch.no_grad():
        floor = time_call(products)
    measure(f"RNN {inputs}→{n} T={ticks} B={batch}", candidate, native, [x, *net.parameters()], RNN, floor)


def measure_gated(kind: str, inputs: int, n: int, ticks: int, batch: int, aim: float) -> None:
    """An LSTM or a GRU of a few samples against torch's own; the floor is the products alone."""
    net = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](inputs, n)
    (x,) = leaves((ticks, batch, inputs))
    weights = net.all_weights[0]
    first = torch.zeros(batch, n)

    def candidate() -> Sequence[Tensor]:
        if kind == "gru":
            return native_gru(x, first, *weights)
        out, (h, c) = native_lstm(x, (first, first), *weights)
        return out, h, c

    def products() -> None:
        functional.linear(x, weights[0])
        for _ in range(ticks):
            functional.linear(first, weights[1])

    def native() -> Sequence[Tensor]:
        out, last = net(x)
        return out, *(t[0] for t in (last if kind == "lstm" else (last,)))

    with torch.no_grad():
        floor = time_call(products)
    name = f"{kind.upper()} {inputs}→{n} T={ticks} B={batch}"
    measure(name, candidate, native, [x, *net.parameters()], aim, floor)


def measure(name: str, candidate: Run, peer: Run, given: list[Tensor], aim: float, floor: float) -> None:
    """Two rows: forward alone, and forward with all gradients; outputs and gradients are compared first."""
    for ours, theirs in zip(candidate(), peer(), strict=True):
        require_close(f"{name} output", ours.detach(), theirs.detach(), 1e-5)
    for ours, theirs in zip(gradients(candidate, given), gradients(peer, given), strict=True):
        require_close(f"{name} gradient", ours, theirs, 1e-4)
    with torch.no_grad():
        ratio = compare(candidate, peer)
    print(row(name, ratio, aim, floor))
    ratio = compare(lambda: gradients(candidate, given), lambda: gradients(peer, given))
    print(row(f"{name} + grad", ratio, aim, 3 * floor))


def gradients(run: Run, given: list[Tensor]) -> tuple[Tensor, ...]:
    """Of the sum of squares of the first output."""
    return torch.autograd.grad(run()[0].square().sum(), given, materialize_grads=True)


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers of which gradients are wanted."""
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g).requires_grad_() for shape in shapes]


def copies(like: Tensor, count: float) -> float:
    """Seconds to read and write so many tensors of this size: the floor of a loop over memory."""
    source, copy = like.detach(), torch.empty_like(like)
    return count * time_call(lambda: copy.copy_(source))


if __name__ == "__main__":
    main()
