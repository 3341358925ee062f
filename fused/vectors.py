"""Short vectors in compiled functions: 16 or 64 numbers that stay in registers, and what can be done with them.

Left to itself, the compiler reloads a product's partial sums from memory in every turn of a loop; with vectors as
values of their own they stay where they are. A vector is a value like a float: operators, `fma`, `select` and the
functions below work lane by lane. Nothing is fused that is not written as `fma`, so that sums and products round as
anywhere else. Start reading at `Lanes`.
"""

import operator
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from common.compiled import compiler

compiled = compiler(Path(__file__).resolve().parent)
KINDS = {"float": ir.FloatType(), "int": ir.IntType(32)}


class Lanes(types.Type):
    """The type of `count` numbers of 32 bits: of kind float, or int, which are unsigned."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind, self.count = kind, count
        super().__init__(name=f"lanes_{kind}_{count}")


F16, F64, I16 = Lanes("float", 16), Lanes("float", 64), Lanes("int", 16)


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """A vector is what LLVM calls one."""

    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(KINDS[fe_type.kind], fe_type.count))


def spread(builder: Any, value: Any, lanes: Lanes) -> Any:
    """The LLVM value of a vector with the same number in every lane."""
    kind = ir.VectorType(KINDS[lanes.kind], lanes.count)
    if isinstance(value, int | float):
        return ir.Constant(kind, [value] * lanes.count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes.count), [0] * lanes.count)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


OPERATORS = {
    operator.add: ("fadd", "add"),
    operator.sub: ("fsub", "sub"),
    operator.mul: ("fmul", "mul"),
    operator.truediv: ("fdiv", None),
    operator.xor: (None, "xor"),
    operator.or_: (None, "or_"),
    operator.and_: (None, "and_"),
}


def same_kind(lanes: Lanes, number: types.Type) -> bool:
    """Whether a scalar may stand beside a vector: float32 beside floats, uint32 beside ints."""
    return number == (types.float32 if lanes.kind == "float" else types.uint32)


class Operation(AbstractTemplate):
    """The typing of an operator on two vectors, or a vector and a scalar of its kind."""

    def generic(self, args: tuple[types.Type, ...], kws: dict) -> Any:
        if len(args) != 2 or kws:
            return None
        left, right = args
        if isinstance(left, Lanes) and (left == right or same_kind(left, right)):
            return signature(left, left, right)
        if isinstance(right, Lanes) and same_kind(right, left):
            return signature(right, left, right)
        return None


def define(function: Any, names: tuple[str | None, str | None]) -> None:
    """Make an operator known to the compiler, for every mixture of vectors and scalars."""
    infer_global(function)(type(f"Operation_{function.__name__}", (Operation,), {"key": function}))

    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        lanes = sig.return_type
        name = names[0] if lanes.kind == "float" else names[1]
        both = [a if isinstance(t, Lanes) else spread(builder, a, lanes) for a, t in zip(args, sig.args, strict=True)]
        return getattr(builder, name)(*both)

    for pair in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(function, *pair)(lower)


for _function, _names in OPERATORS.items():
    define(_function, _names)


def address(context: Any, builder: Any, kind: types.Array, array: Any, index: Any) -> Any:
    """The address of an element of an array of one dimension, as that of its number's kind."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [index], inbounds=True)


def memory(count: int) -> tuple[Any, Any]:
    """`load(array, index)` for vectors of `count` floats."""
    lanes = Lanes("float", count)

    @intrinsic
    def load(typing_context: Any, array: Any, index: Any) -> Any:
        """array[index : index + count] as a vector."""

        def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
            place = address(context, builder, sig.args[0], args[0], args[1])
            place = builder.bitcast(place, context.get_value_type(lanes).as_pointer())
            return builder.load(place, align=4)

        return lanes(array, types.intp), lower

    return load


load4, load16, load64 = memory(4), memory(16), memory(64)


@intrinsic
def store(typing_context: Any, array: Any, index: Any, vector: Any) -> Any:
    """array[index : index + count] = vector."""

    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        place = address(context, builder, sig.args[0], args[0], args[1])
        place = builder.bitcast(place, args[2].type.as_pointer())
        builder.store(args[2], place, align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), lower


