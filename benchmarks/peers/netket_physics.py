"""The sections ``[lattice]``, ``[hamiltonian]`` and ``[sampling]`` of this project's specs as objects of NetKet.

Only what the comparisons use is known here: chains and squares, the transverse-field Ising model and the Heisenberg model
with two shells; anything else is a KeyError or a TypeError. Sites are counted alike on both sides, row by row. Runs in the
virtual environment of NetKet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import netket as nk
import numpy as np

Section = Mapping[str, Any]

_GRAPHS = {"chain": nk.graph.Chain, "square": nk.graph.Square}
_AXES = {"chain": 1, "square": 2}


def lengths(lattice: Section) -> tuple[int, ...]:
    """Sites along every axis."""
    return (lattice["length"],) * _AXES[lattice["kind"]]


def make_graph(lattice: Section, shells: int = 1) -> nk.graph.Lattice:
    """The lattice with edges up to a shell of neighbours, coloured by shell; shells go by distance in the plane, as ours do."""
    return _GRAPHS[lattice["kind"]](
        lattice["length"], pbc=lattice.get("periodic", True), max_neighbor_order=shells
    )


def make_hilbert(lattice: Section, sampling: Section) -> nk.hilbert.Spin:
    """All configurations, or those of the magnetization that ``sampling`` holds fixed (a sum of sigma, twice NetKet's)."""
    fixed = sampling.get("magnetization")
    return nk.hilbert.Spin(0.5, int(np.prod(lengths(lattice))), total_sz=None if fixed is None else fixed / 2)


def make_hamiltonian(hilbert: nk.hilbert.Spin, lattice: Section, hamiltonian: Section) -> Any:
    """The operator in NetKet's own choice of type, which is the one for JAX."""
    build = {"tfim": _ising, "heisenberg": _heisenberg}[hamiltonian["kind"]]
    return build(hilbert, lattice, **{name: v for name, v in hamiltonian.items() if name != "kind"})


def _ising(hilbert: nk.hilbert.Spin, lattice: Section, h: float, J: float = 1.0) -> Any:
    return nk.operator.Ising(hilbert, make_graph(lattice), h=h, J=-J)


def _heisenberg(
    hilbert: nk.hilbert.Spin, lattice: Section, J: float = 1.0, J2: float = 0.0, marshall: bool = False
) -> Any:
    """NetKet couples sigma, not S = sigma / 2. Neighbours are on different sublattices, the second shell is within one."""
    couplings = [J / 4, J2 / 4] if J2 else [J / 4]
    signs = [marshall, False][: len(couplings)]
    return nk.operator.Heisenberg(hilbert, make_graph(lattice, len(couplings)), J=couplings, sign_rule=signs)


def exchanged_pairs(lattice: Section, sampling: Section) -> np.ndarray:
    """Pairs (n_pairs, 2), sorted, whose spins are exchanged.

    NetKet's ``d_max`` counts edges, shells go by distance: on a square, shells 1 to 3 are the pairs of ``d_max=2``.
    """
    pairs = np.sort(np.asarray(make_graph(lattice, sampling["exchange_shells"]).edges()), axis=1)
    return pairs[np.lexsort(pairs.T[::-1])]


def make_sampler(
    hilbert: nk.hilbert.Spin, lattice: Section, sampling: Section
) -> nk.sampler.MetropolisSampler:
    """Flips of single spins, or exchanges at fixed magnetization, with as many evaluated proposals between samples as ours.

    About half of the pairs of a configuration without magnetization are of unequal spins. NetKet draws among these alone;
    ours draws among all, and passes over the others without evaluating them. So half as many proposals are the same work,
    and move the chains as far.
    """
    proposals = sampling.get("sweeps", 1) * hilbert.size
    if sampling.get("magnetization") is None:
        return nk.sampler.MetropolisLocal(hilbert, n_chains=sampling["chains"], sweep_size=proposals)
    return nk.sampler.MetropolisExchange(
        hilbert,
        clusters=exchanged_pairs(lattice, sampling),
        n_chains=sampling["chains"],
        sweep_size=proposals // 2,
    )
