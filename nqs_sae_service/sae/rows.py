"""Operations on rows of any width in explicit vectors: what the sparse kernels do with each active entry.

A row is a place in a flat float32 array. Numba's own loops would first ask, at every call, whether the arrays overlap; with a
few vectors a row that costs more than the arithmetic. Here the caller promises that a target overlaps nothing else. Every
function runs over whole vectors and then over what is left, always in the same order: same numbers in, same bits out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
_FLOAT, _INDEX = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_FUSED = ("contract",)
_LINE = 16  # float32 numbers in a line of the cache
Intrinsic = tuple[Any, Callable[..., Any]]


class _Row:
    """A row seen from generated code: entries as vectors or one by one."""

    def __init__(self, context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> None:
        self.builder = builder
        self.pointer = builder.gep(context.make_array(array_type)(context, builder, array).data, [at])

    def _place(self, i: Any, kind: Any) -> Any:
        place = self.builder.gep(self.pointer, [i])
        return place if kind is _FLOAT else self.builder.bitcast(place, kind.as_pointer())

    def load(self, i: Any, kind: Any) -> Any:
        return self.builder.load(self._place(i, kind), align=4)

    def store(self, value: Any, i: Any, kind: Any) -> None:
        self.builder.store(value, self._place(i, kind), align=4)


def _spread(builder: Any, value: Any, kind: Any) -> Any:
    """A number as a vector of it."""
    if kind is _FLOAT:
        return value
    anything, zero = ir.Constant(kind, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    one = builder.insert_element(anything, value, zero)
    order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, anything, order)


def _along(builder: Any, width: Any, body: Callable[[Any, Any], None]) -> None:
    """Emit ``body(i, kind)`` for every vector of a row, then for every entry left."""
    whole = builder.lshr(width, ir.Constant(_INDEX, 3))
    with cgutils.for_range(builder, whole) as loop:
        body(builder.shl(loop.index, ir.Constant(_INDEX, 3)), _VECTOR)
    with cgutils.for_range(builder, width, start=builder.shl(whole, ir.Constant(_INDEX, 3))) as loop:
        body(loop.index, _FLOAT)


def _sum(builder: Any, width: Any, term: Callable[[Any, Any, Any], Any]) -> Any:
    """Emit the sum over a row of what ``term(i, kind, sum so far)`` adds to it."""
    totals = {kind: cgutils.alloca_once_value(builder, ir.Constant(kind, None)) for kind in (_VECTOR, _FLOAT)}
    for kind, total in totals.items():
        builder.store(ir.Constant(kind, [0.0] * LANES) if kind is _VECTOR else ir.Constant(kind, 0.0), total)
    _along(
        builder, width, lambda i, kind: builder.store(term(i, kind, builder.load(totals[kind])), totals[kind])
    )
    vector, result = builder.load(totals[_VECTOR]), builder.load(totals[_FLOAT])
    half = LANES // 2
    while half:
        order = ir.Constant(
            ir.VectorType(ir.IntType(32), LANES), [(lane + half) % LANES for lane in range(LANES)]
        )
        vector, half = builder.fadd(vector, builder.shuffle_vector(vector, vector, order)), half // 2
    return builder.fadd(result, builder.extract_element(vector, ir.Constant(ir.IntType(32), 0)))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_FUSED), c, flags=_FUSED)


def _root(builder: Any, value: Any, kind: Any) -> Any:
    name = "llvm.sqrt.f32" if kind is _FLOAT else f"llvm.sqrt.v{LANES}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
    return builder.call(function, [value])


@intrinsic
def dot(typing_context: Any, a: Any, a_at: Any, b: Any, b_at: Any, width: Any) -> Intrinsic:
    """<a, b> of two rows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows = [_Row(context, builder, signature.args[i], *arguments[i : i + 2]) for i in (0, 2)]

        def term(i: Any, kind: Any, total: Any) -> Any:
            a, b = (row.load(i, kind) for row in rows)
            return _multiply_add(builder, a, b, total)

        return _sum(builder, arguments[4], term)

    return types.float32(a, types.intp, b, types.intp, types.intp), generate


