"""Which array library computes follows from the array: NumPy for its arrays, CuPy for arrays on a GPU. No global switch.

CuPy never mixes the two by itself. Three moves are enough: ``beside`` brings a constant to where an array is, ``to_host``
brings a result back, and a stage puts its parameters and configurations on the device at its edge (``devices.Device.put``).
"""

from __future__ import annotations

import sys
import weakref
from types import ModuleType
from typing import Any

import numpy as np

# Copies of constants on the device, by the identity of the NumPy array (which cannot be hashed); gone with the original.
_COPIES: dict[tuple[int, int], tuple[weakref.ref, Any]] = {}


def namespace(array: Any) -> ModuleType:
    """The array module ``xp`` of ``array``. CuPy is looked up only if somebody has imported it already."""
    if isinstance(array, np.ndarray):
        return np
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    raise TypeError(f"neither a NumPy nor a CuPy array: {type(array).__name__}")


def to_host(array: Any) -> np.ndarray:
    """The array in the memory of the host: itself if it is there already. Waits for the device."""
    return array if isinstance(array, np.ndarray) else array.get()


def beside(constant: np.ndarray, array: Any) -> Any:
    """A constant NumPy array where ``array`` lives: itself on the host, on a device a copy that is made once.

    The constant must never be written to, and must outlive the call (an array made for the occasion is moved with
    ``xp.asarray`` instead).
    """
    xp = namespace(array)
    if xp is np:
        return constant
    key = (id(constant), id(xp))
    kept = _COPIES.get(key)
    if kept is None or kept[0]() is not constant:
        kept = weakref.ref(constant, lambda _: _COPIES.pop(key, None)), xp.asarray(constant)
        _COPIES[key] = kept
    return kept[1]
