"""The whole chain with ``engine.device = "gpu"`` on the stand-in, beside the same chain on the CPU.

Random numbers are the same on both, so the two part only where rounding turns an acceptance: not in a run this short. What the
GPU path computes is therefore held against the CPU path number by number, to float precision and what a few steps make of it.
"""

import numpy as np
import pytest
from tiny_chain import SPEC, VARIANTS, compute

from nqs_sae_service.engine.devices import HOST
from nqs_sae_service.service.checkpoint import load_checkpoint, save_checkpoint
from nqs_sae_service.spec import load_spec
from nqs_sae_service.vmc.reconfiguration import natural_step, solve_shifted
from nqs_sae_service.vmc.training import Trainer, Training

STAGES = (
    "ground_state",
    "samples",
    "observables",
    "activations",
    "sae",
    "features",
    "steering",
    "attribution",
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stage_is_computed_on_the_device(on_gpu, variant):
    assert set(on_gpu[variant]) == set(STAGES)
    assert {data.attrs["device"] for data in on_gpu[variant].values()} == {"gpu: Pretended GPU"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_and_samples_agree_with_the_cpu(on_gpu, on_cpu, variant):
    gpu, cpu = on_gpu[variant], on_cpu[variant]
    np.testing.assert_allclose(gpu["ground_state"].energy, cpu["ground_state"].energy, rtol=2e-4)
    np.testing.assert_allclose(gpu["ground_state"].parameters, cpu["ground_state"].parameters, atol=2e-3)
    np.testing.assert_array_equal(gpu["samples"].configuration, cpu["samples"].configuration)


@pytest.mark.parametrize("variant", VARIANTS)
def test_stored_amplitudes_are_those_of_the_network(on_gpu, variant, tmp_path):
    """Of its own parameters: networks that differ by 1e-5 can differ a hundred times as much in log psi."""
    (tmp_path / "ring.toml").write_text(SPEC, encoding="utf-8")
    sets = [text.replace(" = ", "=") for text in VARIANTS[variant]]
    spec = load_spec(tmp_path / "ring.toml", sets)[0].spec
    run = on_gpu[variant]
    psi = spec.state.build(spec.lattice.build()).bind(run["ground_state"].parameters.values).reference
    sigma = run["samples"].configuration.values.reshape(-1, 8)
    np.testing.assert_allclose(run["samples"].log_psi.values.ravel().real, psi.log_psi(sigma).real, atol=3e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_observables_activations_and_dictionaries_agree_with_the_cpu(on_gpu, on_cpu, variant):
    gpu, cpu = on_gpu[variant], on_cpu[variant]
    ours, theirs = (run["observables"].value.drop_sel(observable="log_abs_psi") for run in (gpu, cpu))
    np.testing.assert_allclose(ours, theirs, atol=3e-3)
    for layer in gpu["sae"].layer.values:
        np.testing.assert_allclose(gpu["activations"][layer], cpu["activations"][layer], atol=3e-3)
    np.testing.assert_allclose(gpu["sae"].loss[..., :10], cpu["sae"].loss[..., :10], rtol=0.02)
    np.testing.assert_allclose(gpu["sae"].explained_variance, cpu["sae"].explained_variance, atol=0.05)


@pytest.mark.parametrize("variant", VARIANTS)
def test_steering_at_scale_one_is_the_state_itself(on_gpu, variant):
    steering = on_gpu[variant]["steering"].sel(scale=1.0, direction="feature")
    assert np.abs(steering.infidelity.sel(estimator=["reweighted", "exact"])).max() < 1e-9
    feature = on_gpu[variant]["steering"].sel(direction="feature")
    assert np.isfinite(feature.energy.sel(estimator="resampled")).all()


@pytest.mark.parametrize("variant", ["plain", "other"])
def test_every_direction_is_measured_on_the_device(on_gpu, variant):
    steering = on_gpu[variant]["steering"]
    known = np.isfinite(steering.reach.sel(estimator=["reweighted", "exact"]))
    assert known.any(["layer", "target"]).all()


@pytest.fixture
def trainer_on():
    def make(directory, device, *sets):
        (directory / "ring.toml").write_text(SPEC, encoding="utf-8")
        spec = load_spec(directory / "ring.toml", sets)[0].spec
        lattice = spec.lattice.build()
        parts = (
            spec.state.build(lattice),
            lattice,
            spec.hamiltonian.build(lattice),
            spec.sampling,
            spec.ground_state,
        )
        return Trainer(*parts, device=device)

    return make


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("amplitude", ["positive", "complex"])
def test_one_natural_step_on_equal_input(one_device, trainer_on, tmp_path, amplitude, weighted):
    """Against the CPU in double precision."""
    trainer = trainer_on(tmp_path, HOST, f"state.amplitude={amplitude}")
    training = trainer.start()
    psi = trainer.state.bind(training.parameters)
    rng = np.random.default_rng(0)
    energies = rng.normal(size=32) + (1j * rng.normal(size=32) if amplitude == "complex" else 0)
    previous = 0.01 * rng.normal(size=trainer.state.n_parameters)
    arguments = (training.sigma, energies, previous)
    weights = rng.dirichlet(np.ones(32)) if weighted else None
    there = one_device.put(weights) if weighted else None
    expected = natural_step(psi.reference, *arguments, 1e-2, 0.8, 0.3, weights=weights)
    moved = trainer.state.bind(one_device.put(training.parameters))
    found = natural_step(moved, *map(one_device.put, arguments), 1e-2, 0.8, 0.3, weights=there)
    size = np.linalg.norm(expected.direction)
    assert np.linalg.norm(found.direction.get() - expected.direction) < 1e-3 * size
    assert found.norm == pytest.approx(expected.norm, rel=1e-3)


def test_a_matrix_that_is_not_positive_definite_is_solved_by_its_eigenvalues(one_device):
    """cuSOLVER does not raise: it answers NaN."""
    gram, rhs = np.diag([1.0, 2.0, -0.5]), np.ones(3)
    solution = solve_shifted(one_device.put(gram), 0.1, one_device.put(rhs)).get()
    np.testing.assert_allclose(solution, solve_shifted(gram, 0.1, rhs))


def test_a_checkpoint_moves_between_devices(one_device, trainer_on, tmp_path):
    """Written by the GPU, continued there and on the CPU: the same path to float precision."""
    trainer = trainer_on(tmp_path, one_device)
    training = trainer.start()
    trainer.advance(training)
    save_checkpoint(tmp_path / "kept.npz", training.arrays())
    arrays = load_checkpoint(tmp_path / "kept.npz")
    assert all(type(array) is np.ndarray for array in arrays.values())
    there, here = Training.from_arrays(arrays, one_device), Training.from_arrays(arrays)
    trainer.advance(there)
    trainer_on(tmp_path, HOST).advance(here)
    assert there.history["energy"] == pytest.approx(here.history["energy"], rel=1e-5)
    np.testing.assert_array_equal(there.sigma.get(), here.sigma)


def test_passes_over_a_full_device_give_the_same_numbers(pretended, tmp_path, monkeypatch, on_gpu):
    """With hardly any free memory everything is done in small passes."""
    monkeypatch.setattr("nqs_sae_service.engine.devices.SMALL", 0)
    monkeypatch.setattr(pretended.xp.cuda.runtime, "memGetInfo", lambda: (400_000, 2**33))
    sets = ("sae.k = 2", "sae.untrained = 0", "sae.seeds = [1]", "sae.steps = 5", "steering.draws = 1")
    small = compute(tmp_path, "gpu", *sets)
    whole = on_gpu["plain"]
    np.testing.assert_allclose(small["ground_state"].energy, whole["ground_state"].energy, rtol=1e-5)
    np.testing.assert_allclose(small["observables"].value, whole["observables"].value, atol=1e-3)
