"""Attribution and ablation: exact where the network is linear, complete along the path, ablation equal to edited forwards."""

from functools import partial

import numpy as np
import pytest

from nqs_sae_service.engine.economy import Economy
from nqs_sae_service.interpret.atlas import DecodedLayer, local_tangents, tangents
from nqs_sae_service.interpret.attribution import (
    Ablated,
    Effects,
    ablated,
    activation_sizes,
    activations_at,
    agreement,
    integrated,
    mean_activation,
    most_and_others,
    per_sample,
    predicted,
)
from nqs_sae_service.interpret.edges import edge_effect, edge_weights, strongest
from nqs_sae_service.interpret.expectation import Exact, on_samples
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.observables import make_observable
from nqs_sae_service.sae.dictionary import Dictionary
from nqs_sae_service.states import State, Transformer, Wavefunction
from nqs_sae_service.states.primitives import ComplexLinear, Dense
from nqs_sae_service.states.projection import Symmetry

SITES, WIDTH, FEATURES = 12, 8, 10
LATTICE = Chain(kind="chain", length=SITES).build()
HAMILTONIAN = Tfim(kind="tfim", h=1.0).build(LATTICE)
NAMES = ("abs_magnetization", "sigma_x", "local_energy")
OBSERVABLES = tuple(make_observable(n, LATTICE, HAMILTONIAN) for n in NAMES)
ENERGY = OBSERVABLES[-1].operator
ALL = all_configurations(SITES)
SOME = np.arange(0, FEATURES, 2)


def dictionary(kind="topk", size=0.05, seed=3, dtype=np.float32):
    generator = np.random.default_rng(seed)
    encoder, decoder = generator.normal(size=(2, FEATURES, WIDTH)).astype(dtype)
    zero = np.zeros(FEATURES, dtype)
    k = 3 if kind == "topk" else 0
    return Dictionary(kind, k, encoder, dtype(size) * decoder, zero, np.zeros(WIDTH, dtype))


def transformer(dtype=np.float64, noise=0.05, **options) -> Wavefunction:
    state = Transformer(patch=3, width=WIDTH, heads=2, layers=2, **options).build(LATTICE)
    shifted = state.initial_parameters(2) + noise * np.random.default_rng(7).normal(size=state.n_parameters)
    return state.bind(shifted.astype(dtype))


def linear() -> Wavefunction:
    """log psi is linear in the activations of its one layer."""
    state = State(
        n_sites=SITES,
        n_tokens=4,
        width=WIDTH,
        layers=("hidden",),
        bricks=(
            Dense("map", ("tokens",), "hidden", 3, WIDTH),
            ComplexLinear("out", ("hidden",), "log_psi", WIDTH),
        ),
        dtype=np.dtype(np.float64),
        complex_amplitude=True,
        sites=np.arange(SITES).reshape(4, 3),
        initial=lambda name, shape, generator: 0.1 * generator.normal(size=shape),
    )
    return state.bind(state.initial_parameters(1))


def born(psi, chains=200, draws=5, seed=5):
    log_psi = psi.log_psi(ALL)
    p = np.exp(2 * (log_psi.real - log_psi.real.max()))
    index = np.random.default_rng(seed).choice(len(p), size=chains * draws, p=p / p.sum())
    return ALL[index].reshape(chains, draws, SITES), log_psi[index].reshape(chains, draws)


def baselines(psi, at, sigma):
    f = activations_at(psi, at, sigma[:1])
    return {"zero": 0.0, "mean": mean_activation(psi, at, sigma), "resample": f[0]}


def chosen_of(baseline):
    return np.zeros((1, len(SOME))) if isinstance(baseline, float) else baseline[:, SOME]


