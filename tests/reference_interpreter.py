"""A second interpreter, as slow and literal as the definition: one sample at a time, entry by entry of `to_dense`.

It shares no code with the package's interpreter; it reads the schedule, the structures' definitions and the
named sizes alone. Values are float64 tensors of the whole shape of their part; index parts are integers.
"""

import hashlib
import itertools
import math

import torch

from onematrix.programs.schedule import Loop, Seq, Step

INFINITY = math.inf


def reference(program, *inputs, seed=0, sizes=None, state=None, first_tick=0):
    """Outputs (a tuple) and the state handed over, both stacked over samples."""
    batch = inputs[0].shape[0]
    sizes = dict(sizes or {})
    for name, x in zip(program.inputs, inputs, strict=True):
        for size, length in zip(program.parts[name].shape, x.shape[1:], strict=False):
            if isinstance(size, str) and size.isidentifier():
                sizes[size] = length
    runs = [
        Sample(program, sizes, seed, i, batch, state, first_tick).run([x[i] for x in inputs])
        for i in range(batch)
    ]
    outputs = tuple(torch.stack([out[0][k] for out in runs]) for k in range(len(program.outputs)))
    handed = {name: torch.stack([out[1][name] for out in runs]) for name in runs[0][1]}
    return outputs, handed


def number(size, sizes):
    """The value of a size such as "2 * time + 1"; the texts are written by the tests themselves."""
    return size if isinstance(size, int) else eval(size, {}, dict(sizes))


