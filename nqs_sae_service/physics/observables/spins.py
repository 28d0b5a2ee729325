"""Operators of spins S = sigma / 2, seen by their local estimators: S . S, bond energies, dimers, chirality, and sigma^x.

The Marshall rotation applies to all of them: a Hamiltonian that says which spins are rotated has its observables rotated alike.
"""

from __future__ import annotations

import itertools

import numpy as np

from ..exchange import ScalarChirality, SpinExchange
from ..lattices import Lattice
from ..operators import Operator, SigmaX
from .correlations import columnar, no_dimers, no_shell, pairs_of_sites, same_site, shell, shells
from .registry import UnknownObservable, observable

_CLOSE = 1e-6


@observable(
    "sigma_x",
    long_name="transverse magnetization per site, local estimator",
    kind="local",
    changes_magnetization=True,
)
def sigma_x(lattice: Lattice, hamiltonian: Operator) -> Operator:
    """(1/N) sum_i sigma^x_i."""
    return SigmaX(lattice, hamiltonian.rotated)


@observable(
    "spin_correlation_<i>_<j>",
    long_name="S_{i} . S_{j}, local estimator",
    kind="local",
    indices=pairs_of_sites,
    missing=same_site,
)
def spin_correlation(lattice: Lattice, hamiltonian: Operator, i: int, j: int) -> Operator:
    """S_i . S_j of one pair of sites: -3/4 in a singlet, +1/4 in a triplet."""
    return SpinExchange(lattice.n_sites, np.array([[i, j]]), np.ones(1), rotated=hamiltonian.rotated)


@observable(
    "spin_correlation_<k>",
    long_name="mean of S_i . S_j over neighbours of shell {k}, local estimator",
    kind="local",
    indices=shells,
    missing=no_shell,
    example=(1,),
)
def spin_correlation_by_shell(lattice: Lattice, hamiltonian: Operator, k: int) -> Operator:
    """Mean of S_i . S_j over the pairs at the k-th smallest distance."""
    pairs = shell(lattice, k)
    strength = np.full(len(pairs), 1 / len(pairs))
    return SpinExchange(lattice.n_sites, pairs, strength, rotated=hamiltonian.rotated)


@observable(
    "bond_energy_<i>_<j>",
    long_name="energy of the bond between sites {i} and {j}, local estimator",
    units="J",
    kind="local",
    indices=pairs_of_sites,
    missing=same_site,
    of_hamiltonian=True,
)
def bond_energy(lattice: Lattice, hamiltonian: Operator, i: int, j: int) -> Operator:
    """The exchange between two sites as the Hamiltonian has it: J_ij [S^x S^x + S^y S^y + delta S^z S^z]."""
    bonds = hamiltonian.bonds(np.array([[i, j]]))
    if bonds is None:
        name = f"bond_energy_{i}_{j}"
        raise UnknownObservable(name, f"{name}: the Hamiltonian has no exchange between sites {i} and {j}")
    return bonds


@observable(
    "bond_energy_<k>",
    long_name="mean energy of the bonds of shell {k}, local estimator",
    units="J",
    kind="local",
    indices=shells,
    missing=no_shell,
    example=(1,),
    of_hamiltonian=True,
)
def bond_energy_by_shell(lattice: Lattice, hamiltonian: Operator, k: int) -> Operator:
    """The exchange of the Hamiltonian within one shell of neighbours, per pair of that shell."""
    bonds = hamiltonian.bonds(shell(lattice, k))
    if bonds is None:
        name = f"bond_energy_{k}"
        raise UnknownObservable(name, f"{name}: the Hamiltonian has no exchange in shell {k} of neighbours")
    return bonds


def _dimer(lattice: Lattice, hamiltonian: Operator, axis: int) -> Operator:
    bonds, signs = columnar(lattice, axis)
    return SpinExchange(lattice.n_sites, bonds, signs / lattice.n_sites, rotated=hamiltonian.rotated)


