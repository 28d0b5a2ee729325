"""The innermost tile of the encoder product, and comparisons of whole vectors: what Numba's loops cannot say.

A tile is ROWS inputs by FEATURES features of z = b + x W^T. Its sums stay in registers over the whole width d: each step of the
width loads FEATURES weights, broadcasts ROWS entries of x and does ROWS x FEATURES multiply-adds (Goto & van de Geijn 2008, the
register block). At the end every sum is compared with the bound of its row while still in a register; the comparisons come
out as one word of bits per row, so that a tile with nothing above its bounds, which is nearly every tile, ends there.

Every sum starts at b and runs over the width in order, one multiply-add at a time: its bits depend neither on the shape of the
tile nor on what else is in it. The code is vector IR of LLVM, which any processor runs; only the shape is chosen for this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.extending import intrinsic

_HOST = get_host_cpu_features()
# Entries of a vector register, and rows of a tile: sums fill two or three quarters of the registers.
LANES, ROWS = (16, 12) if _HOST.get("avx512f") else (8, 6) if _HOST.get("avx") else (4, 6)
FEATURES = 2 * LANES

_FLOAT, _WORD = ir.FloatType(), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_FUSED = ("contract",)  # a product and a sum become one instruction where the processor has it


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [at])


def _element(builder: Any, pointer: Any, offset: int) -> Any:
    return builder.gep(pointer, [ir.Constant(ir.IntType(64), offset)])


def _vector(builder: Any, pointer: Any, offset: int) -> Any:
    return builder.bitcast(_element(builder, pointer, offset), _VECTOR.as_pointer())


def _splat(builder: Any, value: Any) -> Any:
    anything = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(anything, value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, anything, ir.Constant(ir.VectorType(_WORD, LANES), [0] * LANES))


def _above(builder: Any, vector: Any, bound: Any) -> Any:
    """Bit l of the word: entry l exceeds its bound."""
    bits = builder.bitcast(builder.fcmp_ordered(">", vector, bound), ir.IntType(LANES))
    return bits if _WORD.width == LANES else builder.zext(bits, _WORD)


def _multiply_add(builder: Any, x: Any, weights: Any, sums: list[list[Any]]) -> list[list[Any]]:
    vectors = [builder.load(_vector(builder, weights, v * LANES), align=4) for v in range(2)]
    result = []
    for row in range(ROWS):
        entry = _splat(builder, builder.load(_element(builder, x, row)))
        products = [builder.fmul(entry, vector, flags=_FUSED) for vector in vectors]
        result.append([builder.fadd(s, p, flags=_FUSED) for s, p in zip(sums[row], products, strict=True)])
    return result


def _sum_over_width(builder: Any, x: Any, weights: Any, biases: Any, width: Any) -> list[list[Any]]:
    """Emit the loop over the width; its sums [row][vector]."""
    start = [builder.load(_vector(builder, biases, v * LANES), align=4) for v in range(2)]
    before, loop = builder.block, builder.append_basic_block("width")
    end = builder.append_basic_block("summed")
    builder.branch(loop)
    builder.position_at_end(loop)
    c = builder.phi(width.type)
    sums = [[builder.phi(_VECTOR) for _ in range(2)] for _ in range(ROWS)]
    x_here = builder.gep(x, [builder.mul(c, ir.Constant(width.type, ROWS))])
    weights_here = builder.gep(weights, [builder.mul(c, ir.Constant(width.type, FEATURES))])
    added = _multiply_add(builder, x_here, weights_here, sums)
    following = builder.add(c, ir.Constant(width.type, 1))
    builder.cbranch(builder.icmp_signed("<", following, width), loop, end)
    c.add_incoming(ir.Constant(width.type, 0), before)
    c.add_incoming(following, loop)
    for row in range(ROWS):
        for v in range(2):
            sums[row][v].add_incoming(start[v], before)
            sums[row][v].add_incoming(added[row][v], loop)
    builder.position_at_end(end)
    return added


@intrinsic
def encode_tile(
    typing_context: Any,
    x: Any,
    x_at: Any,
    weights: Any,
    weights_at: Any,
    biases: Any,
    biases_at: Any,
    bounds: Any,
    bounds_at: Any,
    width: Any,
    z: Any,
    z_at: Any,
    above: Any,
) -> tuple[Any, Callable[..., Any]]:
    """One tile; returns the OR of the words ``above``: uint32, 0 when no sum exceeds the bound of its row.

    All arrays are flat float32, read from the place given with them: x (d, ROWS), weights (d, FEATURES), biases (FEATURES,),
    bounds (ROWS,). Writes z (ROWS, FEATURES) = biases + x^T weights, and above (ROWS,) uint32: bit j says z[i, j] > bounds[i].
    Cost: 2 d ROWS FEATURES operations, in registers.
    """
    signature = types.uint32(
        *(x, types.intp, weights, types.intp, biases, types.intp, bounds, types.intp),
        *(types.intp, z, types.intp, above),
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, weights, biases, bounds, z = (
            _pointer(context, builder, signature.args[i], arguments[i], arguments[i + 1])
            for i in (0, 2, 4, 6, 9)
        )
        zero = ir.Constant(ir.IntType(64), 0)
        words = _pointer(context, builder, signature.args[11], arguments[11], zero)
        sums = _sum_over_width(builder, x, weights, biases, arguments[8])
        any_above = ir.Constant(_WORD, 0)
        for row in range(ROWS):
            bound = _splat(builder, builder.load(_element(builder, bounds, row)))
            low, high = (_above(builder, vector, bound) for vector in sums[row])
            word = builder.or_(low, builder.shl(high, ir.Constant(_WORD, LANES)))
            for v in range(2):
                target = _vector(builder, z, row * FEATURES + v * LANES)
                builder.store(sums[row][v], target, align=4)
            builder.store(word, _element(builder, words, row))
            any_above = builder.or_(any_above, word)
        return any_above

    return signature, generate


@intrinsic
def vector_above(typing_context: Any, array: Any, at: Any, bound: Any) -> tuple[Any, Callable[..., Any]]:
    """Word (uint32) whose bit l says array[at + l] > bound, l < LANES, for a flat float32 array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1])
        vector = builder.load(_vector(builder, pointer, 0), align=4)
        return _above(builder, vector, _splat(builder, arguments[2]))

    return types.uint32(array, types.intp, types.float32), generate


