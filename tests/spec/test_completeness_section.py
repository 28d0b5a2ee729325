"""What [completeness] refuses, with key and remedy."""

import pytest

from nqs_sae_service.errors import UserError
from nqs_sae_service.spec import load_spec

SPEC = """
name = "strings"
[lattice]
kind = "chain"
length = 8
{lattice}
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
kind = "transformer"
patch = 2
width = 8
heads = 2
layers = 1
[activations]
layers = [{layers}]
[sae]
features = 12
k = 2
input = "{input}"
[completeness]
{completeness}
"""
GOOD = {"lattice": "", "layers": '"residual_1"', "input": "token", "completeness": "order = 2"}


def load(tmp_path, **changes):
    path = tmp_path / "spec.toml"
    path.write_text(SPEC.format(**(GOOD | changes)), encoding="utf-8")
    return load_spec(path)[0].spec


def test_layers_are_those_with_tokens(tmp_path):
    spec = load(tmp_path, layers='"residual_1", "head"')
    assert spec.completeness.layers == ("residual_1",)
    assert spec.completeness.wanted
    assert not load(tmp_path, completeness="").completeness.wanted


@pytest.mark.parametrize(
    ("changes", "key", "remedy"),
    [
        ({"input": "pooled"}, "completeness.order", 'sae.input = "token"'),
        ({"layers": '"head"'}, "completeness.order", "activations.layers"),
        ({"lattice": "periodic = false"}, "completeness.order", "set it to 0"),
        ({"completeness": 'order = 2\nlayers = ["mlp_1"]'}, "completeness.layers[0]", "add it there"),
        ({"completeness": "order = 9"}, "completeness.order", ""),
        (
            {"completeness": "order = 2\n[dynamics]\nduration = 1.0"},
            "completeness.order",
            "dynamics.duration = 0",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_its_remedy(tmp_path, changes, key, remedy):
    with pytest.raises(UserError) as refused:
        load(tmp_path, **changes)
    assert key in str(refused.value)
    assert remedy in str(refused.value)
