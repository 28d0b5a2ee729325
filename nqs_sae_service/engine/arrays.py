"""Which array library computes follows from the array: NumPy for its arrays, CuPy for arrays on a GPU. No global switch."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np


def namespace(array: Any) -> ModuleType:
    """The array module ``xp`` of ``array``. CuPy is looked up only if somebody has imported it already."""
    if isinstance(array, np.ndarray):
        return np
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    raise TypeError(f"neither a NumPy nor a CuPy array: {type(array).__name__}")
