"""Free fermions after a quench against the evolution of all amplitudes, and the Pfaffian against its definition."""

import itertools

import numpy as np
import pytest

from nqs_sae_service.physics.free_fermions import IsingChain, IsingQuench, pfaffian
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.operators import basis_index
from nqs_sae_service.physics.quench import Quench

TIMES = (0.0, 0.3, 1.1, 4.7)


def tfim(h, J=1.0, **more):
    return Tfim(kind="tfim", h=h, J=J, **more)


def random_fields(seed, width=0.6):
    return {"disorder": "uniform", "disorder_width": width, "disorder_seed": seed}


def antisymmetric(size, seed=0):
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    return matrix - matrix.T


def expanded(matrix):
    """The Pfaffian by expansion along the first row."""
    rest = range(1, len(matrix))
    if not len(matrix):
        return 1.0
    minors = [[k for k in rest if k != j] for j in rest]
    return sum(
        (-1) ** (j - 1) * matrix[0, j] * expanded(matrix[np.ix_(kept, kept)])
        for j, kept in zip(rest, minors, strict=True)
    )


@pytest.mark.parametrize("size", [0, 2, 4, 6, 8])
def test_pfaffian_is_that_of_the_expansion(size):
    for seed in range(5):
        matrix = antisymmetric(size, seed)
        assert pfaffian(matrix) == pytest.approx(expanded(matrix), rel=1e-12)


def test_pfaffian_of_a_large_matrix():
    matrix = antisymmetric(60) / 8
    swapped = np.arange(60)
    swapped[[3, 41]] = 41, 3
    value, rotation = pfaffian(matrix), np.random.default_rng(1).normal(size=(60, 60)) / 8
    assert value**2 == pytest.approx(np.linalg.det(matrix), rel=1e-10)
    assert pfaffian(matrix[np.ix_(swapped, swapped)]) == pytest.approx(-value, rel=1e-10)
    assert pfaffian(rotation @ matrix @ rotation.T) == pytest.approx(
        np.linalg.det(rotation) * value, rel=1e-9
    )


def test_pfaffian_where_elimination_needs_pivots_and_of_a_singular_matrix():
    matrix = np.zeros((4, 4))
    matrix[0, 2], matrix[1, 3] = 2.0, 3.0
    assert pfaffian(matrix - matrix.T) == pytest.approx(-6.0)
    assert pfaffian(np.kron(antisymmetric(2), np.ones((3, 3)))) == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("periodic", [True, False], ids=["ring", "line"])
@pytest.mark.parametrize("length", [7, 8])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, tfim(1.0)),
        (None, tfim(0.4, -1.0)),
        (None, tfim(0.3, **random_fields(2, 1.0))),
        (tfim(0.4), tfim(1.3, 0.8)),
        (tfim(1.5, -0.7), tfim(0.2)),
        (tfim(0.0), tfim(0.7)),
        (tfim(1.0), tfim(0.0)),
        (tfim(0.5, -1.0), tfim(0.9, **random_fields(4))),
        (tfim(0.2, **random_fields(1)), tfim(0.3, **random_fields(3))),
    ],
)
def test_correlations_after_a_quench_are_those_of_all_amplitudes(periodic, length, before, after):
    """Also on frustrated rings, in no field before or after, and in fields of both signs."""
    lattice = Chain(kind="chain", length=length, periodic=periodic).build()
    quench = Quench(lattice, "x" if before is None else "ground_state", before, after)
    chains = [None if record is None else record.free_fermions(lattice) for record in (before, after)]
    fermions = IsingQuench(*chains)
    assert fermions.energy == pytest.approx(quench.initial.operator_expectation(quench._matrix), abs=1e-9)
    for t in TIMES:
        exact, gaussian = quench.state(t), fermions.at(t)
        sigma, psi = exact.configurations, exact.psi
        flipped = sigma[:, None] * (1 - 2 * np.eye(length, dtype=np.int8))
        sigma_x = (psi.conj()[:, None] * psi[basis_index(flipped)]).sum(axis=0).real
        np.testing.assert_allclose(gaussian.sigma_x, sigma_x, atol=1e-10)
        correlations = (sigma.T * exact.probability) @ sigma
        for i, j in itertools.product(range(length), repeat=2):
            assert gaussian.correlation(i, j) == pytest.approx(correlations[i, j], abs=1e-10)


@pytest.mark.parametrize("ring", [True, False])
def test_without_a_quench_the_ground_state_stays(ring):
    chain = IsingChain(1.0, tuple(np.random.default_rng(5).uniform(-1, 2, 30).tolist()), ring)
    state, pairs = IsingQuench(chain, chain).at(3.0), itertools.combinations(range(0, 30, 4), 2)
    np.testing.assert_allclose(state.sigma_x, chain.sigma_x, atol=1e-12)
    for i, j in pairs:
        assert state.correlation(i, j) == pytest.approx(chain.correlation_matrix[i, j], abs=1e-12)
    assert IsingQuench(chain, chain).energy == pytest.approx(chain.energy, rel=1e-12)


def test_energy_of_a_long_chain_is_conserved_and_its_field_relaxes():
    """From all spins along x at J = h the field tends to 1/2 and oscillates about it (Barouch & McCoy)."""
    quench = IsingQuench(None, IsingChain(1.0, (1.0,) * 100, ring=True))
    for t in (0.5, 5.0, 12.0):
        state = quench.at(t)
        assert -100 * (state.sigma_x.mean() + state.correlation(7, 8)) == pytest.approx(
            quench.energy, rel=1e-12
        )
    assert quench.at(20.0).sigma_x.mean() == pytest.approx(0.5, abs=2e-3)
