"""Matrices linear in each of several cores, and the exact steps and objectives their fits are made of.

A form names the axes of every core and of the output by single letters, as in torch.einsum: BLAST is
cores ("ipr", "rij", "jrq"), rows "ip", columns "jq". Letters of no output are ranks: they are summed.
"""

import functools
import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import opt_einsum  # type: ignore[import-untyped]
import torch
from torch import Tensor

Cores = Sequence[Tensor]
MOST_GRAM = 2**25  # numbers of a gram RᵀR; of a larger one the diagonal stands for it


@dataclass(frozen=True)
class Form:
    """A[rows, columns] = Σ_ranks Π_k core_k, with letters for axes; each letter at most once per core."""

    cores: tuple[str, ...]
    rows: str
    columns: str

    @property
    def output(self) -> str:
        """Letters of the rows, then of the columns."""
        return self.rows + self.columns

    @property
    def ranks(self) -> str:
        """Letters that are summed, in the order of first use."""
        return "".join(dict.fromkeys(c for core in self.cores for c in core if c not in self.output))

    def sizes(self, cores: Cores) -> dict[str, int]:
        """Size by letter, read off the cores."""
        pairs = zip(self.cores, cores, strict=True)
        return {c: n for axes, core in pairs for c, n in zip(axes, core.shape, strict=True)}

    def shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """Shape of every core."""
        return [tuple(sizes[c] for c in axes) for axes in self.cores]

    def expand(self, cores: Cores) -> Tensor:
        """The matrix as a tensor with one axis per letter of the output."""
        return contract(f"{','.join(self.cores)}->{self.output}", *cores)

    def others(self, k: int) -> list[int]:
        """Numbers of the cores that are not the k-th."""
        return [i for i in range(len(self.cores)) if i != k]


def contract(equation: str, *operands: Tensor) -> Tensor:
    """torch.einsum along the cheapest order of pairs, looked up once per equation and shapes."""
    return _path(equation, tuple(tuple(t.shape) for t in operands))(*operands, backend="torch")


@functools.lru_cache(maxsize=1024)
def _path(equation: str, shapes: tuple[tuple[int, ...], ...]) -> Callable[..., Tensor]:
    found: Callable[..., Tensor] = opt_einsum.contract_expression(equation, *shapes, optimize="auto")
    return found


@dataclass(frozen=True)
class Block:
    """How the k-th core enters: A = R core with R made of the other cores.

    shared: output letters it has in common with others, each value a problem of its own; own: output letters
    of its own, each a right-hand side of its own; ranks: letters the problem is solved over.
    """

    axes: str
    shared: str
    own: str
    ranks: str
    gram: str  # equation of RᵀR: (shared, ranks, ranks')
    pull: str  # equation of Rᵀ T: (shared, ranks, own)


@functools.lru_cache(maxsize=1024)
def block(form: Form, k: int) -> Block:
    """The linear problem of the k-th core."""
    axes, rest = form.cores[k], [form.cores[i] for i in form.others(k)]
    elsewhere = set("".join(rest))
    shared = "".join(c for c in axes if c in form.output and c in elsewhere)
    own = "".join(c for c in axes if c in form.output and c not in elsewhere)
    ranks = "".join(c for c in axes if c not in form.output)
    free = [c for c in string.ascii_letters if c not in form.output + form.ranks]
    other = dict(zip(form.ranks, free, strict=False))
    twin = ["".join(other.get(c, c) for c in core) for core in rest]
    primed = "".join(other[c] for c in ranks)
    gram = f"{','.join([*rest, *twin])}->{shared}{ranks}{primed}"
    return Block(axes, shared, own, ranks, gram, f"{','.join([form.output, *rest])}->{shared}{ranks}{own}")


