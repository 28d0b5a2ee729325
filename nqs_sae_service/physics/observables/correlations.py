"""Two-point functions s_i s_j in the sigma^z basis: of pairs, by distance, by wave vector, and dimers made of them."""

from __future__ import annotations

import numpy as np

from ...engine.arrays import beside, namespace
from ..lattices import Lattice
from .order import AXES, alternating, is_square
from .registry import Missing, observable

# A shell of a higher number is a slip.
MAX_SHELL = 64


def pairs_of_sites(lattice: Lattice) -> tuple[range, ...]:
    """Two sites."""
    return range(lattice.n_sites), range(lattice.n_sites)


def same_site(lattice: Lattice, i: int, j: int) -> str | None:
    """Why i and j are no pair, None if they are."""
    return "i and j must differ" if i == j else None


def shells(lattice: Lattice) -> tuple[range, ...]:
    """The number of a shell of neighbours; not every lattice has all of them."""
    return (range(1, MAX_SHELL + 1),)


def no_shell(lattice: Lattice, k: int) -> str | None:
    """Why there is no k-th shell, None where there is."""
    if len(shell(lattice, k)):
        return None
    return f"the lattice has no shell {k} of neighbours, its last one is {lattice.n_shells}"


def shell(lattice: Lattice, k: int) -> np.ndarray:
    """Pairs (n_pairs, 2) of the k-th shell: edges for the first one, which every lattice knows without looking."""
    return lattice.edges if k == 1 else lattice.shell(k)


def not_a_chain(lattice: Lattice, *indices: int) -> str | None:
    """Why distances along the chain mean nothing, None on a chain."""
    return None if lattice.dimensions == 1 else "only a chain has it; elsewhere pairs are called by shells"


