"""Observables: values on known configurations, symmetries, the algebra between them, and their names."""

import numpy as np
import pytest

from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.observables import (
    UnknownObservable,
    check_observable,
    explained_r2,
    make_observable,
    observable_kind,
    observable_names,
    simple_functions,
)

ODD = {"magnetization", "staggered_magnetization"}
STAGGERED_SIGN = {"staggered_magnetization", "dimer_zz_x"}


def chain(length, periodic=True):
    return Chain(kind="chain", length=length, periodic=periodic).build()


def make(name, lattice):
    return make_observable(name, lattice, HAMILTONIANS["tfim"](kind="tfim", h=1.0).build(lattice))


def values(name, sigma, periodic=True):
    return make(name, chain(sigma.shape[1], periodic)).values(sigma)


def random_sigma(n, n_sites, seed=0):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(n, n_sites))


def diagonal_names(n_sites):
    lattice = chain(n_sites)
    return [name for name in observable_names(lattice) if observable_kind(name, lattice) == "diagonal"]


def test_known_configurations():
    up, neel = np.ones((1, 8), np.int8), np.resize(np.array([1, -1], np.int8), (1, 8))
    kink = np.array([[1, 1, 1, 1, -1, -1, -1, -1]], np.int8)
    assert values("magnetization", -up) == -1
    assert values("abs_magnetization", -up) == 1
    assert values("staggered_magnetization", neel) == 1
    assert values("staggered_magnetization_squared", -neel) == 1
    assert values("domain_walls", neel) == 1
    assert values("domain_walls", kink) == pytest.approx(2 / 8)
    assert values("domain_walls", kink, periodic=False) == pytest.approx(1 / 7)
    assert values("half_chain_correlation", kink) == -1
    assert values("correlation_3_4", kink) == -1
    assert values("correlation_r_1", kink) == pytest.approx(0.5)
    assert values("structure_factor_4", neel) == pytest.approx(8)
    assert values("structure_factor_0", neel) == pytest.approx(0)


@pytest.mark.parametrize("name", diagonal_names(8))
def test_values_are_float64_per_sample(name):
    result = values(name, random_sigma(5, 8))
    assert result.shape == (5,)
    assert result.dtype == np.float64
    assert values(name, random_sigma(0, 8)).shape == (0,)


@pytest.mark.parametrize("name", diagonal_names(8))
def test_spin_flip_parity(name):
    sigma = random_sigma(20, 8)
    sign = -1 if name in ODD else 1
    np.testing.assert_allclose(values(name, -sigma), sign * values(name, sigma), atol=1e-12)


@pytest.mark.parametrize("name", [name for name in diagonal_names(8) if name != "correlation_0_4"])
def test_translation_invariance_on_a_ring(name):
    sigma = random_sigma(20, 8)
    for shift, permutation in enumerate(chain(8).translations()):
        sign = (-1) ** shift if name in STAGGERED_SIGN else 1
        np.testing.assert_allclose(
            values(name, sigma[:, permutation]), sign * values(name, sigma), atol=1e-12
        )


@pytest.mark.parametrize("periodic", [True, False])
def test_degree_tells_the_truth(periodic):
    """f(t v) - f(0) = t^degree (f(v) - f(0)), and the second difference of a linear form vanishes."""
    lattice = chain(6, periodic)
    v = np.random.default_rng(1).normal(size=(4, 6))
    for name in diagonal_names(6):
        observable = make(name, lattice)
        if observable.degree is None:
            continue
        constant = observable.values(0 * v)
        scaled = observable.values(3 * v) - constant
        np.testing.assert_allclose(
            scaled, 3**observable.degree * (observable.values(v) - constant), atol=1e-10
        )


