"""Synthetic runs: schema-conforming stage files with plausible numbers and some NaN, written as the stages write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.text import Text

from nqs_sae_service.datasets.schema import labelled

LAYERS = ["residual_1", "residual_2"]
OBSERVABLES = ["abs_magnetization", "half_chain_correlation", "sigma_x"]
TARGETS = OBSERVABLES[:2]
CONTROLS = ["untrained", "neuron", "pca", "raw_spins", "random_direction", "shuffled"]
SYMMETRIES = ["translation", "reflection", "spin_flip"]
DIRECTIONS = ["feature", "random_direction", "other_feature", "jastrow_dial"]
ESTIMATORS = ["reweighted", "resampled", "exact"]
SCALES = np.array([0.0, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0])
EXACT = -50.9426741143
FEATURES = 24
SPEC = 'name = "tfim-40"\nseed = 1\n\n[hamiltonian]\nkind = "tfim"\nh = 1.0  # <critical> & exact\n'
Builder = Callable[[np.random.Generator], xr.Dataset]
ORIGIN = {
    "stage_version": 1,
    "key": "0123abcd",
    "seed": 1,
    "host": "node-<7>",
    "start": "2026-11-26T15:23:23+00:00",
    "sections": '{"lattice": {"length": 40}}',
}


def ground_state(rng: np.random.Generator) -> xr.Dataset:
    steps, sites = 300, 40
    step = np.arange(steps)
    error = 0.02 + 0.2 * np.exp(-step / 20)
    distance = 20 * np.exp(-step / 15) + 0.6 * np.exp(-step / 60)
    energy = EXACT + distance + rng.normal(0, 1, steps) * error
    energy[7] = np.nan
    variables = {
        "energy": energy,
        "energy_error": error,
        "energy_variance": 1024 * error**2,
        "acceptance": np.full(steps, 0.42),
        "learning_rate": np.full(steps, 0.03),
        "shift": np.full(steps, 1e-3),
        "step_norm": rng.uniform(0, 0.4, steps),
        "step_bounded": (step < 12).astype(np.int8),
        "step_seconds": np.full(steps, 0.1),
        "parameters": rng.normal(size=50),
        "initial_parameters": rng.normal(size=50),
        "mean_configuration": np.zeros(sites),
    }
    attributes = {
        "final_energy": EXACT + 0.0006,
        "final_energy_error": 0.00031,
        "exact_energy": EXACT,
        "relative_error": 0.0006 / abs(EXACT),
        "r_hat": 1.0012,
        "tau": 1.7,
        "v_score": 3.1e-5,
        "acceptance": 0.4213,
        "sector_occupancy": [0.493, 0.507],
    }
    return labelled("ground_state", variables, {"step": step, "spin": np.arange(sites)}, attributes)


def observables(rng: np.random.Generator) -> xr.Dataset:
    variables = {
        "value": rng.normal(size=(8, 4, 3)),
        "mean": [0.61234, 0.40321, 0.63662],
        "error": [0.0013, 0.0021, 0.0002],
        "r_hat": [1.001, 1.003, np.nan],
        "exact": [np.nan, 0.40402, 0.63659],
        "simple_function_r2": [1.0, 0.87, 0.9981],
    }
    return labelled(
        "observables", variables, {"observable": OBSERVABLES, "chain": np.arange(8), "draw": np.arange(4)}
    )


def sae(rng: np.random.Generator) -> xr.Dataset:
    steps, seeds = 200, [1, 2, 3]
    step = np.arange(steps)
    noise = rng.normal(1, 0.02, (2, 3, steps))
    shape = (2, 3, FEATURES)
    variables = {
        "encoder": rng.normal(size=(*shape, 4)),
        "decoder": rng.normal(size=(*shape, 4)),
        "loss": (0.05 + np.exp(-step / 25)) * noise * np.array([1.0, 0.6])[:, None, None],
        "l0": 8 * noise,
        "dead_fraction": np.clip(0.3 * np.exp(-step / 60) * noise, 0, 1),
        "feature_density": rng.uniform(0, 0.2, shape),
        "explained_variance": rng.uniform(0.9, 0.99, (2, 3)),
        "energy_recovered": rng.uniform(0.95, 0.999, (2, 3)),
        "infidelity": [[0.011, 0.013, 0.012], [0.004, np.nan, 0.005]],
    }
    coords = {"layer": LAYERS, "sae_seed": seeds, "feature": np.arange(FEATURES), "step": step}
    return labelled("sae", variables, coords, {"kind": "topk", "k": 8, "input": "token"})


def features(rng: np.random.Generator) -> xr.Dataset:
    shape = (2, FEATURES, 3)
    r = rng.uniform(-0.5, 0.5, shape)
    best = np.array([[3, 17, 5], [17, 4, 9]])
    for layer in range(2):
        r[layer, best[layer], range(3)] = [0.92, -0.83, 0.71]
    control = rng.uniform(0.5, 0.86, (2, 6, 3)) * np.array([1, 1, 1, 0.3, 0.6, 0.05])[None, :, None]
    control[1, 3, 2] = np.nan
    best_r = np.take_along_axis(r, best[:, None], axis=1)[:, 0]
    gain = np.abs(best_r) - np.nanmax(np.abs(control), axis=1)
    sentences = [[f"<feature> {f} & gain" for f in row] for row in best]
    variables = {
        "pearson": r,
        "pearson_low": r - 0.03,
        "pearson_high": r + 0.03,
        "spearman": r,
        "p_value": np.full(shape, 0.001),
        "q_value": np.full(shape, 0.012),
        "best_feature": best,
        "best_pearson": best_r,
        "best_control": np.take(CONTROLS, np.nanargmax(np.abs(control), axis=1)),
        "gain": gain,
        "gain_low": gain - 0.04,
        "gain_high": gain + 0.04,
        "verdict": np.array(sentences),
        "control_pearson": control,
        "control_low": control - 0.04,
        "control_high": control + 0.04,
        "untrained_pearson": rng.uniform(0.4, 0.7, (2, 3, 3)),
        "stability": rng.uniform(0.5, 1.0, (2, FEATURES)),
        "stability_activation": rng.uniform(0.5, 1.0, (2, FEATURES)),
        "density": rng.uniform(0, 0.2, (2, FEATURES)),
        "participation_ratio": [5.3, 3.71],
        **portraits(),
    }
    coords = {"layer": LAYERS, "feature": np.arange(FEATURES), "observable": OBSERVABLES, "control": CONTROLS}
    coords |= {"sae_seed": [1, 2, 3], "symmetry": SYMMETRIES}
    return labelled("features", variables, coords, {"confidence": 0.95})


def portraits() -> dict[str, Any]:
    """Seeds agree in the first layer alone; every third feature is invariant, has a partner, or neither."""
    rng = np.random.default_rng(6)
    angles = np.full((2, 3, 4), np.nan)
    angles[0, 1:, :3], angles[1, 1:, :2] = [5.0, 20.0, 31.0], [40.0, 80.0]
    chance = np.full((2, 4), np.nan)
    chance[0, :3], chance[1, :2] = [30.0, 55.0, 80.0], [38.0, 77.0]
    configuration = rng.choice(np.array([-1, 1], np.int8), (2, 3, 8, 40))
    configuration[1, 2, 5:] = 0
    value = rng.uniform(0, 1, (2, 3, 8))
    value[1, 2, 5:] = np.nan
    r = np.tile([0.99, -0.4, 0.3], (2, len(SYMMETRIES), 1))
    words = np.tile(np.array(["invariant", "partner", "neither"]), (2, len(SYMMETRIES), 1))
    return {
        "subspace_angle": angles,
        "subspace_p_value": np.array([[np.nan, 0.005, 0.02], [np.nan, 0.6, 0.4]]),
        "subspace_angle_random": chance + 9,
        "subspace_angle_covariance": chance,
        "nearest_feature": rng.integers(0, FEATURES, (2, FEATURES, 5)),
        "nearest_cosine": rng.uniform(0.2, 0.8, (2, FEATURES, 5)),
        "nearest_pearson": rng.uniform(-0.2, 0.8, (2, FEATURES, 5)),
        "top_configuration": configuration,
        "top_activation": value + 1,
        "top_value": value,
        "top_percentile": 100 * value,
        "top_token": np.where(np.isnan(value), -1, rng.integers(0, 10, value.shape)),
        "site_position": np.arange(40.0)[:, None],
        "site_token": np.arange(40) // 4,
        "symmetry_pearson": r,
        "symmetry_shift": 0.01 * r,
        "symmetry_partner": np.full(r.shape, 21),
        "symmetry_partner_pearson": np.tile([0.9, 0.97, 0.6], (2, len(SYMMETRIES), 1)),
        "symmetry_behaviour": words,
    }


def steering(rng: np.random.Generator) -> xr.Dataset:
    """Quadratic energy, linear target; controls move the target less; resampled and exact only for the feature."""
    shape = (2, 2, 4, len(SCALES), 3)
    x = (SCALES - 1)[None, None, None, :, None]
    strength = (
        np.array([1.0, 0.2, -0.4, 1.3])[None, None, :, None, None]
        * np.array([0.6, 1.0])[:, None, None, None, None]
    )
    slope = 0.05 * strength * np.ones(shape)
    born = np.array([0.612, 0.403, 0.637])
    mean = born + (slope * x * (1 - 0.15 * x))[..., None] * np.array([1.0, 0.8, -0.2])
    noise = np.array([0.001, 0.002, 0.0])
    mean = mean + rng.normal(size=mean.shape) * noise[:, None]
    error = np.broadcast_to(noise[:, None], mean.shape).copy()
    deviation = 0.004 * x**2 * np.abs(strength) * np.ones(shape) + rng.normal(size=shape) * 1e-5
    infidelity = 0.03 * x**2 * np.ones(shape)
    ess = np.exp(-0.5 * x**2) * np.ones(shape)
    for values in (mean, error, deviation, infidelity, ess):
        values[:, :, 1:, :, 1] = np.nan
    for values in (mean[1], deviation[1], infidelity[1], ess[1]):
        values[..., 2, :] = np.nan if values.ndim == 5 else values[..., 2, :]
    ess[..., 1:] = np.nan
    without_scale = slope[:, :, :, 0, :]
    reach = 0.012 * np.abs(without_scale) / 0.05
    reach[:, :, 1:, 1] = np.nan
    slopes = np.where(np.isnan(reach), np.nan, without_scale)[..., None] * np.ones(3)
    variables = {
        "observable_mean": mean,
        "observable_error": error,
        "energy": EXACT * (1 - deviation),
        "energy_error": np.full(shape, 0.001),
        "relative_energy_deviation": deviation,
        "relative_energy_deviation_error": np.full(shape, 1e-5),
        "infidelity": infidelity,
        "ess": ess,
        "strength": np.broadcast_to(x[..., 0], shape[:-1]),
        "feature": [[3, 17], [17, 4]],
        "slope_predicted": slopes,
        "slope_predicted_error": np.full(slopes.shape, 0.0011),
        "slope_measured": slopes + 0.001,
        "slope_measured_error": np.full(slopes.shape, 0.0017),
        "energy_slope": np.zeros(reach.shape),
        "energy_curvature": np.ones(reach.shape),
        "susceptibility": [0.81, 0.123],
        "susceptibility_error": [0.013, 0.0],
        "field": [0.02, np.nan],
        "efficiency": np.where(np.isnan(reach), np.nan, 0.45),
        "reach": reach,
        "reach_error": np.full(reach.shape, 0.0004),
        "monotone_low": np.where(np.isnan(reach), np.nan, 0.5),
        "monotone_high": np.where(np.isnan(reach), np.nan, 2.0),
    }
    coords = {
        "layer": LAYERS,
        "target": TARGETS,
        "direction": DIRECTIONS,
        "scale": SCALES,
        "estimator": ESTIMATORS,
        "observable": OBSERVABLES,
    }
    return labelled("steering", variables, coords, {"energy_budget": 2e-4})


def samples(rng: np.random.Generator) -> xr.Dataset:
    configuration = rng.choice(np.array([-1, 1], np.int8), (8, 4, 40))
    return labelled("samples", {"configuration": configuration, "log_psi": rng.normal(size=(8, 4)) + 0j})


def activations(rng: np.random.Generator) -> xr.Dataset:
    variables = {"residual_2": rng.normal(size=(8, 4, 10, 4)), "participation_ratio": [5.3, 3.71]}
    return labelled("activations", variables, {"layer": LAYERS})


def attribution(rng: np.random.Generator) -> xr.Dataset:
    """Gradients agree with ablation, the bare activation does not; one feature less is ablated in the second layer."""
    quantities = ["log_abs_psi", "local_energy", *(f"mean_{name}" for name in (*OBSERVABLES, "energy"))]
    metric = rng.uniform(0.01, 0.2, (2, FEATURES))
    metric[1, 7] = 0
    slope = rng.normal(0, 0.1, (2, FEATURES, 3))
    with np.errstate(divide="ignore"):
        leverage = np.where(metric[..., None] > 0, slope / np.sqrt(metric)[..., None], np.nan)
    effect = np.abs(rng.normal(0, 0.1, (2, 3, 6, len(quantities))))
    effect[1, :, -1] = np.nan
    agreement = np.broadcast_to(np.array([0.97, 0.91, 0.12])[:, None, None], (2, 3, 3, len(quantities)))
    edges = 2 * 3
    variables = {
        "slope": slope,
        "slope_error": np.full(slope.shape, 0.002),
        "leverage": leverage,
        "metric": metric,
        "metric_error": np.full(metric.shape, 0.003),
        "energy_force": rng.normal(0, 1e-3, (2, FEATURES)),
        "energy_force_error": np.full(metric.shape, 1e-3),
        "attribution": rng.normal(0, 0.1, (2, 3, FEATURES, len(quantities))),
        "completeness_error": [1e-3, 2e-4],
        "ablated_feature": [[3, 17, 5, 1, 2, 8], [17, 4, 9, 0, 2, -1]],
        "ablation_effect": effect,
        "ablation_effect_error": 0.1 * effect,
        "ablation_attribution": effect[:, None] * np.array([1.02, 0.9, 0.3])[:, None, None, None],
        "ablation_infidelity": np.full((2, 3, 6), 0.02),
        "ablation_ess": np.full((2, 3, 6), 0.9),
        "agreement": agreement,
        "rank_agreement": agreement - 0.02,
        "source_layer": np.repeat([LAYERS[0]], edges),
        "source_feature": [3, 17, 5, 2, 1, -1],
        "target_layer": np.repeat([LAYERS[1]], edges),
        "target_feature": [17, 17, 4, 4, 9, -1],
        "target_observable": np.repeat(OBSERVABLES, 2),
        "weight": [0.5, -0.2, 0.31, 0.1, 0.07, np.nan],
        "weight_error": np.full(edges, 0.01),
        "edge_effect": [0.52, -0.19, 0.3, 0.12, 0.07, np.nan],
        "edge_effect_error": np.full(edges, 0.01),
    }
    coords = {
        "layer": LAYERS,
        "feature": np.arange(FEATURES),
        "observable": OBSERVABLES,
        "predictor": ["gradient", "integrated", "activation"],
        "quantity": quantities,
        "ablation": ["zero", "mean", "resample"],
    }
    return labelled("attribution", variables, coords, {"samples": 4096})


BUILDERS = {
    f.__name__: f
    for f in (ground_state, samples, observables, activations, sae, features, steering, attribution)
}


TIMES = np.round(np.linspace(0, 2, 21), 12)
HELD_OUT = (np.arange(21) % 4 == 2).astype(np.int8)
LAST_TRAINING = 2.0
STEERED = (0.5, 1.5)
QUENCH_SPEC = (
    SPEC + '\n[dynamics]\nduration = 2.0\nstart = "ground_state"\nhamiltonian = {kind = "tfim", h = 0.5}\n'
)
PER_TIME = {
    "observables": ("value", "mean", "error", "r_hat", "exact", "simple_function_r2"),
    "sae": ("energy_recovered", "infidelity"),
    "features": (
        *(
            "pearson",
            "pearson_low",
            "pearson_high",
            "spearman",
            "p_value",
            "q_value",
            "best_feature",
            "best_pearson",
        ),
        *("best_control", "gain", "gain_low", "gain_high", "verdict", "control_pearson", "control_low"),
        *("control_high", "untrained_pearson", "density"),
        *("nearest_pearson", "top_configuration", "top_value", "top_token", "site_position", "site_token"),
        *("subspace_angle", "subspace_p_value", "symmetry_pearson", "symmetry_behaviour"),
    ),
}


def dynamics(rng: np.random.Generator) -> xr.Dataset:
    """A state that leaves the exact one slowly, with the largest error in the last interval."""
    wave = np.stack(
        [np.cos(TIMES), 0.4 + 0.2 * np.sin(3 * TIMES), 0.6 + 0.3 * TIMES * np.exp(-TIMES)], axis=1
    )
    departure = 2e-4 * TIMES[:, None] ** 3 * np.array([1.0, -2.0, 0.5])
    missed = 1e-3 * 10 ** (0.8 * TIMES) * rng.uniform(0.8, 1.2, len(TIMES))
    missed[0] = np.nan
    step = 0.02 * np.exp(-TIMES)
    step[0] = np.nan
    variables = {
        "energy": -30 + 1e-3 * TIMES**2,
        "energy_error": np.full(len(TIMES), 2e-4),
        "tdvp_error": missed,
        "effective_rank": np.full(len(TIMES), 40.0),
        "step_size": step,
        "steps": np.arange(len(TIMES)) * 9,
        "observable_mean": wave + departure,
        "observable_error": np.full(wave.shape, 4e-4),
        "observable_exact": wave,
        "infidelity": 1e-5 * TIMES**4,
        "parameters": rng.normal(size=(len(TIMES), 50)),
        "final_configuration": np.ones((len(TIMES), 8, 40), np.int8),
    }
    attributes = {"method": "tdvp", "start_state": "ground_state", "imaginary": 0, "start_infidelity": 0.0}
    coordinates = {"time": TIMES, "observable": OBSERVABLES}
    return labelled("dynamics", variables, coordinates, attributes)


def over_time(stage: str, rng: np.random.Generator) -> xr.Dataset:
    """What the stage writes without a quench, once for every time."""
    moments = [BUILDERS[stage](rng) for _ in TIMES]
    varying = xr.concat([moment[list(PER_TIME[stage])] for moment in moments], "time")
    varying = varying.assign_coords(time=TIMES, held_out=("time", HELD_OUT))
    return moments[0].drop_vars(PER_TIME[stage]).merge(varying)


def followed_features(rng: np.random.Generator) -> xr.Dataset:
    """In the first layer the followed features keep their meaning, in the second one they lose it."""
    dataset = over_time("features", rng)
    base = np.array([[0.97, 0.95, 0.96], [0.9, 0.85, 0.8]])
    fade = np.array([0.01, 0.15])[:, None] * TIMES[:, None, None]
    r = base - fade + 0.004 * rng.normal(size=(len(TIMES), 2, 3))
    r[..., 1] *= -1
    controls = rng.uniform(0.3, 0.8, (6, 3)) * (1 - 0.1 * TIMES)[:, None, None, None] * np.ones((2, 1, 1))
    controls = controls + 0.02 * rng.normal(size=controls.shape)
    chosen, words = [[3, 17, 5], [17, 4, 9]], ["followed", "no better than controls"]
    sentences = [
        [f"{words[i]}: <feature> {chosen[i][j]} & {OBSERVABLES[j]} through time" for j in range(3)]
        for i in range(2)
    ]
    followed = {
        "followed_feature": chosen,
        "followed_pearson": r,
        "followed_low": r - 0.015,
        "followed_high": r + 0.015,
        "followed_control_pearson": controls,
        "followed_verdict": np.array(sentences),
    }
    coordinates = {name: dataset[name].values for name in ("time", "layer", "observable", "control")}
    return dataset.merge(labelled("features", followed, coordinates)).assign_attrs(dataset.attrs)


def steering_over_time(rng: np.random.Generator) -> xr.Dataset:
    """Steered at two times; what evolves on from there rings down from where the steering has brought it."""
    moments = xr.concat([steering(rng) for _ in STEERED], "time").assign_coords(time=list(STEERED))
    later = TIMES[5:]
    passed = np.clip(later - np.array(STEERED)[:, None], 0, None)[:, None, None, None, :, None]
    kick = 0.1 * (SCALES - 1)[None, None, None, :, None, None]
    values = 0.5 + 0.1 * np.sin(3 * later)[:, None] + kick * np.cos(2 * passed) * np.exp(-passed)
    values = values * np.ones((2, 2, 2, len(SCALES), len(later), 3))
    values[1, ..., later < STEERED[1], :] = np.nan
    dims = ("time", "layer", "target", "scale", "later", "observable")
    return moments.assign(evolved_mean=(dims, values)).assign_coords(later=later)


QUENCHED = BUILDERS | {
    "dynamics": dynamics,
    "observables": lambda rng: over_time("observables", rng),
    "sae": lambda rng: over_time("sae", rng),
    "features": followed_features,
    "steering": steering_over_time,
    "attribution": lambda rng: xr.concat(
        [attribution(rng) for _ in TIMES], xr.DataArray(TIMES, dims="time", name="time"), data_vars="all"
    ).assign_coords(held_out=("time", HELD_OUT)),
}


def unchanged(dataset: xr.Dataset) -> xr.Dataset:
    return dataset


def write_run(
    directory: Path,
    stages: tuple[str, ...] = tuple(BUILDERS),
    status: dict[str, Any] | None = None,
    change: Callable[[xr.Dataset], xr.Dataset] = unchanged,
    builders: Mapping[str, Builder] = BUILDERS,
    spec: str = SPEC,
) -> Path:
    """Write a run directory; ``change`` spoils each of its datasets."""
    directory.mkdir(parents=True)
    (directory / "spec.toml").write_text(spec, encoding="utf-8")
    if status is not None:
        (directory / "status.json").write_text(json.dumps(status), encoding="utf-8")
    rng = np.random.default_rng(5)
    for stage in stages:
        dataset = change(builders[stage](rng).assign_attrs(stage=stage, **ORIGIN))
        dataset.to_netcdf(directory / f"{stage}.nc")
    return directory


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every stage; tests may add a report to it and change nothing else."""
    return write_run(tmp_path_factory.mktemp("whole") / "tfim-40")


