"""The restricted Boltzmann machine with complex parameters (Carleo & Troyer, Science 355, 602 (2017)), as bricks.

    log psi = sum_i a_i s_i + sum_j log cosh theta_j,      theta_j = b_j + sum_i s_i W_ij,      j = 1 ... alpha N

a, b and W are complex, psi is holomorphic in them: d log psi / da_i = s_i, / db_j = tanh theta_j, / dW_ij = s_i tanh theta_j.
Real and imaginary parts are parameters of their own. The layer ``hidden`` holds theta, Re theta beside Im theta in one token.
The fast twin with its look-up tables is ``rbm_cpu.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from .fused import Fused
from .primitives import Add, Brick, Channels, ComplexLinear, Dense, LogCosh
from .projection import Ansatz
from .state import State

if TYPE_CHECKING:
    from ..physics.lattices import Lattice

_INITIAL_WIDTH = 0.01


class Rbm(Ansatz):
    """Restricted Boltzmann machine with complex parameters."""

    kind: Literal["rbm"] = "rbm"
    alpha: int = Field(1, ge=1, le=64, description="hidden units per site")
    precision: Literal["float32", "float64"] = Field(
        "float64", description="precision of the parameters; the arithmetic is float64"
    )

    def layer_names(self) -> tuple[str, ...]:
        """Public names of the places in the network."""
        return ("hidden",)

    def default_layers(self) -> tuple[str, ...]:
        """What is recorded unless a spec says otherwise."""
        return self.layer_names()

    def network(self, lattice: Lattice) -> State:
        """The bare network on a lattice."""
        n_sites = lattice.n_sites
        hidden = self.alpha * n_sites
        return State(
            n_sites=n_sites,
            n_tokens=1,
            width=2 * hidden,
            layers=self.layer_names(),
            bricks=tuple(_bricks(n_sites, hidden)),
            dtype=np.dtype(self.precision),
            complex_amplitude=True,
            sites=np.arange(n_sites)[None],
            initial=_initial,
            fuse=_fuse,
            fused_dtypes=("float32", "float64"),
            flip_flops=16.0 * hidden,
            gram_width=n_sites + 2 * hidden,
        )


def _fuse(state: State, parameters: Any) -> Fused | None:
    if not isinstance(parameters, np.ndarray):
        return None  # on a GPU the bricks compute
    from .rbm_cpu import FastRbm

    return FastRbm(state, parameters)


def _bricks(n_sites: int, hidden: int) -> Iterator[Brick]:
    yield Dense("hidden", ("tokens",), "hidden", n_sites, 2 * hidden)
    yield Channels("real", ("hidden",), ".real", 0, hidden)
    yield Channels("imaginary", ("hidden",), ".imaginary", hidden, 2 * hidden)
    yield LogCosh("log_cosh", (".real", ".imaginary"), ".hidden_sum")
    yield ComplexLinear("visible", ("tokens",), ".visible_sum", n_sites)
    yield Add("sum", (".hidden_sum", ".visible_sum"), "log_psi")


def _initial(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Small normal numbers: all parameters zero would be a stationary point of the energy with respect to W."""
    return generator.normal(scale=_INITIAL_WIDTH, size=shape)
