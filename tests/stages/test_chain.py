"""The whole chain on a 12-site ring, through the real runner, against the sum over all 4096 configurations.

One run is shared by all tests. "Exact" means under the Born distribution of the network that this run has trained, unless
the ground state is named. Numbers without an error bar in their file get one from resampling whole chains.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr
from scipy.sparse import diags_array
from scipy.sparse.linalg import eigsh

from nqs_sae_service import open_run
from nqs_sae_service.datasets import differences
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.observables import make_observable
from nqs_sae_service.physics.operators import basis_index
from nqs_sae_service.service.log import log_to_stderr
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES
from nqs_sae_service.vmc.statistics import covariance, mean_and_error

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
scales = [0.0, 0.6, 0.8, 1.2, 1.4]
samples = 2048
draws = 4
burn_in = 5
[output]
report = false
figures = false
"""
SITES, WIDTH, TOKENS = 12, 8, 4
ALL = all_configurations(SITES)
LAYERS = ("residual_1", "residual_2")
OBSERVABLES = ("magnetization", "abs_magnetization", "half_chain_correlation", "sigma_x")
TARGETS = ("abs_magnetization", "sigma_x")
SIGMAS = 4.5
SAMPLED = ("reweighted", "resampled")

# What the contract promises to readers: variables with their dimensions, and attributes.
_CURVE = "layer target direction scale estimator"
_SLOPE = "layer target direction estimator"
CONTRACT = {
    "ground_state": {
        **dict.fromkeys(("energy", "energy_error", "energy_variance", "acceptance", "step_seconds"), "step"),
        "parameters": "parameter",
    },
    "samples": {"configuration": "chain draw spin", "log_psi_re": "chain draw", "log_psi_im": "chain draw"},
    "observables": {
        "value": "chain draw observable",
        **dict.fromkeys(("mean", "error", "r_hat"), "observable"),
    },
    "activations": {
        **dict.fromkeys(LAYERS, "chain draw token width"),
        "participation_ratio": "layer",
    },
    "sae": {
        **dict.fromkeys(("encoder", "decoder"), "layer sae_seed feature width"),
        **dict.fromkeys(("encoder_bias", "feature_density"), "layer sae_seed feature"),
        "decoder_bias": "layer sae_seed width",
        **dict.fromkeys(("loss", "l0", "dead_fraction"), "layer sae_seed step"),
        **dict.fromkeys(("explained_variance", "energy_recovered", "infidelity"), "layer sae_seed"),
    },
    "features": {
        **dict.fromkeys(
            ("pearson", "pearson_low", "pearson_high", "spearman", "p_value", "q_value"),
            "layer feature observable",
        ),
        **dict.fromkeys(
            ("best_feature", "best_pearson", "gain", "gain_low", "gain_high", "verdict"), "layer observable"
        ),
        "control_pearson": "layer control observable",
        "stability": "layer feature",
    },
    "steering": {
        **dict.fromkeys(("observable_mean", "observable_error"), f"{_CURVE} observable"),
        **dict.fromkeys(
            (
                "energy",
                "energy_error",
                "relative_energy_deviation",
                "relative_energy_deviation_error",
                "infidelity",
                "ess",
            ),
            _CURVE,
        ),
        **dict.fromkeys(("slope_predicted", "slope_measured"), f"{_SLOPE} observable"),
        **dict.fromkeys(("efficiency", "reach"), _SLOPE),
    },
}
PROVENANCE = "schema_version stage key sections package_version versions host device threads ranks seed start end volatile"
FINAL = "final_energy final_energy_error r_hat tau v_score exact_energy relative_error"


