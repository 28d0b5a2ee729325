"""Numbers are written with the digits that their errors support, and read back as what they were."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nqs_sae_service.report.numbers import NOTHING, number, span, with_error, with_interval


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-50.9426741143, 0.00031, "-50.94267 ± 0.00031"),
        (0.61234, 0.0013, "0.6123 ± 0.0013"),
        (1.2345e-5, 3.04e-6, "(1.23 ± 0.30)e-5"),
        (12345.6, 123.0, "12350 ± 120"),
        (0.5, 0.0996, "0.50 ± 0.10"),
        (-0.0001, 0.02, "0.000 ± 0.020"),
        (1e-9, 1e-4, "(0.0 ± 1.0)e-4"),
        (3.2e7, 1.1e5, "(3.200 ± 0.011)e7"),
        (0.0, 0.0, "0"),
        (0.25, 0.0, "0.250000"),
        (0.25, math.nan, "0.250000"),
        (math.nan, 0.1, NOTHING),
        (math.nan, math.nan, NOTHING),
    ],
)
def test_value_and_error_share_their_last_digit(value: float, error: float, text: str) -> None:
    assert with_error(value, error) == text


@given(st.floats(-1e12, 1e12), st.floats(1e-12, 1e12))
def test_what_is_written_lies_within_a_tenth_of_an_error(value: float, error: float) -> None:
    text = with_error(value, error)
    a, b = map(float, re.findall(r"-?\d+(?:\.\d+)?(?=[ )]|$)", text.partition("e")[0]))
    factor = float("1e" + text.partition("e")[2]) if "e" in text else 1.0
    assert abs(a * factor - value) <= 0.06 * error + 1e-12 * abs(value)
    assert b * factor == pytest.approx(error, rel=0.051)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1.00123, 5, "1.0012"),
        (3.14159e-5, 3, "3.14e-5"),
        (2e-4, 1, "2e-4"),
        (123456.0, 3, "123456"),
        (9.9999, 3, "10.0"),
        (math.inf, 3, "inf"),
        (math.nan, 3, NOTHING),
        (0.0, 3, "0"),
    ],
)
def test_number_has_the_digits_asked_for(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text


def test_intervals() -> None:
    assert with_interval(0.9234, 0.9, 0.95) == "0.923 [0.900, 0.950]"
    assert with_interval(0.1, -0.05, 0.2, sign=True) == "+0.100 [-0.050, +0.200]"
    assert with_interval(0.1, math.nan, 0.2) == "0.100"
    assert with_interval(math.nan, 0.1, 0.2) == NOTHING
    assert span(0.5, 2.0) == "0.5 to 2"
    assert span(math.nan, 2.0) == NOTHING