# ---- the linear network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize("pooled", [False, True])
def test_in_a_linear_network_attribution_is_ablation(kind, pooled):
    psi = linear()
    at = DecodedLayer("hidden", dictionary(dtype=np.float64), pooled)
    sigma = ALL[::41]
    baseline = baselines(psi, at, sigma)[kind]
    effect = psi.log_psi(sigma)[:, None] - Ablated(psi, at, SOME, chosen_of(baseline)).log_psi(sigma)
    gradient = tangents(psi, at, sigma, baseline, chosen=SOME)[1]
    assert np.abs(effect).max() > 1e-3
    np.testing.assert_allclose(gradient, effect, rtol=0, atol=1e-12)
    if kind == "mean":
        path, _ = integrated(psi, at, ENERGY, sigma[:50], baseline, 1)
        np.testing.assert_allclose(path[:, SOME], effect[:50], rtol=0, atol=1e-12)
    flat = np.zeros((*effect[None].shape, 0))
    both = [
        Effects(per_sample(e[None], np.zeros_like(e[None]), True), flat[0, 0], flat[0, 0])
        for e in (gradient, effect)
    ]
    pearson, spearman = agreement(*both)
    np.testing.assert_allclose(pearson[:2], 1, rtol=1e-10)
    assert np.isnan(pearson[2])
    assert np.all(spearman[:2] > 0.99)


# ---- the path of integrated gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
def test_integrated_gradients_are_complete(amplitude):
    """Summed over the features they are what all features do together, to log psi and to the local energy."""
    psi = transformer(amplitude=amplitude)
    at = DecodedLayer("residual_1", dictionary(size=0.02), False)
    sigma = ALL[::171]
    mean = mean_activation(psi, at, ALL)
    evaluate = partial(tangents, psi, at, baseline=mean, part=0.0)

    def local(log_psi_of):
        log_psi = log_psi_of(ALL)
        psi_all = np.exp(log_psi - log_psi.real.max())
        return ((ENERGY.to_sparse() @ psi_all) / psi_all)[::171]

    log_sum, local_sum = integrated(psi, at, ENERGY, sigma, mean, 24)
    whole = psi.log_psi(sigma) - evaluate(sigma)[0]
    assert np.std(whole) > 1e-2
    np.testing.assert_allclose(log_sum.sum(axis=1), whole, rtol=0, atol=1e-5 * np.abs(whole).max())
    energies = local(psi.log_psi) - local(lambda s: evaluate(s)[0])
    np.testing.assert_allclose(local_sum.sum(axis=1), energies, rtol=0, atol=1e-5 * np.abs(energies).max())


def test_the_mean_is_over_rows_and_samples():
    psi = transformer(np.float32)
    for pooled in (False, True):
        at = DecodedLayer("residual_2", dictionary(), pooled)
        f = at.activations(psi.stream_at(ALL, "residual_2"))
        np.testing.assert_allclose(
            mean_activation(psi, at, ALL)[0], f.mean(axis=(0, 1)), rtol=1e-5, atol=1e-7
        )
        length = np.linalg.norm(at.dictionary.decoder, axis=1)
        expected = (f * length).sum(axis=1)[:, SOME]
        np.testing.assert_allclose(activation_sizes(psi, at, ALL, 0.0, SOME), expected, atol=1e-5)


# ---- ablation --------------------------------------------------------------------------------------------------------

