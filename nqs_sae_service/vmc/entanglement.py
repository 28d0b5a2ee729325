"""The second Renyi entropy from samples: what two halves of a lattice know of each other.

S_2 = -log tr rho_A^2 with rho_A the reduced density matrix of a subsystem A. Of two independent samples sigma, tau of |psi|^2
the spins of A are swapped,

    tr rho_A^2 = E [ psi(tau_A sigma_B) psi(sigma_A tau_B) / (psi(sigma) psi(tau)) ]

(Hastings, Gonzalez, Kallin & Melko, PRL 104, 157201 (2010)). The mean of the ratios falls like e^-S_2 while single ones do not,
so the relative error grows with the boundary of A.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..engine.arrays import to_host
from ..physics.lattices import Lattice
from ..physics.observables.order import AXES
from ..states import LogPsi
from .statistics import mean_and_error

_PAIRS_AT_ONCE = 1024
Put = Callable[[np.ndarray], np.ndarray]


def halves(lattice: Lattice) -> dict[str, np.ndarray]:
    """Sites (n_A,) of the halves of a lattice by name: of a plane one along each axis, else the first half of the sites."""
    if lattice.dimensions < 2:
        return {"half": np.arange(lattice.n_sites // 2)}
    return {
        f"half_{name}": np.flatnonzero(lattice.cells[:, axis] < lattice.extent[axis] // 2)
        for axis, name in enumerate(AXES)
    }


def renyi2(
    psi: LogPsi,
    sites: np.ndarray,
    sigma: np.ndarray,
    log_psi: np.ndarray,
    sector: bool,
    put: Put = lambda array: array,
    tick: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """S_2 of the ``sites`` of a subsystem and its standard error, NaN where the mean of the swaps is not positive.

    sigma (chain, draw, n_sites) int8, log_psi (chain, draw), two chains at least: those of the first half are paired with those
    of the second, draw by draw. In a ``sector`` of fixed magnetization psi is zero outside it, whatever the network says there.
    ``put`` brings configurations to where psi is; ``tick`` is called before every block.
    """
    pairs = len(sigma) // 2
    first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    one, two = (sigma[part].reshape(-1, sigma.shape[-1]) for part in (first, second))
    before = (log_psi[first] + log_psi[second]).reshape(-1)
    swaps = np.zeros(len(before))
    inside = np.ones(len(before), bool)
    if sector:
        inside = one[:, sites].sum(axis=1) == two[:, sites].sum(axis=1)
    places = np.flatnonzero(inside)
    for start in range(0, len(places), _PAIRS_AT_ONCE):
        tick()
        rows = places[start : start + _PAIRS_AT_ONCE]
        swapped = np.concatenate([one[rows], two[rows]])
        swapped[: len(rows), sites], swapped[len(rows) :, sites] = two[rows][:, sites], one[rows][:, sites]
        after = to_host(psi.log_psi(put(swapped))).reshape(2, -1).sum(axis=0)
        swaps[rows] = np.exp(after - before[rows]).real
    mean, error = mean_and_error(swaps.reshape(pairs, -1))
    if not mean > 0:
        return float("nan"), float("nan")
    return float(-np.log(mean)), float(error / mean)
