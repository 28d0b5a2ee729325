"""Threads of this process: kernels own the parallel loops, so the BLAS they call stays on one thread.

NumPy and SciPy wheels each bring their own OpenBLAS. Numba kernels call SciPy's inside ``prange`` (one thread each); plain
NumPy products outside kernels use NumPy's, on as many threads as the engine has.
"""

from __future__ import annotations

import os
from importlib import import_module


def available_threads() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configure_threads(threads: int = 0) -> int:
    """Set the number of threads of all kernels and products (0: all available cores); returns the number set."""
    from threadpoolctl import ThreadpoolController

    from . import jit

    import_module("scipy.linalg")  # loads SciPy's BLAS, so that it can be found; NumPy's came with Numba
    wanted = min(threads or available_threads(), int(jit.numba.config.NUMBA_NUM_THREADS))
    jit.numba.set_num_threads(wanted)
    for library in ThreadpoolController().lib_controllers:
        if library.user_api == "blas":
            library.set_num_threads(1 if "scipy" in library.filepath else wanted)
    return wanted
