"""On a real GPU, ``pytest -m gpu tests/gpu``: besides the kernels (the other files of this folder, there too) a whole chain.

Markov chains of two devices part at the first acceptance that rounding turns, so the chain is held against exact sums under its
own network, within its error bars.
"""

import numpy as np
import pytest
from scipy import stats
from tiny_chain import SPEC, compute

from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.operators import basis_index
from nqs_sae_service.spec import load_spec

pytestmark = pytest.mark.gpu

LONGER = (
    "sampling.chains = 256", "ground_state.steps = 80", "ground_state.samples = 512", "ground_state.final_samples = 4096",
    "samples.count = 8192", "samples.sweeps = 4", "sae.k = 2", "sae.steps = 300",
    "steering.samples = 2048", "steering.draws = 4",
)  # fmt: skip


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The run on the GPU, and its network on the CPU in double precision."""
    directory = tmp_path_factory.mktemp("device")
    run = compute(directory, "gpu", *LONGER)
    (directory / "again.toml").write_text(SPEC, encoding="utf-8")
    spec = load_spec(directory / "again.toml", [text.replace(" = ", "=") for text in LONGER])[0].spec
    state = spec.state.build(spec.lattice.build())
    return run, spec, state.bind(run["ground_state"]["parameters"].values).reference


def amplitude(psi, n_sites=8):
    log_psi = psi.log_psi(all_configurations(n_sites)).real
    values = np.exp(log_psi - log_psi.max())
    return values / np.linalg.norm(values)


def test_the_files_name_the_device(chain):
    assert all(data.attrs["device"].startswith("gpu: ") for data in chain[0].values())


def test_the_energy_is_that_of_its_network_and_near_the_exact_one(chain):
    run, spec, psi = chain
    vector = amplitude(psi)
    exact = vector @ (spec.hamiltonian.build(spec.lattice.build()).to_sparse() @ vector)
    ground = run["ground_state"].attrs
    assert abs(ground["final_energy"] - exact) < 4.5 * ground["final_energy_error"] + 1e-5
    assert abs(ground["relative_error"]) < 1e-2


def test_the_samples_have_the_born_distribution(chain):
    run, _, psi = chain
    last = run["samples"].configuration.values[:, ::8].reshape(-1, 8)
    p = amplitude(psi) ** 2
    counts, expected = np.bincount(basis_index(last), minlength=256), p * len(last)
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    kept = wanted > 0
    assert (
        stats.chisquare(observed[kept], wanted[kept] * observed[kept].sum() / wanted[kept].sum()).pvalue
        > 1e-4
    )


def test_stored_numbers_are_those_of_the_network(chain):
    run, _, psi = chain
    sigma = run["samples"].configuration.values[:4].reshape(-1, 8)
    found = run["samples"].log_psi.values[:4].reshape(-1)
    np.testing.assert_allclose(found.real, psi.log_psi(sigma), atol=1e-4)
    stream = (
        run["activations"]["residual_2"]
        .values[:4]
        .reshape(len(sigma), *run["activations"]["residual_2"].shape[2:])
    )
    np.testing.assert_allclose(stream, psi.stream_at(sigma, "residual_2"), atol=1e-4)


def test_dictionaries_are_as_good_as_those_of_the_cpu(chain, tmp_path):
    cpu = compute(tmp_path, "cpu", *LONGER)
    gpu = chain[0]
    assert np.abs(gpu["sae"].explained_variance.mean() - cpu["sae"].explained_variance.mean()) < 0.05


def test_steering_estimators_agree(chain):
    steering = chain[0]["steering"].sel(direction="feature")
    exact, fresh = steering.sel(estimator="exact"), steering.sel(estimator="resampled")
    error = np.abs(exact.observable_mean - fresh.observable_mean) / (fresh.observable_error + 1e-3)
    assert float(error.max()) < 6
