"""Stage heads on a small trained ring: its numbers from the samples again, one head at a time; interrupted and continued."""

import pytest

from nqs_sae_service.datasets.netcdf import read_stage
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES

SPEC = """
name = "heads"
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
layers = 2
[sampling]
chains = 32
burn_in = 5
[ground_state]
steps = 30
samples = 64
learning_rate = 0.1
final_samples = 256
[samples]
count = 1024
[observables]
names = ["abs_magnetization", "sigma_x"]
[heads]
samples = 128
orders = 3
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    path = folder / "heads.toml"
    path.write_text(SPEC, encoding="utf-8")
    outcome = run_plans(make_plan(load_spec(path), STAGES, folder / "results", ["heads"]))
    assert outcome.code == 0
    (point,) = load_spec(path)
    return outcome.directories[0], point.spec


def test_it_runs(run):
    found = read_stage(run[0] / "heads.nc")
    print(
        found,
        found.mean_score,
        found.rank,
        found.set_score,
        found.receiver,
        found.sender,
        found.total,
        found.gradient,
        found.gradient_agreement,
        found.attrs,
        found.infidelity,
        found.energy_change,
        found.area,
        found.effect,
        found.resolved,
    )