def _over_pairs(
    builder: Any, arguments: Any, pointer: Any, start: Any, fold: Callable[[Any, Any], Any]
) -> Any:
    """Emit a loop that folds ``pairs`` >= 1 pairs of vectors, ``stride`` apart, into a result that begins as ``start``."""
    _, _, stride, pairs, *_ = arguments
    before, loop, end = builder.block, *(builder.append_basic_block(name) for name in ("pairs", "folded"))
    builder.branch(loop)
    builder.position_at_end(loop)
    i, accumulator = builder.phi(pairs.type), builder.phi(start.type)
    here = builder.gep(pointer, [builder.mul(i, stride)])
    result = accumulator
    for v in range(2):
        result = fold(result, builder.load(_vector(builder, here, v * LANES), align=4))
    following = builder.add(i, ir.Constant(i.type, 1))
    builder.cbranch(builder.icmp_signed("<", following, pairs), loop, end)
    i.add_incoming(ir.Constant(i.type, 0), before)
    i.add_incoming(following, loop)
    accumulator.add_incoming(start, before)
    accumulator.add_incoming(result, loop)
    builder.position_at_end(end)
    return result


def _across(builder: Any, vector: Any, fold: Callable[[Any, Any], Any]) -> Any:
    """Fold the entries of a vector into one."""
    half = LANES // 2
    while half:
        order = [(lane + half) % LANES for lane in range(LANES)]
        turned = builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_WORD, LANES), order))
        vector, half = fold(vector, turned), half // 2
    return builder.extract_element(vector, ir.Constant(_WORD, 0))


@intrinsic
def count_above(
    typing_context: Any, array: Any, at: Any, stride: Any, pairs: Any, bound: Any
) -> tuple[Any, Callable[..., Any]]:
    """How many entries of runs of FEATURES in a flat float32 array, ``pairs`` >= 1 runs ``stride`` apart, exceed ``bound``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1])
        bounds = _splat(builder, arguments[4])

        def add(count: Any, vector: Any) -> Any:
            return builder.add(count, builder.ctpop(_above(builder, vector, bounds)))

        total = _over_pairs(builder, arguments, pointer, ir.Constant(_WORD, 0), add)
        return builder.zext(total, ir.IntType(64))

    return types.int64(array, types.intp, types.intp, types.intp, types.float32), generate


def _extreme(comparison: str) -> Any:
    @intrinsic
    def extreme(
        typing_context: Any, array: Any, at: Any, stride: Any, pairs: Any
    ) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1])

            def better(a: Any, b: Any) -> Any:
                return builder.select(builder.fcmp_ordered(comparison, a, b), a, b)

            start = builder.load(_vector(builder, pointer, 0), align=4)
            return _across(builder, _over_pairs(builder, arguments, pointer, start, better), better)

        return types.float32(array, types.intp, types.intp, types.intp), generate

    return extreme


# The largest and the smallest entry of the runs that ``count_above`` looks at.
largest, smallest = _extreme(">"), _extreme("<")


@intrinsic
def lowest_bit(typing_context: Any, word: Any) -> tuple[Any, Callable[..., Any]]:
    """Position of the lowest bit that is set in a uint32 other than 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint32(types.uint32), generate


NEVER = np.float32(-np.inf)  # bias of a place without a feature, and value of a place without a candidate
