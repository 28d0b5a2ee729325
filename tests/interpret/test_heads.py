"""Patched heads against a transformer written out by hand, means against the sum over all configurations, a planted head."""

import numpy as np
import pytest

from nqs_sae_service.engine.economy import Economy
from nqs_sae_service.interpret.counterfactuals import distant, region, sector
from nqs_sae_service.interpret.expectation import Exact, from_ratios, on_samples
from nqs_sae_service.interpret.heads import (
    PATHS,
    Heads,
    Knocked,
    Patched,
    area,
    effects,
    knocked_sets,
    mean_outputs,
    rank_correlation,
    ranks,
    scaled_to_one,
    scores,
    tangents_of_heads,
)
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.observables import make_observable
from nqs_sae_service.states import Transformer
from nqs_sae_service.states.projection import Symmetry
from nqs_sae_service.vmc.estimators import measure

SITES, WIDTH, BLOCKS, COUNT = 8, 4, 2, 2
HEADS = Heads(("heads_1", "heads_2"), COUNT, WIDTH)
LATTICE = Chain(kind="chain", length=SITES).build()
HAMILTONIAN = Tfim(kind="tfim", h=1.0).build(LATTICE)
NAMES = ("abs_magnetization", "sigma_x", "local_energy")
OBSERVABLES = tuple(make_observable(name, LATTICE, HAMILTONIAN) for name in NAMES)
READOUTS = ("log_psi", "abs_magnetization", "infidelity", "sigma_x", "energy")
ALL = all_configurations(SITES)
H = HAMILTONIAN.to_sparse()
REGION = region(np.array([1, 2, 3]), SITES, conserving=False)
MODES = {"full": {}, "positional": {"attention": "positional"}, "open": {"translation_invariant": False}}


def transformer(dtype=np.float64, noise=0.3, seed=7, **options):
    state = Transformer(patch=2, width=WIDTH, heads=COUNT, layers=BLOCKS, mlp_ratio=2, **options).build(
        LATTICE
    )
    shifted = state.initial_parameters(2) + noise * np.random.default_rng(seed).normal(
        size=state.n_parameters
    )
    return state.bind(shifted.astype(dtype))


# ---- the same network by hand ------------------------------------------------------------------------------------------