@observable(
    "dimer_x",
    long_name="columnar dimer order of S . S along x, local estimator",
    kind="local",
    missing=no_dimers(0),
)
def dimer_x(lattice: Lattice, hamiltonian: Operator) -> Operator:
    """(1/N) sum_r (-1)^x S_r . S_{r + x}; on a chain x is the chain."""
    return _dimer(lattice, hamiltonian, 0)


@observable(
    "dimer_y",
    long_name="columnar dimer order of S . S along y, local estimator",
    kind="local",
    missing=no_dimers(1),
)
def dimer_y(lattice: Lattice, hamiltonian: Operator) -> Operator:
    """(1/N) sum_r (-1)^y S_r . S_{r + y}."""
    return _dimer(lattice, hamiltonian, 1)


# Scalar chirality.


def elementary_triangles(lattice: Lattice) -> np.ndarray:
    """Triangles (n_triangles, 3) of sites, counterclockwise, the smallest first: two neighbours of a site at 90 degrees or
    less.

    On triangular and kagome lattices they are the triangles of neighbours. A square plaquette has four, one at each corner.
    Empty where there are none, or where the lattice is so narrow that one is its own mirror image.
    """
    none = np.empty((0, 3), np.int64)
    if lattice.dimensions != 2:
        return none
    found = [corner for b in range(lattice.basis) for corner in _corners(lattice, b)]
    if not found:
        return none
    triangles = np.concatenate(found)
    first = triangles.argmin(axis=1)
    triangles = np.take_along_axis(triangles, (first[:, None] + np.arange(3)) % 3, axis=1)
    triangles = np.unique(triangles, axis=0)
    sets = np.unique(np.sort(triangles, axis=1), axis=0)
    degenerate = (np.diff(np.sort(triangles, axis=1), axis=1) == 0).any()
    return none if degenerate or len(sets) < len(triangles) else triangles


def _corners(lattice: Lattice, b: int) -> list[np.ndarray]:
    """Triples (n, 3) of a site b of every cell and two of its neighbours, counterclockwise, for every such pair of steps."""
    assert lattice.vectors is not None
    places = lattice.positions[: lattice.basis]
    steps = [
        (np.array(cell), other, np.asarray(cell) @ lattice.vectors + places[other] - places[b])
        for cell in itertools.product((-1, 0, 1), repeat=2)
        for other in range(lattice.basis)
    ]
    length = [float(np.hypot(*vector)) for _, _, vector in steps]
    shortest = min(value for value in length if value > _CLOSE)
    near = [step for step, value in zip(steps, length, strict=True) if _CLOSE < value < shortest + _CLOSE]
    cells = lattice.cells[:: lattice.basis]
    extent, wraps = np.asarray(lattice.extent), np.asarray(lattice.wraps)
    found = []
    for one, two in itertools.permutations(near, 2):
        (ax, ay), (bx, by) = one[2], two[2]
        if ax * by - ay * bx < _CLOSE or ax * bx + ay * by < -_CLOSE:
            continue
        corners, inside = [np.arange(len(cells)) * lattice.basis + b], np.ones(len(cells), bool)
        for cell, other, _ in (one, two):
            target = cells + cell
            inside &= (((target >= 0) & (target < extent)) | wraps).all(axis=1)
            corners.append(np.ravel_multi_index((target % extent).T, lattice.extent) * lattice.basis + other)
        found.append(np.stack(corners, axis=1)[inside])
    return found


def _no_triangles(lattice: Lattice) -> str | None:
    if len(elementary_triangles(lattice)):
        return None
    return "it needs triangles or square plaquettes, in a plane of at least 3 sites around"


@observable(
    "scalar_chirality",
    long_name="mean of S_i . (S_j x S_k) over elementary triangles, local estimator",
    kind="local",
    missing=_no_triangles,
)
def scalar_chirality(lattice: Lattice, hamiltonian: Operator) -> Operator:
    """Mean of S_i . (S_j x S_k), i, j, k counterclockwise: it breaks time reversal, a real psi has none."""
    return ScalarChirality(lattice.n_sites, elementary_triangles(lattice), hamiltonian.rotated)
