"""The device of these tests: a stand-in for CuPy whose kernels are the real sources, emulated on the CPU."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import emulation
import strict_cupy
from strict_cupy import pretended_gpu

from nqs_sae_service import open_run
from nqs_sae_service.engine.devices import choose_device
from nqs_sae_service.service.log import log_to_stderr
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES

SPEC = """
name = "ring"
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
attention = "positional"
[sampling]
chains = 32
burn_in = 3
[ground_state]
steps = 8
samples = 64
final_samples = 128
[samples]
count = 256
[observables]
names = ["magnetization", "abs_magnetization", "staggered_magnetization", "structure_factor_3", "sigma_x", "log_abs_psi"]
[sae]
kind = "topk"
features = 12
steps = 60
batch = 128
dead_after = 1000
seeds = [1, 2]
untrained = 1
[features]
bootstrap = 20
permutations = 20
[steering]
targets = ["abs_magnetization", "sigma_x"]
scales = [0.5, 1.5]
samples = 64
draws = 2
burn_in = 2
[output]
report = false
figures = false
"""
# Every array path: both attentions and amplitudes, both dictionaries, tokens and pooled ones, layers that are no stream,
# float64.
VARIANTS = {
    "plain": ("sae.k = 2",),
    "other": (
        'state.attention = "full"', 'state.amplitude = "complex"', 'activations.layers = ["attention_1", "residual_2"]',
        'sae.kind = "relu-l1"', 'sae.input = "pooled"', 'steering.targets = ["structure_factor_3"]',
    ),
    "double": ('state.precision = "float64"', 'lattice.periodic = false', "sae.k = 2", "sae.seeds = [1]", "steering.draws = 1"),
}  # fmt: skip


def _kernels(order=1, threads=emulation.THREADS):
    if emulation.COMPILER is None:
        pytest.skip("no C++20 compiler to emulate the kernels with")
    return type("RawModule", (emulation.RawModule,), {"order": order, "threads": threads})


@pytest.fixture(params=[(1, 8), (-1, 6)], ids=["ascending", "descending"])
def device(request):
    """The pretended GPU; threads of a block in ascending order and, in blocks of another size, in descending order."""
    order, threads = request.param
    with pretended_gpu(raw_module=_kernels(order, threads)):
        yield choose_device("gpu")


@pytest.fixture
def one_device():
    """The pretended GPU, threads in ascending order."""
    with pretended_gpu(raw_module=_kernels()):
        yield choose_device("gpu")


def compute(directory, device, *sets):
    """The data of a run of the tiny spec, changed by ``sets``, on a device."""
    spec = directory / "ring.toml"
    spec.write_text(SPEC, encoding="utf-8")
    log_to_stderr()
    sets = [text.replace(" = ", "=") for text in (f'engine.device = "{device}"', *sets)]
    outcome = run_plans(make_plan(load_spec(spec, sets), STAGES, directory / "results"))
    assert outcome.code == 0
    return {
        name: node.to_dataset().load() for name, node in open_run(outcome.directories[0]).children.items()
    }


@pytest.fixture(scope="session")
def on_gpu(tmp_path_factory):
    """Runs of all variants on the pretended GPU."""
    with pretended_gpu(raw_module=_kernels()):
        return {name: compute(tmp_path_factory.mktemp(name), "gpu", *sets) for name, sets in VARIANTS.items()}


@pytest.fixture(scope="session")
def on_cpu(tmp_path_factory):
    """The same runs on the CPU."""
    return {name: compute(tmp_path_factory.mktemp(name), "cpu", *sets) for name, sets in VARIANTS.items()}


@pytest.fixture(scope="session")
def chain_calls(on_gpu):
    """What these runs asked of CuPy: calls, and methods of arrays."""
    return strict_cupy.CALLS, strict_cupy.METHODS