def normalised(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return unit * w[f"{name}.gain"] + w[f"{name}.bias"]


def dense(x, w, name):
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def pairs(w, name):
    """Learned numbers by displacement laid out over pairs, or as they are."""
    stored = w[name]
    if stored.ndim == 3:
        return stored
    n = stored.shape[1]
    return np.array([[[row[(i - j) % n] for j in range(n)] for i in range(n)] for row in stored])


def outputs(x, w, i):
    """Outputs (n, head, token, channel) of the heads of block i on its normalised input."""
    a, parts = f"attention_{i}", {}
    for role in ("value", "query", "key"):
        if f"{a}.{role}.weight" in w:
            y = dense(x, w, f"{a}.{role}")
            parts[role] = np.stack(np.split(y, COUNT, axis=-1), axis=1)
    if "query" not in parts:
        return pairs(w, f"{a}.mix.weight") @ parts["value"]
    z = parts["query"] @ parts["key"].swapaxes(-1, -2) / np.sqrt(WIDTH // COUNT)
    if f"{a}.mix.bias" in w:
        z = z + pairs(w, f"{a}.mix.bias")
    z = np.exp(z)
    return z / z.sum(-1, keepdims=True) @ parts["value"]


def forward(psi, sigma, replace):
    """log psi (n,) and the outputs of all heads; ``replace(block, outputs)`` puts others in their place."""
    w = psi.weights
    x = dense(sigma.reshape(len(sigma), -1, 2).astype(float), w, "embedding")
    if "position.code" in w:
        x = x + w["position.code"]
    seen = []
    for i in range(1, BLOCKS + 1):
        o = replace(i - 1, outputs(normalised(x, w, f"attention_{i}.norm"), w, i))
        seen.append(o)
        x = x + dense(np.concatenate(list(o.swapaxes(0, 1)), axis=-1), w, f"attention_{i}.out")
        y = dense(normalised(x, w, f"mlp_{i}.norm"), w, f"mlp_{i}.up")
        x = x + dense(gelu(y), w, f"mlp_{i}.down")
    return np.log(np.cosh(final(x.sum(axis=1), w, psi))).sum(axis=-1), np.stack(seen)


def final(x, w, psi):
    """What the sum of log cosh is taken of."""
    x = normalised(x, w, "head.norm")
    parts = [normalised(dense(x, w, f"head.{name}"), w, f"head.{name}_norm") for name in parts_of(psi)]
    return parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1]


def parts_of(psi):
    return ("real", "imaginary") if psi.state.complex_amplitude else ("real",)


def by_hand(psi, counterfactual, sigma):
    """Columns of ``Patched``, one head after the other."""
    clean_log, clean = forward(psi, sigma, lambda _, o: o)
    _, other = forward(psi, counterfactual.of(sigma), lambda _, o: o)
    columns = [clean_log, forward(psi, sigma, lambda b, _: other[b])[0]]
    for block in range(BLOCKS):
        for head in range(COUNT):

            def one(b, o, block=block, head=head):
                o = o.copy()
                if b == block:
                    o[:, head] = other[b][:, head]
                return o

            total, behind = forward(psi, sigma, one)
            frozen = forward(
                psi, sigma, lambda b, o, one=one, block=block: clean[b] if b > block else one(b, o)
            )
            path = forward(psi, sigma, lambda b, o, block=block, behind=behind: behind[b] if b > block else o)
            columns += [frozen[0], path[0], total]
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("mode", MODES)
def test_every_path_of_every_head_is_that_of_the_network_by_hand(mode):
    psi = transformer(**MODES[mode])
    np.testing.assert_allclose(forward(psi, ALL, lambda _, o: o)[0], psi.log_psi(ALL), atol=1e-12)
    found = Patched(psi, HEADS, REGION).log_psi(ALL)
    assert found.shape == (len(ALL), 2 + len(PATHS) * BLOCKS * COUNT)
    np.testing.assert_allclose(found, by_hand(psi, REGION, ALL), atol=1e-11)
    assert (
        np.ptp(found - found[:, :1], axis=0)[2:5].min() > 1e-3
    )  # each path of the first head does something
    np.testing.assert_array_equal(found[:, 9], found[:, 0])  # nothing attends behind the last block


def test_complex_amplitudes_by_hand():
    psi = transformer(amplitude="complex")
    found, expected = Patched(psi, HEADS, REGION).log_psi(ALL), by_hand(psi, REGION, ALL)
    np.testing.assert_allclose(np.exp(found - expected), 1.0, atol=1e-11)  # phases modulo 2 pi


def test_single_precision_is_near_double():
    psi = transformer()
    single = psi.state.bind(psi.parameters.astype(np.float32))
    np.testing.assert_allclose(
        Patched(single, HEADS, REGION).log_psi(ALL), Patched(psi, HEADS, REGION).log_psi(ALL), atol=2e-4
    )


# ---- counterfactuals ---------------------------------------------------------------------------------------------------


def test_counterfactuals_are_maps_of_configurations():
    rng = np.random.default_rng(0)
    samples = rng.choice(np.int8([-1, 1]), (200, SITES))
    ones = np.ones(SITES)
    f = sector(ones, samples, rng)
    assert f.low.sum() < 0 < f.high.sum()
    for sigma, image in zip(ALL, f.of(ALL), strict=True):
        np.testing.assert_array_equal(image, f.low if sigma.sum() > 0 else f.high)
    up = samples[samples.sum(axis=1) >= 2]
    f = sector(ones, up, rng)  # one sign is missing: the border is the median
    assert f.border == np.median(up.sum(axis=1))
    assert f.low.sum() <= f.border < f.high.sum()
    alike = sector(ones, up[:1], rng)
    np.testing.assert_array_equal(alike.of(ALL), np.broadcast_to(up[0], ALL.shape))
    flipped = REGION.of(ALL)
    np.testing.assert_array_equal(flipped != ALL, np.isin(np.arange(SITES), [1, 2, 3])[None] & (ALL != 0))
    moved = region(np.array([6, 1, 4]), SITES, conserving=True).of(ALL)
    assert moved.dtype == np.int8
    np.testing.assert_array_equal(moved.sum(axis=1), ALL.sum(axis=1))
    np.testing.assert_array_equal(moved[:, [1, 4, 6]], ALL[:, [6, 1, 4]])
    np.testing.assert_array_equal(moved[:, [0, 2, 3, 5, 7]], ALL[:, [0, 2, 3, 5, 7]])
    f = distant(samples, rng)
    assert f.held.shape == (16, SITES)
    differing = (ALL[:, None] != f.held).sum(axis=-1)
    np.testing.assert_array_equal(f.of(ALL), f.held[differing.argmax(axis=1)])


# ---- readouts against full summation -----------------------------------------------------------------------------------


def amplitude(log_psi):
    psi = np.exp(log_psi - log_psi.real.max())
    return psi / np.linalg.norm(psi)


def exact_effects(psi, f, family):
    """IE (path, readout, block, head) by sums over all configurations and matrices."""
    logs = family(psi, f, ALL)
    states = [amplitude(column) for column in logs.T]
    p = np.abs(states[0]) ** 2

    def mean(name, state):
        if name == "abs_magnetization":
            return np.abs(state) ** 2 @ np.abs(ALL.mean(axis=1))
        operator = H if name == "energy" else OBSERVABLES[1].operator.to_sparse()
        return np.vdot(state, operator @ state).real

    whole = logs[:, 0].real - psi.log_psi(f.of(ALL)).real
    found = []
    for name in READOUTS:
        if name == "log_psi":
            ie = [p @ ((logs[:, 0] - log).real * whole) / (p @ whole**2) for log in logs.T[2:]]
        elif name == "infidelity":
            lost = [1 - abs(np.vdot(states[0], state)) ** 2 for state in states]
            ie = [each / lost[1] for each in lost[2:]]
        else:
            clean, everything = mean(name, states[0]), mean(name, states[1])
            ie = [(clean - mean(name, state)) / (clean - everything) for state in states[2:]]
        found.append(ie)
    return np.asarray(found).reshape(len(READOUTS), BLOCKS, COUNT, len(PATHS)).transpose(3, 0, 1, 2)


def by_the_package(psi, f, sigma=ALL, exact=True):
    """``effects`` from all configurations and their weights, or from Born samples (chain, draw, n_sites)."""
    family = Patched(psi, HEADS, f)
    measured = (OBSERVABLES[0], OBSERVABLES[1], OBSERVABLES[2])
    rows = sigma.reshape(-1, SITES)
    if exact:
        summed = Exact(psi, measured, SITES)
        logs, shape = family.log_psi(rows), (1, len(rows))
        curve, weights = summed.curve(family), np.abs(amplitude(logs[:, 0])) ** 2
        weights = weights.reshape(shape)
    else:
        log_family, value = on_samples(family, measured, sigma, Economy(), lambda _: None)
        curve, weights = from_ratios(log_family - log_family[..., :1], value), None
        logs, shape = log_family.reshape(len(rows), -1), sigma.shape[:2]
    own = measure(psi, measured, rows, logs[:, 0], Economy())
    return effects(
        READOUTS,
        curve,
        (logs.real.reshape(*shape, -1), psi.log_psi(f.of(rows)).real.reshape(shape)),
        tangents_of_heads(psi, HEADS, f, rows).reshape(*shape, BLOCKS, COUNT),
        own.reshape(*shape, -1),
        HEADS,
        weights,
    )


@pytest.mark.parametrize("options", [{}, {"attention": "positional"}, {"amplitude": "complex"}])
def test_effects_are_those_of_full_summation(options):
    psi = transformer(**options)
    found = by_the_package(psi, REGION)
    np.testing.assert_allclose(found.patched, exact_effects(psi, REGION, by_hand), atol=1e-8)
    assert np.abs(found.patched[:2]).max(axis=(2, 3)).min() > 1e-3


def born(psi, chains, draws):
    p = np.abs(amplitude(psi.log_psi(ALL))) ** 2
    chosen = np.random.default_rng(5).choice(len(ALL), (chains, draws), p=p)
    return ALL[chosen]


def test_effects_from_samples_agree_with_full_summation():
    """Error bars from disjoint batches of samples: their estimates scatter around the exact ones.

    In a network where every readout moves by more than the error of a batch: what does not is no number.
    """
    psi = transformer(seed=11)
    f = sector(np.ones(SITES), born(psi, 8, 4).reshape(-1, SITES), np.random.default_rng(3))
    exact = by_the_package(psi, f)
    batches = [by_the_package(psi, f, some, exact=False) for some in np.split(born(psi, 512, 64), 8)]
    for name in ("patched", "predicted", "whole"):
        several = np.stack([getattr(one, name) for one in batches])
        assert np.isfinite(several).all()
        error = several.std(axis=0, ddof=1) / np.sqrt(len(several))
        assert (error < 0.1 * np.abs(getattr(exact, name)).max()).all()
        off = np.abs(several.mean(axis=0) - getattr(exact, name))
        np.testing.assert_array_less(off, 5 * error + 1e-9)


def test_a_readout_that_nothing_moves_says_nothing():
    """Heads that write nothing: no effect on log psi, and no mean to compare with."""
    psi = weak(transformer(), 0.0)
    found = by_the_package(psi, REGION, born(psi, 32, 8), exact=False)
    assert np.isnan(found.patched[:, 1:]).all()
    np.testing.assert_array_equal(found.patched[:, 0], 0)
    assert np.isnan(scores(found.patched[0][None], found.patched[1][None], 0.05).scaled[1:]).all()


# ---- gradients ---------------------------------------------------------------------------------------------------------


def weak(psi, scale):
    """The network with the maps behind the heads scaled: what heads do to log psi becomes linear."""
    parameters = psi.parameters.copy()
    for i in range(1, BLOCKS + 1):
        parameters[psi.state.layout[f"attention_{i}.out.weight"][0]] *= scale
    return psi.state.bind(parameters)


@pytest.mark.parametrize("options", [{}, {"attention": "positional"}, {"amplitude": "complex"}])
def test_gradients_are_exact_for_small_changes(options):
    off = []
    for scale in (1e-3, 1e-4):
        psi = weak(transformer(**options), scale)
        found = by_the_package(psi, REGION)
        total = found.patched[2]
        off.append(np.abs(found.predicted - total).max() / np.abs(total).max())
        assert rank_correlation(np.abs(found.predicted), np.abs(total)) > 0.95
    assert off[1] < 0.2 * off[0]  # of higher order in the change
    assert off[1] < 2e-2
    logs = Patched(psi, HEADS, REGION).log_psi(ALL)
    change = (logs[:, :1] - logs[:, 2:]).reshape(-1, BLOCKS, COUNT, len(PATHS))[..., 2]
    tangent = tangents_of_heads(psi, HEADS, REGION, ALL)
    np.testing.assert_allclose(tangent, change, atol=1e-2 * np.abs(change).max())


def test_a_projected_state_is_patched_in_every_copy():
    psi = transformer(translation_invariant=True)
    state = Transformer(
        patch=2, width=WIDTH, heads=COUNT, layers=BLOCKS, mlp_ratio=2, symmetry=Symmetry(translations=True)
    ).build(LATTICE)
    projected = weak(state.bind(psi.parameters), 3e-4)
    bare = weak(psi, 3e-4)
    found = Patched(projected, HEADS, REGION).log_psi(ALL)
    shifts = [np.roll(ALL, -shift, axis=1) for shift in range(SITES)]
    terms = np.exp([Patched(bare, HEADS, REGION).log_psi(np.ascontiguousarray(s)) for s in shifts])
    # copies that the network does not tell apart are evaluated once
    kept = terms[: state.n_copies] if state.n_copies < SITES else terms
    np.testing.assert_allclose(np.exp(found), kept.mean(axis=0), rtol=1e-9)
    change = (found[:, :1] - found[:, 2:]).reshape(-1, BLOCKS, COUNT, len(PATHS))[..., 2]
    tangent = tangents_of_heads(projected, HEADS, REGION, ALL)
    np.testing.assert_allclose(tangent, change, atol=1e-2 * np.abs(change).max())


# ---- scores, ranking, knock-outs ---------------------------------------------------------------------------------------


def test_scores_by_hand():
    receiver = np.array(
        [[[[0.5, -0.1], [0.0, 0.02]]], [[[0.3, 0.04], [0.2, 0.02]]]]
    )  # (probe, readout, block, head)
    sender = np.array([[[[0.1, -0.4], [0.0, 0.0]]], [[[0.1, -0.2], [0.0, 0.0]]]])
    found = scores(receiver, sender, 0.1)
    np.testing.assert_allclose(found.kappa, [[[1, 1], [0.5, 0]]])
    np.testing.assert_allclose(found.raw, [[[0.4, 0.3], [0.05, 0]]])
    np.testing.assert_allclose(found.mean, [[1, 0.75], [0.125, 0]])
    np.testing.assert_array_equal(ranks(found.mean), [[1, 2], [3, 4]])
    silent = np.concatenate([receiver, np.full_like(receiver, np.nan)], axis=1)
    with_silent = scores(silent, silent, 0.1)
    assert np.isnan(with_silent.scaled[1]).all()
    np.testing.assert_allclose(with_silent.mean, scores(receiver, receiver, 0.1).mean)
    half = scores(np.stack([receiver[0], np.nan * receiver[0]]), np.zeros_like(receiver), 0.1)
    np.testing.assert_allclose(half.kappa, [[[1, 1], [0, 0]]])  # one sub-probe that says something
    rarely = scores(
        np.concatenate([receiver[:1], np.full((2, *receiver.shape[1:]), np.nan)]), np.zeros((3, 1, 2, 2)), 0.1
    )
    assert np.isnan(rarely.scaled).all()  # one sub-probe of three is not enough
    np.testing.assert_array_equal(rarely.mean, 0)
    np.testing.assert_array_equal(scaled_to_one(np.full((2, 2), 0.3)), 0)
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4)))
    assert rank_correlation(np.array([0.1, 5, np.nan, 7]), np.array([1, 2, 3, 40.0])) == pytest.approx(1)


