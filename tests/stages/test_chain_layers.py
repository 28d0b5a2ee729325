"""The whole chain at layers off the residual stream, the head among them, where one token is left."""

import numpy as np
import xarray as xr

LAYERS = ("embedding", "attention_1", "mlp_2", "head")


def test_any_layer_can_be_taken_apart_and_turned(tmp_path, compute):
    run = compute(
        tmp_path,
        f"activations.layers={list(LAYERS)}".replace("'", '"'),
        "ground_state.steps=15",
        "sae.steps=40",
        "sae.seeds=[1]",
        "sae.untrained=1",
        'steering.targets=["abs_magnetization"]',
    )
    activations = xr.open_dataset(run / "activations.nc")
    assert activations["mlp_2"].dims == ("chain", "draw", "token", "width")
    assert activations["head"].dims == ("chain", "draw", "pooled_token", "width")
    steering = xr.open_dataset(run / "steering.nc").sel(direction="feature", target="abs_magnetization")
    assert tuple(steering.layer.values) == LAYERS
    turned = steering.dropna("layer", how="all", subset=["strength"])
    assert turned.sizes["layer"] >= 3  # a feature that never fires on the test chains turns nothing
    exact, sampled = (turned.sel(estimator=name) for name in ("exact", "reweighted"))
    np.testing.assert_allclose(exact.infidelity.sel(scale=1.0), 0, atol=1e-8)
    departure = abs(exact.observable_mean - sampled.observable_mean) / sampled.observable_error
    assert float(departure.max()) < 4.5
    predicted, measured = (exact[f"slope_{kind}"] for kind in ("predicted", "measured"))
    np.testing.assert_allclose(measured, predicted, atol=0.02 * float(abs(predicted).max()))