class Sample:
    """One sample of the batch."""

    def __init__(self, program, sizes, seed, place, batch, given, first_tick):
        self.program, self.sizes, self.seed, self.place, self.batch = program, sizes, seed, place, batch
        self.given = {name: double(value[place]) for name, value in (given or {}).items()}
        self.first_tick, self.handed = first_tick, {}

    def run(self, inputs):
        state = {"one": torch.ones(1, dtype=torch.float64)}
        state |= {name: double(x) for name, x in zip(self.program.inputs, inputs, strict=True)}
        self.node(self.program.schedule, state, (), True)
        return [state[name] for name in self.program.outputs], self.handed

    def shape(self, name, without=None):
        shape = list(self.program.parts[name].shape)
        if without is not None and without in shape:
            shape.remove(without)
        return [number(size, self.sizes) for size in shape or [1]]

    def node(self, node, state, tick, outermost):
        if isinstance(node, Seq):
            for child in node.body:
                self.node(child, state, tick, outermost)
        elif isinstance(node, Step):
            new = {row.part: self.row(row, state, tick) for row in node.rows}
            state.update(new)
        elif node.over is not None:
            self.over(node, state, tick, outermost)
        else:
            self.rounds(node, state, tick)

    def row(self, row, state, tick):
        own = row.join is not None and (row.join.pattern or row.join.name in ("gather", "scatter", "top_k"))
        picks = row.join is not None and row.join.name in ("gather", "scatter")
        target = None if own else self.shape(row.part)
        sums = []
        for i, blocks in enumerate(row.sums):
            if (picks and i == 1) or (self.program.parts[row.part].kind == "index" and not own):
                sums.append(state[blocks[0][0]])
            else:
                sums.append(self.sum(blocks, state, target, tick))
        first = activate(str(row.activation), sums[0])
        return first if row.join is None else join(row.join, [first, *sums[1:]])

    def sum(self, blocks, state, target, tick, peeled=None):
        total = torch.zeros(target, dtype=torch.float64) if target is not None else 0.0
        for column, block in blocks:
            value = state[column] if column in state else self.noise(column, tick)
            source = self.shape(column, peeled)
            total = total + self.block(block, self.vectors(column, value, source), target)
        return total

    def vectors(self, column, value, source):
        """The part as real numbers: one-hot vectors where it holds integers."""
        if self.program.parts[column].kind != "index":
            return value.reshape(source)
        hot = torch.zeros(source, dtype=torch.float64)
        for place in itertools.product(*map(range, source[:-1])):
            hot[(*place, int(value[place]))] = 1.0
        return hot

    def block(self, block, value, target):
        structure = block.structure
        if value.dtype == torch.bool:
            return value.reshape(value.shape if target is None else target)
        if structure.name == "identity" and block.on == "all":
            return value.reshape(value.shape if target is None else target)
        fixed = structure.at(**self.sizes) if structure.name != "identity" else None
        if fixed is None:
            n = number(structure.size, self.sizes)
            matrix = torch.eye(n, dtype=torch.float64)
        else:
            matrix = fixed.to_dense(torch.float64)
        keep = matrix != 0 if structure.name != "dense" else torch.ones_like(matrix, dtype=torch.bool)
        m, n = matrix.shape
        if block.on == "all":
            out = multiply(matrix, keep, value.reshape(n))
            return out if target is None else out.reshape(target)
        before = leading(list(value.shape), n)
        out = {p: multiply(matrix, keep, value[p].reshape(n)) for p in itertools.product(*map(range, before))}
        if target is None:
            tail = list(value.shape[len(before) :]) if structure.name == "identity" else [m]
            return stack(out, before, m).reshape(*before, *tail)
        above = leading(target, m)
        places = itertools.product(*map(range, above))
        return stack({p: out[p if before else ()] for p in places}, above, m).reshape(target)

    def over(self, loop, state, tick, outermost):
        ticks = number(loop.ticks if loop.ticks is not None else loop.over, self.sizes)
        carry = {name: self.start(loop, name, state, tick, outermost) for name in rows(loop.carry)}
        collected = {name: {} for name in rows(loop.outputs)}
        order = range(ticks - 1, -1, -1) if loop.reverse else range(ticks)
        for t in order:
            now = (*tick, t + (self.first_tick if outermost else 0))
            inner = {"one": state["one"], **carry}
            for name in rows(loop.feeds):
                inner[name] = self.feed(loop, name, state, t, ticks, now)
            self.node(loop.body, inner, now, False)
            counts = loop.valid is None or bool(self.at_tick(loop, loop.valid, state, t, ticks))
            for name in collected:
                shape = self.shape(name, loop.ticks if loop.ticks is not None else loop.over)
                value = self.mapped(loop.outputs, name, inner, shape, now)
                collected[name][t] = value if counts else torch.zeros_like(value)
            if counts:
                carry = {n: self.mapped(loop.carry, n, inner, self.shape(n), now) for n in carry}
        state.update(carry)
        self.handed.update(carry if outermost else {})
        for name, values in collected.items():
            state[name] = self.stacked(name, loop, [values[t] for t in range(ticks)])

    def start(self, loop, name, state, tick, outermost):
        if outermost and name in self.given:
            return self.given[name]
        if name in rows(loop.init):
            return self.mapped(loop.init, name, state, self.shape(name), tick)
        return self.zero(name)

    def zero(self, name):
        part = self.program.parts[name]
        if part.kind == "index":
            return torch.zeros(self.shape(name)[:-1], dtype=torch.int64)
        kind = torch.bool if part.dtype == "bool" else torch.float64
        return torch.zeros(self.shape(name), dtype=kind)

    def feed(self, loop, name, state, t, ticks, now):
        columns = [column for (row, column), _ in loop.feeds if row == name]
        outer = {c: state["one"] if c == "one" else self.at_tick(loop, c, state, t, ticks) for c in columns}
        return self.mapped(loop.feeds, name, outer, self.shape(name), now, peeled=loop.over)

    def at_tick(self, loop, name, state, t, ticks):
        part, value = self.program.parts[name], state[name]
        if loop.over not in part.shape:
            return value
        place = part.shape.index(loop.over)
        length = value.shape[place]
        if t < length:
            return value.select(place, t)
        if loop.after == "hold":
            return value.select(place, length - 1)
        shape = list(value.shape)
        del shape[place]
        return torch.zeros(shape, dtype=value.dtype)

    def mapped(self, matrix, name, state, target, tick, peeled=None):
        blocks = [(column, block) for (row, column), block in matrix if row == name]
        if self.program.parts[name].kind == "index":
            return state[blocks[0][0]]
        return self.sum(blocks, state, target, tick, peeled)

    def stacked(self, name, loop, values):
        part = self.program.parts[name]
        whole = self.shape(name)[:-1] if part.kind == "index" else self.shape(name)
        place = part.shape.index(loop.ticks if loop.ticks is not None else loop.over)
        if not values:
            return torch.zeros(whole, dtype=torch.int64 if part.kind == "index" else torch.float64)
        return torch.stack(values, place).reshape(whole)

    def rounds(self, loop, state, tick):
        names = sorted(names_written(loop.body))
        given = {n: self.mapped(loop.init, n, state, self.shape(n), tick) for n in rows(loop.init)}
        state.update({name: self.zero(name) for name in names})
        state.update(given)
        if loop.times is not None:
            for k in range(number(loop.times, self.sizes)):
                self.node(loop.body, state, (*tick, k), False)
            return
        for k in range(loop.at_most):
            old = {name: state[name] for name in names}
            self.node(loop.body, state, (*tick, k), False)
            if all(bool(((state[n] - old[n]).abs() <= loop.until).all()) for n in names):
                return

    def noise(self, name, tick):
        """The stated generator: sha256 of seed, part and tick seeds torch's uniform numbers of the batch."""
        key = int.from_bytes(hashlib.sha256(f"{self.seed}/{name}/{tick}".encode()).digest()[:7], "big")
        drawn = torch.rand(self.batch, *self.shape(name), generator=torch.Generator().manual_seed(key))
        return drawn[self.place].double()


def rows(matrix):
    return [] if matrix is None else list(dict.fromkeys(row for (row, _), _ in matrix))


def names_written(node):
    if isinstance(node, Step):
        return {row.part for row in node.rows}
    if isinstance(node, Seq):
        return {name for child in node.body for name in names_written(child)}
    if isinstance(node, Loop) and node.over is None:
        return names_written(node.body) | set(rows(node.init))
    return set(rows(node.outputs)) | set(rows(node.carry))


def double(x):
    return x.double() if x.is_floating_point() else x