def mean_product(sigma: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Mean of s_i s_j over pairs (n_pairs, 2)."""
    return _products(sigma, pairs).mean(axis=1)


def _products(sigma: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    pairs = namespace(sigma).asarray(pairs)
    return sigma[:, pairs[:, 0]] * sigma[:, pairs[:, 1]]


@observable(
    "correlation_<i>_<j>",
    long_name="sigma^z_{i} sigma^z_{j}",
    degree=2,
    indices=pairs_of_sites,
    missing=same_site,
)
def correlation(lattice: Lattice, sigma: np.ndarray, i: int, j: int) -> np.ndarray:
    """s_i s_j of one pair of sites."""
    return sigma[:, i] * sigma[:, j]


@observable(
    "correlation_r_<r>",
    long_name="mean of sigma^z_i sigma^z_(i+{r})",
    degree=2,
    indices=lambda lattice: (range(1, lattice.n_sites),) if lattice.dimensions == 1 else (),
    missing=not_a_chain,
)
def correlation_at_distance(lattice: Lattice, sigma: np.ndarray, r: int) -> np.ndarray:
    """Mean of s_i s_{i+r} over all pairs that exist: N on a ring, N - r on an open chain."""
    return mean_product(sigma, lattice.pairs(r))


@observable("nearest_neighbour_correlation", long_name="mean of sigma^z_i sigma^z_j over edges", degree=2)
def nearest_neighbour_correlation(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """zz = mean of s_i s_j over the edges."""
    return mean_product(sigma, lattice.edges)


@observable(
    "shell_correlation_<k>",
    long_name="mean of sigma^z_i sigma^z_j over neighbours of shell {k}",
    degree=2,
    indices=shells,
    missing=no_shell,
    example=(1,),
)
def shell_correlation(lattice: Lattice, sigma: np.ndarray, k: int) -> np.ndarray:
    """Mean of s_i s_j over the pairs at the k-th smallest distance; k = 1 are the edges."""
    return mean_product(sigma, shell(lattice, k))


@observable(
    "half_chain_correlation",
    long_name="mean of sigma^z_i sigma^z_(i+N/2)",
    degree=2,
    missing=not_a_chain,
)
def half_chain_correlation(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """C_half = mean of s_i s_{i + N//2} over all pairs that exist (all N translations on a ring)."""
    return correlation_at_distance(lattice, sigma, lattice.n_sites // 2)


@observable("domain_walls", long_name="domain walls per edge", degree=2)
def domain_walls(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """Share of edges between opposite spins, mean of (1 - s_i s_j) / 2 over edges: in [0, 1], not a count."""
    return (1 - nearest_neighbour_correlation(lattice, sigma)) / 2


# The structure factor.


@observable(
    "structure_factor_<k>",
    long_name="structure factor at q = 2 pi {k} / N",
    degree=2,
    indices=lambda lattice: (range(lattice.n_sites),) if lattice.dimensions == 1 else (),
    missing=lambda lattice, *k: (
        None if lattice.dimensions == 1 else "only a chain has it; a plane has structure_factor_<kx>_<ky>"
    ),
)
def structure_factor(lattice: Lattice, sigma: np.ndarray, k: int) -> np.ndarray:
    """S(q) = |sum_j e^{i q j} s_j|^2 / N at q = 2 pi k / N: N m^2 at k = 0."""
    return _power(2 * np.pi * k / lattice.n_sites * beside(lattice.positions, sigma)[:, 0], sigma)


def _zone(lattice: Lattice) -> tuple[range, ...]:
    """Wave numbers of the zone over which S(q) repeats itself: that of the lattice of all positions."""
    if lattice.dimensions != 2:
        return ()
    assert lattice.vectors is not None
    places = lattice.positions[: lattice.basis] @ np.linalg.inv(lattice.vectors)
    repeats = [_denominator(places[:, axis]) for axis in range(2)]
    return tuple(range(n * repeat) for n, repeat in zip(lattice.extent, repeats, strict=True))


def _denominator(fractions: np.ndarray) -> int:
    """The least whole number that makes all fractions whole; they are multiples of halves or thirds."""
    return next(p for p in range(1, 13) if np.allclose(p * fractions, np.rint(p * fractions), atol=1e-6))


@observable(
    "structure_factor_<kx>_<ky>",
    long_name="structure factor at q = {kx} b_1 / n_1 + {ky} b_2 / n_2",
    degree=2,
    indices=_zone,
    missing=lambda lattice, *k: None if lattice.dimensions == 2 else "only a plane has it",
)
def structure_factor_in_the_plane(lattice: Lattice, sigma: np.ndarray, kx: int, ky: int) -> np.ndarray:
    """S(q) = |sum_j e^{i q r_j} s_j|^2 / N at q = kx b_1 / n_1 + ky b_2 / n_2.

    b_1, b_2 span the reciprocal lattice and n_1 x n_2 unit cells are there; r_j is the position of the site itself. On a square
    lattice (n/2, n/2) is the antiferromagnet, N m_s^2, and (n/2, 0) the stripes.
    """
    assert lattice.vectors is not None
    cells = lattice.positions @ np.linalg.inv(lattice.vectors)
    return _power(namespace(sigma).asarray(2 * np.pi * cells @ (np.array([kx, ky]) / lattice.extent)), sigma)


def _power(phase: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """|sum_j e^{i phase_j} s_j|^2 / N."""
    xp = namespace(sigma)
    return ((sigma @ xp.cos(phase)) ** 2 + (sigma @ xp.sin(phase)) ** 2) / sigma.shape[1]


# Columnar dimers: bonds along one axis that are stronger and weaker in turn.


def no_dimers(axis: int) -> Missing:
    """Why there is no columnar dimer pattern along an axis, None where there is."""

    def why(lattice: Lattice) -> str | None:
        if not (is_square(lattice) or (lattice.dimensions == 1 and axis == 0)):
            shape = "a chain or a square" if axis == 0 else "a square"
            return f"dimers along {AXES[axis]} need {shape} or rectangular lattice"
        length = lattice.extent[axis]
        if lattice.wraps[axis] and (length % 2 or length == 2):
            return f"dimers along {AXES[axis]} need an even length of 4 or more, it is {length} and periodic"
        return None

    return why


def columnar(lattice: Lattice, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Bonds (n_bonds, 2) from every site r to the next one along an axis, and their signs (-1)^x of r (n_bonds,)."""
    step = np.eye(lattice.dimensions, dtype=np.int64)[axis]
    target = lattice.cells + step
    sites = np.arange(lattice.n_sites)
    there = np.ravel_multi_index((target % lattice.extent).T, lattice.extent)
    inside = np.asarray(lattice.wraps)[axis] | (target[:, axis] < lattice.extent[axis])
    bonds = np.stack([sites, there], axis=1)[inside]
    return bonds.astype(np.int32), alternating(axis)(lattice)[bonds[:, 0]].astype(np.float64)


def _dimer_zz(lattice: Lattice, sigma: np.ndarray, axis: int) -> np.ndarray:
    bonds, signs = columnar(lattice, axis)
    return _products(sigma, bonds) @ namespace(sigma).asarray(signs / lattice.n_sites)


@observable(
    "dimer_zz_x", long_name="columnar dimer order of sigma^z sigma^z along x", degree=2, missing=no_dimers(0)
)
def dimer_zz_x(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """(1/N) sum_r (-1)^x s_r s_{r + x}; on a chain x is the chain."""
    return _dimer_zz(lattice, sigma, 0)


@observable(
    "dimer_zz_y", long_name="columnar dimer order of sigma^z sigma^z along y", degree=2, missing=no_dimers(1)
)
def dimer_zz_y(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """(1/N) sum_r (-1)^y s_r s_{r + y}."""
    return _dimer_zz(lattice, sigma, 1)


@observable(
    "dimer_zz_squared",
    long_name="squared columnar dimer order of sigma^z sigma^z, sum of both directions",
    missing=lambda lattice: no_dimers(0)(lattice) or no_dimers(1)(lattice),
)
def dimer_zz_squared(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """D_x^2 + D_y^2, which does not choose between the two directions."""
    return dimer_zz_x(lattice, sigma) ** 2 + dimer_zz_y(lattice, sigma) ** 2
