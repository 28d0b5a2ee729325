"""The whole chain on a 12-site ring, through the real runner, and the sum over all 4096 configurations to hold it against.

One run is shared by all files of this folder. "Exact" means under the Born distribution of the network that this run has
trained, unless the ground state is named. Numbers without an error bar in their file get one from resampling whole chains.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.sparse.linalg import eigsh

from nqs_sae_service import open_run
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.observables import make_observable
from nqs_sae_service.service.log import log_to_stderr
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES

SPEC = """
name = "ring"
[lattice]
kind = "chain"
length = 12
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
kind = "transformer"
patch = 3
width = 8
heads = 2
layers = 2
attention = "positional"
[sampling]
chains = 256
global_flip = 0.05
stretch_flip = 0.2
[ground_state]
steps = 40
samples = 512
learning_rate = 0.15
final_samples = 4096
[samples]
count = 8192
[sae]
kind = "topk"
features = 16
k = 2
steps = 150
batch = 512
seeds = [1, 2]
untrained = 2
[features]
bootstrap = 400
permutations = 200
[steering]
targets = ["abs_magnetization", "sigma_x"]
directions = [
    "feature", "random_direction", "other_feature", "jastrow_dial", "constant_shift", "difference_of_means",
    "probe", "principal_component", "clamp", "add", "leverage_feature", "natural_gradient", "natural_gradient_held",
]
scales = [0.0, 0.6, 0.8, 1.2, 1.4]
samples = 2048
draws = 4
burn_in = 5
[attribution]
samples = 2048
ablated = 8
ablation_samples = 512
edges = 3
[output]
report = false
figures = false
"""
SITES = 12
ALL = all_configurations(SITES)
OBSERVABLES = ("magnetization", "abs_magnetization", "half_chain_correlation", "sigma_x")
SIGMAS = 4.5


def _compute(directory: Path, *sets: str, until: str | None = None) -> Path:
    """Run the spec, changed by ``sets``, in ``directory``; its run directory."""
    spec = directory / "ring.toml"
    spec.write_text(SPEC, encoding="utf-8")
    log_to_stderr()
    outcome = run_plans(
        make_plan(load_spec(spec, sets), STAGES, directory / "results", [until] if until else ())
    )
    assert outcome.code == 0
    return outcome.directories[0]


@pytest.fixture(scope="session")
def compute():
    return _compute


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    return _compute(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="session")
def run(directory):
    return {name: node.to_dataset().load() for name, node in open_run(directory).children.items()}


@pytest.fixture(scope="session")
def exact(directory, run):
    return Summation(directory, run)


@dataclass(frozen=True)
class MarkovChain:
    """The Metropolis process on all configurations: flips of one site, of stretches, of all spins, of |psi|^2 = ``p``."""

    p: np.ndarray
    one: float = 0.75
    stretch: float = 0.2
    everything: float = 0.05

    @cached_property
    def moves(self):
        """(weight, where every configuration goes (4096,), acceptance probability (4096,))."""
        bits = 1 << np.arange(SITES)[::-1]
        stretches = [(i, n) for i in range(SITES) for n in range(2, SITES)]
        flips = [(self.one / SITES, bit) for bit in bits]
        flips += [
            (self.stretch / len(stretches), bits[np.arange(i, i + n) % SITES].sum()) for i, n in stretches
        ]
        flips += [(self.everything, bits.sum())]
        index = np.arange(len(self.p))
        return [(q, index ^ mask, np.minimum(1, self.p[index ^ mask] / self.p)) for q, mask in flips]

    @property
    def acceptance(self):
        return sum(q * (self.p @ accept) for q, _, accept in self.moves)

    def swept(self, f):
        """E[f(sigma after a sweep) | sigma]."""
        for _ in range(SITES):
            f = f + sum(q * accept * (f[to] - f) for q, to, accept in self.moves)
        return f

    def autocorrelation(self, f, lags):
        """rho(t) of a function f (4096,) for t < ``lags`` sweeps."""
        f = f - self.p @ f
        later, rho = f, []
        for _ in range(lags):
            rho.append(self.p @ (f * later))
            later = self.swept(later)
        return np.asarray(rho) / rho[0]


@dataclass(frozen=True)
class Summation:
    """The trained network summed over all configurations: p (4096,), local values by name (4096,)."""

    directory: Path
    run: dict[str, xr.Dataset]

    @cached_property
    def spec(self):
        return load_spec(self.directory / "spec.toml")[0].spec

    @cached_property
    def lattice(self):
        return self.spec.lattice.build()

    @cached_property
    def hamiltonian(self):
        return self.spec.hamiltonian.build(self.lattice).to_sparse()

    @cached_property
    def state(self):
        return self.spec.state.build(self.lattice)

    @cached_property
    def psi(self):
        return self.state.bind(self.run["ground_state"]["parameters"].values)

    @cached_property
    def amplitude(self):
        return self.amplitude_of(self.psi.log_psi(ALL))

    @property
    def p(self):
        return self.amplitude**2

    @cached_property
    def ground(self):
        """Exact ground state: energy, vector."""
        energies, vectors = eigsh(self.hamiltonian, k=1, which="SA")
        return energies[0], vectors[:, 0]

    def local(self, name, psi=None):
        """Value, or local estimator (O psi)(sigma) / psi(sigma), of an observable or the energy: (4096,)."""
        psi = self.amplitude if psi is None else psi
        if name == "energy":
            return self.hamiltonian @ psi / psi
        o = make_observable(name, self.lattice, self.spec.hamiltonian.build(self.lattice))
        return o.values(ALL) if o.operator is None else o.operator.to_sparse() @ psi / psi

    @cached_property
    def values(self):
        """Columns (4096, observable) in the order of the files."""
        return np.stack([self.local(name) for name in OBSERVABLES], axis=-1)

    def stream(self, layer, psi=None):
        """Activations (4096, token, width) float64."""
        return (psi or self.psi).stream_at(ALL, layer).astype(np.float64)

    def infidelity(self, other):
        return 1 - (self.amplitude @ other) ** 2

    @staticmethod
    def amplitude_of(log_psi):
        """Normalised psi, from log psi (4096,)."""
        psi = np.exp((log_psi - log_psi.max()).astype(np.float64))
        return psi / np.linalg.norm(psi)

    @staticmethod
    def encode(sae, x, prefix=""):
        """TopK features (..., F) of activations x (..., width), in float64; ``sae`` has one layer and one seed left."""
        encoder, bias = sae[f"{prefix}encoder"].values, sae[f"{prefix}encoder_bias"].values
        z = (x - sae[f"{prefix}decoder_bias"].values) @ encoder.T.astype(np.float64) + bias
        threshold = np.sort(z, axis=-1)[..., -2, None]
        return np.where(z >= threshold, np.maximum(z, 0), 0)

    def reconstruct(self, sae, x, prefix=""):
        return (
            self.encode(sae, x, prefix) @ sae[f"{prefix}decoder"].values + sae[f"{prefix}decoder_bias"].values
        )

    def markov_chain(self, p=None):
        """The sampler of |psi|^2 = ``p``: of the trained network, unless given."""
        return MarkovChain(self.p if p is None else p)


# ---- small pieces of statistics, written out -------------------------------------------------------------------------


def _agree(value, expected, error, floor=1e-5):
    np.testing.assert_array_less(np.abs(value - expected), SIGMAS * np.asarray(error) + floor)


def _chains_of(run, part):
    return np.flatnonzero(run["samples"]["split"].values == part)


def _chain_error(statistic, chains, replicas=60):
    """Standard error of ``statistic(chains)`` from resampling whole chains."""
    rng = np.random.default_rng(0)
    return np.std([statistic(rng.choice(chains, len(chains))) for _ in range(replicas)], axis=0)


@pytest.fixture(scope="session")
def agree():
    return _agree


@pytest.fixture(scope="session")
def chains_of():
    return _chains_of


@pytest.fixture(scope="session")
def chain_error():
    return _chain_error