def filled(lanes: Lanes) -> Any:
    """A function that makes a vector of one number."""
    number = types.float32 if lanes.kind == "float" else types.uint32

    @intrinsic
    def full(typing_context: Any, value: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
            return spread(builder, args[0], lanes)

        return lanes(number), lower

    return full


full16, full64, whole16 = filled(F16), filled(F64), filled(I16)


def called(builder: Any, name: str, *vectors: Any) -> Any:
    """What LLVM's function of this name makes of vectors of floats."""
    kind = vectors[0].type
    function = ir.FunctionType(kind, [kind] * len(vectors))
    return builder.call(
        cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.v{kind.count}f32"), vectors
    )


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once; a may be one number for all lanes."""

    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        first = args[0] if isinstance(sig.args[0], Lanes) else spread(builder, args[0], c)
        return called(builder, "fma", first, args[1], args[2])

    return c(a if isinstance(a, Lanes) else types.float32, b, c), lower


def unary(name: str) -> Any:
    """A lane-by-lane function of LLVM."""

    @intrinsic
    def function(typing_context: Any, x: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
            return called(builder, name, args[0])

        return x(x), lower

    return function


sqrt, nearest = unary("sqrt"), unary("rint")


@intrinsic
def select(typing_context: Any, test: Any, yes: Any, no: Any) -> Any:
    """yes where test > 0, else no."""

    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        positive = builder.fcmp_ordered(">", args[0], spread(builder, 0.0, test))
        return builder.select(positive, args[1], args[2])

    return yes(test, yes, yes), lower


def extreme(test: str) -> Any:
    """The larger or smaller number of every lane; the first where one is NaN, which so stays what it is."""

    @intrinsic
    def function(typing_context: Any, a: Any, b: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
            return builder.select(builder.fcmp_ordered(test, args[1], args[0]), args[1], args[0])

        return a(a, a), lower

    return function


larger, smaller = extreme(">"), extreme("<")


def cast(source: str, target: str, name: str) -> Any:
    """Vectors of one kind as those of the other: by value (`uitofp` and its like), or bit by bit (`bitcast`)."""

    @intrinsic
    def function(typing_context: Any, x: Any) -> Any:
        made = Lanes(target, x.count)

        def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
            return getattr(builder, name)(args[0], context.get_value_type(made))

        return made(x), lower

    return function


to_float, to_int = cast("int", "float", "sitofp"), cast("float", "int", "fptosi")
as_float, as_int = cast("int", "float", "bitcast"), cast("float", "int", "bitcast")


@intrinsic
def shifted(typing_context: Any, x: Any, by: Any) -> Any:
    """x >> by for a positive number of bits, x << -by for a negative one."""
    bits = by.literal_value if isinstance(by, types.Literal) else None
    if bits is None:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        amount = spread(builder, abs(bits), x)
        return builder.lshr(args[0], amount) if bits > 0 else builder.shl(args[0], amount)

    return x(x, by), lower


@intrinsic
def wide_product(typing_context: Any, x: Any, factor: Any) -> Any:
    """The upper and the lower 32 bits of x times an unsigned number.

    Lanes are multiplied in pairs, the even ones and the odd ones, since processors multiply 32 bits by 32 so.
    """

    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        pairs = ir.VectorType(ir.IntType(64), x.count // 2)
        half, low = (ir.Constant(pairs, [value] * (x.count // 2)) for value in (32, 0xFFFFFFFF))
        both = builder.bitcast(args[0], pairs)
        times = builder.and_(builder.bitcast(spread(builder, args[1], x), pairs), low)
        even = builder.mul(builder.and_(both, low), times)
        odd = builder.mul(builder.lshr(both, half), times)
        upper = builder.or_(builder.lshr(even, half), builder.and_(odd, builder.not_(low)))
        lower = builder.or_(builder.and_(even, low), builder.shl(odd, half))
        parts = [builder.bitcast(value, args[0].type) for value in (upper, lower)]
        return context.make_tuple(builder, sig.return_type, parts)

    return types.UniTuple(x, 2)(x, types.uint32), lower


@intrinsic
def counting16(typing_context: Any) -> Any:
    """0, 1, .. 15."""

    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        return ir.Constant(ir.VectorType(ir.IntType(32), 16), list(range(16)))

    return I16(), lower


@intrinsic
def taken(typing_context: Any, turn: Any) -> Any:
    """turn[0], which is counted up for the next thread that asks."""

    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        place = address(context, builder, sig.args[0], args[0], ir.Constant(ir.IntType(64), 0))
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(turn), lower


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Have an element's line of memory fetched, without waiting for it."""

    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        place = address(context, builder, sig.args[0], args[0], args[1])
        place = builder.bitcast(place, ir.IntType(8).as_pointer())
        hints = [ir.Constant(ir.IntType(32), value) for value in (0, 3, 1)]  # to read, often, as data
        kind = ir.FunctionType(ir.VoidType(), [place.type, *(hint.type for hint in hints)])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [place, *hints])
        return context.get_dummy_value()

    return types.none(array, types.intp), lower