@pytest.mark.parametrize("length", [8, 9])
def test_sum_rules(length):
    sigma = random_sigma(30, length)
    structure = [values(f"structure_factor_{k}", sigma) for k in range(length)]
    np.testing.assert_allclose(np.mean(structure, axis=0), 1, atol=1e-12)
    np.testing.assert_allclose(structure[0], length * values("magnetization_squared", sigma), atol=1e-12)
    correlations = [values(f"correlation_r_{r}", sigma) for r in range(1, length)]
    np.testing.assert_allclose(1 + np.sum(correlations, axis=0), structure[0], atol=1e-12)
    np.testing.assert_allclose(
        values("half_chain_correlation", sigma),
        np.mean(
            [values(f"correlation_{i}_{(i + length // 2) % length}", sigma) for i in range(length)], axis=0
        ),
        atol=1e-12,
    )


def test_open_half_chain_correlation_averages_existing_pairs():
    sigma = random_sigma(10, 5)
    pairs = [values(f"correlation_{i}_{i + 2}", sigma, periodic=False) for i in range(3)]
    np.testing.assert_allclose(
        values("half_chain_correlation", sigma, periodic=False), np.mean(pairs, axis=0)
    )


def test_kinds():
    lattice = chain(6)
    hamiltonian = HAMILTONIANS["tfim"](kind="tfim", h=1.0).build(lattice)
    energy = make_observable("local_energy", lattice, hamiltonian)
    assert energy.kind == "local"
    assert energy.operator is hamiltonian
    assert energy.units == "J"
    assert make("sigma_x", lattice).operator.n_connected == 6
    with pytest.raises(TypeError, match="operator"):
        energy.values(random_sigma(1, 6))
    log_abs_psi = make("log_abs_psi", lattice)
    assert log_abs_psi.kind == "log_psi"
    assert log_abs_psi.values(np.array([0.5 + 2j]))[0] == 0.5
    assert make("correlation_1_4", lattice).long_name == "sigma^z_1 sigma^z_4"


@pytest.mark.parametrize("n_sites", [2, 3, 16, 4096])
def test_every_listed_name_is_valid(n_sites):
    lattice = chain(n_sites)
    names = observable_names(lattice)
    assert len(set(names)) == len(names)
    for name in names:
        check_observable(name, lattice)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("magnetisation", "magnetization"),
        ("halfchain", "half_chain_correlation"),
        ("corelation_0_4", "correlation_0_4"),
        ("correlation_r", "correlation_r_<r>"),
        ("sigmax", "sigma_x"),
        ("correlation_00_4", "correlation_0_4"),
    ],
)
def test_misspelt_names_suggest_the_nearest(name, expected):
    with pytest.raises(UnknownObservable) as error:
        check_observable(name, chain(8))
    assert expected in error.value.candidates
    assert error.value.name == name
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("correlation_0_8", "j = 8 is outside 0 ... 7"),
        ("correlation_r_0", "r = 0 is outside 1 ... 7"),
        ("structure_factor_8", "k = 8 is outside 0 ... 7"),
        ("correlation_3_3", "i and j must differ"),
        ("correlation_0_-1", "unknown observable"),
        ("", "unknown observable"),
        ("m\n" * 1000, "unknown observable"),
        ("correlation_0_" + "9" * 5000, "unknown observable"),
    ],
)
def test_impossible_names_say_why(name, what):
    with pytest.raises(UnknownObservable) as error:
        check_observable(name, chain(8))
    assert what in error.value.what
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_simple_functions_explain_themselves_and_not_noise():
    lattice, sigma = chain(10), random_sigma(4000, 10)
    design = simple_functions(lattice, sigma)
    assert design.shape == (4000, 6)
    rng = np.random.default_rng(3)
    inside = design @ rng.normal(size=(6, 2)) + 5.0
    noise = rng.normal(size=(4000, 1))
    r2 = explained_r2(design, np.concatenate([inside, noise, np.full((4000, 1), 0.1)], axis=1))
    np.testing.assert_allclose(r2[:2], 1, atol=1e-12)
    assert 0 <= r2[2] < 0.01
    assert np.isnan(r2[3])


def test_explained_share_of_signal_plus_noise():
    lattice, sigma = chain(10), random_sigma(20000, 10)
    m = values("magnetization", sigma)
    y = m / m.std() + 0.5 * np.random.default_rng(4).normal(size=len(m))
    assert explained_r2(simple_functions(lattice, sigma), y) == pytest.approx(1 / 1.25, abs=0.01)
