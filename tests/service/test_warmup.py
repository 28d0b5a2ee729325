"""``nqs-sae warmup``: a run on next to nothing that asks for the kernels of the real one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nqs_sae_service.engine.jit import CACHE_DIRECTORY
from nqs_sae_service.sae import KINDS
from nqs_sae_service.service.warmup import default_points, reduced, warm_up
from nqs_sae_service.spec import Spec, load_spec
from nqs_sae_service.states import STATES

SPECS = Path(__file__).parents[2] / "specs"


def points(tmp_path, text="", name="warm"):
    spec = tmp_path / f"{name}.toml"
    spec.write_text(
        f'name = "{name}"\n[lattice]\nkind = "chain"\nlength = 24\n[hamiltonian]\nkind = "tfim"\nh = 1.0\n{text}'
    )
    return load_spec(spec)


def test_the_defaults_need_every_architecture_and_dictionary():
    specs = [point.spec for point in default_points()]
    assert {spec.state.kind for spec in specs} == set(STATES)
    assert {spec.sae.kind for spec in specs} == set(KINDS)


@pytest.mark.parametrize("spec", sorted(SPECS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_reduced_spec_is_valid_and_keeps_what_decides_on_types(spec):
    for point in load_spec(spec):
        small = reduced(point, 1).spec
        assert Spec.model_validate(small.model_dump()) == small
        for section in ("lattice", "hamiltonian", "observables", "activations"):
            assert getattr(small, section) == getattr(point.spec, section)
        soon = {"symmetry": small.state.symmetry}  # projected from the second step at the latest
        assert small.state == point.spec.state.model_copy(update=soon)
        assert small.state.symmetry.from_step <= 1
        assert (small.sae.kind, small.sae.k) == (point.spec.sae.kind, point.spec.sae.k)


def test_reduced_counts_fit_together(tmp_path):
    (point,) = points(
        tmp_path,
        "[sampling]\nchains = 300\n[ground_state]\nsamples = 600\nfinal_samples = 900\n[samples]\ncount = 900",
    )
    small = reduced(point, 2)
    again = tmp_path / "again.toml"
    again.write_text(small.toml())
    (loaded,) = load_spec(again)
    assert loaded.spec == small.spec


def test_points_of_a_sweep_that_need_the_same_kernels_run_once(tmp_path, monkeypatch):
    from nqs_sae_service.service import warmup
    from nqs_sae_service.service.runner import Outcome

    planned = []
    monkeypatch.setattr(warmup, "run_plans", lambda plans: planned.extend(plans) or Outcome(0, ()))
    fields = points(tmp_path, '[sweep.grid]\n"hamiltonian.h" = [0.5, 1.0, 1.5]')
    widths = points(tmp_path, '[sweep.grid]\n"state.width" = [16, 32]', "widths")
    assert warm_up(fields + widths) == (0, CACHE_DIRECTORY)
    assert [plan.point.spec.state.width for plan in planned] == [32, 16]


@pytest.mark.slow
def test_a_run_after_the_warmup_compiles_nothing(tmp_path):
    environment = {**os.environ, "NQS_SAE_CACHE": str(tmp_path / "cache")}
    environment.pop("NUMBA_CACHE_DIR", None)

    def call(*arguments):
        command = [sys.executable, "-m", "nqs_sae_service", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
        ).stdout

    quickstart = str(SPECS / "quickstart.toml")
    folder = Path(call("warmup", quickstart).strip())
    assert folder.parent == tmp_path / "cache"
    compiled = {path.name for path in folder.rglob("*.nbc")}
    assert compiled
    call("run", quickstart)
    assert {path.name for path in folder.rglob("*.nbc")} == compiled
