"""Copies of stretches between flat arrays inside kernels.

A loop over a few dozen numbers spends most of its time on asking whether its arrays overlap, and on its
ends; ``memcpy`` does not.
"""

from __future__ import annotations

from .jit import njit, numba


@numba.extending.intrinsic
def copy_stretch(typing_context, source, start, target, place, count):
    """target[place : place + count] <- source[start : start + count], flat arrays of one type that do not overlap."""
    integer = numba.types.intp
    signature = numba.types.void(source, integer, target, integer, integer)

    def generate(context, builder, signature, arguments):
        source, start, target, place, count = arguments
        of_source, _, of_target, _, _ = signature.args
        size = context.get_abi_sizeof(context.get_data_type(of_source.dtype))
        first = builder.gep(context.make_array(of_source)(context, builder, source).data, [start])
        there = builder.gep(context.make_array(of_target)(context, builder, target).data, [place])
        numba.core.cgutils.raw_memcpy(builder, there, first, count, size)
        return context.get_dummy_value()

    return signature, generate


@njit()
def copy_rows(x, y):
    """y <- x, rows of a stream; an assignment of slices would become a parallel loop inside a parallel one."""
    for r in range(len(x)):
        for c in range(x.shape[1]):
            y[r, c] = x[r, c]
