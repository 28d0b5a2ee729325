"""The whole chain on a 12-site ring: what its files promise to readers."""

import netCDF4
import numpy as np
import pytest
import xarray as xr

LAYERS = ("residual_1", "residual_2")
OBSERVABLES = ("magnetization", "abs_magnetization", "half_chain_correlation", "sigma_x")
TARGETS = ("abs_magnetization", "sigma_x")
SAMPLED = ("reweighted", "resampled")

# What the contract promises to readers: variables with their dimensions, and attributes.
_CURVE = "layer target direction scale estimator"
_SLOPE = "layer target direction estimator"
CONTRACT = {
    "ground_state": {
        **dict.fromkeys(("energy", "energy_error", "energy_variance", "acceptance", "step_seconds"), "step"),
        "parameters": "parameter",
    },
    "samples": {"configuration": "chain draw spin", "log_psi_re": "chain draw", "log_psi_im": "chain draw"},
    "observables": {
        "value": "chain draw observable",
        **dict.fromkeys(("mean", "error", "r_hat"), "observable"),
    },
    "activations": {
        **dict.fromkeys(LAYERS, "chain draw token width"),
        "participation_ratio": "layer",
    },
    "sae": {
        **dict.fromkeys(("encoder", "decoder"), "layer sae_seed feature width"),
        **dict.fromkeys(("encoder_bias", "feature_density"), "layer sae_seed feature"),
        "decoder_bias": "layer sae_seed width",
        **dict.fromkeys(("loss", "l0", "dead_fraction"), "layer sae_seed step"),
        **dict.fromkeys(("explained_variance", "energy_recovered", "infidelity"), "layer sae_seed"),
    },
    "features": {
        **dict.fromkeys(
            ("pearson", "pearson_low", "pearson_high", "spearman", "p_value", "q_value"),
            "layer feature observable",
        ),
        **dict.fromkeys(
            ("best_feature", "best_pearson", "gain", "gain_low", "gain_high", "verdict"), "layer observable"
        ),
        "control_pearson": "layer control observable",
        "stability": "layer feature",
    },
    "steering": {
        "turned_feature": "layer target direction",
        "held": "target",
        **dict.fromkeys(("observable_mean", "observable_error"), f"{_CURVE} observable"),
        **dict.fromkeys(
            (
                "energy",
                "energy_error",
                "relative_energy_deviation",
                "relative_energy_deviation_error",
                "infidelity",
                "ess",
            ),
            _CURVE,
        ),
        **dict.fromkeys(("slope_predicted", "slope_measured"), f"{_SLOPE} observable"),
        **dict.fromkeys(("efficiency", "reach"), _SLOPE),
    },
}
PROVENANCE = "schema_version stage key sections package_version versions host device threads ranks seed start end volatile"
FINAL = "final_energy final_energy_error r_hat tau v_score exact_energy relative_error"


@pytest.mark.parametrize("stage", CONTRACT)
def test_files_hold_what_the_contract_promises(directory, stage):
    with xr.open_dataset(directory / f"{stage}.nc") as dataset:
        for name, dims in CONTRACT[stage].items():
            assert dataset[name].dims == tuple(dims.split()), name
        for name, variable in dataset.variables.items():
            assert variable.attrs.get("long_name"), name
            assert variable.attrs.get("units"), name
        for dim in set(dataset.dims) - {"parameter", "width"}:
            assert dataset[dim].dims == (dim,)
            assert dim in dataset.indexes
        assert set(PROVENANCE.split()) <= set(dataset.attrs)
        assert dataset.attrs["stage"] == stage


def test_labels_are_those_of_the_spec(run):
    assert run["observables"]["observable"].values.tolist() == list(OBSERVABLES)
    assert run["steering"]["target"].values.tolist() == list(TARGETS)
    assert run["steering"]["direction"].values[0] == "feature"
    assert run["steering"]["scale"].values.tolist() == [0.0, 0.6, 0.8, 1.0, 1.2, 1.4]
    assert set(run["steering"]["estimator"].values) == {*SAMPLED, "exact"}
    for stage in ("activations", "sae", "features", "steering"):
        assert run[stage]["layer"].values.tolist() == list(LAYERS)
    split = run["samples"]["split"].values
    assert [int((split == part).sum()) for part in ("train", "select", "test")] == [128, 64, 64]
    assert set(FINAL.split()) <= set(run["ground_state"].attrs)
    assert run["samples"]["configuration"].dtype == np.int8


def test_what_shrinks_is_compressed_and_noise_is_not(directory):
    for stage, name, compressed in [
        ("ground_state", "energy", True),
        ("samples", "configuration", True),
        ("activations", "residual_1", False),
        ("sae", "decoder", False),
    ]:
        with netCDF4.Dataset(directory / f"{stage}.nc") as file:
            assert file[name].filters()["zlib"] is compressed
