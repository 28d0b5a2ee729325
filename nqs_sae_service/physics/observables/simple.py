"""The simplest functions of the input: what they explain needs no learning, the rest might. And what is measured by default."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lattices import Lattice
from .correlations import half_chain_correlation, nearest_neighbour_correlation, shell, shell_correlation
from .order import (
    magnetization,
    no_collinear_order,
    staggered_magnetization,
    stripe_magnetization_squared,
)

Function = Callable[[np.ndarray], np.ndarray]


def simple_functions(lattice: Lattice, sigma: np.ndarray, conserved: bool = False) -> np.ndarray:
    """Design matrix (n, functions) float64 of configurations (n, n_sites), a constant first.

    {1, m, |m|, m^2, zz, C_half} on a chain. Where the magnetization is ``conserved`` m tells nothing, and the staggered m_s
    takes its place if there are two sublattices; a plane or a graph has both. There zz_2 (the second shell) and, on square
    lattices, the squared stripe order follow, as far as they exist.
    """
    return np.stack([function(sigma) for function in _functions(lattice, conserved).values()], axis=1)


def simple_function_names(lattice: Lattice, conserved: bool = False) -> tuple[str, ...]:
    """What the columns of ``simple_functions`` are called in formulas."""
    return tuple(_functions(lattice, conserved))


def _functions(lattice: Lattice, conserved: bool) -> dict[str, Function]:
    chain = lattice.dimensions == 1
    functions: dict[str, Function] = {"1": lambda sigma: np.ones(len(sigma))}
    if not conserved:
        functions |= _with_powers("m", lambda sigma: magnetization(lattice, sigma))
    if lattice.bipartite and (conserved or not chain):
        functions |= _with_powers("m_s", lambda sigma: staggered_magnetization(lattice, sigma))
    functions["zz"] = lambda sigma: nearest_neighbour_correlation(lattice, sigma)
    if (conserved or not chain) and len(shell(lattice, 2)):
        functions["zz_2"] = lambda sigma: shell_correlation(lattice, sigma, 2)
    if chain:
        functions["C_half"] = lambda sigma: half_chain_correlation(lattice, sigma)
    if no_collinear_order(lattice) is None:
        functions["stripe^2"] = lambda sigma: stripe_magnetization_squared(lattice, sigma)
    return functions


def _with_powers(name: str, m: Function) -> dict[str, Function]:
    return {name: m, f"|{name}|": lambda sigma: np.abs(m(sigma)), f"{name}^2": lambda sigma: m(sigma) ** 2}


def explained_r2(design: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of the variance of ``y`` (n,) or (n, n_y) that a design matrix (n, p) explains by least squares.

    R^2 = 1 - sum (y - y_hat)^2 / sum (y - mean y)^2, shape () or (n_y,); NaN where y does not vary. The
    design should contain a constant.
    """
    centred = y - y.mean(axis=0)
    residual = centred - design @ np.linalg.lstsq(design, centred, rcond=None)[0]
    total = np.sum(centred**2, axis=0)
    varies = total > 1e-24 * (len(y) + np.sum(np.square(y), axis=0))
    return np.where(varies, 1 - np.sum(residual**2, axis=0) / np.where(varies, total, 1.0), np.nan)


def default_names(lattice: Lattice, conserved: bool) -> tuple[str, ...]:
    """What is measured when nothing is said: the order that the lattice allows, and one operator.

    ``conserved``: whether the Hamiltonian conserves the magnetization, which then says nothing and which sigma^x would leave.
    """
    if not conserved:
        third = "half_chain_correlation" if lattice.dimensions == 1 else "magnetization_squared"
        return "magnetization", "abs_magnetization", third, "sigma_x"
    if lattice.bipartite:
        staggered = "staggered_magnetization"
        return staggered, f"abs_{staggered}", f"{staggered}_squared", "spin_correlation_1"
    return "nearest_neighbour_correlation", "spin_correlation_1"
