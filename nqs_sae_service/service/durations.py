"""Time spans as people write and read them."""

from __future__ import annotations

import re

from ..errors import UserError

_UNITS = {"d": 86_400, "h": 3600, "m": 60, "min": 60, "s": 1}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)")


def duration(seconds: float) -> str:
    """A time span for people: ``4.2 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def seconds_in(text: str) -> float:
    """Seconds of a time span like ``2h``, ``1h 30m``, ``90s``, ``1d``. Raises UserError for anything else."""
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip():
        raise UserError(f"{text!r} is no time span: write it like 2h, 1h30m, 90s or 1d")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