def planted(block, head, size=12.0):
    """A network in which one head writes ``size`` times as much as the others."""
    psi = transformer(noise=0.05)
    parameters = psi.parameters.copy()
    place, shape = psi.state.layout[f"attention_{block + 1}.out.weight"]
    weight = parameters[place].reshape(shape)
    weight[head * WIDTH // COUNT : (head + 1) * WIDTH // COUNT] *= size
    return psi.state.bind(parameters)


@pytest.mark.parametrize("place", [(0, 1), (1, 0)])
def test_a_planted_head_ranks_first_in_every_set_and_its_knock_out_costs_most(place):
    psi = planted(*place)
    samples = born(psi, 64, 16)
    found = []
    for number in (0, 1):
        rng = np.random.default_rng(number)
        maps = [REGION, sector(np.ones(SITES), samples.reshape(-1, SITES), rng)]
        of_maps = [by_the_package(psi, f, samples[32 * number :][:32], exact=False).patched for f in maps]
        patched = np.stack(of_maps, axis=1)  # (path, map, readout, block, head)
        mean = scores(patched[0][None], patched[1][None], 0.05).mean
        assert ranks(mean)[place] == 1
        found.append(mean)
    assert rank_correlation(*found) > 0.5
    mean = mean_outputs(psi, HEADS, samples.reshape(-1, SITES))
    singles = np.eye(4, dtype=bool).reshape(4, BLOCKS, COUNT)
    logs = Knocked(psi, HEADS, singles, mean).log_psi(ALL)
    lost = [1 - abs(np.vdot(amplitude(psi.log_psi(ALL)), amplitude(log))) ** 2 for log in logs.T]
    assert int(np.argmax(lost)) == np.ravel_multi_index(place, (BLOCKS, COUNT))


@pytest.mark.parametrize("mode", MODES)
def test_knock_outs_are_those_of_the_network_by_hand(mode):
    psi = transformer(**MODES[mode])
    samples = born(psi, 8, 16).reshape(-1, SITES)
    _, seen = forward(psi, samples, lambda _, o: o)
    mean = seen.mean(axis=1)
    sets = np.zeros((3, BLOCKS, COUNT), bool)
    sets[1, 0, 1] = True
    sets[2] = [[True, False], [False, True]]

    def held(chosen):
        return lambda b, o: np.where(chosen[b][None, :, None, None], mean[b], o)

    found = Knocked(psi, HEADS, sets, mean_outputs(psi, HEADS, samples)).log_psi(ALL)
    for column, chosen in zip(found.T, sets, strict=True):
        np.testing.assert_allclose(column, forward(psi, ALL, held(chosen))[0], atol=1e-11)
    assert np.ptp(found[:, 2] - found[:, 0]) > 1e-2


def test_orders_and_areas():
    orders = np.array([[2, 0, 1], [1, 2, 0]])
    chosen = knocked_sets(orders, np.array([0, 1, 3]))
    assert chosen.shape == (2, 3, 3)
    np.testing.assert_array_equal(chosen[0], [[0, 0, 0], [0, 0, 1], [1, 1, 1]])
    np.testing.assert_array_equal(chosen[1, 1], [0, 1, 0])
    np.testing.assert_allclose(area(np.array([[0.0, 0.6, 0.9]]), np.array([0, 1, 3])), [0.1 + 0.5])
