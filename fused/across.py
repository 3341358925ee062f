"""What compiled functions do across the lanes of vectors, or whatever their number: sums, turned squares, copies.

Start reading at `totals`.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fused.vectors import F16, address, compiled, load16, store


@intrinsic
def total(typing_context: Any, x: Any) -> Any:
    """The sum of all lanes, halves first."""

    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        value, count = args[0], x.count
        while count > 1:
            count //= 2
            value = builder.fadd(*(part(builder, value, k * count, count) for k in (0, 1)))
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.float32(x), lower


def part(builder: Any, value: Any, first: int, count: int) -> Any:
    """Some lanes of an LLVM vector as a shorter one."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(first, first + count)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def halves(width: int) -> list[list[int]]:
    """The even and the odd ones of all blocks of `width` lanes of two vectors, as the processor shuffles them.

    Single lanes stay within their four, to which those of both vectors come.
    """
    blocks = [lane for lane in range(32) if not lane & width]
    if width == 1:
        blocks = [four + 16 * vector + lane for four in (0, 4, 8, 12) for vector in (0, 1) for lane in (0, 2)]
    return [blocks, [lane + width for lane in blocks]]


@intrinsic
def totals(typing_context: Any, vectors: Any) -> Any:
    """The sums of sixteen vectors of sixteen lanes, as the lanes of one: neighbours are added up four times."""

    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        values = [builder.extract_value(args[0], k) for k in range(16)]
        kind = ir.VectorType(ir.IntType(32), 16)
        for width in (1, 1, 4, 4):
            masks = [ir.Constant(kind, lanes) for lanes in halves(width)]
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [builder.fadd(*(builder.shuffle_vector(*pair, mask) for mask in masks)) for pair in pairs]
        return values[0]

    return F16(vectors), lower


def interleaved(width: int) -> list[list[int]]:
    """The lanes of two vectors in turns, by one or two: the lower half of each four lanes, and the upper half."""
    lower = [
        four + 16 * vector + lane
        for four in (0, 4, 8, 12)
        for first in range(0, 2, width)
        for vector in (0, 1)
        for lane in range(first, first + width)
    ]
    return [lower, [lane + 2 for lane in lower]]


@intrinsic
def turned(
    typing_context: Any, source: Any, begins: Any, row: Any, column: Any, target: Any, at: Any, step: Any
) -> Any:
    """A square of 16 rows and columns, turned about its diagonal.

    Its rows are source[begins[row + k] + column :], and become columns of the rows target[at + k * step :].
    """

    def lower(context: Any, builder: Any, sig: Any, args: tuple) -> Any:
        vector, kinds = context.get_value_type(F16), sig.args
        rows = []
        for k in range(16):
            index = builder.add(args[2], ir.Constant(args[2].type, k))
            begin = builder.load(address(context, builder, kinds[1], args[1], index))
            place = address(context, builder, kinds[0], args[0], builder.add(begin, args[3]))
            rows.append(builder.load(builder.bitcast(place, vector.as_pointer()), align=4))
        kind = ir.VectorType(ir.IntType(32), 16)
        for width, found in ((1, interleaved(1)), (2, interleaved(2)), (4, halves(4)), (8, halves(4))):
            masks = [ir.Constant(kind, lanes) for lanes in found]
            for k in (k for k in range(16) if not k & width):
                pair = rows[k], rows[k + width]
                rows[k], rows[k + width] = (builder.shuffle_vector(*pair, mask) for mask in masks)
        for k, values in enumerate(rows):
            to = k & 12 | (0, 2, 1, 3)[k & 3]  # the column that has come to be row k
            index = builder.add(args[5], builder.mul(args[6], ir.Constant(args[6].type, to)))
            place = address(context, builder, kinds[4], args[4], index)
            builder.store(values, builder.bitcast(place, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    numbers = types.intp, types.intp
    return types.none(source, begins, *numbers, target, *numbers), lower


@compiled(forceinline=True)
def copied(source, begin, count, target, at):
    """target[at : at + count] = source[begin : begin + count], of different arrays."""
    for k in range(0, count - 15, 16):
        store(target, at + k, load16(source, begin + k))
    if count >= 16:  # the last vector may overlap with that before
        store(target, at + count - 16, load16(source, begin + count - 16))
    for k in range(count if count < 16 else 0):
        target[at + k] = source[begin + k]
