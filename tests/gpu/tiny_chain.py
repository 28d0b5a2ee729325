"""A chain on eight sites that finishes in seconds even when every kernel is emulated."""

from nqs_sae_service import open_run
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
directions = [
    "feature", "random_direction", "other_feature", "jastrow_dial", "constant_shift", "difference_of_means",
    "leverage_feature", "natural_gradient", "natural_gradient_held",
]
scales = [0.5, 1.5]
samples = 64
draws = 2
burn_in = 2
[attribution]
samples = 64
ablated = 4
ablation_samples = 32
edges = 2
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
    "rbm": (
        'state={kind = "rbm"}', 'ground_state.solver = "cg"', "sae.k = 2", "sae.seeds = [1]", "steering.draws = 1",
    ),
    "double": ('state.precision = "float64"', 'lattice.periodic = false', "sae.k = 2", "sae.seeds = [1]", "steering.draws = 1"),
}  # fmt: skip


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
