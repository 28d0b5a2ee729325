"""What the fused transformer does not compute again: walks and flips against the plain loops, with and without its table."""

import numpy as np
import pytest

from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.sampling.metropolis import _walk
from nqs_sae_service.states import Transformer
from nqs_sae_service.states.fused import Flips, Streams, Walks
from nqs_sae_service.states.primitives import LAYER_NORM_EPSILON
from nqs_sae_service.states.shared_cpu import log_modulus_of_cosh

# Tabulated by distance, by pair of tokens, not tabulated (patches of 10 spins, softmax attention), one block only.
NETWORKS = {
    "distances": {"attention": "positional"},
    "pairs": {"attention": "positional", "translation_invariant": False, "amplitude": "complex"},
    "one block": {"attention": "positional", "layers": 1, "amplitude": "complex"},
    "large patches": {"attention": "positional", "patch": 10},
    "softmax": {"attention": "full", "amplitude": "complex"},
    "softmax, open": {"attention": "full", "translation_invariant": False},
}
SITES = 20


def wave(name):
    record = Transformer(**({"patch": 4, "width": 16, "heads": 2, "layers": 2} | NETWORKS[name]))
    state = record.build(Chain(kind="chain", length=SITES).build())
    noise = 0.3 * np.random.default_rng(3).normal(size=state.n_parameters)
    return state.bind((state.initial_parameters(0) + noise).astype(np.float32))


def spins(n, seed=1):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(n, SITES))


def proposals(chains, rows):
    """Singles, stretches around the ring, flips of all sites."""
    generator = np.random.default_rng(2)
    length = generator.choice([1, 1, 1, 2, 7, SITES], size=(rows, chains))
    return generator.integers(SITES, size=length.shape), length, np.log(generator.random(length.shape))


def test_abilities():
    psi = wave("distances")
    assert all(psi.twin(ability) is psi.fused for ability in (Streams, Walks, Flips))


@pytest.mark.parametrize(
    ("name", "terms", "weights"),
    [
        ("distances", (1, 16, 5, 80), 0),
        ("pairs", (5, 16, 5, 80), 0),
        ("large patches", (0, 0, 0, 0), 0),
        ("softmax", (0, 0, 0, 0), 5),
        ("softmax, open", (0, 0, 0, 0), 25),
    ],
)
def test_the_first_block_is_tabulated_where_it_can_be(name, terms, weights):
    """By distance or by pair of tokens; patches of ten spins have too many states."""
    table = wave(name).fused.table
    assert (table.term.shape, len(table.weight)) == (terms, weights)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("chains", "ahead"), [(1, True), (3, True), (3, False), (45, True), (140, True)])