def _every_direction(dataset: xr.Dataset) -> xr.Dataset:
    """Steering in every direction there is: the new ones repeat the feature, their targets moved by other factors."""
    if "direction" not in dataset.dims:
        return dataset
    factors = {
        "constant_shift": 0.5,
        "difference_of_means": 2,
        "probe": 0.7,
        "principal_component": 0.6,
        "clamp": 0.8,
        "add": 0.4,
        "leverage_feature": 1.5,
        "natural_gradient": 2.5,
    }
    factors["natural_gradient_held"] = 0.5
    old, new = dataset, dataset.sel(direction=["feature"] * len(factors))
    new = new.assign_coords(direction=list(factors))
    for name in ("reach", "slope_predicted", "slope_measured"):
        new[name] = new[name] * xr.DataArray(list(factors.values()), dims="direction")
    moved = [name for name in old.data_vars if "direction" in old[name].dims]
    many = xr.concat([old[moved], new[moved]], "direction").assign(old.drop_dims("direction").data_vars)
    turned = xr.full_like(many["reach"].isel(estimator=0, drop=True), -1)
    turned.loc[{"direction": "leverage_feature"}] = 7
    turned.loc[{"direction": "other_feature"}] = 11
    held = xr.DataArray([f"{name}, energy" for name in TARGETS[::-1]], dims="target")
    return many.assign(turned_feature=turned.astype(np.int32), held=held).assign_attrs(dataset.attrs)


