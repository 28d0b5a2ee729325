"""The restricted Boltzmann machine with complex parameters (Carleo & Troyer, Science 355, 602 (2017)), as bricks.

    log psi = sum_i a_i s_i + sum_j log cosh theta_j,      theta_j = b_j + sum_i s_i W_ij,      j = 1 ... alpha N

a, b and W are complex, psi is holomorphic in them: d log psi / da_i = s_i, / db_j = tanh theta_j, / dW_ij = s_i tanh theta_j.
Real and imaginary parts are parameters of their own. The layer ``hidden`` holds theta, Re theta beside Im theta in one token.
The fast twin with its look-up tables is ``rbm_cpu.py``.

The symmetric form shares alpha filters per site of a unit cell between all translations T_t (eq. 3 of the same paper's
supplement), and one visible bias per site of the cell, so that psi(T_t s) = psi(s):

    log psi = sum_i a_i s_i + sum_t sum_f log cosh theta_tf,      theta_tf = b_f + sum_i (T_t s)_i W_if

A token of ``hidden`` is then a translation, with 2 alpha channels for each site of a unit cell (``rbm_symmetric.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from ..spec.section import Finding, Section
from .ansatz import Ansatz
from .fused import Fused
from .primitives import Add, Brick, Channels, ComplexLinear, Dense, Filters, LogCosh
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
    symmetric: bool = Field(
        False,
        description="share the hidden units between all translations of a periodic lattice",
        json_schema_extra={"neutral": True},
    )

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        """Translations need a periodic lattice."""
        geometry: Any = sections.get("lattice")
        if self.symmetric and geometry is not None and not geometry.build().periodic:
            what = "a lattice that is not periodic has no translations; leave it out or set it to false"
            yield Finding("symmetric", what)

    def layer_names(self) -> tuple[str, ...]:
        """Public names of the places in the network."""
        return ("hidden",)

    def default_layers(self) -> tuple[str, ...]:
        """What is recorded unless a spec says otherwise."""
        return self.layer_names()

    def network(self, lattice: Lattice) -> State:
        """The bare network on a lattice."""
        if self.symmetric:
            return self._build_symmetric(lattice)
        return dense_state(lattice.n_sites, self.alpha * lattice.n_sites, np.dtype(self.precision))

    def _build_symmetric(self, lattice: Lattice) -> State:
        translations = lattice.translations().astype(np.int64)
        filters = self.alpha * lattice.basis
        return State(
            n_sites=lattice.n_sites,
            n_tokens=len(translations),
            width=2 * filters,
            layers=self.layer_names(),
            bricks=tuple(_symmetric_bricks(lattice, filters)),
            dtype=np.dtype(self.precision),
            complex_amplitude=True,
            sites=translations,
            initial=_initial,
            fuse=_fuse_symmetric,
            fused_dtypes=("float32", "float64"),
            flip_flops=16.0 * filters * len(translations),
            invariances=translations,
        )


def dense_state(n_sites: int, hidden: int, dtype: np.dtype) -> State:
    """The machine without symmetry, ``hidden`` units."""
    return State(
        n_sites=n_sites,
        n_tokens=1,
        width=2 * hidden,
        layers=("hidden",),
        bricks=tuple(_bricks(n_sites, hidden)),
        dtype=dtype,
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


def _fuse_symmetric(state: State, parameters: Any) -> Fused | None:
    if not isinstance(parameters, np.ndarray):
        return None
    from .rbm_symmetric import SymmetricRbm

    return SymmetricRbm(state, parameters)


def _bricks(n_sites: int, hidden: int) -> Iterator[Brick]:
    yield Dense("hidden", ("tokens",), "hidden", n_sites, 2 * hidden)
    yield from _log_cosh(hidden)
    yield ComplexLinear("visible", ("tokens",), ".visible_sum", n_sites)
    yield Add("sum", (".hidden_sum", ".visible_sum"), "log_psi")


def _symmetric_bricks(lattice: Lattice, filters: int) -> Iterator[Brick]:
    n_sites, basis = lattice.n_sites, lattice.basis
    yield Filters("hidden", ("tokens",), "hidden", n_sites, 2 * filters, lattice.extent, basis)
    yield from _log_cosh(filters)
    yield Channels("cell", ("tokens",), ".cell", 0, basis)  # of all translations: every site once
    yield ComplexLinear("visible", (".cell",), ".visible_sum", basis)
    yield Add("sum", (".hidden_sum", ".visible_sum"), "log_psi")


def _log_cosh(hidden: int) -> Iterator[Brick]:
    yield Channels("real", ("hidden",), ".real", 0, hidden)
    yield Channels("imaginary", ("hidden",), ".imaginary", hidden, 2 * hidden)
    yield LogCosh("log_cosh", (".real", ".imaginary"), ".hidden_sum")


def _initial(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Small normal numbers: all parameters zero would be a stationary point of the energy with respect to W."""
    return generator.normal(scale=_INITIAL_WIDTH, size=shape)
