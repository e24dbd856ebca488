"""Short vectors that stay in registers, for loops compiled by numba.

Left to its vectoriser, a loop over stored entries loads, adds to and stores a row of sums per entry. Here
that row is one value of a vector type, so an entry costs one load and one fused multiply-add per register.
Memory is named by address (tensor.data_ptr()): an integer costs 0.1 µs a call, an array 1 µs.
"""

import functools
import importlib
from typing import Any, NamedTuple

REGISTER_BYTES = 64  # of the widest registers; a vector is a multiple of them
NUMBER_BYTES = {"float32": 4, "float64": 8}


class Lanes(NamedTuple):
    """Operations of numba code. A vector is `count` numbers; `at` is the address of number 0, in bytes."""

    zero: Any  # () → vector
    load: Any  # (at) → the vector that lies there
    store: Any  # (at, vector)
    add_scaled: Any  # (number a, vector x, vector y) → a x + y, rounded once
    dot: Any  # (vector, vector) → number, summed in pairs
    number: Any  # (at, k) → number k
    put: Any  # (at, k, number)
    index: Any  # (at, k) → integer k as int64
    turn: Any  # (from, to, bytes between rows of from, of to): a square block is copied transposed


@functools.cache
def lanes(kind: str, indices: str, count: int) -> Lanes:
    """The operations for numbers "float32" or "float64" and indices "int32" or "int64"; needs numba.

    count × bytes of a number is a multiple of REGISTER_BYTES.
    """
    numba = importlib.import_module("numba")
    code, vector = _Code(kind, indices, count), _vector_class()(kind, count)
    number, whole, nothing = getattr(numba, kind), numba.int64, numba.void
    return Lanes(
        zero=_operation(vector, (), code.zero),
        load=_operation(vector, (whole,), code.load),
        store=_operation(nothing, (whole, vector), code.store),
        add_scaled=_operation(vector, (number, vector, vector), code.add_scaled),
        dot=_operation(number, (vector, vector), code.dot),
        number=_operation(number, (whole, whole), code.number),
        put=_operation(nothing, (whole, whole, number), code.put),
        index=_operation(whole, (whole, whole), code.index),
        turn=_operation(nothing, (whole, whole, whole, whole), code.turn),
    )


