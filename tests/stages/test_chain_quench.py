"""The whole chain after a quench of 6 spins, through the real runner: steering in time, and steered states that evolve on."""

import numpy as np
import pytest

from nqs_sae_service import open_run
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES

SPEC = """
name = "quench"
[lattice]
kind = "chain"
length = 6
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
kind = "cnn"
channels = 4
kernel = 3
blocks = 1
amplitude = "complex"
precision = "float64"
symmetry = { spin_flip = 1 }
[sampling]
chains = 64
burn_in = 2
[ground_state]
steps = 0
samples = 64
final_samples = 64
[dynamics]
start = "x"
duration = 0.4
every = 0.1
full_summation = true
cutoff = 1e-6
tolerance = 1e-3
[samples]
count = 512
[observables]
names = ["sigma_x", "nearest_neighbour_correlation", "local_energy"]
[sae]
kind = "topk"
features = 8
k = 2
steps = 40
batch = 256
seeds = [1]
untrained = 1
[features]
bootstrap = 20
permutations = 20
[steering]
targets = ["sigma_x"]
directions = ["difference_of_means", "natural_gradient_held", "feature"]
held = ["nearest_neighbour_correlation"]
scales = [0.5, 1.5]
times = [0.2, 0.4]
evolve = [1.5]
samples = 256
draws = 1
burn_in = 1
[output]
report = false
figures = false
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("quench")
    (directory / "quench.toml").write_text(SPEC)
    outcome = run_plans(make_plan(load_spec(directory / "quench.toml"), STAGES, directory / "results"))
    assert outcome.code == 0
    return open_run(directory / "results" / "quench")


def test_every_stage_has_the_times_it_should(run):
    recorded = run["dynamics"]["time"].values
    for stage in ("samples", "observables", "activations", "features"):
        np.testing.assert_array_equal(run[stage]["time"], recorded)
    np.testing.assert_allclose(run["steering"]["time"], [0.2, 0.4])
    np.testing.assert_allclose(run["steering"]["later"], [0.3, 0.4])


def test_other_directions_are_fitted_at_every_time(run):
    """H = -J sum zz - h sum x: where the energy and zz are held, no direction moves x."""
    steering = run["steering"]
    names = ["feature", "difference_of_means", "natural_gradient_held"]
    assert steering["direction"].values.tolist() == names
    assert np.all(steering["held"].values == "nearest_neighbour_correlation, energy")
    slope = steering["slope_predicted"].sel(observable="sigma_x", estimator="exact").isel(layer=0, target=0)
    assert np.isfinite(slope[:, :2]).all()
    assert np.all(slope[0, :2] != slope[1, :2])
    assert np.isnan(slope[:, 2]).all()


def test_the_followed_feature_is_turned(run):
    feature = run["steering"]["feature"].isel(layer=0, target=0).values
    followed = run["features"]["followed_feature"].isel(layer=0).sel(observable="sigma_x").item()
    assert (feature == followed).all()


def test_steered_at_scale_one_is_the_recorded_state(run):
    steered = run["steering"]["observable_mean"].sel(
        target="sigma_x", observable="sigma_x", direction="feature", estimator="exact", scale=1.0
    )
    recorded = run["dynamics"].to_dataset().sel(observable="sigma_x", time=[0.2, 0.4])
    np.testing.assert_allclose(steered.values[:, 0], recorded["observable_mean"], atol=1e-9)


def test_a_steered_state_evolves_on(run):
    """Not turned it is the recorded evolution; turned it starts at the steered state. The last time has nothing later."""
    steering = run["steering"].to_dataset().isel(layer=0, target=0)
    evolved = steering["evolved_mean"].sel(observable="sigma_x")
    recorded = run["dynamics"].to_dataset()["observable_mean"].sel(observable="sigma_x", time=[0.3, 0.4])
    np.testing.assert_allclose(evolved.sel(time=0.2, scale=1.0), recorded, atol=1e-9)
    turned = evolved.sel(time=0.2, scale=1.5)
    assert np.isfinite(turned).all()
    assert steering["evolved_infidelity"].sel(time=0.2, scale=1.5) < 1e-3
    assert np.isnan(evolved.sel(time=0.4)).all()
    assert np.isnan(evolved.sel(scale=0.5)).all()
