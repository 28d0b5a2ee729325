"""The whole chain with an autoregressive transformer: drawn directly, steered by Metropolis moves; fixed magnetization too."""

import xarray as xr


def test_the_chain_runs_and_samples_are_independent(tmp_path, compute):
    run = compute(
        tmp_path,
        "state={kind='autoregressive', patch=2, width=8, heads=2, layers=1}",
        "sampling={chains=256}",
        "ground_state.steps=50",
        "sae.steps=40",
        "sae.seeds=[1]",
        "sae.untrained=1",
    )
    ground = xr.open_dataset(run / "ground_state.nc")
    assert abs(ground.attrs["relative_error"]) < 2e-2
    assert ground.attrs["acceptance"] == 1
    assert abs(ground.attrs["tau"] - 1) < 0.3
    samples = xr.open_dataset(run / "samples.nc")
    assert samples.sizes["draw"] == 32
    activations = xr.open_dataset(run / "activations.nc")
    assert activations["residual_1"].shape[2:] == (6, 8)
    steering = xr.open_dataset(run / "steering.nc").sel(layer="residual_1", direction="feature")
    turned = steering.dropna("target", how="all", subset=["strength"])
    assert turned.sizes["target"] >= 1
    exact = turned.sel(estimator="exact")
    for name in ("reweighted", "resampled"):
        sampled = turned.sel(estimator=name)
        departure = abs(exact.observable_mean - sampled.observable_mean) / sampled.observable_error
        assert float(departure.max()) < 5


def test_at_fixed_magnetization(tmp_path, compute):
    run = compute(
        tmp_path,
        "hamiltonian={kind='heisenberg', marshall=true}",
        "state={kind='autoregressive', patch=2, width=8, heads=2, layers=1, amplitude='complex'}",
        "sampling={chains=256}",
        "ground_state.steps=50",
        "observables.names=['half_chain_correlation']",
        "steering.targets=['half_chain_correlation']",
        until="samples",
    )
    ground = xr.open_dataset(run / "ground_state.nc")
    assert abs(ground.attrs["relative_error"]) < 3e-2
    configuration = xr.open_dataset(run / "samples.nc")["configuration"].values
    assert (configuration.sum(axis=-1, dtype=int) == 0).all()
