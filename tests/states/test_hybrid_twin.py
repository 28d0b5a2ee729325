"""The fused transformer with linear heads and heads of several kinds: all it can do, against the bricks in float64."""

import numpy as np
import pytest

from nqs_sae_service.physics.lattices import Chain, Rectangular
from nqs_sae_service.sampling.metropolis import _walk
from nqs_sae_service.states import Transformer
from nqs_sae_service.states.fused import Flips, Streams, Walks
from nqs_sae_service.states.hybrid_packing import _runs
from nqs_sae_service.states.linear_attention import neighbourhood
from nqs_sae_service.states.projection import Symmetry

RING, TORUS = {"length": 20}, {"lengths": (4, 5)}
# Attention, heads, layers, lattice. Odd numbers of tokens and channels, a ring of two tokens, a block of every composition.
NETWORKS = {
    "kernel": ("kernel", 2, 2, RING, {"patch": 4, "amplitude": "complex"}),
    "torus": (("full", "kernel", "positional", "kernel"), 4, 2, TORUS, {"patch": 1}),
    "cylinder": (
        ("kernel", "positional", "full"),
        3,
        2,
        {"lengths": (3, 5), "periodic": (True, False)},
        {"patch": 1, "width": 15, "amplitude": "complex"},
    ),
    "blocks": (
        ("kernel", "kernel", "full", "positional", "full", "full", "positional", "positional"),
        2,
        4,
        {"length": 14, "periodic": False},
        {"patch": 2, "translation_invariant": False},
    ),
    "delta": ("delta", 2, 2, RING, {"patch": 4, "amplitude": "complex"}),
    "scans": (
        ("delta", "full", "delta", "positional", "kernel"),
        5,
        1,
        {"lengths": (3, 5), "periodic": (False, True)},
        {"patch": 1, "width": 15},
    ),
    "two tokens": (("full", "kernel"), 2, 1, {"length": 8}, {"patch": 4, "translation_invariant": False}),
}


def lattice(sizes):
    record = Chain if "length" in sizes else Rectangular
    return record(kind=record.__name__.lower(), **sizes).build()


def wave(name, **changes):
    attention, heads, layers, sizes, options = NETWORKS[name]
    shape = {"attention": attention, "heads": heads, "layers": layers, "width": 4 * heads, "mlp_ratio": 2}
    state = Transformer(**shape | options | changes).build(lattice(sizes))
    noise = 0.3 * np.random.default_rng(3).normal(size=state.n_parameters)
    return state.bind((state.initial_parameters(0) + noise).astype(np.float32))


def spins(n, sites, seed=1):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(n, sites))


def proposals(chains, rows, sites):
    """Singles, stretches around the ring, flips of all sites, exchanges of two sites."""
    generator = np.random.default_rng(2)
    length = generator.choice([1, 1, 1, 2, 7, sites, -1, -4], size=(rows, chains))
    return generator.integers(sites, size=length.shape), length, np.log(generator.random(length.shape))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", [1, 37, 130])
def test_twin_equals_the_bricks(name, n):
    psi = wave(name)
    sigma, plain = spins(n, psi.state.n_sites), psi.reference
    assert all(psi.twin(ability) is psi.fused for ability in (Streams, Walks, Flips))
    np.testing.assert_allclose(np.exp(psi.log_psi(sigma) - plain.log_psi(sigma)), 1, atol=2e-4)
    for layer in psi.state.fused_layers:
        stream = psi.stream_at(sigma, layer)
        np.testing.assert_allclose(stream, plain.stream_at(sigma, layer), atol=3e-5)
        np.testing.assert_allclose(np.exp(psi.log_psi_from(layer, stream) - psi.log_psi(sigma)), 1, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("chains", "ahead"), [(1, True), (3, False), (45, True), (140, True)])
