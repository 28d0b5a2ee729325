"""Projected states: symmetric, equal to the plain sum over the group, and so are their derivatives, also when edited."""

import numpy as np
import pytest

from nqs_sae_service.engine.economy import Economy
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import Chain, Square
from nqs_sae_service.states import Cnn, Jastrow, Rbm, Transformer, Wavefunction
from nqs_sae_service.states.projection import Symmetry
from nqs_sae_service.vmc.estimators import local_values
from nqs_sae_service.vmc.jacobian import TapeJacobian

RING, SQUARE = Chain(kind="chain", length=8), Square(kind="square", length=4)
SMALL = {"width": 8, "heads": 2, "layers": 1, "mlp_ratio": 2}
EVEN = Symmetry(translations=True, point_group=True, spin_flip=1)
CASES = {
    "positive ring": (RING, Transformer(patch=2, **SMALL, symmetry=EVEN), 8),
    "positive square": (SQUARE, Transformer(patch=2, **SMALL, symmetry=EVEN), 64),
    "complex square": (SQUARE, Transformer(patch=2, **SMALL, amplitude="complex", symmetry=EVEN), 64),
    "positional square": (
        SQUARE,
        Transformer(
            patch=2, **SMALL, amplitude="complex", attention="positional", symmetry=Symmetry(point_group=True, irrep="B2")
        ),
        8,
    ),
    "momentum of a ring": (
        RING,
        Transformer(
            patch=2,
            **SMALL,
            amplitude="complex",
            translation_invariant=False,
            symmetry=Symmetry(translations=True, momentum=(1,)),
        ),
        8,
    ),
    "rbm": (
        SQUARE,
        Rbm(kind="rbm", symmetry=Symmetry(translations=True, momentum=(2, 2), point_group=True, irrep="A1", spin_flip=1)),
        256,
    ),
    "cnn": (
        SQUARE,
        Cnn(
            channels=4,
            blocks=1,
            amplitude="complex",
            symmetry=Symmetry(translations=True, point_group=True, irrep="B2", spin_flip=-1),
        ),
        16,
    ),
    "jastrow": (SQUARE, Jastrow(symmetry=EVEN), 16),
    "jastrow with pairs of its own": (
        RING,
        Jastrow(translation_invariant=False, amplitude="complex", symmetry=Symmetry(translations=True, momentum=(2,))),
        8,
    ),
    "symmetric rbm": (RING, Rbm(kind="rbm", symmetric=True, symmetry=EVEN), 4),
    "rbm on a ring": (RING, Rbm(kind="rbm", symmetry=Symmetry(point_group=True, irrep="A2", spin_flip=-1)), 4),
}  # fmt: skip


def wave(name, dtype=np.float64, plain=False):
    geometry, record, copies = CASES[name]
    state = record.build(geometry.build())
    assert state.n_copies == copies
    noise = 0.3 * np.random.default_rng(0).normal(size=state.n_parameters)
    return Wavefunction(state, (state.initial_parameters(1) + noise).astype(dtype), plain)


def configurations(name, n=5):
    """Random ones, but for those that the symmetry forbids."""
    psi = wave(name, plain=True)
    sigma = np.random.default_rng(5).choice(np.array([-1, 1], np.int8), size=(40, psi.state.n_sites))
    terms = np.abs(np.exp(psi.bare.log_psi(psi.state.symmetry.copies(sigma)))).reshape(40, -1)
    allowed = np.abs(np.exp(psi.log_psi(sigma))) > 1e-6 * terms.max(axis=1)
    return sigma[allowed][:n]


def group_of(name):
    geometry, record, _ = CASES[name]
    return record.symmetry.group(geometry.build())