def gram_factor(gram: Tensor, ridge: float, decay: float = 0.0) -> Tensor:
    """Cholesky factor of a gram RᵀR: (shared, ranks, ranks) + decay + ridge · its mean diagonal."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    tiny = torch.finfo(gram.dtype).tiny ** 0.5
    more = (ridge * diagonal.mean(-1, keepdim=True) + decay + tiny).expand_as(diagonal)
    factor: Tensor = torch.linalg.cholesky_ex(gram + torch.diag_embed(more))[0]
    return factor


def place_block(form: Form, k: int, solved: Tensor, sizes: Mapping[str, int]) -> Tensor:
    """The k-th core from (shared, ranks, own) in any shape."""
    how = block(form, k)
    order = how.shared + how.ranks + how.own
    return solved.reshape([sizes[c] for c in order]).permute([order.index(c) for c in how.axes]).contiguous()


class Kernel:
    """The products a fit is made of, by contraction; a form may have a faster kernel of its own.

    `gradients(cores, pull)`: with A the expanded matrix, (r, p) = pull(A) and p the gradient of the value for
    A, the gradients of the cores. `gram(cores, k)`: RᵀR of the k-th core, (shared, ranks, ranks).
    """

    def __init__(self, form: Form) -> None:
        self.form = form

    def gradients(self, cores: Cores, pull: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        """The gradients for all cores, by automatic differentiation."""
        free = [c.detach().requires_grad_() for c in cores]
        with torch.enable_grad():
            matrix = self.form.expand(free)
        return torch.autograd.grad(matrix, free, pull(matrix.detach()))

    def gram(self, cores: Cores, k: int) -> Tensor:
        """The equation `Block.gram`, flattened."""
        how, rest = block(self.form, k), [cores[i] for i in self.form.others(k)]
        gram = contract(how.gram, *rest, *rest)
        size = math.prod(gram.shape[len(how.shared) : len(how.shared) + len(how.ranks)])
        return gram.reshape(-1, size, size)


def gram_numbers(form: Form, k: int, sizes: Mapping[str, int]) -> int:
    """Numbers of RᵀR of the k-th core."""
    how = block(form, k)
    return math.prod(sizes[c] for c in how.shared) * math.prod(sizes[c] for c in how.ranks) ** 2


def gram_diagonal(form: Form, cores: Cores, k: int) -> Tensor:
    """An estimate of the diagonal of RᵀR, (shared, ranks, 1): exact where the other cores share no rank axis."""
    how, rest = block(form, k), [cores[i].square() for i in form.others(k)]
    found = contract(f"{','.join(form.cores[i] for i in form.others(k))}->{how.shared}{how.ranks}", *rest)
    return found.reshape(-1, math.prod(found.shape[len(how.shared) :]), 1)


def alternate(kernel: Kernel, cores: Cores, target: Tensor, sweeps: int, ridge: float) -> list[Tensor]:
    """Each core in turn its exact least-squares solution given the others: alternating least squares."""
    form, cores = kernel.form, list(cores)
    sizes = form.sizes(cores)
    for _ in range(sweeps):
        for k in reversed(range(len(cores))):
            pulled = contract(block(form, k).pull, target, *(cores[i] for i in form.others(k)))
            factor = gram_factor(kernel.gram(cores, k), ridge)
            solved = torch.cholesky_solve(pulled.reshape(*factor.shape[:2], -1), factor)
            cores[k] = place_block(form, k, solved, sizes)
        cores = balance(cores)
    return cores


def balance(cores: Cores) -> list[Tensor]:
    """The same matrix with cores of equal Frobenius norm."""
    norms = [float(c.norm()) for c in cores]
    if not all(norms):
        return list(cores)
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    return [c * (mean / norm) for c, norm in zip(cores, norms, strict=True)]


class LeastSquares:
    """½ ‖(A − T) G^½‖² + ½ decay · Σ ‖core‖² over the cores laid end to end in one vector.

    target: a tensor with the axes of the output. gram: G over all columns (n, n), or None for the identity.
    """

    def __init__(
        self,
        kernel: Kernel,
        target: Tensor,
        sizes: Mapping[str, int],
        gram: Tensor | None = None,
        decay: float = 0.0,
        ridge: float = 1e-3,
    ) -> None:
        self.kernel, self.form, self.target, self.gram = kernel, kernel.form, target, gram
        self.sizes, self.decay, self.ridge = dict(sizes), decay, ridge
        self.shapes = self.form.shapes(sizes)
        self.counts = [math.prod(s) for s in self.shapes]

    def pack(self, cores: Cores) -> Tensor:
        """The cores as one vector of the target's dtype."""
        return torch.cat([c.reshape(-1).to(self.target.dtype) for c in cores])

    def unpack(self, x: Tensor) -> list[Tensor]:
        """The vector as cores."""
        return [c.view(s) for c, s in zip(torch.split(x, self.counts), self.shapes, strict=True)]

    def value(self, x: Tensor) -> tuple[float, Tensor]:
        """The objective and its gradient."""
        value = 0.5 * self.decay * float(x.dot(x)) if self.decay else 0.0

        def pull(matrix: Tensor) -> Tensor:
            nonlocal value
            rest = matrix.reshape(self.target.shape) - self.target
            pulled = rest if self.gram is None else (self._flat(rest) @ self.gram).reshape(rest.shape)
            value += 0.5 * float(rest.reshape(-1).dot(pulled.reshape(-1)))
            return pulled.reshape(matrix.shape)

        gradient = self.pack(self.kernel.gradients(self.unpack(x), pull))
        return value, gradient.add_(x, alpha=self.decay) if self.decay else gradient

    def preconditioner(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The inverse of the diagonal blocks, one per core, of the Gauss–Newton matrix (G by its mean)."""
        cores, count = self.unpack(x), len(self.counts)
        weight = 1.0 if self.gram is None else float(self.gram.diagonal().mean())
        inverses = []
        for k in range(count):
            if gram_numbers(self.form, k, self.sizes) > MOST_GRAM:
                diagonal = gram_diagonal(self.form, cores, k) + self.decay / weight
                inverses.append(
                    1 / ((diagonal + self.ridge * diagonal.mean(1, keepdim=True)) * weight * count)
                )
                continue
            factor = gram_factor(self.kernel.gram(cores, k), self.ridge, self.decay / weight)
            # applied often to few right-hand sides each: as an inverse, at a product's speed
            inverses.append(torch.cholesky_inverse(factor) / (weight * count))

        def apply(gradient: Tensor) -> Tensor:
            parts = zip(self.unpack(gradient), inverses, strict=True)
            return self.pack([self._solve(k, part, inverse) for k, (part, inverse) in enumerate(parts)])

        return apply

    def _solve(self, k: int, part: Tensor, inverse: Tensor) -> Tensor:
        how = block(self.form, k)
        order = [how.axes.index(c) for c in how.shared + how.ranks + how.own]
        right = part.permute(order).reshape(*inverse.shape[:2], -1)
        full = inverse.shape[1] == inverse.shape[2]
        return place_block(self.form, k, torch.bmm(inverse, right) if full else inverse * right, self.sizes)

    def _flat(self, rest: Tensor) -> Tensor:
        return rest.reshape(-1, rest.shape[-1] if self.gram is None else self.gram.shape[0])
