"""What [heads] refuses, with key and remedy."""

import pytest

from nqs_sae_service.errors import UserError
from nqs_sae_service.spec import load_spec

SPEC = """
name = "heads"
[lattice]
kind = "chain"
length = 8
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
kind = "{state}"
[observables]
names = ["magnetization", "log_abs_psi", "sigma_x"]
[heads]
{heads}
"""
GOOD = {"state": "transformer", "heads": "samples = 64"}


def load(tmp_path, **changes):
    path = tmp_path / "spec.toml"
    path.write_text(SPEC.format(**(GOOD | changes)), encoding="utf-8")
    return load_spec(path)[0].spec


def test_readouts_are_those_with_a_mean(tmp_path):
    spec = load(tmp_path)
    assert spec.heads.readouts == ("log_psi", "energy", "magnetization", "sigma_x")
    assert spec.heads.wanted
    assert load(tmp_path, heads='samples = 64\nreadouts = ["infidelity"]').heads.readouts == ("infidelity",)


def test_nothing_without_samples(tmp_path):
    spec = load(tmp_path, heads="", state="rbm")
    assert not spec.heads.wanted
    assert spec.heads.readouts == ()


@pytest.mark.parametrize(
    ("changes", "key", "remedy"),
    [
        ({"state": "cnn"}, "heads.samples", "take a transformer"),
        ({"heads": "samples = 3"}, "heads.samples", "at least 4"),
        ({"heads": 'samples = 64\nreadouts = ["sigma_z"]'}, "heads.readouts[0]", "add it there"),
        (
            {"heads": 'samples = 64\nreadouts = ["log_psi", "log_abs_psi"]'},
            "heads.readouts[1]",
            "leave it out",
        ),
        ({"heads": 'samples = 64\nreadouts = ["energy", "energy"]'}, "heads.readouts[1]", "listed twice"),
        (
            {"heads": 'samples = 64\ncounterfactuals = ["region", "region"]'},
            "heads.counterfactuals[1]",
            "twice",
        ),
        ({"heads": 'samples = 64\ncounterfactuals = ["regions"]'}, "heads.counterfactuals[0]", "region"),
        ({"heads": "samples = 64\n[dynamics]\nduration = 1.0"}, "heads.samples", "dynamics.duration = 0"),
    ],
)
def test_what_does_not_fit_is_told_with_its_remedy(tmp_path, changes, key, remedy):
    with pytest.raises(UserError) as refused:
        load(tmp_path, **changes)
    assert key in str(refused.value)
    assert remedy in str(refused.value)
