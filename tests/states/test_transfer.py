"""A network carried to a larger lattice is the same function where the two lattices cannot be told apart."""

import numpy as np
import pytest

from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import LATTICES, Chain, Square
from nqs_sae_service.states import Cnn, Rbm, Transformer
from nqs_sae_service.states.displacements import embedded
from nqs_sae_service.states.loading import Misfit
from nqs_sae_service.states.transfer import transferred


def ring(n, periodic=True):
    return Chain(kind="chain", length=n, periodic=periodic).build()


def square(n):
    return Square(kind="square", length=n).build()


def transformer(**options):
    return Transformer(**{"patch": 2, "width": 8, "heads": 2, "layers": 2, "precision": "float64", **options})


def lengths(kind, n):
    return {"length": n} if kind == "square" else {"lengths": (n, n)}


def factored(length, periodic=True):
    return transformer(attention="positional").build(ring(length, periodic))


def parameters_of(state, seed=3):
    return state.initial_parameters(seed) + 0.1 * np.random.default_rng(seed).normal(size=state.n_parameters)


def plain(state, parameters, sigma, layer):
    """Activations by the bricks."""
    return state.bind(parameters).reference.tape(sigma).edges[layer]


def test_weights_keep_their_displacement_and_their_sum():
    old = np.arange(1.0, 5.0)[None]  # displacements 0, 1, 2 = -2, -1
    np.testing.assert_array_equal(embedded(old, (4,), (7,), nearest=False), [[1, 2, 1.5, 0, 0, 1.5, 4]])
    np.testing.assert_array_equal(embedded(old[:, :3], (3,), (6,), nearest=False), [[1, 2, 0, 0, 0, 3]])
    np.testing.assert_array_equal(embedded(old, (4,), (7,), nearest=True), [[1, 2, 3, 3, 4, 4, 4]])
    np.testing.assert_array_equal(embedded(old[:, :3], (3,), (3,), nearest=True), old[:, :3])
    square = np.random.default_rng(0).normal(size=(2, 6))
    larger = embedded(square, (2, 3), (4, 3), nearest=False).reshape(2, 4, 3)
    np.testing.assert_array_equal(larger[:, 0], square.reshape(2, 2, 3)[:, 0])
    np.testing.assert_array_equal(larger[:, 1], larger[:, 3])
    np.testing.assert_allclose(larger.sum(axis=(1, 2)), square.sum(axis=1))


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
@pytest.mark.parametrize("attention", ["positional", "full"])
def test_the_same_lattice_gives_the_same_parameters(attention, amplitude):
    state = transformer(attention=attention, amplitude=amplitude).build(ring(8))
    parameters = parameters_of(state)
    np.testing.assert_array_equal(transferred(state, parameters, state), parameters)


@pytest.mark.parametrize(
    "lattices",
    [
        (ring(8), ring(16)),
        *[
            (Square(kind="square", length=n).build(), Square(kind="square", length=2 * n).build())
            for n in (4,)
        ],
    ],
)
def test_every_token_of_a_uniform_state_has_the_same_activations(lattices):
    """Attention of tokens that are all alike sees the sum of its weights only, which is kept."""
    small, large = (transformer(attention="positional").build(lattice) for lattice in lattices)
    parameters = parameters_of(small)
    carried = transferred(small, parameters, large)
    pattern = np.ones(small.n_sites, np.int8), np.ones(large.n_sites, np.int8)
    for layer in ("embedding", "residual_1", "residual_2", "head"):
        a = plain(small, parameters, pattern[0][None], layer)
        b = plain(large, carried, pattern[1][None], layer)
        np.testing.assert_allclose(a[0, 0], b[0, 0], atol=1e-5)


