"""A network that learns a teacher on a device does as it does on the host."""

import numpy as np

from nqs_sae_service.datasets.schema import labelled
from nqs_sae_service.engine.devices import HOST
from nqs_sae_service.engine.ranks import ALONE
from nqs_sae_service.spec import load_spec
from nqs_sae_service.spec.files import TEACHER
from nqs_sae_service.spec.keys import canonical_json
from nqs_sae_service.stages.transfer import run

SPEC = """
name = "pupil"
[lattice]
kind = "chain"
length = 8
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
patch = 2
width = 16
heads = 4
layers = 1
mlp_ratio = 1
precision = "float64"
attention = ["full", "kernel", "positional", "kernel"]
[sampling]
chains = 16
burn_in = 2
[transfer]
teacher = "teacher"
samples = 32
batch = 8
match_steps = 5
infidelity_steps = 2
"""


class Context:
    """What a stage needs of a runner."""

    ranks = ALONE

    def __init__(self, spec, upstream, device):
        self.spec, self.upstream, self.device = spec, upstream, device

    def tick(self, done, total, message="", state=None):
        pass

    def restore(self):
        return None


def test_transfer_on_the_device_is_that_on_the_host(one_device, tmp_path):
    path = tmp_path / "pupil.toml"
    path.write_text(SPEC, encoding="utf-8")
    (point,) = load_spec(path)
    spec = point.spec
    full = spec.state.model_copy(update={"attention": "full"})
    state = full.build(spec.lattice.build())
    sections = canonical_json({"lattice": spec.lattice, "state": full, "sampling": spec.sampling})
    teacher = labelled(
        "ground_state",
        {
            "parameters": state.initial_parameters(1)
            + 0.2 * np.random.default_rng(1).normal(size=state.n_parameters),
            "final_configuration": np.random.default_rng(2).choice(np.array([-1, 1], np.int8), (16, 8)),
        },
        {},
        {"sections": sections},
    )
    ours, theirs = (run(Context(spec, {TEACHER: teacher}, device)) for device in (one_device, HOST))
    np.testing.assert_allclose(ours["matching_loss"], theirs["matching_loss"], rtol=1e-6)
    np.testing.assert_allclose(ours["infidelity"], theirs["infidelity"], rtol=1e-4)
    np.testing.assert_allclose(ours["parameters"], theirs["parameters"], rtol=1e-3, atol=1e-5)
