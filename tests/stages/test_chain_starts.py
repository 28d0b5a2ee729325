"""The whole chain on a network that came from elsewhere, and trainings that begin where another one ended."""

import json

import numpy as np
import pytest
import xarray as xr

from nqs_sae_service.stages import STAGES

SMALL = (
    "ground_state.steps=0",
    "ground_state.final_samples=2048",
    "samples.count=2048",
    "sae.steps=30",
    "sae.seeds=[1]",
    "sae.untrained=1",
    "features.bootstrap=20",
    "features.permutations=20",
    "steering.samples=512",
    "steering.draws=2",
    "steering.scales=[0.8, 1.2]",
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, directory, exact, compute):
    """The run of the trained network of this folder, written to a file by name and read from there."""
    folder = tmp_path_factory.mktemp("loaded")
    parameters = exact.run["ground_state"]["parameters"].values
    np.savez(folder / "network.npz", **exact.state.unpack(parameters))
    return compute(folder, f"state.load='{folder / 'network.npz'}'", *SMALL, "output.report=true")


def test_every_stage_runs_on_a_network_from_a_file(loaded, exact):
    assert {path.stem for path in loaded.glob("*.nc")} == set(STAGES) - {
        "transfer",
        "dynamics",
        "crosscoder",
        "completeness",
        "heads",
    }
    assert (loaded / "report.html").stat().st_size > 0
    ground = xr.open_dataset(loaded / "ground_state.nc")
    trained = exact.run["ground_state"]["parameters"].values
    np.testing.assert_array_equal(ground.parameters, trained)
    np.testing.assert_array_equal(ground.initial_parameters, trained)
    assert ground.sizes["step"] == 0
    samples = xr.open_dataset(loaded / "samples.nc")
    sigma = samples.configuration.values[:4, 0]
    np.testing.assert_allclose(samples.log_psi_re[:4, 0], exact.psi.log_psi(sigma), rtol=1e-5)


def test_its_energy_is_that_of_the_sum_over_all_configurations(loaded, exact, agree):
    ground = xr.open_dataset(loaded / "ground_state.nc")
    energy = exact.p @ exact.local("energy")
    agree(ground.attrs["final_energy"], energy, ground.attrs["final_energy_error"])


def test_the_digest_of_the_file_stands_for_its_path(loaded):
    sections = json.loads(xr.open_dataset(loaded / "ground_state.nc").attrs["sections"])
    assert len(sections["state"]["load"]) == 20
    assert int(sections["state"]["load"], 16) > 0


def test_a_training_goes_on_from_the_end_of_another(tmp_path, directory, exact, compute):
    run = compute(
        tmp_path,
        f"ground_state.start_from='{directory}'",
        "ground_state.steps=3",
        "ground_state.learning_rate=0.02",
        until="ground_state",
    )
    ground, before = xr.open_dataset(run / "ground_state.nc"), exact.run["ground_state"]
    np.testing.assert_array_equal(ground.initial_parameters, before.parameters)
    energy, error = (float(ground[name][0]) for name in ("energy", "energy_error"))
    assert abs(energy - exact.p @ exact.local("energy")) < 6 * error
    assert not np.array_equal(ground.parameters, before.parameters)


def test_a_larger_ring_begins_near_its_ground_state(tmp_path, directory, compute):
    run = compute(
        tmp_path,
        f"ground_state.start_from='{directory}'",
        "lattice.length=18",
        "ground_state.steps=0",
        "ground_state.final_samples=2048",
        until="ground_state",
    )
    ground = xr.open_dataset(run / "ground_state.nc")
    assert 0 < ground.attrs["relative_error"] < 0.02