@pytest.mark.parametrize("kind", ["square", "triangular", "kagome"])
def test_filters_of_a_symmetric_rbm_keep_what_they_see(kind):
    """Of spins that are alike in all cells they see the sum; log psi then grows as the number of cells."""
    small, large = (LATTICES[kind].model_validate({"kind": kind, **lengths(kind, n)}).build() for n in (3, 5))
    states = [Rbm(symmetric=True, alpha=2).build(lattice) for lattice in (small, large)]
    parameters = parameters_of(states[0])
    carried = transferred(states[0], parameters, states[1])
    cell = np.array([1, -1, 1], np.int8)[: small.basis]
    values = [
        state.bind(p).reference.log_psi(np.tile(cell, state.n_sites // small.basis)[None])
        for state, p in zip(states, (parameters, carried), strict=True)
    ]
    np.testing.assert_allclose(np.exp(values[1] - values[0] * 25 / 9), 1, rtol=1e-10)
    weight = states[1].unpack(carried)["hidden.weight"].reshape(5, 5, -1)
    assert not weight[2:4].any()
    assert not weight[:, 2:4].any()
    assert weight[[0, 1, 4]][:, [0, 1, 4]].all()


def test_a_convolutional_network_is_copied_and_its_head_grows():
    small, large = (
        Cnn(channels=6, precision="float64").build(
            LATTICES["square"].model_validate({"kind": "square", "length": n}).build()
        )
        for n in (4, 6)
    )
    parameters = parameters_of(small)
    before, after = small.unpack(parameters), large.unpack(transferred(small, parameters, large))
    for name, array in before.items():
        growth = 36 / 16 if name.startswith("head.real_norm.") else 1.0
        np.testing.assert_allclose(after[name], growth * array, rtol=1e-14)


def test_far_from_each_other_old_neighbourhoods_look_the_same():
    """With weights that reach half a ring, a token far from every spin that differs cannot know the size of the ring."""
    small, large = (transformer(attention="positional", layers=1).build(ring(n)) for n in (12, 24))
    parameters = parameters_of(small)
    carried = transferred(small, parameters, large)
    generator = np.random.default_rng(1)
    sigma = np.ones((1, 24), np.int8)
    sigma[0, 6:17] = generator.choice(
        [-1, 1], size=11
    )  # the six tokens around token 5, and no half-weight spins
    window = np.ones((1, 12), np.int8)
    window[0] = sigma[0, 6:18]
    weights = small.unpack(parameters)["attention_1.mix.weight"]
    weights[:, 3] = 0  # the displacement with two nearest images
    carried = transferred(small, parameters, large)
    inner = plain(large, carried, sigma, "residual_1")[0, 5]
    alone = plain(small, parameters, window, "residual_1")[0, 2]
    np.testing.assert_allclose(inner, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "target", "named"),
    [
        (*(Rbm(symmetric=True).build(lattice) for lattice in (ring(16), square(4))), r"grid \(16,\), here it is \(4, 4\)"),
        (Rbm().build(ring(8)), Rbm().build(ring(12)), r"hidden\.weight \(8, 16\), needed \(12, 24\)"),
        (factored(8), factored(4), r"attention_1\.mix\.weight \(2, 4\), needed \(2, 2\)"),
        (factored(8, False), factored(12, False), r"attention_1\.mix\.weight \(2, 4, 4\), needed \(2, 6, 6\)"),
        (*(transformer().build(ring(n, False)) for n in (8, 12)), r"position\.code \(4, 8\), needed \(6, 8\)"),
        (transformer().build(ring(8)), transformer(width=16).build(ring(8)), r"embedding\.weight \(2, 8\), needed \(2, 16\)"),
        (transformer().build(ring(8)), transformer(layers=3).build(ring(8)), r"missing: attention_3"),
        (transformer(layers=3).build(ring(8)), transformer().build(ring(8)), r"no parameter attention_3"),
        (transformer().build(ring(8)), Rbm().build(ring(8)), r"no parameter embedding\.weight"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_is_named(source, target, named):
    with pytest.raises(Misfit, match=named):
        transferred(source, parameters_of(source), target)


def _exact(state, hamiltonian, parameters, configurations):
    """Energy, its gradient (P,) and the metric S (P, P), summed over all configurations."""
    tape = state.bind(parameters).reference.tape(configurations)
    psi = np.exp(tape.log_psi - tape.log_psi.max())
    p = psi**2 / (psi @ psi)
    derivatives = np.concatenate([g for _, g in tape.gradients(tape.backward())], axis=1)
    derivatives -= p @ derivatives
    local = hamiltonian @ psi / psi
    weighted = p[:, None] * derivatives
    return p @ local, 2 * local @ weighted, derivatives.T @ weighted


def _problem(length):
    lattice = ring(length)
    state = Transformer(patch=2, width=6, heads=2, layers=1, attention="positional", precision="float64")
    hamiltonian = HAMILTONIANS["tfim"].model_validate({"kind": "tfim", "h": 1.0})
    return (
        state.build(lattice),
        hamiltonian.build(lattice).to_sparse(),
        all_configurations(length),
        hamiltonian.exact_energy(lattice),
    )


def test_a_trained_network_is_a_better_start_on_a_larger_ring_than_a_random_one():
    state, hamiltonian, configurations, exact = _problem(8)
    parameters = state.initial_parameters(1)
    for _ in range(80):
        energy, gradient, metric = _exact(state, hamiltonian, parameters, configurations)
        parameters = parameters - 0.05 * np.linalg.solve(metric + 1e-3 * np.eye(len(metric)), gradient)
    assert energy - exact < 0.01 * abs(exact)
    larger, hamiltonian, configurations, exact = _problem(12)
    carried = transferred(state, parameters, larger)
    energy, *_ = _exact(larger, hamiltonian, carried, configurations)
    random, *_ = _exact(larger, hamiltonian, larger.initial_parameters(1), configurations)
    assert 0 <= energy - exact < 0.1 * (random - exact)
