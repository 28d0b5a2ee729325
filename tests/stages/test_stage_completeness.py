"""Stage completeness on a small trained ring against plain correlations."""

import numpy as np
import pytest

from nqs_sae_service.datasets.netcdf import read_stage
from nqs_sae_service.physics.strings import frames
from nqs_sae_service.sae.dictionary import Dictionary
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES

SPEC = """
name = "strings"
[lattice]
kind = "chain"
length = 8
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
kind = "transformer"
patch = 2
width = 8
heads = 2
layers = 1
attention = "positional"
[sampling]
chains = 32
burn_in = 5
[ground_state]
steps = 30
samples = 64
learning_rate = 0.1
final_samples = 256
[samples]
count = 512
[observables]
names = ["magnetization"]
[activations]
layers = ["residual_1"]
[sae]
features = 12
k = 2
steps = 100
batch = 128
seeds = [1]
untrained = 1
[features]
bootstrap = 20
permutations = 20
[completeness]
order = 3
sites = 6
samples = 128
threshold = 0.3
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completeness")
    path = folder / "strings.toml"
    path.write_text(SPEC, encoding="utf-8")
    outcome = run_plans(make_plan(load_spec(path), STAGES, folder / "results", ["completeness"]))
    assert outcome.code == 0
    (point,) = load_spec(path)
    return outcome.directories[0], point.spec


def test_correlations_are_the_plain_ones(run):
    directory, spec = run
    found = read_stage(directory / "completeness.nc")
    samples, sae = read_stage(directory / "samples.nc"), read_stage(directory / "sae.nc")
    lattice = spec.lattice.build()
    state = spec.state.build(lattice)
    psi = state.bind(read_stage(directory / "ground_state.nc")["parameters"].values)
    frame = frames(lattice, state.sites)
    dictionary = Dictionary.from_dataset(sae, "residual_1", 1)
    assert found.sizes["string"] == 6 + 15 + 20
    table = {}
    for part in ("select", "test"):
        chains = np.flatnonzero(samples["split"].values == part)
        sigma = samples["configuration"].values[chains].reshape(-1, 8)
        assert len(sigma) == 128  # all of them
        x = psi.activations(sigma, ["residual_1"])["residual_1"]
        f = dictionary.encode(x.astype(np.float64).reshape(-1, 8))
        seen = sigma[:, frame].reshape(-1, 8)
        for label in found["string"].values:
            sites = [int(z[1:]) for z in str(label).split()]
            chi = seen[:, sites].prod(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                r = np.array([np.corrcoef(f[:, i], chi)[0, 1] for i in range(12)])
            table[part, label] = np.nan_to_num(r)
            if part == "test":
                at = found.sel(string=label)
                assert float(at["frequency"]) == pytest.approx((1 - abs(chi.mean())) / 2, abs=1e-6)
                weight = np.corrcoef(chi.reshape(-1, 4).mean(1), psi.log_psi(sigma))[0, 1]
                assert float(at["weight"]) == pytest.approx(abs(weight), abs=1e-4)
                assert int(at["order"]) == len(sites)
    for label in found["string"].values:
        chosen = int(np.abs(table["select", label]).argmax())
        at = found.sel(string=label, layer="residual_1", source="dictionary")
        assert abs(table["select", label][int(at["best_feature"])]) == pytest.approx(
            abs(table["select", label][chosen]), abs=1e-4
        )
        assert float(at["pearson"]) == pytest.approx(table["test", label][int(at["best_feature"])], abs=1e-4)
    assert [str(x) for x in found["source"].values] == ["dictionary", "neuron", "untrained 1"]
    has = np.abs(found["pearson"].values) >= 0.3
    np.testing.assert_allclose(
        found["share"].sel(spins=2)[0], has[0][:, found["order"].values == 2].mean(axis=1)
    )


def test_no_order_no_stage(tmp_path):
    path = tmp_path / "none.toml"
    path.write_text(SPEC.replace("order = 3", "order = 0"), encoding="utf-8")
    (plan,) = make_plan(load_spec(path), STAGES, tmp_path / "results", [])
    assert "completeness" not in [step.stage.name for step in plan.steps]
