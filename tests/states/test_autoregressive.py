"""The autoregressive transformer: normalised, causal, differentiable; its twins against the bricks; drawing by chi-square."""

import numpy as np
import pytest
from scipy.stats import chi2

from nqs_sae_service.engine.random import Stream, uniform, words
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.states import Autoregressive
from nqs_sae_service.states.fused import Draws, Flips
from nqs_sae_service.states.token_by_token import TokenByToken
from nqs_sae_service.vmc.jacobian import TapeJacobian

SITES = 8
KINDS = [
    pytest.param(patch, amplitude, magnetization, id=f"{patch}-{amplitude}-{magnetization}")
    for patch, amplitude, magnetization in (
        (1, "positive", "free"),
        (1, "complex", 0),
        (2, "complex", "free"),
        (2, "positive", 2),
        (4, "complex", -4),
    )
]


def network(patch=1, amplitude="positive", magnetization="free", sites=SITES, **options):
    lattice = Chain(kind="chain", length=sites).build()
    sizes = {"width": 8, "heads": 2, "layers": 2}
    record = Autoregressive(**sizes | options, patch=patch, amplitude=amplitude, magnetization=magnetization)
    return record.build(lattice)


def random_parameters(state, seed=0, dtype=np.float64):
    """Every gain, bias and code away from its special initial value."""
    noise = 0.4 * np.random.default_rng(seed).normal(size=state.n_parameters)
    return (state.initial_parameters(seed) + noise).astype(dtype)


def wave(*kind, dtype=np.float64, **options):
    state = network(*kind, **options)
    return state.bind(random_parameters(state, dtype=dtype))


def sector(magnetization, sites=SITES):
    """All configurations where psi is not zero."""
    every = all_configurations(sites)
    return every if magnetization == "free" else every[every.sum(axis=1, dtype=int) == magnetization]


def some(magnetization, n, sites=SITES, seed=1):
    return np.random.default_rng(seed).permutation(sector(magnetization, sites))[:n]


def numbers(tokens, n, step=0):
    random = words(3, Stream.SAMPLES, step, tokens, n)
    return uniform(random[..., 2], random[..., 3])


@pytest.mark.parametrize(("patch", "amplitude", "magnetization"), KINDS)
def test_psi_is_normalised_and_vanishes_outside_its_sector(patch, amplitude, magnetization):
    psi, every = wave(patch, amplitude, magnetization), all_configurations(SITES)
    weight = np.exp(2 * psi.log_psi(every).real)
    assert abs(weight.sum() - 1) < 1e-12
    inside = np.isin(np.arange(len(every)), np.flatnonzero(weight))
    total = every.sum(axis=1, dtype=int)
    np.testing.assert_array_equal(inside, True if magnetization == "free" else total == magnetization)


