"""Parameters that NetKet wrote, loaded here: the same log psi to rounding, on a ring and on 6x6 sites with 2x2 patches."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nqs_sae_service.physics.lattices import LATTICES
from nqs_sae_service.states import STATES
from nqs_sae_service.states.loading import load_parameters

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers" / "netket" / "bin" / "python"
SAMPLES = 64

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON.exists(), reason="NetKet is not installed: run `make bench-peers`"),
]

RING = {"kind": "chain", "length": 24}
SQUARE = {"kind": "square", "length": 6}
VIT = {"layers": 2, "width": 24, "heads": 4}
OURS = {"kind": "transformer", **VIT, "attention": "positional", "amplitude": "complex"}
GENERAL, INVARIANT = {"translation_invariant": False}, {"translation_invariant": True}

# name: (lattice, our record, NetKet's network, its options)
CASES = {
    "rbm-ring": (RING, {"kind": "rbm", "alpha": 2}, "rbm", {"alpha": 2, "complex": True}),
    "rbm-square": (SQUARE, {"kind": "rbm", "alpha": 1}, "rbm", {"alpha": 1, "complex": True}),
    "rbm-real": (RING, {"kind": "rbm", "alpha": 2}, "rbm", {"alpha": 2, "complex": False}),
    "rbm-without-biases": (
        RING,
        {"kind": "rbm", "alpha": 2},
        "rbm",
        {"alpha": 2, "complex": True, "use_visible_bias": False, "use_hidden_bias": False},
    ),
    "compact-ring": (
        RING,
        {**OURS, **GENERAL, "patch": 4},
        "compact",
        {**VIT, "patch": 4, "dimensions": 1, "factored": True},
    ),
    "compact-square": (
        SQUARE,
        {**OURS, **GENERAL, "patch": 2},
        "compact",
        {**VIT, "patch": 2, "dimensions": 2, "factored": True},
    ),
    "compact-full": (
        SQUARE,
        {**OURS, **GENERAL, "patch": 2, "attention": "full"},
        "compact",
        {**VIT, "patch": 2, "dimensions": 2, "factored": False},
    ),
    "tutorial-ring": (
        RING,
        {**OURS, **GENERAL, "patch": 4},
        "tutorial",
        {**VIT, "patch": 4, "dimensions": 1, "invariant": False},
    ),
    "tutorial-square": (
        SQUARE,
        {**OURS, **GENERAL, "patch": 2},
        "tutorial",
        {**VIT, "patch": 2, "dimensions": 2, "invariant": False},
    ),
    "tutorial-invariant": (
        SQUARE,
        {**OURS, **INVARIANT, "patch": 2},
        "tutorial",
        {**VIT, "patch": 2, "dimensions": 2, "invariant": True},
    ),
}
PRECISIONS = {"float64": 1e-12, "float32": 1e-5}


def build(name, precision):
    lattice, record, _, _ = CASES[name]
    kind = LATTICES[lattice["kind"]].model_validate_json(json.dumps(lattice))
    return (
        STATES[record["kind"]].model_validate({**record, "precision": precision}).build(kind.build()),
        kind.build(),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with what NetKet wrote for every case, and the configurations of each."""
    folder, jobs, spins = tmp_path_factory.mktemp("netket"), [], {}
    generator = np.random.default_rng(3)
    for name, (_, _, network, options) in CASES.items():
        for precision in PRECISIONS:
            sites = build(name, precision)[1].n_sites
            sigma = spins[name, precision] = generator.choice([-1, 1], size=(SAMPLES, sites)).astype(np.int8)
            job = {
                "name": f"{name}-{precision}",
                "network": network,
                "options": options,
                "scale": 0.05 if network == "rbm" else 0.1,
                "precision": precision,
                "sigma": sigma.tolist(),
            }
            jobs.append(job)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [PYTHON, ROOT / "benchmarks" / "peers" / "netket_networks.py", folder / "jobs.json", folder]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, spins


@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS.items())
@pytest.mark.parametrize("name", CASES)
def test_log_psi_of_loaded_parameters_is_that_of_netket(exported, name, precision, tolerance):
    folder, spins = exported
    state, _ = build(name, precision)
    parameters = load_parameters(folder / f"{name}-{precision}.npz", state)
    assert parameters.dtype == precision
    theirs = np.load(folder / f"{name}-{precision}-log_psi.npy")
    assert np.ptp(theirs.real) > 0.3  # the network does depend on the configuration
    ours = state.bind(parameters).log_psi(spins[name, precision])
    departure = np.abs(np.expm1(ours - theirs))  # a phase counts modulo 2 pi
    assert (departure < tolerance * np.maximum(1, np.abs(theirs))).all()