def _operation(result: Any, arguments: tuple[Any, ...], emit: Any) -> Any:
    """An operation of numba code: emit(builder, *values) writes its LLVM code and returns its value."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        value = emit(builder, *values)
        return context.get_dummy_value() if value is None else value

    typed = result(*arguments), lower
    forms = (
        lambda _: typed,
        lambda _, a: typed,
        lambda _, a, b: typed,
        lambda _, a, b, c: typed,
        lambda _, a, b, c, d: typed,
    )
    return importlib.import_module("numba.extending").intrinsic(forms[len(arguments)])


@functools.cache
def _vector_class() -> Any:
    """numba's type of a vector; its values are LLVM's <count x kind>."""
    extending, types = (importlib.import_module(f"numba.{name}") for name in ("extending", "types"))

    class Vector(types.Type):  # type: ignore[misc, name-defined]
        def __init__(self, kind: str, count: int) -> None:
            self.kind, self.count = kind, count
            super().__init__(name=f"vector({kind} x {count})")

    class Model(extending.models.PrimitiveModel):  # type: ignore[misc, name-defined]
        def __init__(self, manager: Any, form: Any) -> None:
            super().__init__(manager, form, _Code(form.kind, "int64", form.count).vector)

    extending.register_model(Vector)(Model)
    return Vector


class _Code:
    """LLVM code of each operation, written with llvmlite, which comes with numba."""

    def __init__(self, kind: str, indices: str, count: int) -> None:
        self.ir: Any = importlib.import_module("llvmlite.ir")
        self.number_type = self.ir.FloatType() if kind == "float32" else self.ir.DoubleType()
        self.index_type = self.ir.IntType(int(indices.removeprefix("int")))
        self.vector = self.ir.VectorType(self.number_type, count)
        self.count, self.bytes = count, NUMBER_BYTES[kind]

    def zero(self, b: Any) -> Any:
        return self.ir.Constant(self.vector, None)

    def load(self, b: Any, at: Any) -> Any:
        vector = b.load(b.inttoptr(at, self.vector.as_pointer()))
        vector.align = self.bytes  # a row need not start where a register's worth of memory does
        return vector

    def store(self, b: Any, at: Any, vector: Any) -> None:
        b.store(vector, b.inttoptr(at, self.vector.as_pointer())).align = self.bytes

    def add_scaled(self, b: Any, a: Any, x: Any, y: Any) -> Any:
        first = b.insert_element(self._undefined(self.vector), a, self._place(0))
        return self._fused(b, self._pick(b, first, [0] * self.count), x, y)

    def dot(self, b: Any, x: Any, y: Any) -> Any:
        """Products are added register on register, then half on half."""
        width, total = REGISTER_BYTES // self.bytes, None
        for start in range(0, self.count, width):
            part = range(start, start + width)
            pair = self._pick(b, x, part), self._pick(b, y, part)
            total = b.fmul(*pair) if total is None else self._fused(b, *pair, total)
        while width > 1:
            width //= 2
            halves = range(width), range(width, 2 * width)
            total = b.fadd(*(self._pick(b, total, half) for half in halves))
        return b.extract_element(total, self._place(0))

    def turn(self, b: Any, source: Any, target: Any, apart: Any, target_apart: Any) -> None:
        """A block as wide and high as a register: bit after bit of row and column number change places."""
        side = REGISTER_BYTES // self.bytes
        register = self.ir.VectorType(self.number_type, side)
        rows = [self._row(b, source, k, apart, register) for k in range(side)]
        rows = [b.load(row) for row in rows]
        for row in rows:
            row.align = self.bytes
        bit = 1
        while bit < side:
            kept = [k if not k & bit else side + k - bit for k in range(side)]
            crossed = [k + bit if not k & bit else side + k for k in range(side)]
            pairs = [
                (rows[k], rows[k + bit]) if not k & bit else (rows[k - bit], rows[k]) for k in range(side)
            ]
            rows = [
                b.shuffle_vector(*pair, self._places(crossed if k & bit else kept))
                for k, pair in enumerate(pairs)
            ]
            bit *= 2
        for k, row in enumerate(rows):
            b.store(row, self._row(b, target, k, target_apart, register)).align = self.bytes

    def _row(self, b: Any, at: Any, k: int, apart: Any, register: Any) -> Any:
        place = b.add(at, b.mul(apart, self.ir.Constant(self.ir.IntType(64), k)))
        return b.inttoptr(place, register.as_pointer())

    def number(self, b: Any, at: Any, k: Any) -> Any:
        return b.load(self._element(b, at, k, self.number_type, self.bytes))

    def put(self, b: Any, at: Any, k: Any, number: Any) -> None:
        b.store(number, self._element(b, at, k, self.number_type, self.bytes))

    def index(self, b: Any, at: Any, k: Any) -> Any:
        found = b.load(self._element(b, at, k, self.index_type, self.index_type.width // 8))
        return b.sext(found, self.ir.IntType(64)) if self.index_type.width < 64 else found

    def _element(self, b: Any, at: Any, k: Any, kind: Any, size: int) -> Any:
        return b.inttoptr(b.add(at, b.mul(k, self.ir.Constant(self.ir.IntType(64), size))), kind.as_pointer())

    def _fused(self, b: Any, a: Any, x: Any, y: Any) -> Any:
        """a x + y of vectors of any length; llvmlite declares LLVM's fma for numbers only."""
        function = importlib.import_module("numba.core.cgutils").get_or_insert_function
        name = f"llvm.fma.v{x.type.count}f{8 * self.bytes}"
        return b.call(function(b.module, self.ir.FunctionType(x.type, [x.type] * 3), name), (a, x, y))

    def _pick(self, b: Any, vector: Any, places: Any) -> Any:
        return b.shuffle_vector(vector, self._undefined(vector.type), self._places(places))

    def _places(self, places: Any) -> Any:
        kind = self.ir.VectorType(self.ir.IntType(32), len(places))
        return self.ir.Constant(kind, [self._place(k) for k in places])

    def _place(self, k: int) -> Any:
        return self.ir.Constant(self.ir.IntType(32), k)

    def _undefined(self, kind: Any) -> Any:
        return self.ir.Constant(kind, self.ir.Undefined)
