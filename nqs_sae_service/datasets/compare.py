"""Bit-for-bit comparison of stage files, leaving out what may differ: the attributes and variables they list as volatile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .netcdf import read_stage


def same_data(first: xr.Dataset | str | Path, second: xr.Dataset | str | Path) -> bool:
    """Whether two stage datasets (or files) hold the same bits: labels, shapes, types, values, lasting attributes."""
    return not differences(first, second)


def differences(first: xr.Dataset | str | Path, second: xr.Dataset | str | Path) -> list[str]:
    """Names of the variables and attributes in which two stage datasets (or files) differ."""
    a, b = _opened(first), _opened(second)
    volatile = {
        "volatile",
        *str(a.attrs.get("volatile", "")).split(),
        *str(b.attrs.get("volatile", "")).split(),
    }
    names = sorted({str(name) for name in (*a.variables, *b.variables)} - volatile)
    attributes = sorted({str(name) for name in (*a.attrs, *b.attrs)} - volatile)
    return [name for name in names if not _same_variable(a, b, name)] + [
        f"attribute {name}" for name in attributes if not _same_bits(a.attrs.get(name), b.attrs.get(name))
    ]


def _opened(source: xr.Dataset | str | Path) -> xr.Dataset:
    return source if isinstance(source, xr.Dataset) else read_stage(source)


def _same_variable(a: xr.Dataset, b: xr.Dataset, name: str) -> bool:
    if name not in a.variables or name not in b.variables or a[name].dims != b[name].dims:
        return False
    return _same_bits(a[name].values, b[name].values)


def _same_bits(a: Any, b: Any) -> bool:
    """Same type, shape and bytes; a NaN equals the same NaN, 0.0 differs from -0.0."""
    first, second = np.asarray(a), np.asarray(b)
    if first.dtype.hasobject or second.dtype.hasobject:  # strings of any length
        return first.shape == second.shape and first.tolist() == second.tolist()
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
