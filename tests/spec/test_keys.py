"""A stage's key follows from what is computed and from nothing else."""

from typing import Literal

import pytest
from pydantic import Field

from nqs_sae_service.spec import canonical_json, stage_key
from nqs_sae_service.spec.section import Section

READS = ("lattice", "hamiltonian", "state", "sampling", "ground_state")


def key(folder, text, sets=(), version=1, upstream=None):
    (point,) = folder.load(text, sets)
    sections = {name: getattr(point.spec, name) for name in READS}
    return stage_key("ground_state", version, sections, upstream or {})


def test_the_way_a_spec_is_written_does_not_matter(folder):
    first = key(folder, folder.minimal)
    assert len(first) == 20
    assert int(first, 16) > 0
    reordered = """
    name = "other"      # a comment
    hamiltonian = {h = 1, kind = "tfim"}
    lattice.length = 0x10
    lattice.kind = 'chain'
    lattice.periodic = true
    state.patch = 4     # the default
    engine.threads = 2
    output.report = false
    """
    assert key(folder, reordered) == first
    folder.write(folder.minimal.replace("h = 1.0", "h = 3.0"), "base.toml")
    assert key(folder, "extends = 'base.toml'\n[hamiltonian]\nh = 1e0") == first


@pytest.mark.parametrize(
    "setting",
    [
        "lattice.length=20",
        "hamiltonian.h=1.0000001",
        "state.precision=float64",
        "seed=2",
        "ground_state.seed=2",
    ],
)
def test_content_matters(folder, setting):
    assert key(folder, folder.minimal, [setting]) != key(folder, folder.minimal)


def test_other_sections_do_not_matter(folder):
    assert key(folder, folder.minimal, ["steering.draws=5", "sae.k=3"]) == key(folder, folder.minimal)


def test_version_stage_and_upstream_matter(folder):
    sections = {"lattice": folder.load(folder.minimal)[0].spec.lattice}
    keys = {
        stage_key("samples", 1, sections, {"ground_state": "a"}),
        stage_key("samples", 2, sections, {"ground_state": "a"}),
        stage_key("samples", 1, sections, {"ground_state": "b"}),
        stage_key("samples", 1, sections, {}),
        stage_key("samples", 1, {}, {"ground_state": "a"}),
        stage_key("observables", 1, sections, {"ground_state": "a"}),
    }
    assert len(keys) == 6


@pytest.mark.parametrize("name", ["engine", "output"])
def test_how_to_run_is_never_hashed(folder, name):
    spec = folder.load(folder.minimal)[0].spec
    with pytest.raises(ValueError, match="how to run"):
        stage_key("samples", 1, {name: getattr(spec, name)}, {})


def test_a_neutral_field_enters_the_key_only_when_it_is_used():
    class Before(Section):
        kind: Literal["x"] = "x"
        length: int = 3

    class After(Before):
        twist: float = Field(0.0, json_schema_extra={"neutral": True})

    assert (
        canonical_json({"x": After()}) == canonical_json({"x": Before()}) == '{"x":{"kind":"x","length":3}}'
    )
    assert canonical_json({"x": After(twist=0.5)}) != canonical_json({"x": Before()})