def compute(directory: Path, *sets: str, until: str | None = None) -> Path:
    """Run the spec, changed by ``sets``, in ``directory``; its run directory."""
    spec = directory / "ring.toml"
    spec.write_text(SPEC, encoding="utf-8")
    log_to_stderr()
    outcome = run_plans(make_plan(load_spec(spec, sets), STAGES, directory / "results", until))
    assert outcome.code == 0
    return outcome.directories[0]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return compute(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def run(directory):
    return {name: node.to_dataset().load() for name, node in open_run(directory).children.items()}


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
        return amplitude(self.psi.log_psi(ALL))

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


def amplitude(log_psi):
    psi = np.exp((log_psi - log_psi.max()).astype(np.float64))
    return psi / np.linalg.norm(psi)


@pytest.fixture(scope="module")
def exact(directory, run):
    return Summation(directory, run)


# ---- small pieces of statistics, written out -------------------------------------------------------------------------


def agree(value, expected, error, floor=1e-5):
    np.testing.assert_array_less(np.abs(value - expected), SIGMAS * np.asarray(error) + floor)


def chains_of(run, part):
    return np.flatnonzero(run["samples"]["split"].values == part)


def chain_error(statistic, chains, replicas=60):
    """Standard error of ``statistic(chains)`` from resampling whole chains."""
    rng = np.random.default_rng(0)
    return np.std([statistic(rng.choice(chains, len(chains))) for _ in range(replicas)], axis=0)


def encode(sae, x, prefix=""):
    """TopK features (..., F) of activations x (..., width), in float64; ``sae`` has one layer and one seed left."""
    encoder, bias = sae[f"{prefix}encoder"].values, sae[f"{prefix}encoder_bias"].values
    z = (x - sae[f"{prefix}decoder_bias"].values) @ encoder.T.astype(np.float64) + bias
    threshold = np.sort(z, axis=-1)[..., -2, None]
    return np.where(z >= threshold, np.maximum(z, 0), 0)


def reconstruct(sae, x, prefix=""):
    return encode(sae, x, prefix) @ sae[f"{prefix}decoder"].values + sae[f"{prefix}decoder_bias"].values


def weighted_pearson(f, o, p):
    """Correlations (F, O) of f (n, F) and o (n, O) under the weights p (n,)."""
    f, o = f - p @ f, o - p @ o
    return (f.T * p) @ o / np.sqrt(np.outer(p @ f**2, p @ o**2))


def weighted_ranks(x, p):
    """Mid-ranks in [0, 1] of the columns of x (n, K) under the weights p (n,)."""
    ranks = np.empty(x.shape)
    for k in range(x.shape[1]):
        values, place = np.unique(np.round(x[:, k], 6), return_inverse=True)
        weight = np.bincount(place, p, len(values))
        ranks[:, k] = (np.cumsum(weight) - weight / 2)[place]
    return ranks


def explained_variance(x, x_hat, weight):
    """1 - <|x - x_hat|^2> / <|x - mean|^2> of rows (n, width)."""
    weight = weight / weight.sum()
    mean = weight @ x
    return 1 - weight @ ((x - x_hat) ** 2).sum(-1) / (weight @ ((x - mean) ** 2).sum(-1))


def participation_ratio(x, weight):
    centred = x - weight @ x / weight.sum()
    eigenvalues = np.linalg.eigvalsh((centred.T * weight) @ centred)
    return eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


def rows(x):
    return x.reshape(-1, x.shape[-1])


# ---- what the files promise ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", CONTRACT)
def test_files_hold_what_the_contract_promises(directory, stage):
    with xr.open_dataset(directory / f"{stage}.nc") as dataset:
        for name, dims in CONTRACT[stage].items():
            assert dataset[name].dims == tuple(dims.split()), name
        for name, variable in dataset.variables.items():
            assert variable.attrs.get("long_name"), name
            assert variable.attrs.get("units"), name
        for dim in set(dataset.dims) - {"parameter", "width"}:
            assert dataset[dim].dims == (dim,)
            assert dim in dataset.indexes
        assert set(PROVENANCE.split()) <= set(dataset.attrs)
        assert dataset.attrs["stage"] == stage


def test_labels_are_those_of_the_spec(run):
    assert run["observables"]["observable"].values.tolist() == list(OBSERVABLES)
    assert run["steering"]["target"].values.tolist() == list(TARGETS)
    assert run["steering"]["direction"].values[0] == "feature"
    assert run["steering"]["scale"].values.tolist() == [0.0, 0.6, 0.8, 1.0, 1.2, 1.4]
    assert set(run["steering"]["estimator"].values) == {*SAMPLED, "exact"}
    for stage in ("activations", "sae", "features", "steering"):
        assert run[stage]["layer"].values.tolist() == list(LAYERS)
    split = run["samples"]["split"].values
    assert [int((split == part).sum()) for part in ("train", "select", "test")] == [128, 64, 64]
    assert set(FINAL.split()) <= set(run["ground_state"].attrs)
    assert run["samples"]["configuration"].dtype == np.int8


def test_what_shrinks_is_compressed_and_noise_is_not(directory):
    for stage, name, compressed in [
        ("ground_state", "energy", True),
        ("samples", "configuration", True),
        ("activations", "residual_1", False),
        ("sae", "decoder", False),
    ]:
        with netCDF4.Dataset(directory / f"{stage}.nc") as file:
            assert file[name].filters()["zlib"] is compressed


# ---- energy and samples ----------------------------------------------------------------------------------------------


def test_the_energy_is_that_of_the_network(run, exact):
    attributes = run["ground_state"].attrs
    ground, local = exact.ground[0], exact.local("energy")
    energy, variance = exact.p @ local, exact.p @ local**2 - (exact.p @ local) ** 2
    agree(attributes["final_energy"], energy, attributes["final_energy_error"], floor=0)
    assert attributes["exact_energy"] == pytest.approx(ground, abs=1e-8)
    assert ground == pytest.approx(-2 / np.sin(np.pi / (2 * SITES)), abs=1e-8)
    assert attributes["relative_error"] == pytest.approx((attributes["final_energy"] - ground) / abs(ground))
    assert 0 < (energy - ground) / abs(ground) < 5e-3  # the training has trained
    assert attributes["v_score"] == pytest.approx(SITES * variance / energy**2, rel=0.25)


def test_no_energy_is_below_the_ground_state(run, exact):
    history, steered = run["ground_state"], run["steering"]
    ground = exact.ground[0]
    assert np.all(history["energy"] + 3 * history["energy_error"] > ground)
    assert history.attrs["final_energy"] + 3 * history.attrs["final_energy_error"] > ground
    energy = (steered["energy"] + 3 * steered["energy_error"]).values
    assert np.all(energy[np.isfinite(energy)] > ground - 1e-5)


@dataclass(frozen=True)
class MarkovChain:
    """The Metropolis process on all configurations: flips of one site, of stretches, of all spins, of |psi|^2 = ``p``."""

    p: np.ndarray
    one: float = 0.85
    stretch: float = 0.1
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


def test_the_sampler_is_the_markov_chain_that_it_says(run, exact):
    """Acceptance, autocorrelation time and error bar follow from the transition matrix."""
    attributes = run["ground_state"].attrs
    chain = MarkovChain(exact.p)
    assert attributes["acceptance"] == pytest.approx(chain.acceptance, abs=0.01)
    local = exact.local("energy")
    tau = 2 * chain.autocorrelation(local, 16).sum() - 1
    assert attributes["tau"] == pytest.approx(tau, rel=0.2)
    variance = exact.p @ local**2 - (exact.p @ local) ** 2
    assert attributes["final_energy_error"] == pytest.approx(np.sqrt(variance * tau / 4096), rel=0.25)
    up = (exact.p * (ALL.sum(axis=1) > 0)).sum(), (exact.p * (ALL.sum(axis=1) < 0)).sum()
    np.testing.assert_allclose(attributes["sector_occupancy"], up, atol=0.08)
    assert attributes["r_hat"] < 1.1
    assert attributes["drift"] < 1e-4


def test_samples_follow_the_born_distribution(run, exact):
    samples = run["samples"]
    sigma = samples["configuration"].values
    index = basis_index(sigma.reshape(-1, SITES)).reshape(sigma.shape[:2])
    np.testing.assert_allclose(
        samples["log_psi"].values.real, exact.psi.log_psi(ALL)[index], rtol=0, atol=2e-5
    )
    assert np.all(samples["log_psi"].values.imag == 0)
    groups = np.random.default_rng(3).integers(0, 32, len(ALL))  # random groups of configurations
    inside = groups[index][..., None] == np.arange(32)
    share, error = mean_and_error(inside.astype(float))
    agree(share, np.bincount(groups, exact.p, 32), error)
    pairs = sigma[..., :, None] * sigma[..., None, :].astype(float)
    mean, error = mean_and_error(pairs)
    agree(mean, np.einsum("n,ni,nj->ij", exact.p, ALL, ALL), error)


def test_gradients_of_the_energy_agree(run, exact):
    """2 Cov(O_k, E_loc) on the samples against the sum over all configurations, every parameter."""
    sigma = run["samples"]["configuration"].values[:, ::8]
    index = basis_index(sigma.reshape(-1, SITES)).reshape(sigma.shape[:2])
    o = exact.psi.per_sample_gradients(ALL).astype(np.float64)
    local = exact.local("energy")
    gradient = 2 * (o - exact.p @ o).T @ (exact.p * (local - exact.p @ local))
    sampled, error = covariance(o[index], local[index][..., None])
    assert np.abs(gradient).max() > 1e-3
    agree(2 * sampled, gradient, 2 * error, floor=1e-6)


def test_observables_agree(run, exact):
    observables = run["observables"]
    index = basis_index(run["samples"]["configuration"].values.reshape(-1, SITES))
    np.testing.assert_allclose(rows(observables["value"].values), exact.values[index], atol=1e-4)
    agree(observables["mean"].values, exact.p @ exact.values, observables["error"].values)
    vector = exact.ground[1]
    solved = [vector**2 @ exact.local(name, vector) for name in OBSERVABLES]
    np.testing.assert_allclose(observables["exact"].values, solved, atol=1e-7)


def test_what_simple_functions_explain_agrees(run, exact):
    """R^2 of {1, m, |m|, m^2, zz, C_half} for the local estimator of sigma_x; the diagonal ones are in the span."""
    explained = run["observables"]["simple_function_r2"]
    m = ALL.mean(axis=1)
    zz, half = ((ALL * np.roll(ALL, shift, axis=1)).mean(axis=1) for shift in (1, SITES // 2))
    design = np.stack([np.ones(len(ALL)), m, np.abs(m), m**2, zz, half], axis=1)
    target, index = (
        exact.local("sigma_x"),
        basis_index(run["samples"]["configuration"].values.reshape(-1, SITES)).reshape(256, -1),
    )

    def unexplained(weight):
        root = np.sqrt(weight)
        residual = np.linalg.lstsq(design * root[:, None], target * root, rcond=None)[1][0] / weight.sum()
        return residual / np.average((target - np.average(target, weights=weight)) ** 2, weights=weight)

    error = chain_error(
        lambda chains: unexplained(np.bincount(index[chains].ravel(), minlength=4096) + 0.0),
        np.arange(256),
        20,
    )
    agree(1 - float(explained.sel(observable="sigma_x")), unexplained(exact.p), error)
    np.testing.assert_allclose(explained.values[:3], 1, atol=1e-9)


# ---- activations and dictionaries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_activations_agree(run, exact, layer):
    x, stored = exact.stream(layer), run["activations"][layer].values
    index = basis_index(run["samples"]["configuration"].values.reshape(-1, SITES))
    np.testing.assert_allclose(stored.reshape(-1, TOKENS, WIDTH), x[index], atol=1e-4)
    ratio = float(run["activations"]["participation_ratio"].sel(layer=layer))

    def sampled(chains):
        flat = rows(stored[chains]).astype(np.float64)
        return participation_ratio(flat, np.ones(len(flat)))

    agree(
        ratio,
        participation_ratio(rows(x), np.repeat(exact.p, TOKENS)),
        chain_error(sampled, np.arange(256), 20),
    )


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seed", [1, 2])
def test_dictionaries_explain_as_much_as_they_say(run, exact, layer, seed):
    sae, select = run["sae"].sel(layer=layer, sae_seed=seed), chains_of(run, "select")
    x, stored = exact.stream(layer), run["activations"][layer].values.astype(np.float64)
    x_hat, stored_hat = reconstruct(sae, x), reconstruct(sae, stored)
    expected = explained_variance(rows(x), rows(x_hat), np.repeat(exact.p, TOKENS))

    def sampled(chains):
        flat = rows(stored[chains])
        return explained_variance(flat, rows(stored_hat[chains]), np.ones(len(flat)))

    agree(float(sae["explained_variance"]), expected, chain_error(sampled, select))
    active = (encode(sae, x) > 0).mean(axis=1)
    _, error = mean_and_error((encode(sae, stored[select]) > 0).mean(axis=2))
    agree(sae["feature_density"].values, exact.p @ active, error, floor=2e-3)
    # what the reconstruction keeps of the state is summed exactly on a small system
    replaced = amplitude(exact.psi.log_psi_from(layer, x_hat.astype(np.float32)))
    assert float(sae["infidelity"]) == pytest.approx(exact.infidelity(replaced), rel=1e-2)
    mean = rows(stored[chains_of(run, "train")]).mean(axis=0)
    ablated = amplitude(exact.psi.log_psi_from(layer, np.broadcast_to(mean, x.shape).astype(np.float32)))
    energy, worse, worst = (psi @ exact.hamiltonian @ psi for psi in (exact.amplitude, replaced, ablated))
    assert float(sae["energy_recovered"]) == pytest.approx((worst - worse) / (worst - energy), abs=2e-3)


@pytest.mark.parametrize("layer", LAYERS)
def test_dictionaries_of_untrained_networks_agree(run, exact, layer):
    select = chains_of(run, "select")
    index = basis_index(run["samples"]["configuration"].values.reshape(-1, SITES)).reshape(256, -1)
    for sae in (run["sae"].isel(initialisation=i).sel(layer=layer) for i in range(2)):
        x = exact.stream(layer, exact.state.bind(sae["untrained_parameters"].values))
        x_hat = reconstruct(sae, x, "untrained_")

        def sampled(chains, x=x, x_hat=x_hat):
            flat = rows(x[index[chains]])
            return explained_variance(flat, rows(x_hat[index[chains]]), np.ones(len(flat)))

        expected = explained_variance(rows(x), rows(x_hat), np.repeat(exact.p, TOKENS))
        agree(float(sae["untrained_explained_variance"]), expected, chain_error(sampled, select, 30))


# ---- features and their controls -------------------------------------------------------------------------------------


def sample_features(sae, x, prefix=""):
    """Mean activations over tokens (n, F)."""
    return encode(sae, x, prefix).mean(axis=1)


@pytest.mark.parametrize("layer", LAYERS)
def test_correlations_agree(run, exact, layer):
    """Pearson and Spearman on test chains, every feature that is alive and every observable."""
    features, sae = run["features"].sel(layer=layer), run["sae"].sel(layer=layer, sae_seed=1)
    f = sample_features(sae, exact.stream(layer))
    alive = features["density"].values > 0.01
    assert alive.sum() >= 4
    error = ((features["pearson_high"] - features["pearson_low"]) / (2 * 1.96)).values[alive]
    expected = weighted_pearson(f[:, alive], exact.values, exact.p)
    agree(features["pearson"].values[alive], expected, error, floor=2e-3)
    ranks = weighted_pearson(
        weighted_ranks(f[:, alive], exact.p), weighted_ranks(exact.values, exact.p), exact.p
    )
    agree(features["spearman"].values[alive], ranks, error, floor=0.02)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_best_feature_is_the_best_of_the_select_chains(run, exact, layer):
    features, sae = run["features"].sel(layer=layer), run["sae"].sel(layer=layer, sae_seed=1)
    index = basis_index(run["samples"]["configuration"].values[chains_of(run, "select")].reshape(-1, SITES))
    f = sample_features(sae, exact.stream(layer))[index]
    varies = f.std(axis=0) > 0
    r = np.zeros((f.shape[1], len(OBSERVABLES)))
    r[varies] = weighted_pearson(f[:, varies], exact.values[index], np.full(len(f), 1 / len(f)))
    best = features["best_feature"].values
    np.testing.assert_array_equal(best, np.abs(r).argmax(axis=0))
    np.testing.assert_array_equal(
        features["best_pearson"].values, features["pearson"].values[best, np.arange(len(best))]
    )
    assert np.all(features["p_value"].values[best, np.arange(len(best))] < 0.01)


@pytest.mark.parametrize("layer", LAYERS)
def test_controls_agree(run, exact, layer):
    """Every control's |r| on test chains is that of one of its candidates, and of nearly the best one."""
    features, x = run["features"].sel(layer=layer), exact.stream(layer)
    token_mean = x.mean(axis=1)
    centred = rows(x) - np.repeat(exact.p, TOKENS) @ rows(x) / TOKENS
    principal = np.linalg.eigh((centred.T * np.repeat(exact.p, TOKENS)) @ centred)[1]
    spins = np.column_stack([np.ones(len(ALL)), ALL])
    root = np.sqrt(exact.p)[:, None]
    regression = spins @ np.linalg.lstsq(spins * root, exact.values * root, rcond=None)[0]
    linear = np.abs(np.diag(weighted_pearson(regression, exact.values, exact.p)))
    candidates = {
        "neuron": token_mean,
        "pca": np.concatenate(
            [np.maximum(s * (x @ principal), 0).mean(1) for s in (1, -1)] + [token_mean @ principal], 1
        ),
    }
    for i in range(2):
        sae = run["sae"].isel(initialisation=i).sel(layer=layer)
        stream = exact.stream(layer, exact.state.bind(sae["untrained_parameters"].values))
        candidates[f"untrained {i}"] = sample_features(sae, stream, "untrained_")
    measured = {
        **{name: features["control_pearson"].sel(control=name).values for name in ("neuron", "pca")},
        **{f"untrained {i}": features["untrained_pearson"].values[i] for i in range(2)},
    }
    error = ((features["control_high"] - features["control_low"]) / (2 * 1.96)).max("control").values
    for name, f in candidates.items():
        varies = exact.p @ f**2 - (exact.p @ f) ** 2 > 1e-10
        r = np.abs(weighted_pearson(f[:, varies], exact.values, exact.p))
        nearest = np.abs(r - np.abs(measured[name])).argmin(axis=0)
        chosen = r[nearest, np.arange(len(nearest))]
        agree(np.abs(measured[name]), chosen, error)
        agree(chosen, r.max(axis=0), error, floor=0.03)
    assert np.abs(
        features["control_pearson"].sel(control="raw_spins", observable="magnetization")
    ) == pytest.approx(1)
    even = features["control_pearson"].sel(control="raw_spins").values[1:]
    agree(
        np.abs(even), linear[1:], error[1:], floor=0.1
    )  # even under a flip of all spins: hardly anything linear
    assert np.all(np.abs(features["control_pearson"].sel(control="shuffled")) < SIGMAS * error.max())


def test_the_gain_is_over_the_best_control(run):
    features = run["features"]
    best = np.abs(features["control_pearson"]).max("control")
    np.testing.assert_allclose(features["gain"], np.abs(features["best_pearson"]) - best, atol=1e-12)
    assert np.all(features["gain_low"] <= features["gain"])
    assert np.all(features["gain"] <= features["gain_high"])


# ---- steering --------------------------------------------------------------------------------------------------------


def curves(run):
    """(layer, target, direction) of every curve that was measured."""
    steering = run["steering"]
    for layer in LAYERS:
        for target in TARGETS:
            for direction in steering["direction"].values:
                curve = steering.sel(layer=layer, target=target, direction=direction)
                if np.isfinite(curve["strength"]).any():
                    yield layer, target, str(direction), curve


def turned(exact, run, layer, target, direction, strengths):
    """log psi (4096, strength) with the feature turned, or with the dial, written out."""
    if direction == "jastrow_dial":
        return exact.psi.log_psi(ALL)[:, None] + 0.5 * exact.local(target)[:, None] * strengths
    steering = run["steering"].sel(layer=layer, target=target)
    sae, i = run["sae"].sel(layer=layer, sae_seed=1), int(steering["feature"])
    x = exact.stream(layer)
    push = encode(sae, x)[..., i, None] * sae["decoder"].values[i]
    return np.stack(
        [exact.psi.log_psi_from(layer, (x + s * push).astype(np.float32)) for s in strengths], axis=1
    )


def test_directions_are_all_there(run):
    """A feature and three controls; the dial for the diagonal target only."""
    expected = {
        (layer, target, direction)
        for layer in LAYERS
        for target in TARGETS
        for direction in ("feature", "random_direction", "other_feature", "jastrow_dial")
        if (target, direction) != ("sigma_x", "jastrow_dial")
    }
    assert {(layer, target, direction) for layer, target, direction, _ in curves(run)} == expected


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("target", "direction"), [(TARGETS[0], "feature"), (TARGETS[1], "feature"), (TARGETS[0], "jastrow_dial")]
)
def test_exact_curves_are_the_sum_over_all_configurations(run, exact, layer, target, direction):
    curve = run["steering"].sel(layer=layer, target=target, direction=direction, estimator="exact")
    strengths = curve["strength"].values
    if direction == "feature":
        np.testing.assert_allclose(strengths, curve["scale"].values - 1, atol=1e-12)
    for s, log_psi in enumerate(turned(exact, run, layer, target, direction, strengths).T):
        psi = amplitude(log_psi)
        at = curve.isel(scale=s)
        means = [psi**2 @ exact.local(name, psi) for name in OBSERVABLES]
        np.testing.assert_allclose(at["observable_mean"], means, atol=2e-4)
        energy = psi @ exact.hamiltonian @ psi
        assert float(at["energy"]) == pytest.approx(energy, abs=2e-4)
        original = exact.amplitude @ exact.hamiltonian @ exact.amplitude
        assert float(at["relative_energy_deviation"]) == pytest.approx(
            (energy - original) / abs(original), abs=2e-5
        )
        assert float(at["infidelity"]) == pytest.approx(exact.infidelity(psi), rel=2e-2, abs=1e-6)


def test_steered_expectations_agree(run):
    """Both sampled estimators of every curve within their error bars of full summation."""
    compared = 0
    for *_, curve in curves(run):
        truth = curve.sel(estimator="exact")
        for estimator in SAMPLED:
            at = curve.sel(estimator=estimator)
            if not np.isfinite(at["energy"]).any():
                continue
            agree(
                at["observable_mean"].values, truth["observable_mean"].values, at["observable_error"].values
            )
            agree(at["energy"].values, truth["energy"].values, at["energy_error"].values)
            agree(
                at["relative_energy_deviation"].values,
                truth["relative_energy_deviation"].values,
                at["relative_energy_deviation_error"].values,
                floor=1e-6,
            )
            compared += 1
    assert compared == 14 + 4  # all curves reweighted, the features' also sampled afresh


def test_infidelities_agree(run):
    for *_, curve in curves(run):
        truth = curve["infidelity"].sel(estimator="exact").values
        for estimator in SAMPLED:
            sampled = curve["infidelity"].sel(estimator=estimator).values
            if np.isfinite(sampled).any():
                np.testing.assert_allclose(sampled, truth, rtol=0.3, atol=1e-9)


def test_controls_move_the_state_as_far_as_the_feature(run):
    for layer, target, direction, curve in curves(run):
        feature = run["steering"].sel(layer=layer, target=target, direction="feature")
        assert float(curve["strength"].sel(scale=1.0)) == 0, direction
        for estimator, tolerance in (("reweighted", 0.06), ("exact", 0.3)):  # matched on samples
            wanted = feature["infidelity"].sel(estimator=estimator).values
            reached = curve["infidelity"].sel(estimator=estimator).values
            known = np.isfinite(reached)
            assert known.sum() >= 4
            np.testing.assert_allclose(reached[known], wanted[known], rtol=tolerance, atol=1e-9)


def reweighted_samples(run):
    """Configurations (chain, draw), as numbers of the basis, that steering reweights: all of the test chains."""
    sigma = run["samples"]["configuration"].values[chains_of(run, "test")]
    return basis_index(sigma.reshape(-1, SITES)).reshape(sigma.shape[:2])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("target", "direction"), [(TARGETS[0], "feature"), (TARGETS[1], "feature"), (TARGETS[0], "jastrow_dial")]
)
def test_overlaps_of_reweighted_samples_agree(run, exact, layer, target, direction):
    """ESS (E w)^2 / E w^2 and infidelity 1 - (E r)^2 / E r^2 with r = psi_s / psi = sqrt(w), under |psi|^2."""
    curve = run["steering"].sel(layer=layer, target=target, direction=direction, estimator="reweighted")
    log_psi = turned(exact, run, layer, target, direction, curve["strength"].values)
    r = np.exp((log_psi - exact.psi.log_psi(ALL)[:, None]).astype(np.float64))
    index = reweighted_samples(run)

    def overlaps(weight):
        return np.stack([(weight @ x) ** 2 / (weight @ x**2) for x in (r**2, r)]) / weight.sum()

    expected = overlaps(exact.p)
    error = chain_error(
        lambda chains: overlaps(np.bincount(index[chains].ravel(), minlength=4096)), np.arange(len(index))
    )
    agree(curve["ess"].values, expected[0], error[0])
    agree(curve["infidelity"].values, 1 - expected[1], error[1])


def test_fresh_samples_are_as_good_as_they_say(run, exact):
    """ESS = 1 / tau of the energy, and its error bar, from the transition matrix of the steered state; 4 draws per chain."""
    layer, target = LAYERS[0], TARGETS[1]
    curve = run["steering"].sel(layer=layer, target=target, direction="feature", estimator="resampled")
    log_psi = turned(exact, run, layer, target, "feature", curve["strength"].values)
    for scale in (0, 2, 5):
        psi = amplitude(log_psi[:, scale])
        local = exact.local("energy", psi)
        rho = MarkovChain(psi**2).autocorrelation(local, 4)
        assert float(curve["ess"][scale]) == pytest.approx(1 / (2 * rho.sum() - 1), rel=0.25)
        variance = psi**2 @ local**2 - (psi**2 @ local) ** 2
        of_a_chain = variance * (1 + 2 * np.sum((1 - np.arange(1, 4) / 4) * rho[1:])) / 4
        assert float(curve["energy_error"][scale]) == pytest.approx(np.sqrt(of_a_chain / 256), rel=0.25)


def test_at_scale_one_everything_is_psi(run, exact):
    energy, means = exact.p @ exact.local("energy"), exact.p @ exact.values
    sampled = run["steering"].sel(scale=1.0)
    for *_, curve in curves(run):
        truth, born = (curve.sel(scale=1.0, estimator=e) for e in ("exact", "reweighted"))
        assert float(truth["energy"]) == pytest.approx(energy, abs=1e-5)
        np.testing.assert_allclose(truth["observable_mean"], means, atol=1e-5)
        assert float(born["ess"]) == pytest.approx(1, abs=1e-9)
        for at in (truth, born):
            assert float(at["relative_energy_deviation"]) == 0
            assert float(at["relative_energy_deviation_error"]) == 0
            assert float(at["infidelity"]) < 1e-10
    # reweighting with weights of one is plain averaging, over the same samples for every curve
    plain = sampled["observable_mean"].sel(estimator="reweighted", target=TARGETS[0]).values.reshape(-1, 4)
    np.testing.assert_allclose(plain, plain[:1].repeat(len(plain), axis=0), atol=1e-5)
    value = run["observables"]["value"].values[chains_of(run, "test")]
    np.testing.assert_allclose(plain[0], value.mean(axis=(0, 1)), atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("target", "direction"), [(TARGETS[0], "feature"), (TARGETS[1], "feature"), (TARGETS[0], "jastrow_dial")]
)
def test_predicted_slopes_are_derivatives(run, exact, layer, target, direction):
    """2 Re Cov(O_loc, d log psi / d strength) against a difference quotient of full summations; sampled against exact."""
    step = 0.02
    ends = []
    for log_psi in turned(exact, run, layer, target, direction, np.array([-step, step])).T:
        psi = amplitude(log_psi)
        ends.append(np.array([psi**2 @ exact.local(name, psi) for name in OBSERVABLES]))
    quotient = (ends[1] - ends[0]) / (2 * step)
    curve = run["steering"].sel(layer=layer, target=target, direction=direction)
    predicted = curve["slope_predicted"].sel(estimator="exact").values
    np.testing.assert_allclose(predicted, quotient, atol=0.01 * np.abs(quotient).max())
    sampled = curve.sel(estimator="reweighted")
    agree(sampled["slope_predicted"].values, predicted, sampled["slope_predicted_error"].values)


def test_measured_slopes_agree(run):
    """The same quadratic through scale 1 and its four neighbours, on the exact curve, is what the sampled slopes estimate."""
    for *_, curve in curves(run):
        strengths, base = curve["strength"].values, 3
        if not np.isfinite(strengths).all():
            continue
        near = [1, 2, 4, 5]
        truth = curve["observable_mean"].sel(estimator="exact").values
        powers = np.stack([strengths[near], strengths[near] ** 2], axis=1)
        expected = np.linalg.lstsq(powers, truth[near] - truth[base], rcond=None)[0][0]
        for estimator in SAMPLED:
            at = curve.sel(estimator=estimator)
            if np.isfinite(at["slope_measured"]).any():
                agree(at["slope_measured"].values, expected, at["slope_measured_error"].values)


def test_reaches_agree(run):
    """Largest change within the energy budget: the sampled energies decide where the curve is left, and the error bar knows."""
    for *_, curve in curves(run):
        at = curve.sel(estimator="reweighted")
        agree(at["reach"].values, curve["reach"].sel(estimator="exact").values, at["reach_error"].values)


def test_the_efficiency_follows_from_slope_curvature_and_susceptibility(run, exact):
    """chi = - d^2 E_0 / d lambda^2 of H - lambda O; eta = slope^2 / (chi d^2E / d strength^2)."""
    field = diags_array(exact.local("abs_magnetization"))
    step = 0.05
    low, middle, high = (
        eigsh(exact.hamiltonian - x * field, k=1, which="SA")[0][0] for x in (-step, 0.0, step)
    )
    chi = -(low - 2 * middle + high) / step**2
    for _, target, _, curve in curves(run):
        at = curve.sel(estimator="exact")
        if target == "abs_magnetization" and np.isfinite(at["efficiency"]):
            slope = float(at["slope_measured"].sel(observable=target))
            expected = slope**2 / (chi * float(at["energy_curvature"]))
            assert float(at["efficiency"]) == pytest.approx(expected, rel=0.02)


# ---- the same again --------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(directory, tmp_path_factory):
    """Even on one thread."""
    again = compute(tmp_path_factory.mktemp("again"), "engine.threads=1")
    for stage in STAGES:
        assert differences(directory / f"{stage}.nc", again / f"{stage}.nc") == []
    other = compute(tmp_path_factory.mktemp("other"), "seed=2", "ground_state.steps=3", until="samples")
    fewer = compute(tmp_path_factory.mktemp("fewer"), "ground_state.steps=3", until="samples")
    assert {"energy", "parameters"} <= set(differences(fewer / "ground_state.nc", other / "ground_state.nc"))
    assert "configuration" in differences(fewer / "samples.nc", other / "samples.nc")
