"""The last part of networks with a residual stream: from the tokens to log psi (Viteritti, Rende, Becca, PRL 130, 236401).

    z = LayerNorm(sum_t x_t),    a = LayerNorm(z A + a_0),    b = LayerNorm(z B + b_0),    log psi = sum_c log cosh(a_c + i b_c)

without b where psi > 0. The layer ``head`` is z. The local head takes no sum before log psi itself,

    a_t = x_t A + a_0,    b_t = x_t B + b_0,    log psi = sum_t sum_c log cosh(a_tc + i b_tc),

so that log |psi| is extensive by itself, as that of a state soon after a quench is.
"""

from __future__ import annotations

from collections.abc import Iterator

from .primitives import Brick, Dense, LayerNorm, LogCosh, SumTokens


def head(stream: str, width: int, complex_amplitude: bool) -> Iterator[Brick]:
    """The bricks from the edge ``stream`` (n, token, width) to ``log_psi`` (n,)."""
    yield SumTokens("sum", (stream,), ".sum")
    yield LayerNorm("head.norm", (".sum",), "head", width)
    parts = ("real", "imaginary") if complex_amplitude else ("real",)
    for part in parts:
        yield Dense(f"head.{part}", ("head",), f".{part}", width, width)
        yield LayerNorm(f"head.{part}_norm", (f".{part}",), part, width)
    yield LogCosh("log_cosh", parts, "log_psi")


def local_head(stream: str, width: int, complex_amplitude: bool) -> Iterator[Brick]:
    """The bricks from the edge ``stream`` (n, token, width) to ``log_psi`` (n,), a term for every token."""
    parts = ("real", "imaginary") if complex_amplitude else ("real",)
    for part in parts:
        yield Dense(f"head.{part}", (stream,), part, width, width)
    yield LogCosh("log_cosh", parts, "log_psi")