@pytest.fixture(scope="session")
def every_direction() -> Callable[[xr.Dataset], xr.Dataset]:
    """A change for ``make_run``."""
    return _every_direction


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run(name, stages=..., status=..., change=...)`` writes a run directory of the test's own."""
    return lambda name="tfim-40", *args, **options: write_run(tmp_path / name, *args, **options)


def write_quenched(
    directory: Path, stages: tuple[str, ...] = tuple(QUENCHED), spec: str = QUENCH_SPEC, **options: Any
) -> Path:
    """Write the directory of a run with dynamics."""
    return write_run(directory, stages, builders=QUENCHED, spec=spec, **options)


@pytest.fixture(scope="session")
def quenched_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dynamics and every stage; tests may add a report to it and change nothing else."""
    return write_quenched(tmp_path_factory.mktemp("quenched") / "quench-40")


@pytest.fixture
def make_quenched(tmp_path: Path) -> Callable[..., Path]:
    """``make_quenched(name, stages=..., change=...)`` writes the directory of a run with dynamics of the test's own."""
    return lambda name="quench-40", *args, **options: write_quenched(tmp_path / name, *args, **options)


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three points in h, the last one failed before its later stages."""
    directory = tmp_path_factory.mktemp("swept") / "tfim-40-fields"
    write_run(directory / "hamiltonian.h=1.0", status={"state": "done"})
    write_run(
        directory / "hamiltonian.h=0.5", status={"state": "done", "coordinates": {"hamiltonian.h": 0.5}}
    )
    partial = {"state": "failed", "stage": "samples", "error": "the disk is full"}
    write_run(directory / "hamiltonian.h=10.0", ("ground_state", "observables"), partial)
    return directory


def visible_texts(figure: Figure) -> Iterator[Text]:
    """Titles, tick labels within the axes, axis labels and legend entries."""
    for axes in figure.axes:
        yield axes.title
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            yield from (tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)
            yield axis.label
    yield from (text for legend in figure.legends for text in legend.get_texts())


@pytest.fixture
def clashes() -> Callable[[Figure], list[tuple[str, str]]]:
    """``clashes(figure)``: pairs of its texts that overlap. There must be texts at all."""

    def found(figure: Figure) -> list[tuple[str, str]]:
        figure.draw_without_rendering()
        shown = [text for text in visible_texts(figure) if text.get_visible() and text.get_text()]
        assert len(shown) > 15
        boxes = [text.get_window_extent() for text in shown]
        return [
            (shown[i].get_text(), shown[j].get_text())
            for i in range(len(boxes))
            for j in range(i)
            if boxes[i].overlaps(boxes[j])
        ]

    return found