NETWORKS = {
    "fused": lambda: transformer(np.float32, amplitude="complex"),
    "bricks": lambda: transformer(np.float64),
    "projected": lambda: transformer(np.float64, amplitude="complex", symmetry=Symmetry(translations=True)),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize(("sae", "pooled"), [("topk", False), ("relu-l1", True)])
def test_ablated_states_are_edited_forwards(network, kind, sae, pooled):
    psi = NETWORKS[network]()
    at = DecodedLayer("residual_1", dictionary(sae), pooled)
    sigma = ALL[::53]
    baseline = chosen_of(baselines(psi, at, sigma)[kind]).astype(psi.parameters.dtype)
    found = Ablated(psi, at, SOME, baseline).log_psi(sigma)

    def without(x, i):
        rows = x.mean(axis=1, keepdims=True) if pooled else x
        push = (baseline[:, i] - at.dictionary.encode(rows)[..., SOME[i]])[..., None]
        return x + (push * at.dictionary.decoder[SOME[i]]).astype(x.dtype)

    for i in range(len(SOME)):
        expected = psi.edited(at.layer, partial(without, i=i)).log_psi(sigma)
        tolerance = 1e-5 if network == "fused" else 1e-12
        np.testing.assert_allclose(found[:, i], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
def test_effects_on_expectation_values_agree_with_full_summation(amplitude):
    psi = transformer(np.float32, amplitude=amplitude)
    at = DecodedLayer("residual_1", dictionary(size=0.2), False)
    family = Ablated(psi, at, SOME, mean_activation(psi, at, ALL)[:, SOME])
    exact = Exact(psi, OBSERVABLES, SITES)
    curve = exact.curve(family)
    expected = exact.expectations(exact.state) - curve.mean
    sigma, log_psi = born(psi)
    logs, value = on_samples(family, OBSERVABLES, sigma, Economy(), lambda _: None)
    own = on_samples(_As(psi), OBSERVABLES, sigma, Economy(), lambda _: None)[1][:, :, 0]
    effects, infidelity, ess = ablated(logs - log_psi[..., None], value, own, amplitude == "complex")
    assert np.abs(expected).max() > 1e-2
    assert np.all(np.abs(effects.expected - expected) < 5 * effects.expected_error + 1e-5)
    np.testing.assert_allclose(infidelity, curve.infidelity, rtol=0.3, atol=1e-6)
    assert np.all((ess > 0) & (ess <= 1 + 1e-12))
    assert effects.sampled.shape[-1] == (3 if amplitude == "complex" else 2)
    np.testing.assert_allclose(effects.sampled.mean(axis=(0, 1)), 0, atol=1e-10)


class _As:
    """psi as a family of one."""

    def __init__(self, psi):
        self.psi = psi

    def log_psi(self, sigma):
        return self.psi.log_psi(sigma)[:, None]


def test_small_features_are_ablated_as_their_gradients_say():
    """All quantities, all three baselines: the smaller the decoder, the better the agreement."""
    psi = transformer(np.float64, amplitude="complex")
    sigma, log_psi = born(psi, 40, 4)
    flat = sigma.reshape(-1, SITES)
    at = DecodedLayer("residual_1", dictionary(size=1e-4, dtype=np.float64), False)
    values = on_samples(_As(psi), OBSERVABLES, sigma, Economy(), lambda _: None)[1][:, :, 0]
    for baseline in baselines(psi, at, flat).values():
        evaluate = partial(tangents, psi, at, baseline=baseline, chosen=SOME)
        local = local_tangents(ENERGY, flat, evaluate)
        log_effect = evaluate(flat)[1]
        attribution = predicted(
            *(e.reshape(*log_psi.shape, -1) for e in (log_effect, local)), _complex_values(psi, sigma), True
        )
        family = Ablated(psi, at, SOME, chosen_of(baseline))
        logs, value = on_samples(family, OBSERVABLES, sigma, Economy(), lambda _: None)
        truth, _, _ = ablated(logs - log_psi[..., None], value, values, True)
        pearson, _ = agreement(attribution, truth)
        assert pearson[:4].min() > 0.999  # sample by sample, and the diagonal observable
        assert pearson[4:].min() > 0.9  # the two estimators are equal on average only
        np.testing.assert_allclose(
            attribution.sampled, truth.sampled, atol=1e-2 * np.abs(truth.sampled).max()
        )


def _complex_values(psi, sigma):
    log_psi = psi.log_psi(ALL)
    amplitude = np.exp(log_psi - log_psi.real.max())
    columns = [
        o.values(ALL) if o.operator is None else (o.operator.to_sparse() @ amplitude) / amplitude
        for o in OBSERVABLES
    ]
    from nqs_sae_service.physics.operators import basis_index

    return np.stack(columns, axis=-1)[basis_index(sigma)]


# ---- what is compared, and which features ----------------------------------------------------------------------------


def test_agreement_is_of_all_pairs():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 4, 5, 3, 1))
    expected_a, expected_b = generator.normal(size=(2, 3, 2))
    expected_b[:, 1] = 7.0  # does not vary
    pearson, spearman = agreement(
        Effects(a, expected_a, expected_a), Effects(b, expected_b, np.abs(expected_b))
    )
    assert pearson[0] == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert pearson[1] == pytest.approx(np.corrcoef(expected_a[:, 0], expected_b[:, 0])[0, 1])
    assert np.isnan([pearson[2], spearman[2]]).all()
    steps = np.exp(a)  # the same order
    assert agreement(Effects(a, expected_a, expected_a), Effects(steps, expected_a, expected_a))[1][
        0
    ] == pytest.approx(1)


