"""Sums of products of configurations that lie side by side, with the sums in registers.

Attention multiplies numbers that differ from configuration to configuration: no matrix product, and so small that a loop over
configurations spends its time on loads, stores and the question whether its arrays overlap. ``add_products`` is written in
vectors of ``LANES`` configurations instead, four sums at a time, so that every loaded number is used twice.
"""

from __future__ import annotations

from .jit import numba

LANES = 8


@numba.extending.intrinsic
def add_products(typing_context, a, a_at, a_step, b, b_at, b_step, terms, start, c, c_at):
    """c[c_at[2 x + y] + lane] <- start[2 x + y] + sum_k a[a_at[x] + k a_step + lane] b[b_at[y] + k b_step + lane].

    x and y are 0 or 1, ``lane`` runs over ``LANES`` neighbours, k over ``terms`` >= 1. a, b, c (flat) and start are float32,
    all others integers; a_at and b_at are pairs, start and c_at have four elements. The order of the sum is the one written:
    the bits do not depend on who calls. 8 terms LANES FLOPs for 16 terms LANES bytes of loads.
    """
    from llvmlite import ir

    types = numba.types
    integer, real = types.intp, types.float32
    pair, corners = types.UniTuple(integer, 2), types.UniTuple(integer, 4)
    signature = types.void(
        a, pair, integer, b, pair, integer, integer, types.UniTuple(real, 4), c, corners
    )  # fmt: skip

    def generate(context, builder, signature, arguments):
        a, a_at, a_step, b, b_at, b_step, terms, start, c, c_at = arguments
        vector, word = ir.VectorType(ir.FloatType(), LANES), terms.type
        undefined = ir.Constant(vector, ir.Undefined)
        all_first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        multiply_add = numba.core.cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32"
        )

        def data(kind, array):
            return context.make_array(kind)(context, builder, array).data

        def elements(values, count):
            return [builder.extract_value(values, k) for k in range(count)]

        def place(pointer, offset):
            return builder.bitcast(builder.gep(pointer, [offset]), vector.as_pointer())

        def spread(value):
            first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(first, undefined, all_first)

        before, sums = builder.block, [spread(value) for value in elements(start, 4)]
        a_places, b_places = elements(a_at, 2), elements(b_at, 2)
        factors, others = data(signature.args[0], a), data(signature.args[3], b)
        body, after = builder.append_basic_block("term"), builder.append_basic_block("sums")
        builder.branch(body)
        builder.position_at_end(body)
        k, running = builder.phi(word), [builder.phi(vector) for _ in sums]
        x = [
            builder.load(place(factors, builder.add(at, builder.mul(k, a_step))), align=4) for at in a_places
        ]
        y = [builder.load(place(others, builder.add(at, builder.mul(k, b_step))), align=4) for at in b_places]
        fresh = [builder.call(multiply_add, [x[q // 2], y[q % 2], running[q]]) for q in range(4)]
        following = builder.add(k, ir.Constant(word, 1))
        for phi, initial, update in zip(
            [k, *running], [ir.Constant(word, 0), *sums], [following, *fresh], strict=True
        ):
            phi.add_incoming(initial, before)
            phi.add_incoming(update, body)
        builder.cbranch(builder.icmp_signed("<", following, terms), body, after)
        builder.position_at_end(after)
        target = data(signature.args[8], c)
        for at, total in zip(elements(c_at, 4), fresh, strict=True):
            builder.store(total, place(target, at), align=4)
        return context.get_dummy_value()

    return signature, generate