def multiply(matrix, keep, x):
    """y_i = Σ_j A_ij x_j over the entries that are there: a structural zero never meets an infinite x."""
    keep = keep | torch.isfinite(x)
    lines = [(matrix[i][keep[i]] * x[keep[i]]).sum() for i in range(matrix.shape[0])]
    return torch.stack(lines) if lines else torch.zeros(0, dtype=torch.float64)


def leading(shape, width):
    """The dimensions before the fewest last ones that multiply to the width."""
    for split in range(len(shape) - 1, -1, -1):
        if math.prod(shape[split:]) == width:
            return shape[:split]
    return []


def stack(values, before, m):
    if not values:
        return torch.zeros(*before, m, dtype=torch.float64)
    return torch.stack(list(values.values())).reshape(*before, m)


def join(rule, sums):
    """Every entry of the table, written out."""
    if rule.pattern:
        return contraction(rule.pattern, sums)
    a = sums[0]
    if rule.name == "top_k":
        return top(a, rule.argument)
    b = sums[1]
    if rule.name == "hadamard":
        return a * b
    if rule.name == "divide":
        return a / b
    if rule.name == "maximum":
        return torch.where(a > b, a, torch.where(b > a, b, (a + b) / 2))
    if rule.name == "minimum":
        return torch.where(a < b, a, torch.where(b < a, b, (a + b) / 2))
    if rule.name == "select":
        return torch.where(a if a.dtype == torch.bool else a != 0, b, sums[2])
    if rule.name == "gather":
        return torch.stack([a[int(i)] for i in b])
    lines = [torch.zeros_like(a[0]) for _ in range(rule.argument)]
    for value, i in zip(a, b, strict=True):
        lines[int(i)] = lines[int(i)] + value
    return torch.stack(lines)


def top(values, k):
    lines = values.reshape(-1, values.shape[-1]).tolist()
    best = [sorted(range(len(line)), key=lambda i: (-line[i], i))[:k] for line in lines]
    return torch.tensor(best, dtype=torch.int64).reshape(*values.shape[:-1], k)


def contraction(pattern, sums):
    """Σ over the axes that do not stay of the product of all operands, entry by entry."""
    left, right = pattern.split("->")
    operands, output = [side.split() for side in left.split(",")], right.split()
    lengths = {}
    for axes, value in zip(operands, sums, strict=True):
        lengths |= dict(zip(axes, value.shape, strict=True))
    gone = [axis for axis in lengths if axis not in output]
    entries = []
    for kept in itertools.product(*(range(lengths[axis]) for axis in output)):
        total = torch.zeros((), dtype=torch.float64)
        for other in itertools.product(*(range(lengths[axis]) for axis in gone)):
            at = dict(zip(output, kept, strict=True)) | dict(zip(gone, other, strict=True))
            term = torch.ones((), dtype=torch.float64)
            for axes, value in zip(operands, sums, strict=True):
                term = term * value[tuple(at[axis] for axis in axes)]
            total = total + term
        entries.append(total)
    shape = [lengths[axis] for axis in output]
    return torch.stack(entries).reshape(shape) if entries else torch.zeros(shape, dtype=torch.float64)


def softmax(x):
    e = torch.exp(x - x.amax(-1, keepdim=True).detach()) if x.numel() else x
    return e / e.sum(-1, keepdim=True)


def centred(x, epsilon):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean) ** 2).mean(-1, keepdim=True).add(epsilon).sqrt()


def relu(x):
    return torch.where(x > 0, x, torch.where(x <= 0, torch.zeros_like(x), x))


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": relu,
    "leaky_relu": lambda x, slope: torch.where(x > 0, x, slope * x),
    "abs": lambda x: torch.where(x > 0, x, torch.where(x < 0, -x, 0 * x)),
    "sign": lambda x: torch.where(x > 0, 1.0, torch.where(x < 0, -1.0, 0.0)) + 0 * x,
    "square": lambda x: x * x,
    "sqrt": lambda x: x**0.5,
    "rsqrt": lambda x: x**-0.5,
    "reciprocal": lambda x: 1 / x,
    "exp": lambda x: math.e**x,
    "sigmoid": sigmoid,
    "tanh": lambda x: 1 - 2 / (torch.exp(2 * x) + 1),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + ACTIVATIONS["tanh"](math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x * sigmoid(x),
    "softplus": lambda x: torch.log(1 + torch.exp(x)),
    "elu": lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
    "sin": torch.sin,
    "cos": torch.cos,
    "softmax": softmax,
    "log_softmax": lambda x: torch.log(softmax(x)),
    "layer_norm": centred,
    "rms_norm": lambda x, epsilon: x / ((x * x).mean(-1, keepdim=True) + epsilon).sqrt(),
    "cast": lambda x, dtype: x.to(getattr(torch, dtype)).double(),
    "keep": lambda x, p: (x < p).double() / p,
}


def activate(text, x):
    name, _, arguments = text.partition("(")
    values = [a.strip() for a in arguments.rstrip(")").split(",")] if arguments else []
    return ACTIVATIONS[name](x, *(v if name == "cast" else float(v) for v in values))
