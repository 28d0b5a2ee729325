"""CUDA kernels: a ``.cu`` file beside its Python wrapper, compiled by CuPy (NVRTC) when the first of its kernels is launched.

Rules for the sources, which the tests hold them to without a GPU: ``extern "C"`` kernels whose parameters are pointers
and numbers; grid-stride loops and bounds checks, so that every launch geometry gives the same result; only shared
memory and ``__syncthreads`` between threads (no warp intrinsics, no atomics on floats), so that the order of a sum is fixed
by the geometry.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .arrays import namespace

OPTIONS = ("--std=c++17",)
# Dynamic shared memory that every GPU gives a block without being asked for more.
SHARED_BYTES = 48 * 1024
_MOST_BLOCKS = 2**16


@cache
def _kernel(xp: ModuleType, source: Path, name: str) -> Any:
    return _module(xp, source).get_function(name)


@cache
def _module(xp: ModuleType, source: Path) -> Any:
    return xp.RawModule(code=source.read_text(encoding="utf-8"), options=OPTIONS)


class Kernels:
    """The kernels of one ``.cu`` file."""

    def __init__(self, source: Path):
        self.source = source

    def launch(
        self, name: str, blocks: int, threads: tuple[int, ...], *arguments: Any, shared_bytes: int = 0
    ) -> None:
        """Queue a kernel on at most ``blocks`` blocks of ``threads``. Integers become int, floats float, arrays pointers; NumPy
        scalars stay what they are.

        Kernels see bare pointers: an array that is not C-contiguous is refused (ValueError). Nothing is launched for no blocks.
        """
        if blocks <= 0:
            return
        arrays = [a for a in arguments if not isinstance(a, (bool, int, float, np.generic))]
        if not all(array.flags.c_contiguous for array in arrays):
            raise ValueError(f"{name}: an array is not contiguous")
        kernel = _kernel(namespace(arrays[0]), self.source, name)
        kernel(
            (min(blocks, _MOST_BLOCKS),), threads, tuple(map(_argument, arguments)), shared_mem=shared_bytes
        )


def _argument(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value
    if isinstance(value, (bool, int)):
        return np.int32(value)
    return np.float32(value) if isinstance(value, float) else value
