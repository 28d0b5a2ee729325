"""The device of a run: host or GPU, resolved when the run starts (``engine.device``).

    auto   a GPU if CuPy can be imported and finds one, else the CPU
    cpu    NumPy and the compiled kernels of the CPU
    gpu    CuPy and the CUDA kernels, or an error that says what is missing

A ``Device`` only puts arrays where they belong; which code then computes follows from the arrays (``arrays.namespace``).
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from ..errors import UserError
from .arrays import namespace, to_host

_SHARE = 0.5  # of the free memory of a device that the arrays of one pass may fill
SMALL = 2**27  # bytes of a pass that are taken without asking


@dataclass(frozen=True)
class Device:
    """Where a run computes: cpu or gpu, the array library ``xp``, and the name of the processor ("" on the host)."""

    kind: Literal["cpu", "gpu"]
    xp: ModuleType
    name: str = ""

    def put(self, array: Any) -> Any:
        """The array on this device; no copy if it is there already."""
        return to_host(array) if self.xp is np else self.xp.asarray(array)


HOST = Device("cpu", np)


def choose_device(wanted: Literal["auto", "cpu", "gpu"], number: int = 0) -> Device:
    """The device that ``engine.device`` asks for; of several GPUs the one of this ``number``, counted round and round.

    Raises UserError when "gpu" cannot be had.
    """
    if wanted == "cpu" or (wanted == "auto" and importlib.util.find_spec("cupy") is None):
        return HOST
    try:
        return _gpu(number)
    except _NoGpu as missing:
        if wanted == "auto":
            return HOST
        raise UserError(
            f'engine.device = "gpu": {missing}; or set engine.device to "auto" or "cpu"'
        ) from None


class _NoGpu(Exception):
    """What is missing, and its remedy."""


def _gpu(number: int) -> Device:
    try:
        cupy = importlib.import_module("cupy")
    except Exception as problem:  # a broken installation raises whatever it likes
        raise _NoGpu(
            f"CuPy cannot be imported ({_first_line(problem)}); "
            "install the extra cuda13 or cuda12 of this package, whichever the driver supports"
        ) from None
    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as problem:
        raise _NoGpu(
            f"no CUDA device can be used ({_first_line(problem)}); check the driver with nvidia-smi"
        ) from None
    if not found:
        raise _NoGpu("no CUDA device was found; check the driver and CUDA_VISIBLE_DEVICES with nvidia-smi")
    if found > 1:
        cupy.cuda.runtime.setDevice(number % found)
    return Device(
        "gpu", cupy, cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"].decode()
    )


def _first_line(problem: Exception) -> str:
    return " ".join((str(problem).splitlines() or [type(problem).__name__])[0].split())


def rows_that_fit(bytes_per_row: float, array: Any, most: int, rows: int) -> int:
    """Rows of a pass over ``rows`` of them, beside ``array``: ``most`` or, on a device that is fuller, a smaller power of two.

    On the host always ``most``: its passes are sized for the caches. A device is asked for its free memory (which takes as long
    as several launches) only when the pass is not small. The bits of a product may depend on the number of its rows; powers of
    two below a fixed bound keep them the same unless a device is nearly full.
    """
    xp = namespace(array)
    if xp is np or min(most, rows) * bytes_per_row <= SMALL:
        return most
    free, _ = xp.cuda.runtime.memGetInfo()
    pool = xp.get_default_memory_pool()
    fitting = int(_SHARE * (free + pool.free_bytes()) / max(bytes_per_row, 1.0))
    return most if fitting >= most else 1 << max(0, fitting.bit_length() - 1)


def doubles_are_fast(xp: ModuleType) -> bool:
    """Whether the device computes in double precision at half the speed of float32 or better, as those for computing do."""
    runtime = xp.cuda.runtime
    return (
        runtime.deviceGetAttribute(runtime.cudaDevAttrSingleToDoublePrecisionPerfRatio, runtime.getDevice())
        <= 2
    )