@intrinsic
def add(
    typing_context: Any, target: Any, target_at: Any, factor: Any, row: Any, row_at: Any, width: Any
) -> Intrinsic:
    """target += factor row."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target = _Row(context, builder, signature.args[0], *arguments[:2])
        row = _Row(context, builder, signature.args[3], *arguments[3:5])

        def body(i: Any, kind: Any) -> None:
            factor = _spread(builder, arguments[2], kind)
            target.store(_multiply_add(builder, factor, row.load(i, kind), target.load(i, kind)), i, kind)

        _along(builder, arguments[5], body)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.float32, row, types.intp, types.intp), generate


@intrinsic
def add_two(
    typing_context: Any,
    first: Any,
    second: Any,
    a: Any,
    x: Any,
    b: Any,
    y: Any,
    at: Any,
    width: Any,
) -> Intrinsic:
    """first += a x[at:], second += b y[at:], in one pass; the targets are rows at the beginning of their arrays."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(_INDEX, 0)
        sums = [
            (
                _Row(context, builder, signature.args[target], arguments[target], zero),
                arguments[factor],
                _Row(context, builder, signature.args[factor + 1], arguments[factor + 1], arguments[6]),
            )
            for target, factor in ((0, 2), (1, 4))
        ]

        def body(i: Any, kind: Any) -> None:
            results = [
                _multiply_add(
                    builder, _spread(builder, factor, kind), row.load(i, kind), target.load(i, kind)
                )
                for target, factor, row in sums
            ]
            for (target, _, _), result in zip(sums, results, strict=True):
                target.store(result, i, kind)

        _along(builder, arguments[7], body)
        return context.get_dummy_value()

    return types.void(*(first, second, types.float32, x, types.float32, y, types.intp, types.intp)), generate


@intrinsic
def scale(typing_context: Any, row: Any, at: Any, factor: Any, width: Any) -> Intrinsic:
    """row *= factor."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row = _Row(context, builder, signature.args[0], *arguments[:2])

        def body(i: Any, kind: Any) -> None:
            row.store(builder.fmul(row.load(i, kind), _spread(builder, arguments[2], kind)), i, kind)

        _along(builder, arguments[3], body)
        return context.get_dummy_value()

    return types.void(row, types.intp, types.float32, types.intp), generate


@intrinsic
def adam(
    typing_context: Any,
    parameter: Any,
    mean: Any,
    square: Any,
    at: Any,
    gradient: Any,
    along: Any,
    constants: Any,
    width: Any,
) -> Intrinsic:
    """One Adam step on a row; returns |parameter|^2 after it.

    ``parameter``, ``mean`` and ``square`` are read at ``at``, ``gradient`` at its beginning; ``constants`` is the array
    [rate, epsilon, beta1, 1 - beta1, beta2, 1 - beta2]. The gradient used is gradient - along parameter.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p, m, v = (_Row(context, builder, signature.args[i], arguments[i], arguments[3]) for i in range(3))
        zero = ir.Constant(_INDEX, 0)
        g = _Row(context, builder, signature.args[4], arguments[4], zero)
        table = _Row(context, builder, signature.args[6], arguments[6], zero)
        numbers = [table.load(ir.Constant(_INDEX, i), _FLOAT) for i in range(6)]
        along = builder.fneg(arguments[5])

        def term(i: Any, kind: Any, total: Any) -> Any:
            rate, epsilon, b1, c1, b2, c2 = (_spread(builder, number, kind) for number in numbers)
            old = p.load(i, kind)
            gradient = _multiply_add(builder, _spread(builder, along, kind), old, g.load(i, kind))
            mean = _multiply_add(builder, b1, m.load(i, kind), builder.fmul(c1, gradient))
            squared = builder.fmul(c2, builder.fmul(gradient, gradient))
            square = _multiply_add(builder, b2, v.load(i, kind), squared)
            step = builder.fdiv(builder.fmul(rate, mean), builder.fadd(_root(builder, square, kind), epsilon))
            new = builder.fsub(old, step)
            for row, value in ((m, mean), (v, square), (p, new)):
                row.store(value, i, kind)
            return _multiply_add(builder, new, new, total)

        return _sum(builder, arguments[7], term)

    return types.float32(
        *(parameter, mean, square, types.intp, gradient, types.float32, constants, types.intp)
    ), generate


@intrinsic
def prefetch(typing_context: Any, array: Any, at: Any, width: Any) -> Intrinsic:
    """Ask for a row, to be there when its turn comes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row = _Row(context, builder, signature.args[0], *arguments[:2])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        options = [ir.Constant(word, value) for value in (0, 3, 1)]  # to read, keep, data
        lines = builder.udiv(
            builder.add(arguments[2], ir.Constant(_INDEX, _LINE - 1)), ir.Constant(_INDEX, _LINE)
        )
        with cgutils.for_range(builder, lines) as loop:
            place = builder.gep(row.pointer, [builder.mul(loop.index, ir.Constant(_INDEX, _LINE))])
            builder.call(function, [builder.bitcast(place, byte), *options])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate
