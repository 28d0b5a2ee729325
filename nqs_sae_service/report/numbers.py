"""Numbers as a physicist writes them: as many digits as the error bar supports, a dash where there is no number.

The error carries two significant digits and the value is rounded at the same place (the rule of the Particle Data Group,
Review of Particle Physics, section 5.3, simplified): -50.94267 ± 0.00031, (1.20 ± 0.30)e-5.
"""

from __future__ import annotations

import math

NOTHING = "–"
SMALLEST_FIXED, LARGEST_FIXED = 1e-3, 1e6


def number(value: float, digits: int = 4) -> str:
    """``value`` to ``digits`` significant digits; a dash for NaN, the word for an infinity."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value) or value == 0:
        return f"{value:g}"
    if SMALLEST_FIXED <= abs(value) < LARGEST_FIXED:
        return f"{value:.{max(0, digits - 1 - _exponent(value, digits))}f}"
    exponent = _exponent(value, digits)
    return f"{value / 10.0**exponent:.{digits - 1}f}e{exponent}"


def with_error(value: float, error: float) -> str:
    """``value ± error``, the error to two significant digits and the value to the same place.

    Without a usable error (NaN, infinite, zero or negative) the value stands alone, to six significant digits.
    """
    if not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return number(value, 6)
    last_place = _exponent(error, 2) - 1
    largest = max(abs(value), error)
    if SMALLEST_FIXED <= largest < LARGEST_FIXED:
        return f"{_to_place(value, last_place)} ± {_to_place(error, last_place)}"
    exponent = _exponent(largest, 2)
    scaled = (_to_place(x / 10.0**exponent, last_place - exponent) for x in (value, error))
    return "({} ± {})e{}".format(*scaled, exponent)


def with_interval(value: float, low: float, high: float, *, sign: bool = False) -> str:
    """``value [low, high]`` with three decimals, for correlations and their gains; ``sign`` writes the plus too."""
    if math.isnan(value):
        return NOTHING
    form = "+.3f" if sign else ".3f"
    if math.isnan(low) or math.isnan(high):
        return f"{value:{form}}"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def span(low: float, high: float) -> str:
    """``low to high``, or a dash where an end is not known."""
    return NOTHING if math.isnan(low) or math.isnan(high) else f"{low:g} to {high:g}"


def _exponent(value: float, digits: int) -> int:
    """Decimal exponent of ``value`` after rounding it to ``digits`` significant digits."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def _to_place(value: float, place: int) -> str:
    """``value`` rounded at the decimal ``place`` (-2: hundredths, 1: tens), never written as minus zero."""
    rounded = round(value, -place) + 0.0
    return f"{rounded:.{max(0, -place)}f}"
