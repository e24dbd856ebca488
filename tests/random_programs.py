"""Random programs: any structures at any places, ties, joins, index parts, loops in loops. Seeded, in float64."""

import random

import torch

import onematrix as om
from onematrix.errors import OneMatrixError
from onematrix.programs.part import make_part
from onematrix.structures.algebra import Product, Sum, Transposed
from onematrix.structures.base import STRUCTURES, fittable
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones, Zero, scale

SMOOTH = ["tanh", "sigmoid", "sin", "cos", "gelu", "silu", "softplus", "elu", "softmax", "rms_norm(0.5)"]
KINKED = ["relu", "abs", "leaky_relu(0.25)", "identity", "layer_norm(0.5)", "square"]


def random_program(seed):
    """A program with parts of every kind; its inputs are named by what they are."""
    return _Maker(seed).program()


def random_recurrence(seed):
    """A program of one loop over time, whose outputs are every series it stacks and its last state."""
    maker = _Maker(seed)
    maker.declare()
    loop, defined = maker.over(set(maker.given), 2, whole=True)
    outputs = sorted(n for n in defined if n not in maker.given)
    return om.Program(loop, maker.given, outputs, maker.parts)


class _Maker:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.parts, self.made, self.count = {}, [], 0

    def declare(self):
        """The inputs and the noise part every program has."""
        inputs = {"x": 3, "u": ("time", 2), "w": ("time", "steps", 2), "v": (2, 3)}
        inputs |= {"i": om.Part((2, 4), "index"), "k": om.Part(("time", 3), "index")}
        inputs |= {"ok": om.Part(("time",), dtype="bool"), "dice": om.Part((3,), "noise")}
        self.parts = {name: make_part(part) for name, part in inputs.items()}
        self.given = [name for name in inputs if name != "dice"]

    def program(self):
        self.declare()
        nodes, defined = [], set(self.given)
        for _ in range(self.rng.randint(2, 4)):
            node, defined = self.node(defined, 3)
            nodes.append(node)
        new = sorted(n for n in defined if n not in self.given)
        outputs = self.rng.sample(new, min(3, len(new))) or ["x"]
        return om.Program(om.Seq(*nodes), self.given, outputs, self.parts)

    def name(self, prefix, part):
        self.count += 1
        name = f"{prefix}{self.count}"
        self.parts[name] = part if isinstance(part, om.Part) else om.Part(tuple(part))
        return name

    # Structures.

    def structure(self, m, n):
        """Some structure of that shape; now and then one that is there already: a tie."""
        same = [s for s in self.made if s.shape == (m, n)]
        if same and self.rng.random() < 0.25:
            return self.rng.choice(same)
        self.made.append(self.new_structure(m, n))
        return self.made[-1]

    def new_structure(self, m, n):
        dense = torch.randn(m, n, generator=self.generator, dtype=torch.float64) / n**0.5
        kind = self.rng.choice(["dense", "fit", "fit", "square", "zero", "ones", "algebra"])
        if kind == "fit":
            return self.fitted(dense)
        if kind == "square" and m == n:
            ratio = self.rng.choice([-1, 0.5, 1])
            return self.rng.choice([scale(Identity(n), ratio), Diagonal(dense[0].clone())])
        if kind in ("zero", "ones"):
            return Zero(m, n) if kind == "zero" else scale(Ones(m, n), 0.25)
        if kind == "algebra":
            left, right = self.fitted(dense), Dense(torch.eye(n, dtype=torch.float64))
            return self.rng.choice(
                [Product(left, right), Sum((left, Dense(dense))), Transposed(Dense(dense.mT.contiguous()))]
            )
        return Dense(dense)

    def fitted(self, dense):
        cls = STRUCTURES[self.rng.choice(fittable())]
        for budget in (0.6, 1.0):
            try:
                return cls.fit(dense, budget).structure
            except OneMatrixError:
                continue
        return Dense(dense)

    def block(self, target, source):
        """A block between two parts, or None where none fits."""
        choices = []
        if all(isinstance(size, int) for size in target.shape + source.shape):
            choices.append(om.Block(self.structure(target.features, source.features)))
        before = target.shape[:-1]
        if before and before in (source.shape[:-1], before if len(source.shape) == 1 else ()):
            choices.append(om.Block(self.structure(target.shape[-1], source.shape[-1]), on="last"))
        return self.rng.choice(choices) if choices else None

    def sum(self, target, defined, most=3):
        """{column: block} of one sum for a target part."""
        names = [n for n in sorted(defined) if self.parts[n].dtype is None] + ["one", "dice"]
        chosen = self.rng.sample(names, min(len(names), self.rng.randint(1, most)))
        found = {c: self.block(target, self.parts.get(c) or om.Part((1,))) for c in chosen}
        return {c: b for c, b in found.items() if b is not None}

    # Nodes: each gives itself and the parts defined after it.

    def node(self, defined, depth):
        kinds = ["step"] * 3 + (["over", "over", "times", "until", "seq", "joined"] if depth else ["joined"])
        kind = self.rng.choice(kinds)
        if kind == "over" and not self.fed(defined, "time"):
            kind = "step"
        return getattr(self, kind)(defined, depth)

    def seq(self, defined, depth):
        nodes = []
        for _ in range(2):
            node, defined = self.node(defined, depth - 1)
            nodes.append(node)
        return om.Seq(*nodes), defined

    def step(self, defined, depth):
        grids, joins, activations, rows = [{}, {}, {}], {}, {}, []
        for _ in range(self.rng.randint(1, 3)):
            row = self.target(defined, rows)
            rows.append(row)
            join = self.rng.choice(["none", "none", "hadamard", "maximum", "minimum", "select"])
            for grid in grids[: {"none": 1, "select": 3}.get(join, 2)]:
                more = self.sum(self.parts[row], defined) or {
                    "one": self.block(self.parts[row], om.Part((1,)))
                }
                more = {} if join == "none" and self.rng.random() < 0.05 else more
                grid |= {(row, column): block for column, block in more.items()}
            joins |= {row: join} if join != "none" else {}
            activations[row] = self.rng.choice(SMOOTH + KINKED)
        parts = self.parts
        matrices = [om.BlockMatrix(g, parts) for g in grids]
        return om.Step(*matrices, activations=activations, joins=joins, rows=rows), defined | set(rows)

    def target(self, defined, taken):
        """A part to write: an old one that is free to be overwritten, or a new one."""
        old = [n for n in sorted(defined) if n[0] == "p" and n not in taken]
        if old and self.rng.random() < 0.4:
            return self.rng.choice(old)
        shapes = [(2,), (3,), (4,), (2, 3), (2, 2), (3, 2)]
        shapes_of = {self.parts[n].shape[:-1] for n in defined if isinstance(self.parts[n].shape[0], str)}
        named = sorted(shapes_of, key=str)
        shapes += [(*before, self.rng.choice([2, 3])) for before in named if before]
        return self.name("p", self.rng.choice(shapes))

    def joined(self, defined, depth):
        """A contraction, or a top_k with a gather and a scatter by what it found."""
        return (self.contraction if self.rng.random() < 0.5 else self.picking)(defined)

    def contraction(self, defined):
        names = [n for n in sorted(defined) if len(self.parts[n].shape) < 3 and self.parts[n].dtype is None]
        names = [n for n in names if all(isinstance(s, int) for s in self.parts[n].shape)]
        if not names:
            return self.step(defined, 0)
        a, b = self.rng.choice(names), self.rng.choice(names)
        left, right = self.parts[a].shape, self.parts[b].shape
        patterns = [
            (f"{'i j'[: 2 * len(left) - 1]}, {'k l'[: 2 * len(right) - 1]} -> i k", (left[0], right[0]))
        ]
        if left[-1] == right[-1]:
            before = "i " if len(left) == 2 else ""
            patterns.append(
                (f"{before}z, {'k ' if len(right) == 2 else ''}z -> z {before}", (left[-1], *left[:-1]))
            )
        pattern, shape = self.rng.choice(patterns)
        row = self.name("p", shape)
        G, H = (om.BlockMatrix({(row, c): Identity(self.parts[c].features)}, self.parts) for c in (a, b))
        return om.Step(G, H, activations={row: "identity"}, joins={row: pattern}), defined | {row}

    def picking(self, defined):
        score, values, top = (
            self.name("p", (4,)),
            self.name("p", (4, 2)),
            self.name("t", om.Part((2, 4), "index")),
        )
        few, many = self.name("p", (2, 2)), self.name("p", (4, 2))
        grid = {(r, c): b for r in (score, values) for c, b in self.sum(self.parts[r], defined).items()}
        first = om.Step(
            om.BlockMatrix(grid, self.parts),
            activations={score: "tanh"},
            rows=[score, values],
        )
        second = om.Step(om.BlockMatrix({(top, score): Identity(4)}, self.parts), joins={top: "top_k(2)"})
        index = "i" if "i" in defined and self.rng.random() < 0.5 else top

        def by_index(row, column, size, join):
            grids = ({(row, column): Identity(size)}, {(row, index): Identity(8)})
            return om.Step(*(om.BlockMatrix(g, self.parts) for g in grids), joins={row: join})

        nodes = [first, second, by_index(few, values, 8, "gather"), by_index(many, few, 4, "scatter(4)")]
        return om.Seq(*nodes), defined | {score, values, top, few, many}

    def over(self, defined, depth, whole=False):
        dimensions = [d for d in ("time", "steps") if self.fed(defined, d)]
        dimension = "time" if whole else self.rng.choice(dimensions)
        sources = self.rng.sample(self.fed(defined, dimension), 1)
        sources += [n for n in ("x",) if n in defined and self.rng.random() < 0.3]
        ticks = None if whole else self.rng.choice([None, None, f"{dimension} + 1", 2])
        after = self.rng.choice(["zero", "hold"]) if ticks != 2 else "zero"
        feeds, fed = {}, set()
        for source in sources:
            part = self.parts[source]
            inner = self.name("f", part.peel(dimension) or part)
            fed.add(inner)
            on = "last" if len(self.parts[inner].shape) > 1 and part.kind != "index" else "all"
            size = self.parts[inner].shape[-1]
            feeds[inner, source] = om.Block(Identity(size), on=on)
        carried = [self.name("p", (self.rng.choice([2, 3]),)) for _ in range(self.rng.randint(1, 2))]
        body, inside = self.node({*fed, *carried}, depth - 1)
        carry = self.map({name: self.parts[name] for name in carried}, inside)
        init = self.map({carried[0]: self.parts[carried[0]]}, defined) if self.rng.random() < 0.6 else {}
        length = dimension if ticks is None else ticks
        outputs, stacked = {}, set()
        for inner in self.rng.sample(sorted(inside - fed), min(2, len(inside - fed))):
            part = self.parts[inner]
            if all(isinstance(s, int) for s in part.shape) and part.kind == "real":
                outer = self.name("p", (length, *part.shape))
                outputs[outer, inner] = om.Block(Identity(part.features))
                stacked.add(outer)
        loop = om.Loop(
            body,
            over=dimension,
            feeds=om.BlockMatrix(feeds, self.parts),
            outputs=om.BlockMatrix(outputs, self.parts) if outputs else None,
            carry=om.BlockMatrix(carry, self.parts),
            init=om.BlockMatrix(init, self.parts) if init else None,
            reverse=self.rng.random() < 0.3,
            valid="ok" if "ok" in defined and dimension == "time" and self.rng.random() < 0.4 else None,
            ticks=ticks,
            after=after,
        )
        written = inside - fed - set(carried)
        return loop, (defined - written - fed) | set(carried) | stacked

    def fed(self, defined, dimension):
        names = [n for n in sorted(defined) if dimension in self.parts[n].stored_shape]
        return [n for n in names if self.parts[n].dtype is None]

    def map(self, targets, defined):
        """Blocks of a loop's own map: some for every target."""
        grid = {}
        for name, part in targets.items():
            found = self.sum(part, {n for n in defined if self.parts[n].kind == "real"}, 2)
            found = found or {"one": self.block(part, om.Part((1,)))}
            grid |= {(name, column): block for column, block in found.items()}
        return grid

    def times(self, defined, depth):
        return self.rounds(defined, depth, times=self.rng.choice([0, 1, 3, "rounds"]))

    def until(self, defined, depth):
        return self.rounds(
            defined, depth, until=self.rng.choice([0.1, 0.03]), at_most=self.rng.choice([1, 4])
        )

    def rounds(self, defined, depth, **options):
        row = self.name("p", (self.rng.choice([2, 3]),))
        init = om.BlockMatrix(self.map({row: self.parts[row]}, defined), self.parts)
        body, inside = self.node(defined | {row}, depth - 1)
        return om.Loop(body, init=init, **options), inside
