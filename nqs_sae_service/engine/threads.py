"""Threads of this process: kernels own the parallel loops, and every BLAS call stays on one thread.

NumPy and SciPy wheels each bring their own OpenBLAS. Kernels call SciPy's inside ``prange``, so it must not start threads of
its own; with one thread everywhere the bits of a product do not depend on the number of threads either.
"""

from __future__ import annotations

import os
from importlib import import_module


def available_threads() -> int:
    """Number of cores this process may use: those it is bound to, or fewer where Slurm gave it fewer without binding it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(cores, int(given)) if given.isdecimal() and int(given) else cores


def configure_threads(threads: int = 0) -> int:
    """Set the number of threads of the kernels (0: all available cores), and of every BLAS to one; returns the former."""
    from threadpoolctl import ThreadpoolController

    from . import jit

    import_module("scipy.linalg")  # loads SciPy's BLAS, so that it can be found; NumPy's came with Numba
    wanted = min(threads or available_threads(), int(jit.numba.config.NUMBA_NUM_THREADS))
    jit.numba.set_num_threads(wanted)
    for library in ThreadpoolController().lib_controllers:
        if library.user_api == "blas":
            library.set_num_threads(1)
    return wanted
