"""The whole chain with a restricted Boltzmann machine: layer ``hidden``, one token, complex amplitudes."""

import numpy as np
import xarray as xr


def test_the_chain_runs_on_the_hidden_units(tmp_path, compute):
    run = compute(
        tmp_path,
        "state={kind='rbm', alpha=1}",
        "ground_state.steps=60",
        "sae.steps=40",
        "sae.seeds=[1]",
        "sae.untrained=1",
    )
    ground = xr.open_dataset(run / "ground_state.nc")
    assert abs(ground.attrs["relative_error"]) < 1e-3
    activations = xr.open_dataset(run / "activations.nc")
    assert list(activations.layer.values) == ["hidden"]
    assert activations["hidden"].shape[2:] == (1, 24)
    steering = xr.open_dataset(run / "steering.nc").sel(layer="hidden", direction="feature")
    turned = steering.dropna("target", how="all", subset=["strength"])
    exact, sampled = (turned.sel(estimator=name) for name in ("exact", "reweighted"))
    assert turned.sizes["target"] >= 1
    np.testing.assert_allclose(exact.infidelity.sel(scale=1.0), 0, atol=1e-12)
    departure = abs(exact.observable_mean - sampled.observable_mean) / sampled.observable_error
    assert float(departure.max()) < 4.5
    predicted, measured = (exact[f"slope_{kind}"] for kind in ("predicted", "measured"))
    np.testing.assert_allclose(measured, predicted, atol=0.02 * float(abs(predicted).max()))