def test_walks_make_the_decisions_of_the_plain_loop(name, chains, ahead):
    psi = wave(name)
    moves = proposals(chains, 15, psi.state.n_sites)
    fast, plain = spins(chains, psi.state.n_sites), spins(chains, psi.state.n_sites)
    log_fast, log_plain = psi.log_psi(fast), psi.reference.log_psi(plain)
    accepted = psi.fused.walk(fast, log_fast, *moves, ahead=ahead)
    assert accepted == _walk(psi.reference, plain, log_plain, *moves)
    np.testing.assert_array_equal(fast, plain)
    np.testing.assert_allclose(np.exp(log_fast - log_plain), 1, atol=2e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_flips(name):
    psi = wave(name)
    sites = psi.state.n_sites
    sigma, signs = spins(9, sites), np.concatenate([1 - 2 * np.eye(sites, dtype=np.int8), spins(4, sites, 6)])
    pairs = np.random.default_rng(4).permutation([(n, f) for n in range(9) for f in range(len(signs))])[:75]
    exact = psi.reference.log_psi(sigma[pairs[:, 0]] * signs[pairs[:, 1]])
    np.testing.assert_allclose(np.exp(psi.fused.log_psi_flipped(sigma, signs, pairs) - exact), 1, atol=2e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_bits_depend_on_the_place_in_a_block_alone(name):
    """Neither on the neighbours nor on how many there are, nor on threads."""
    import numba

    psi = wave(name)
    sigma, others = spins(64, psi.state.n_sites), spins(64, psi.state.n_sites, seed=5)
    whole = psi.log_psi(sigma)
    for count in (1, 3, 6, 33):
        np.testing.assert_array_equal(psi.log_psi(sigma[:count]), whole[:count])
    mixed = np.where(np.arange(64)[:, None] % 3 == 0, sigma, others)
    np.testing.assert_array_equal(psi.log_psi(mixed)[::3], whole[::3])
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        np.testing.assert_array_equal(psi.log_psi(sigma), whole)
    finally:
        numba.set_num_threads(threads)


def test_small_features_leave_the_bias_of_values_where_it_is():
    """phi(q) z of the size of the 1e-6 that is added to it: weights of values no longer sum to one."""
    psi = wave("kernel")
    for name, array in psi.state.unpack(psi.parameters).items():
        if name.endswith((".query.bias", ".key.bias")):
            array[...] = np.log(3e-4)
        elif name.endswith((".query.weight", ".key.weight")):
            array *= 0.3
        elif name.endswith(".value.bias"):
            array += 1
    psi, sigma = psi.state.bind(psi.parameters), spins(9, 20)
    plain = psi.reference
    tape = plain.tape(sigma).edges
    q, k = (
        np.exp(np.minimum(x, 0)) + np.maximum(x, 0) for x in (tape["attention_1.q"], tape["attention_1.k"])
    )
    assert 1e-7 < np.median((q * k.sum(axis=1, keepdims=True)).reshape(9, 5, 2, 4).sum(axis=3)) < 1e-5
    np.testing.assert_allclose(
        psi.stream_at(sigma, "residual_2"), plain.stream_at(sigma, "residual_2"), atol=3e-5
    )


def test_projected_states():
    """Momentum, point group and spin flip of a network on a torus."""
    symmetry = Symmetry(translations=True, spin_flip=1)
    psi = wave("torus", symmetry=symmetry)
    sigma, signs = spins(5, 20), 1 - 2 * np.eye(20, dtype=np.int8)
    np.testing.assert_allclose(np.exp(psi.log_psi(sigma) - psi.reference.log_psi(sigma)), 1, atol=2e-4)
    pairs = np.stack(np.divmod(np.arange(40), 20), axis=1)
    exact = psi.reference.log_psi(sigma[pairs[:, 0]] * signs[pairs[:, 1]])
    np.testing.assert_allclose(
        np.exp(psi.twin(Flips).log_psi_flipped(sigma, signs, pairs) - exact), 1, atol=2e-4
    )


@pytest.mark.parametrize("name", ["attention_1.key.bias", "attention_2.local.taps", "attention_1.value.bias"])
def test_what_is_not_a_number_is_seen(name):
    """A chain at NaN stays, its log psi says so."""
    psi = wave("kernel")
    parameters = psi.parameters.copy()
    psi.state.unpack(parameters)[name][..., 0] = np.nan
    psi, sigma = psi.state.bind(parameters), spins(5, 20)
    before, log_psi = sigma.copy(), np.zeros(5, complex)
    assert np.isnan(psi.log_psi(sigma)).all()
    assert psi.fused.walk(sigma, log_psi, *proposals(5, 3, 20)) == 0
    np.testing.assert_array_equal(sigma, before)
    assert np.isnan(log_psi).all()


@pytest.mark.parametrize(
    ("extent", "wraps"), [((4,), (True,)), ((2, 3), (True, False)), ((3, 2), (False, True)), ((1,), (True,))]
)
def test_runs_hold_every_neighbour_once(extent, wraps):
    windows, _ = neighbourhood(extent, wraps)
    expected = {
        (t, s, k) for t, row in enumerate(windows.tolist()) for k, s in enumerate(row) if s < len(windows)
    }
    found = [(t + n, s + n, k) for t, s, count, k in _runs(windows).tolist() for n in range(count)]
    assert len(found) == len(set(found))
    assert set(found) == expected
