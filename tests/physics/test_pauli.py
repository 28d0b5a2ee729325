"""Sums of Pauli strings equal their Kronecker products, and the other Hamiltonians written as strings."""

import numpy as np
import pytest
from pydantic import ValidationError

from nqs_sae_service.physics.exact import all_configurations, ground_state
from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.hamiltonians.pauli import Pauli, PauliSum, Term
from nqs_sae_service.physics.lattices import LATTICES, Chain
from nqs_sae_service.physics.operators import basis_index
from nqs_sae_service.states.transformer import Transformer
from nqs_sae_service.vmc.estimators import local_values

PAULI = {
    "X": np.array([[0, 1], [1, 0]], complex),
    "Y": np.array([[0, -1j], [1j, 0]]),
    "Z": np.diag([1.0 + 0j, -1]),
}


def kronecker(n_sites, strings):
    matrix = np.zeros((2**n_sites, 2**n_sites), complex)
    for coefficient, letters, sites in strings:
        at, product = dict(zip(sites, letters, strict=True)), np.eye(1)
        for i in range(n_sites):
            product = np.kron(product, PAULI[at[i]] if i in at else np.eye(2))
        matrix += coefficient * product
    return matrix


def random_strings(seed, n_sites, count):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        length = rng.integers(1, n_sites + 1)
        sites = tuple(int(i) for i in rng.permutation(n_sites)[:length])
        yield float(rng.normal()), "".join(rng.choice(list("XYZ"), length)), sites


def chain(length, periodic=True):
    return Chain(kind="chain", length=length, periodic=periodic).build()


def pauli(*terms):
    return Pauli(kind="pauli", terms=tuple(Term(**term) for term in terms))


@pytest.mark.parametrize("seed", range(8))
def test_random_strings_are_their_kronecker_products(seed):
    strings = list(random_strings(seed, 5, 1 + 6 * seed))
    matrix = PauliSum(5, strings).to_sparse().toarray()
    np.testing.assert_allclose(matrix, kronecker(5, strings), atol=1e-13)
    np.testing.assert_allclose(matrix, matrix.conj().T, atol=1e-13)


@pytest.mark.parametrize("letters", ["X", "Y", "Z", "XY", "YY", "ZZ", "YXZ", "YYY"])
def test_single_strings(letters):
    sites = (2, 0, 3)[: len(letters)]
    operator = PauliSum(4, [(1.5, letters, sites)])
    np.testing.assert_allclose(operator.to_sparse().toarray(), kronecker(4, [(1.5, letters, sites)]))
    assert (operator.dtype == np.complex128) == (letters.count("Y") % 2 == 1)


def test_strings_that_flip_the_same_sites_share_an_element():
    operator = PauliSum(4, [(1, "XX", (0, 1)), (1, "YY", (1, 0)), (0.3, "XZX", (0, 2, 1)), (2, "X", (3,))])
    assert operator.n_connected == 2
    assert PauliSum(3, [(1, "X", (0,)), (-1, "X", (0,)), (2, "Z", (1,))]).n_connected == 0


def test_ising_model_as_strings():
    lattice = LATTICES["triangular"](kind="triangular", lengths=(3, 3)).build()
    strings = pauli(
        {"coefficient": -0.8, "string": "ZZ", "shell": 1},
        {"coefficient": -1.3, "string": "X"},
        {"coefficient": -0.2, "string": "Z"},
    )
    ising = HAMILTONIANS["tfim"](kind="tfim", J=0.8, h=1.3, hz=0.2)
    assert abs(strings.build(lattice).to_sparse() - ising.build(lattice).to_sparse()).max() < 1e-13
    assert strings.exact_energy(lattice) == pytest.approx(ising.exact_energy(lattice), rel=1e-12)


def test_heisenberg_model_as_strings():
    """S.S = (XX + YY + ZZ) / 4 on the first two shells, S^z = Z / 2."""
    lattice = LATTICES["square"](kind="square", length=3, periodic=False).build()
    terms = [
        {"coefficient": strength / 4, "string": string, "shell": shell}
        for shell, strength in ((1, 1.0), (2, 0.5))
        for string in ("XX", "YY", "ZZ")
    ]
    strings = pauli(*terms, {"coefficient": -0.15, "string": "Z"})
    heisenberg = HAMILTONIANS["heisenberg"](kind="heisenberg", J2=0.5, hz=0.3)
    assert abs(strings.build(lattice).to_sparse() - heisenberg.build(lattice).to_sparse()).max() < 1e-13
    assert strings.conserves_magnetization