def test_the_largest_features_come_first_and_the_others_are_alive():
    size = np.array([0.0, 3.0, 1.0, 0.0, 2.0, 5.0, 4.0])
    found = most_and_others(size, 4, np.random.default_rng(0))
    np.testing.assert_array_equal(found[:2], [5, 6])
    assert set(found[2:]) <= {1, 2, 4}
    assert len(set(found)) == 4
    everything = most_and_others(size, 7, np.random.default_rng(0))
    assert set(everything[:5]) == {1, 2, 4, 5, 6}
    np.testing.assert_array_equal(everything[5:], -1)
    np.testing.assert_array_equal(most_and_others(np.zeros(3), 2, np.random.default_rng(0)), -1)


@pytest.mark.parametrize("kind", ["topk", "relu-l1"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_some_features_are_columns_of_all(kind, dtype):
    d = dictionary(kind)
    x = np.random.default_rng(1).normal(size=(50, 3, WIDTH)).astype(dtype)
    found = d.some(x, SOME)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, d.encode(x)[..., SOME], rtol=0, atol=1e-5)


# ---- edges -----------------------------------------------------------------------------------------------------------


def test_the_tape_pulls_back_what_it_is_given():
    psi = transformer(amplitude="complex")
    tape = psi.tape(ALL[::301])
    ones = np.ones(len(tape.edges["log_psi"]), np.complex128)
    np.testing.assert_allclose(
        tape.pull("log_psi", ones, "residual_1"), tape.backward(until="residual_1")["residual_1"], atol=1e-14
    )
    x = np.ones_like(tape.edges["residual_1"])
    assert not tape.pull("residual_1", x, "residual_2").any()  # what comes later has no influence


@pytest.mark.parametrize("pooled", [False, True])
def test_edges_are_derivatives_of_the_activation(pooled):
    psi = transformer()
    source = DecodedLayer("residual_1", dictionary(size=0.1, dtype=np.float64), pooled)
    target = DecodedLayer("residual_2", dictionary(seed=4, dtype=np.float64), pooled)
    sigma, step = ALL[::67], 1e-5
    alive = np.flatnonzero((target.activations(psi.stream_at(sigma, "residual_2")) > 0).any(axis=(0, 1)))
    weights = edge_weights(psi, source, target, int(alive[0]), sigma)

    def activation(i, s):
        def scaled(x):
            return x + s * source.activations(x)[..., i, None] * source.dictionary.decoder[i]

        x = psi.tape(sigma, {"residual_1": scaled}).edges["residual_2"]
        return target.activations(x)[..., alive[0]].sum(axis=1)

    for i in strongest(weights.mean(axis=0), 3):
        expected = (activation(i, step) - activation(i, -step)) / (2 * step)
        np.testing.assert_allclose(weights[:, i], expected, rtol=0, atol=1e-7)
        effect = edge_effect(psi, source, target, int(i), int(alive[0]), sigma)
        np.testing.assert_allclose(effect, activation(i, 0) - activation(i, -1), rtol=0, atol=1e-12)
    assert np.abs(weights).max() > 1e-3


def test_the_strongest_edges_come_first():
    np.testing.assert_array_equal(strongest(np.array([0.1, -3.0, 0.0, 2.0]), 3), [1, 3, 0])
    np.testing.assert_array_equal(strongest(np.array([0.0, -3.0]), 5), [1, -1, -1, -1, -1])