@pytest.mark.parametrize("layer", ["embedding", "attention_1", "mlp_2", "residual_2"])
@pytest.mark.parametrize("magnetization", ["free", 0])
def test_an_edit_of_every_tokens_own_stream_keeps_the_norm(layer, magnetization):
    psi = wave(1, "complex", magnetization)
    edited = psi.edited(layer, lambda x: x + np.tanh(3 * x[..., :1]) - 0.7 * x[..., ::-1])
    amplitude = np.exp(edited.log_psi(all_configurations(SITES)))
    assert abs((np.abs(amplitude) ** 2).sum() - 1) < 1e-12
    overlap = np.vdot(amplitude, np.exp(psi.log_psi(all_configurations(SITES))))
    assert np.abs(overlap) < 0.99


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_a_token_sees_what_stands_before_it_and_nothing_else(patch):
    psi, sigma = wave(patch, "complex"), some("free", 6)
    before = psi.tape(sigma).edges
    for site in range(SITES):
        changed = sigma.copy()
        changed[:, site] *= -1
        after, token = psi.tape(changed).edges, site // patch
        place = np.arange(SITES // patch)
        for edge in (*psi.state.layers, ".logits", ".phase"):
            seen = place == token + 1 if edge == "embedding" else place > token
            np.testing.assert_array_equal((before[edge] != after[edge]).any(axis=(0, 2)), seen)


@pytest.mark.parametrize(("patch", "amplitude", "magnetization"), KINDS)
def test_per_sample_gradients_match_finite_differences(patch, amplitude, magnetization):
    psi, sigma, step = wave(patch, amplitude, magnetization), some(magnetization, 3), 1e-5
    exact = psi.per_sample_gradients(sigma)
    numeric = np.empty_like(exact)
    for k in range(psi.state.n_parameters):
        shift = np.zeros(psi.state.n_parameters)
        shift[k] = step
        up, down = (psi.state.log_psi(psi.parameters + s * shift, sigma) for s in (1, -1))
        numeric[:, k] = (up - down) / (2 * step)
    np.testing.assert_allclose(exact, numeric, atol=1e-6 * max(1, np.abs(exact).max()))


@pytest.mark.parametrize(("patch", "amplitude", "magnetization"), KINDS)
def test_layer_gradients_match_edited_forwards(patch, amplitude, magnetization):
    psi, sigma = wave(patch, amplitude, magnetization), some(magnetization, 4)
    generator, step = np.random.default_rng(5), 1e-5
    for layer in psi.state.layers:
        push = generator.normal(size=psi.stream_at(sigma, layer).shape[1:])
        predicted = (psi.layer_gradient(sigma, layer) * push).sum(axis=(1, 2))
        up, down = (
            psi.edited(layer, lambda y, s=s, push=push: y + s * push).log_psi(sigma) for s in (step, -step)
        )
        np.testing.assert_allclose(
            (up - down) / (2 * step), predicted, atol=1e-6 * max(1, np.abs(predicted).max())
        )


@pytest.mark.parametrize(("patch", "amplitude", "magnetization"), KINDS)
def test_the_jacobian_is_that_of_the_per_sample_gradients(patch, amplitude, magnetization):
    for dtype, tolerance in ((np.float64, 1e-11), (np.float32, 2e-4)):
        psi, sigma = wave(patch, amplitude, magnetization, dtype=dtype), some(magnetization, 6)
        o = psi.reference.per_sample_gradients(sigma)
        o = (o - o.mean(axis=0)) / np.sqrt(len(sigma))
        rows = np.concatenate([o.real, o.imag]) if amplitude == "complex" else o.real
        jacobian = TapeJacobian(psi, sigma)
        generator = np.random.default_rng(2)
        x, y = generator.normal(size=rows.shape[1]), generator.normal(size=len(rows))
        gram, product = jacobian.gram_and_product(x)
        size = np.abs(rows @ rows.T).max()
        np.testing.assert_allclose(gram, rows @ rows.T, atol=tolerance * size)
        np.testing.assert_allclose(product, rows @ x, atol=tolerance * np.abs(rows @ x).max())
        back = jacobian.transposed_product(y)
        np.testing.assert_allclose(back, rows.T @ y, atol=tolerance * np.abs(rows.T @ y).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("patch", "amplitude", "magnetization"), KINDS)
def test_draws_follow_psi_squared(patch, amplitude, magnetization, dtype):
    """Chi-square over all configurations that are expected ten times or more; the others are counted together."""
    psi, n = wave(patch, amplitude, magnetization, dtype=dtype), 20_000
    draws = psi.twin(Draws)
    sigma, log_psi = draws.draw(numbers(psi.state.n_tokens, n))
    np.testing.assert_allclose(np.exp(log_psi[:500] - psi.reference.log_psi(sigma[:500])), 1, atol=1e-4)
    every = all_configurations(SITES)
    expected = n * np.exp(2 * psi.reference.log_psi(every).real)
    number = ((sigma < 0) << np.arange(SITES)[::-1]).sum(axis=1)
    np.testing.assert_array_equal(every[number], sigma)
    counted = np.bincount(number, minlength=len(every))
    assert counted[expected == 0].sum() == 0
    often = expected >= 10
    expected = np.append(expected[often], expected[~often].sum())
    counted = np.append(counted[often], counted[~often].sum())
    kept = expected > 0
    statistic = ((counted - expected)[kept] ** 2 / expected[kept]).sum()
    assert 1e-4 < chi2.sf(statistic, kept.sum() - 1) < 1 - 1e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_column_of_numbers_decides_alone(dtype):
    psi = wave(1, "complex", 0, dtype=dtype, sites=12)
    random = numbers(12, 200)
    draws = psi.twin(Draws)
    sigma, log_psi = draws.draw(random)
    for part in (slice(0, 1), slice(37, 150), slice(199, 200), slice(5, 5)):
        again, log_again = draws.draw(np.ascontiguousarray(random[:, part]))
        np.testing.assert_array_equal(again, sigma[part])
        np.testing.assert_array_equal(log_again, log_psi[part])


def test_the_plain_twin_draws_what_its_conditionals_say():
    """One number for every token: the spin is up or down as the sum of |psi|^2 over what may follow says."""
    psi = wave(2, "complex", 2)
    sigma, log_psi = TokenByToken(psi.state, psi.parameters).draw(numbers(4, 50))
    every = sector(2)
    weight = np.exp(2 * psi.log_psi(every).real)
    np.testing.assert_allclose(np.exp(log_psi - psi.log_psi(sigma)), 1, atol=1e-12)
    for own, random in zip(sigma, numbers(4, 50).T, strict=True):
        for t in range(4):
            known = (every[:, : 2 * t] == own[: 2 * t]).all(axis=1)
            outcomes = [(-1, -1), (1, -1), (-1, 1), (1, 1)]
            p = [weight[known & (every[:, 2 * t : 2 * t + 2] == o).all(axis=1)].sum() for o in outcomes]
            drawn = outcomes[int(np.searchsorted(np.cumsum(p), random[t] * np.sum(p)))]
            assert drawn == tuple(own[2 * t : 2 * t + 2])


def test_nan_parameters_are_seen():
    for magnetization in ("free", 0):
        psi = wave(1, "complex", magnetization, dtype=np.float32)
        psi.parameters[:] = np.nan
        assert np.isnan(psi.log_psi(some(magnetization, 3))).all()
        assert np.isnan(psi.reference.log_psi(some(magnetization, 3))).all()


def test_no_samples():
    psi = wave(dtype=np.float32)
    assert psi.log_psi(np.empty((0, SITES), np.int8)).shape == (0,)


@pytest.mark.parametrize(("patch", "amplitude", "magnetization"), KINDS)
@pytest.mark.parametrize("n", [1, 37, 130])
def test_fused_twin_equals_the_bricks(patch, amplitude, magnetization, n):
    state = network(patch, amplitude, magnetization, sites=12, width=16, heads=4)
    psi = state.bind(random_parameters(state, dtype=np.float32))
    sigma = some(magnetization, n, sites=12)
    np.testing.assert_allclose(np.exp(psi.log_psi(sigma) - psi.reference.log_psi(sigma)), 1, atol=2e-4)
    outside = some("free", 200, sites=12)
    zero = np.exp(psi.reference.log_psi(outside)) == 0
    np.testing.assert_array_equal(np.exp(psi.log_psi(outside)) == 0, zero)


@pytest.mark.parametrize(("patch", "amplitude", "magnetization"), KINDS)
def test_flipped_configurations_have_the_bits_of_log_psi(patch, amplitude, magnetization):
    """Where configurations part from the sample does not change a bit, nor does the place in a block."""
    psi = wave(patch, amplitude, magnetization, dtype=np.float32, sites=12)
    sigma, generator = some(magnetization, 90, sites=12), np.random.default_rng(7)
    signs = generator.choice(np.array([-1, 1, 1, 1], np.int8), size=(20, 12))
    signs[0] = 1
    pairs = np.argwhere(generator.random((90, 20)) < 0.3)
    flipped = psi.twin(Flips).log_psi_flipped(sigma, signs, pairs)
    np.testing.assert_array_equal(flipped, psi.log_psi(sigma[pairs[:, 0]] * signs[pairs[:, 1]]))
    assert psi.twin(Flips).log_psi_flipped(sigma, signs, pairs[:0]).shape == (0,)


def test_bits_depend_neither_on_the_place_nor_on_the_threads():
    import numba

    psi = wave(1, "complex", 0, dtype=np.float32, sites=12)
    sigma = some(0, 201, sites=12)
    whole = psi.log_psi(sigma)
    np.testing.assert_array_equal(psi.log_psi(sigma[63:77]), whole[63:77])
    drawn, log_drawn = psi.twin(Draws).draw(numbers(12, 201))
    np.testing.assert_array_equal(psi.log_psi(drawn), log_drawn)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        np.testing.assert_array_equal(psi.log_psi(sigma), whole)
    finally:
        numba.set_num_threads(threads)