def test_a_complex_hamiltonian_has_a_real_energy_and_complex_local_energies():
    """The Dzyaloshinskii-Moriya coupling D (S_i x S_j)^z beside J (XX + YY) is a twist of every bond: on an open chain
    rotations about z remove it, E(J, D) = E(sqrt(J^2 + D^2), 0)."""
    lattice, J, D = chain(8, periodic=False), 1.0, 0.7
    terms = [
        {"coefficient": c, "string": string, "sites": (i, i + 1)}
        for i in range(7)
        for c, string in ((J, "XX"), (J, "YY"), (D, "XY"), (-D, "YX"))
    ]
    record = pauli(*terms)
    assert record.conserves_magnetization
    plain = pauli(*({"coefficient": np.hypot(J, D), "string": s, "shell": 1} for s in ("XX", "YY")))
    assert record.exact_energy(lattice) == pytest.approx(plain.exact_energy(lattice), rel=1e-12)
    operator = record.build(lattice)
    exact, sigma = ground_state(operator), all_configurations(8)
    reached = abs(exact.vector) > 1e-8

    class Exact:
        def log_psi(self, spins):
            with np.errstate(divide="ignore"):
                return np.log(exact.vector[basis_index(spins)])

    (local,) = local_values(Exact(), [operator], sigma[reached], np.log(exact.vector[reached]))
    np.testing.assert_allclose(local, exact.energy, atol=1e-6)
    assert np.iscomplexobj(exact.vector)


@pytest.mark.parametrize(
    ("terms", "conserved"),
    [
        ([(1.0, "Z", None), (1.0, "ZZZ", (0, 1, 2))], True),
        ([(1.0, "X", None)], False),
        ([(1.0, "XX", (0, 1)), (1.0, "YY", (1, 0))], True),
        ([(1.0, "XX", (0, 1)), (0.5, "YY", (0, 1))], False),
        ([(1.0, "XY", (0, 1)), (-1.0, "YX", (0, 1))], True),
        ([(1.0, "XY", (0, 1)), (-1.0, "XY", (1, 0))], True),
        ([(1.0, "XY", (0, 1)), (1.0, "YX", (0, 1))], False),
        ([(1.0, "XZX", (0, 1, 2)), (1.0, "YZY", (0, 1, 2))], True),
        ([(1.0, "XZX", (0, 1, 2)), (1.0, "YYZ", (0, 2, 3))], False),
        ([(1.0, "XXXX", (0, 1, 2, 3))], False),
    ],
)
def test_conserved_magnetization_is_that_of_the_matrix(terms, conserved):
    record = pauli(*({"coefficient": c, "string": s, "sites": sites} for c, s, sites in terms))
    matrix, moment = record.build(chain(4)).to_sparse().toarray(), all_configurations(4).sum(axis=1)
    assert record.conserves_magnetization is conserved
    commutes = np.abs(matrix * (moment[:, None] - moment)).max() < 1e-12
    assert commutes == conserved


@pytest.mark.parametrize(
    "term",
    [
        {"string": "XA", "sites": (0, 1)},
        {"string": "XX"},
        {"string": "XX", "sites": (0, 0)},
        {"string": "XX", "sites": (0, 1, 2)},
        {"string": "XX", "sites": (0, -1)},
        {"string": "XY", "shell": 1},
        {"string": "X", "shell": 1},
        {"string": "XX", "shell": 1, "sites": (0, 1)},
        {"string": ""},
    ],
)
def test_impossible_strings_are_refused(term):
    with pytest.raises(ValidationError):
        Term(coefficient=1.0, **term)


def test_what_does_not_fit_lattice_or_state_is_found():
    record = pauli(
        {"coefficient": 1.0, "string": "Y", "sites": (0,)},
        {"coefficient": 1.0, "string": "ZZ", "sites": (0, 8)},
        {"coefficient": 1.0, "string": "ZZ", "shell": 5},
    )
    sections = {
        "lattice": Chain(kind="chain", length=8),
        "state": Transformer(kind="transformer", amplitude="positive"),
    }
    assert [f.key for f in record.findings(sections)] == ["terms[0]", "terms[1].sites", "terms[2].shell"]
