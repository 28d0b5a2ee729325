"""Stages ``sae``, ``features`` and ``steering`` with every kind of dictionary, on a chain that takes no time."""

import shutil

import numpy as np
import pytest

from nqs_sae_service.datasets import open_run, read_stage
from nqs_sae_service.sae import KINDS
from nqs_sae_service.sae.dictionary import Dictionary
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES

SPEC = """
name = "ring"
[lattice]
kind = "chain"
length = 6
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
kind = "transformer"
patch = 2
width = 4
heads = 2
layers = 1
[sampling]
chains = 32
burn_in = 3
[ground_state]
steps = 5
samples = 64
final_samples = 64
[samples]
count = 256
[sae]
features = 10
steps = 20
batch = 64
dead_after = 200
seeds = [1, 2]
untrained = 1
[features]
bootstrap = 10
permutations = 10
[steering]
targets = ["sigma_x"]
scales = [0.8]
samples = 64
draws = 1
burn_in = 1
[output]
report = false
figures = false
"""


def run(directory, kind, until):
    spec = directory / "ring.toml"
    spec.write_text(SPEC, encoding="utf-8")
    sets = [f'sae.kind="{kind}"', *(["sae.k=2"] if "k" in KINDS[kind].model_fields else [])]
    plans = make_plan(load_spec(spec, sets), STAGES, directory / "results", [until] if until else ())
    outcome = run_plans(plans)
    assert outcome.code == 0
    return outcome.directories[0]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """Everything up to the activations, which every kind shares."""
    directory = tmp_path_factory.mktemp("kinds")
    run(directory, "topk", "activations")
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_chain_runs(kind, upstream, tmp_path):
    shutil.copytree(upstream, tmp_path, symlinks=True, dirs_exist_ok=True)
    directory = run(tmp_path, kind, None)
    with read_stage(directory / "sae.nc") as sae:
        assert sae.attrs["kind"] == kind
        assert ("threshold" in sae, "untrained_threshold" in sae) == (KINDS[kind].thresholds,) * 2
        assert all(np.isfinite(variable).all() for variable in sae.data_vars.values())
        dictionary = Dictionary.from_dataset(sae, "residual_1", 2)
        assert dictionary.k == sae.attrs["k"]
        active = sae.feature_density.sel(layer="residual_1", sae_seed=2).values
        run_data = {name: node.to_dataset() for name, node in open_run(directory).children.items()}
        split = run_data["samples"].split.values == "select"
        x = run_data["activations"]["residual_1"].values[split].reshape(-1, 4)
        found = (dictionary.encode(x) > 0).mean(axis=0)
        np.testing.assert_allclose(active, found, atol=1e-9)
        if dictionary.threshold is not None:
            assert (dictionary.threshold > 0).any()
    assert np.isfinite(run_data["steering"].energy).any()