@pytest.mark.parametrize("name", CASES)
def test_the_plain_sum_over_the_group_and_its_symmetry(name):
    psi, sigma, group = wave(name, plain=True), configurations(name), group_of(name)
    copies = np.stack(
        [sigma[:, p] * f for p, f in zip(group.permutations, group.flips, strict=True)], axis=1
    ).reshape(-1, sigma.shape[1])
    terms = np.exp(psi.bare.log_psi(copies)).reshape(len(sigma), len(group))
    wanted = (terms * group.characters.conj()).mean(axis=1)
    np.testing.assert_allclose(np.exp(psi.log_psi(sigma)), wanted, rtol=1e-9)
    np.testing.assert_allclose(np.exp(psi.tape(sigma).log_psi), wanted, rtol=1e-9)
    moved = np.exp(psi.log_psi(copies)).reshape(terms.shape)
    np.testing.assert_allclose(moved, wanted[:, None] * group.characters, rtol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_the_fast_twin(name):
    psi, sigma = wave(name, np.float32), configurations(name)
    assert psi.fused is not None
    np.testing.assert_allclose(np.exp(psi.log_psi(sigma) - psi.reference.log_psi(sigma)), 1, atol=5e-4)


@pytest.mark.parametrize("name", CASES)
def test_gradients_by_finite_differences_and_the_jacobian(name):
    psi, sigma = wave(name, plain=True), configurations(name)
    o = psi.per_sample_gradients(sigma)
    assert np.iscomplexobj(o) == psi.state.complex_amplitude
    step, generator = 1e-5, np.random.default_rng(3)
    for _ in range(4):
        along = generator.normal(size=psi.state.n_parameters)
        ahead, behind = (
            Wavefunction(psi.state, psi.parameters + s * along, plain=True).log_psi(sigma)
            for s in (step, -step)
        )
        slope = np.log(np.exp(ahead - behind))  # phases are known modulo 2 pi
        np.testing.assert_allclose(
            slope / (2 * step), o @ along, rtol=1e-6, atol=1e-6 * np.abs(o @ along).max()
        )
    o = (o - o.mean(axis=0)) / np.sqrt(len(sigma))
    o = np.concatenate([o.real, o.imag]) if np.iscomplexobj(o) else o
    jacobian = TapeJacobian(psi, sigma)
    vector, y = generator.normal(size=o.shape[1]), generator.normal(size=o.shape[0])
    t, product = jacobian.gram_and_product(vector)
    scale = np.abs(o).max() ** 2
    np.testing.assert_allclose(t, o @ o.T, atol=1e-10 * scale * o.shape[1])
    np.testing.assert_allclose(product, o @ vector, atol=1e-10 * scale * o.shape[1])
    np.testing.assert_allclose(jacobian.transposed_product(y), o.T @ y, atol=1e-10 * scale * o.shape[1])


@pytest.mark.parametrize("name", ["positive square", "complex square", "cnn", "jastrow", "rbm on a ring"])
def test_an_edit_acts_on_every_copy(name):
    psi, sigma, group = wave(name, plain=True), configurations(name), group_of(name)
    layer = psi.state.layers[0]

    def edit(x):
        return x + 0.1 * np.tanh(x[..., ::-1])

    edited = psi.edited(layer, edit)
    copies = psi.state.symmetry.copies(sigma)
    rows = psi.bare.edited(layer, edit).log_psi(copies).reshape(len(sigma), -1)
    chi = psi.state.symmetry.elements.characters
    np.testing.assert_allclose(
        np.exp(edited.log_psi(sigma)), (np.exp(rows) * chi.conj()).mean(axis=1), rtol=1e-9
    )
    g = len(group) // 2
    moved = sigma[:, group.permutations[g]] * group.flips[g]
    np.testing.assert_allclose(
        np.exp(edited.log_psi(moved)), group.characters[g] * np.exp(edited.log_psi(sigma)), rtol=1e-8
    )
    push = lambda x: np.tanh(x[..., ::-1])  # noqa: E731
    ahead, behind = (psi.edited(layer, lambda x, s=s: x + s * push(x)).log_psi(sigma) for s in (1e-5, -1e-5))
    slope = np.log(np.exp(ahead - behind)) / 2e-5
    np.testing.assert_allclose(psi.layer_tangent(sigma, layer, push), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_activations_are_those_of_the_configuration_itself(name):
    psi, sigma = wave(name, plain=True), configurations(name)
    layer = psi.state.layers[0]
    np.testing.assert_array_equal(psi.stream_at(sigma, layer), psi.bare.stream_at(sigma, layer))


@pytest.mark.parametrize(
    "name",
    [
        "positive ring",
        "complex square",
        "positional square",
        "rbm",
        "jastrow",
        "symmetric rbm",
        "rbm on a ring",
    ],
)
def test_local_energies_with_and_without_increments(name):
    geometry, _, _ = CASES[name]
    psi, sigma = wave(name, np.float64 if "rbm" in name else np.float32), configurations(name)
    hamiltonian = HAMILTONIANS["heisenberg"](kind="heisenberg", J2=0.5).build(geometry.build())
    found = [
        local_values(psi, [hamiltonian], sigma, psi.log_psi(sigma), Economy(0, increments=on))[0]
        for on in (True, False)
    ]
    reference = psi.reference
    wanted = local_values(reference, [hamiltonian], sigma, reference.log_psi(sigma))[0]
    tolerance = 1e-8 if "rbm" in name else 2e-3
    for values in found:
        np.testing.assert_allclose(values, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max())


def test_a_positive_state_knows_no_other_character():
    record = Transformer(patch=2, **SMALL, translation_invariant=False, symmetry=Symmetry(spin_flip=-1))
    with pytest.raises(Exception, match="characters 1 only"):
        record.build(RING.build())


def test_forbidden_configurations_have_no_amplitude():
    state = Rbm(kind="rbm", symmetry=Symmetry(translations=True, momentum=(4,))).build(RING.build())
    psi = state.bind(0.1 * np.random.default_rng(0).normal(size=state.n_parameters))
    assert psi.log_psi(np.ones((1, 8), np.int8)).real < -30
    everything = np.exp(2 * psi.log_psi(all_configurations(8)).real)
    assert np.isfinite(everything).all()
