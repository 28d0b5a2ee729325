"""The whole chain on a projected state: all stages run, and their files say which copy they looked at."""

import numpy as np
import pytest

from nqs_sae_service import open_run
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.symmetries import symmetries

SETS = (
    "lattice.length=6",
    "state.patch=3",
    "state.width=4",
    "state.layers=1",
    "state.symmetry.translations=true",
    "state.symmetry.point_group=true",
    "state.symmetry.spin_flip=1",
    "state.symmetry.from_step=6",
    "sampling.chains=64",
    "ground_state.steps=12",
    "ground_state.samples=128",
    "ground_state.final_samples=512",
    "samples.count=1024",
    "sae.features=6",
    "sae.steps=20",
    "sae.batch=64",
    "sae.seeds=[1]",
    "sae.untrained=0",
    "features.bootstrap=20",
    "features.permutations=20",
    "steering.samples=256",
    "steering.draws=1",
    "steering.burn_in=1",
    "steering.scales=[0.95, 1.05]",
)


@pytest.fixture(scope="module")
def projected(compute, tmp_path_factory):
    run = open_run(compute(tmp_path_factory.mktemp("projected"), *SETS))
    return {name: node.to_dataset().load() for name, node in run.children.items()}


@pytest.mark.parametrize("stage", ["samples", "activations", "sae", "steering"])
def test_files_name_the_copy(projected, stage):
    attributes = projected[stage].attrs
    assert (attributes["projection_copies"], attributes["projection_copy"]) == (12, 0)
    assert attributes["edit_applies_to"] == "all copies"


def test_a_bare_state_has_no_copies(run):
    assert "projection_copy" not in run["samples"].attrs


def test_samples_have_symmetric_amplitudes(projected):
    sigma, log_psi = projected["samples"]["configuration"].values, projected["samples"]["log_psi"].values.real
    group = symmetries(Chain(kind="chain", length=6).build(), True, None, True, spin_flip=1)
    known = {s.tobytes(): value for s, value in zip(sigma.reshape(-1, 6), log_psi.ravel(), strict=True)}
    for s in all_configurations(6):
        copies = [
            (s[p] * f).astype(np.int8).tobytes() for p, f in zip(group.permutations, group.flips, strict=True)
        ]
        values = [known[copy] for copy in copies if copy in known]
        assert np.ptp(values or [0.0]) < 1e-4


def test_steered_curves_agree_with_the_full_sum(projected):
    steering = projected["steering"]
    curves = steering["observable_mean"]
    exact, sampled = (curves.sel(estimator=name).values for name in ("exact", "reweighted"))
    known = np.isfinite(exact) & np.isfinite(sampled)
    directions = steering["direction"].values[known.any(axis=(0, 1, 3, 4))]
    assert {"feature", "constant_shift", "difference_of_means", "natural_gradient"} < set(directions)
    np.testing.assert_allclose(sampled[known], exact[known], atol=0.2)
    slope = steering["slope_predicted"].sel(direction="feature", estimator="exact").values
    measured = steering["slope_measured"].sel(direction="feature", estimator="exact").values
    np.testing.assert_allclose(measured, slope, atol=0.02 * np.nanmax(np.abs(slope)))
