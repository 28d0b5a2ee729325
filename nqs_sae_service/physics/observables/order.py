"""Order parameters m = (1/N) sum_i c_i s_i with signs c_i of a pattern: each signed, absolute and squared.

magnetization            c = +1
staggered_magnetization  c = +1 on one sublattice, -1 on the other: Neel order, on bipartite lattices
stripe_magnetization_x   c = (-1)^x, wave vector (pi, 0), and likewise along y: collinear order, on square lattices
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...engine.arrays import namespace
from ..lattices import Lattice
from .registry import Missing, observable

AXES = ("x", "y")
Values = Callable[[Lattice, np.ndarray], np.ndarray]


def is_square(lattice: Lattice) -> bool:
    """Whether the lattice is a square one, of any extent along both axes."""
    square = lattice.vectors is not None and np.array_equal(lattice.vectors, np.eye(2))
    return square and lattice.basis == 1


def _order_parameter(
    name: str, long_name: str, signs: Callable[[Lattice], np.ndarray], missing: Missing = lambda lattice: None
) -> Values:
    """Register (1/N) sum_i c_i s_i for the signs c (n_sites,) of a lattice, its modulus and its square; returns the first."""

    def signed(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
        return (sigma * namespace(sigma).asarray(signs(lattice))).mean(axis=1)

    def absolute(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
        return abs(signed(lattice, sigma))

    def squared(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
        return signed(lattice, sigma) ** 2

    per_site = f"{long_name} per site"
    observable(name, long_name=per_site, degree=1, missing=missing)(signed)
    observable(f"abs_{name}", long_name=f"absolute {per_site}", missing=missing)(absolute)
    observable(f"{name}_squared", long_name=f"squared {per_site}", degree=2, missing=missing)(squared)
    return signed


def not_bipartite(lattice: Lattice) -> str | None:
    """Why neighbours cannot all be on different sublattices, None where they are."""
    return None if lattice.bipartite else "the lattice has no two sublattices such that neighbours differ"


def not_staggered(lattice: Lattice) -> str | None:
    """Why there is no staggered order, None where there is; on an odd ring it has one domain wall."""
    return None if lattice.dimensions == 1 else not_bipartite(lattice)


def no_stripes(axis: int) -> Missing:
    """Why (-1)^x (axis 0) or (-1)^y is no pattern of a lattice, None where it is."""

    def why(lattice: Lattice) -> str | None:
        if not is_square(lattice):
            return "stripes need a square or rectangular lattice"
        if lattice.wraps[axis] and lattice.extent[axis] % 2:
            return (
                f"stripes along {AXES[axis]} need an even length, it is {lattice.extent[axis]} and periodic"
            )
        return None

    return why


def alternating(axis: int) -> Callable[[Lattice], np.ndarray]:
    """(-1)^x (n_sites,) int8, x the cell along an axis."""
    return lambda lattice: (1 - 2 * (lattice.cells[:, axis] % 2)).astype(np.int8)


magnetization = _order_parameter(
    "magnetization", "magnetization", lambda lattice: np.ones(lattice.n_sites, np.int8)
)
staggered_magnetization = _order_parameter(
    "staggered_magnetization",
    "staggered magnetization",
    lambda lattice: 1 - 2 * lattice.sublattice,
    not_staggered,
)
stripe_magnetizations = [
    _order_parameter(
        f"stripe_magnetization_{name}", f"stripe magnetization along {name}", alternating(a), no_stripes(a)
    )
    for a, name in enumerate(AXES)
]


def no_collinear_order(lattice: Lattice) -> str | None:
    """Why the lattice does not have both stripe patterns, None if it has."""
    return no_stripes(0)(lattice) or no_stripes(1)(lattice)


@observable(
    "stripe_magnetization_squared",
    long_name="squared stripe magnetization per site, sum of both directions",
    degree=2,
    missing=no_collinear_order,
)
def stripe_magnetization_squared(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """m_(pi, 0)^2 + m_(0, pi)^2, which does not choose between the two directions."""
    x, y = (m(lattice, sigma) for m in stripe_magnetizations)
    return x**2 + y**2
