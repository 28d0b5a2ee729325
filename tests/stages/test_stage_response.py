"""Efficiencies on more sites than can be diagonalised: the susceptibility from trainings in a field, against free fermions."""

import numpy as np
import pytest
import xarray as xr

from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import Chain

SITES, FIELD = 18, 2.0
SMALLER = (
    f"lattice.length={SITES}",
    f"hamiltonian.h={FIELD}",
    "state={kind='rbm', alpha=1, symmetric=true}",
    "ground_state.steps=80",
    "observables.names=['abs_magnetization', 'sigma_x']",
    "activations.layers=['hidden']",
    "sae.steps=40",
    "sae.seeds=[1]",
    "sae.untrained=0",
    "features.bootstrap=20",
    "features.permutations=20",
    "steering.targets=['sigma_x']",
    "steering.directions=['feature']",
    "steering.scales=[0.5, 1.5]",
)


def response_of_sigma_x():
    """d<sigma_x>/d lambda of H - lambda sigma_x, sigma_x the mean over sites: h + lambda / N in the place of h."""
    lattice, step = Chain(kind="chain", length=SITES).build(), 1e-3
    low, high = (
        HAMILTONIANS["tfim"](kind="tfim", h=FIELD + sign * step).exact_value("sigma_x", lattice)
        for sign in (-1, 1)
    )
    return (high - low) / (2 * step * SITES)


def test_chi_and_with_it_the_efficiency(tmp_path, compute):
    run = compute(tmp_path, *SMALLER, "steering.susceptibility_steps=60", until="steering")
    with xr.open_dataset(run / "steering.nc") as steering:
        at = steering.sel(target="sigma_x")
        chi, error = float(at["susceptibility"]), float(at["susceptibility_error"])
        assert 0 < error < 0.05 * chi
        assert chi == pytest.approx(response_of_sigma_x(), rel=0.05)
        assert 0 < float(at["field"]) < 50
        here = at.sel(layer="hidden", direction="feature", estimator="reweighted")
        slope, curvature = (
            float(here["slope_measured"].sel(observable="sigma_x")),
            float(here["energy_curvature"]),
        )
        assert (
            np.isnan(here["efficiency"])
            if curvature <= 0
            else float(here["efficiency"]) == pytest.approx(slope**2 / (chi * curvature))
        )


def test_without_steps_nothing_is_known(tmp_path, compute):
    run = compute(tmp_path, *SMALLER, until="steering")
    with xr.open_dataset(run / "steering.nc") as steering:
        for name in ("susceptibility", "susceptibility_error", "field", "efficiency"):
            assert np.isnan(steering[name]).all()