def test_walks_make_the_decisions_of_the_plain_loop(name, chains, ahead):
    """Also where later proposals of a chain are evaluated before the earlier ones are decided."""
    psi, moves = wave(name), proposals(chains, 15)
    fast, plain = spins(chains), spins(chains)
    log_fast, log_plain = psi.log_psi(fast), psi.reference.log_psi(plain)
    accepted = psi.fused.walk(fast, log_fast, *moves, ahead=ahead)
    assert accepted == _walk(psi.reference, plain, log_plain, *moves)
    np.testing.assert_array_equal(fast, plain)
    np.testing.assert_allclose(np.exp(log_fast - log_plain), 1, atol=2e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_flips_start_from_the_sample_they_change(name):
    psi, sigma = wave(name), spins(9)
    signs = np.concatenate([1 - 2 * np.eye(SITES, dtype=np.int8), spins(4, seed=6)])
    pairs = np.random.default_rng(4).permutation([(n, f) for n in range(9) for f in range(len(signs))])[:150]
    exact = psi.reference.log_psi(sigma[pairs[:, 0]] * signs[pairs[:, 1]])
    np.testing.assert_allclose(np.exp(psi.fused.log_psi_flipped(sigma, signs, pairs) - exact), 1, atol=2e-4)


@pytest.mark.parametrize("name", ["distances", "pairs"])
def test_terms_add_up_to_the_first_block(name):
    """Float64 bricks: the stream after the first attention, less its mean, and its product with the map to hidden units."""
    psi, sigma = wave(name), spins(6)
    plain = psi.state.bind(psi.parameters.astype(np.float64)).reference
    stream = plain.stream_at(sigma, "embedding") + plain.stream_at(sigma, "attention_1")
    centred = stream - stream.mean(axis=2, keepdims=True)
    w, d = psi.state.unpack(psi.parameters.astype(np.float64)), psi.state.width
    hidden = centred @ (w["mlp_1.norm.gain"][:, None] * w["mlp_1.up.weight"])
    table, tokens = psi.fused.table, psi.state.n_tokens
    codes = (sigma.reshape(6, tokens, 4) > 0) @ np.array([8, 4, 2, 1])
    j = np.arange(tokens)
    sums = np.stack(
        [[table.term[table.source[j], own[j], table.place[j, i]].sum(axis=0) for i in j] for own in codes]
    )
    np.testing.assert_allclose(sums[..., :d], centred, atol=1e-5)
    np.testing.assert_allclose(sums[..., d:], hidden, atol=2e-5)


@pytest.mark.parametrize("name", ["softmax", "softmax, open"])
def test_tabulated_weights_are_those_of_softmax(name):
    """Float64: scores of queries and keys, straight from the parameters; only normalised weights are defined."""
    psi, sigma = wave(name), spins(6)
    state, w = psi.state, psi.state.unpack(psi.parameters.astype(np.float64))
    plain = state.bind(psi.parameters.astype(np.float64)).reference
    x = plain.stream_at(sigma, "embedding")
    x = (x - x.mean(axis=2, keepdims=True)) / np.sqrt(x.var(axis=2, keepdims=True) + LAYER_NORM_EPSILON)
    x = x * w["attention_1.norm.gain"] + w["attention_1.norm.bias"]
    heads, tokens, table = 2, state.n_tokens, psi.fused.table
    q, k = (
        (x @ w[f"attention_1.{n}.weight"] + w[f"attention_1.{n}.bias"]).reshape(6, tokens, heads, -1)
        for n in ("query", "key")
    )
    score = np.einsum("nihc,njhc->nhij", q, k) / np.sqrt(q.shape[3])
    if "attention_1.mix.bias" in w:  # by distance
        distance = np.subtract.outer(np.arange(tokens), np.arange(tokens)) % tokens
        score += w["attention_1.mix.bias"][:, distance]
    expected = np.exp(score - score.max(axis=3, keepdims=True))
    expected /= expected.sum(axis=3, keepdims=True)
    codes = (sigma.reshape(6, tokens, 4) > 0) @ np.array([8, 4, 2, 1])
    pair = codes[:, :, None] * 16 + codes[:, None, :]  # (n, i, j)
    found = table.weight[table.place.T[None], :, pair].transpose(0, 3, 1, 2)
    assert found.min() >= 0
    assert found.max() <= 1
    np.testing.assert_allclose(found / found.sum(axis=3, keepdims=True), expected, atol=1e-6)


def test_scores_too_far_apart_are_not_tabulated():
    """Queries a hundred times as large: exponentials below the highest possible score would vanish."""
    state = wave("softmax").state
    parameters = wave("softmax").parameters.copy()
    state.unpack(parameters)["attention_1.query.weight"][...] *= 100
    psi, sigma = state.bind(parameters), spins(20)
    assert psi.fused.table.weight.size == 0
    exact = state.bind(parameters.astype(np.float64)).reference.log_psi(sigma)
    np.testing.assert_allclose(np.exp(psi.log_psi(sigma) - exact), 1, atol=5e-3)


def test_many_tokens_are_summed_only_near_a_known_configuration():
    """Of 20 tokens the terms of a whole configuration cost more than the product that they replace, those of a flip less."""
    record = Transformer(attention="positional", patch=2, width=16, heads=2, translation_invariant=False)
    state = record.build(Chain(kind="chain", length=40).build())
    psi = state.bind(state.initial_parameters(0))
    sigma = np.random.default_rng(1).choice(np.array([-1, 1], np.int8), size=(5, 40))
    assert psi.fused.table.term.size > 0
    assert psi.fused.table_of_sums.term.size == 0
    signs = np.stack([np.ones(40, np.int8), -np.ones(40, np.int8), 1 - 2 * np.eye(40, dtype=np.int8)[7]])
    pairs = np.stack(np.divmod(np.arange(15), 3), axis=1)
    exact = psi.reference.log_psi(sigma[pairs[:, 0]] * signs[pairs[:, 1]])
    np.testing.assert_allclose(psi.fused.log_psi_flipped(sigma, signs, pairs), exact, atol=2e-5)
    np.testing.assert_allclose(psi.log_psi(sigma), exact[::3], atol=2e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_bits_depend_on_the_place_in_a_block_alone(name):
    """Neither on the neighbours nor on how many there are."""
    psi, sigma = wave(name), spins(64)
    whole = psi.log_psi(sigma)
    others = spins(64, seed=5)
    for count in (1, 3, 6, 33):
        np.testing.assert_array_equal(psi.log_psi(sigma[:count]), whole[:count])
    mixed = np.where(np.arange(64)[:, None] % 3 == 0, sigma, others)
    np.testing.assert_array_equal(psi.log_psi(mixed)[::3], whole[::3])


def test_long_walks_do_not_drift():
    """After n accepted moves a sum of terms is off by at most n + T roundings of its size, in practice by about sqrt(n)."""
    psi, sigma = wave("pairs"), spins(4)
    log_psi = psi.log_psi(sigma)
    first, length, _ = proposals(4, 3000)
    real = log_psi.real.copy()
    always = np.full(first.shape, -np.inf)
    assert psi.fused.walk(sigma, log_psi, first, length, always) == first.size
    from nqs_sae_service.states import transformer_cpu

    again = spins(4)
    transformer_cpu.walk(psi.fused.weights, psi.fused.table, again, real, first, length, always, 4, 4, False)
    np.testing.assert_array_equal(again, sigma)
    np.testing.assert_allclose(real, psi.reference.log_psi(sigma).real, atol=2e-4)


def test_calls_are_cut_without_changing_the_bits(monkeypatch):
    psi, sigma = wave("pairs"), spins(200)
    signs = 1 - 2 * np.eye(SITES, dtype=np.int8)
    log_psi = psi.log_psi(sigma)
    pairs = np.stack(np.divmod(np.arange(len(sigma) * SITES), SITES), axis=1)
    whole = psi.fused.log_psi_flipped(sigma, signs, pairs)
    monkeypatch.setattr(
        "nqs_sae_service.states.transformer_cpu._CALL_FLOPS", 1.0
    )  # one largest block at a time
    np.testing.assert_array_equal(psi.log_psi(sigma), log_psi)
    np.testing.assert_array_equal(psi.fused.log_psi_flipped(sigma, signs, pairs), whole)


def test_a_chain_at_a_nan_stays_and_says_so():
    state = wave("distances").state
    parameters = state.initial_parameters(0)
    parameters[-1] = np.nan
    psi, sigma = state.bind(parameters), spins(5)
    before, log_psi = sigma.copy(), np.zeros(5)
    assert psi.fused.walk(sigma, log_psi, *proposals(5, 3)) == 0
    np.testing.assert_array_equal(sigma, before)
    assert np.isnan(log_psi).all()


def test_near_a_zero_of_cosh_the_modulus_is_never_the_root_of_a_negative_number():
    phase = np.concatenate([np.pi + np.linspace(-1e-3, 1e-3, 2001), [np.pi, -np.pi, 3 * np.pi]]).astype(
        np.float32
    )
    for a in (0.0, 1e-8, 1e-5, 3e-4, 0.1):
        size, scratch = np.full(1, a, np.float32), np.empty(1, np.float32)
        exact = np.log(np.abs(np.cosh(a + 0.5j * phase.astype(np.float64))))
        found = np.array([log_modulus_of_cosh(size, phase[i : i + 1], scratch) for i in range(len(phase))])
        assert np.isfinite(found).all()
        clear = exact > np.log(1e-3)  # nearer to the zero the rounding of the phase itself is all there is
        assert np.allclose(found[clear], exact[clear], atol=3e-3)
