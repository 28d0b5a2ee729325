"""States of nearly the same energy: planted cases, and every estimate against the sum over all configurations."""

import numpy as np
import pytest

from nqs_sae_service.interpret import alarm
from nqs_sae_service.physics.exact import FullSummation, all_configurations
from nqs_sae_service.physics.hamiltonians.tfim import TransverseFieldIsing
from nqs_sae_service.physics.lattices import LATTICES
from nqs_sae_service.vmc.statistics import weighted_mean

SITES, CHAINS, DRAWS = 8, 32, 64
SIGMA = all_configurations(SITES)
MIRROR = np.arange(2**SITES)[::-1]  # the place of the flipped configuration
MAGNETIZATION = SIGMA.mean(axis=1)
CAT = 0.6 * np.abs(SIGMA.sum(axis=1)) / 2  # log psi, both sectors
UP = CAT + 0.8 * SIGMA.sum(axis=1)
DOWN = UP[MIRROR]
NAMES = ["magnetization", "abs_magnetization"]


def born(log_psi: np.ndarray, seed: int, chains: int = CHAINS) -> np.ndarray:
    """Places (chain, draw) of independent samples of |psi|^2."""
    p = FullSummation.from_log_psi(SITES, log_psi).probability
    return np.random.default_rng(seed).choice(len(p), size=(chains, DRAWS), p=p)


def values(places: np.ndarray) -> np.ndarray:
    return np.stack([MAGNETIZATION[places], np.abs(MAGNETIZATION[places])], axis=-1)


def estimate(log_a: np.ndarray, log_b: np.ndarray, seed: int = 1) -> alarm.Fidelity:
    a, b = born(log_a, seed), born(log_b, seed + 1)
    return alarm.fidelity((log_b - log_a)[a], (log_a - log_b)[b])


def judged(log_a: np.ndarray, log_b: np.ndarray, energy=(-10.0, -10.0), carriers=()) -> alarm.Pair:
    """Two states as a sweep would compare them; both energies with the error 1e-3."""
    places = born(log_a, 3), born(log_b, 4)
    found = alarm.difference(*map(values, places))
    bound = alarm.fidelity_bound(*(MAGNETIZATION[p] for p in places))
    return alarm.Pair(
        ("a", "b"),
        energy,
        (1e-3, 1e-3),
        (1e-5, np.nan),
        NAMES,
        found.counts(2),
        found,
        alarm.fidelity((log_b - log_a)[places[0]], (log_a - log_b)[places[1]]),
        np.nan,
        bound,
        list(carriers),
    )


def test_states_in_opposite_sectors_raise_the_alarm():
    pair = judged(UP, DOWN, carriers=[alarm.Carrier(0, "residual_1", 17, 3.2, 60.0, "magnetization", 0.9)])
    assert pair.kind == "alarm"
    assert pair.differing.tolist() == [True, False]
    sentence = alarm.verdict(pair)
    assert sentence.startswith("alarm: energies of a and b lie within")
    assert "magnetization differs: +0.9" in sentence
    assert "feature 17 of a at residual_1 carries it" in sentence


def test_the_same_state_twice_agrees():
    pair = judged(UP, UP)
    assert pair.kind == "agree"
    assert alarm.verdict(pair).startswith("agree: ")
    assert pair.fidelity.known
    assert pair.fidelity.value == pytest.approx(1.0)


def test_states_of_different_energy_are_not_comparable():
    sentence = alarm.verdict(judged(UP, DOWN, energy=(-10.0, -9.5)))
    assert sentence.startswith("not comparable: energies of a and b differ by 0.5 J")
    assert sentence.endswith("a is lower.")


def test_equal_observables_and_a_small_fidelity_raise_the_alarm():
    """An odd partner of the cat: every diagonal observable agrees, the states are orthogonal."""
    odd = CAT + 1j * np.pi * (SIGMA.sum(axis=1) < 0)
    odd = np.where(SIGMA.sum(axis=1) == 0, -20.0, odd)
    pair = judged(CAT.astype(complex), odd)
    assert not pair.differing.any()
    assert pair.fidelity.value < 0.05
    assert pair.kind == "alarm"
    assert "yet they are other states" in alarm.verdict(pair)


@pytest.mark.parametrize("strength", [0.0, 0.02, 0.1, 0.2])
def test_the_fidelity_is_that_of_the_full_sum(strength):
    generator = np.random.default_rng(5)
    log_a = CAT + 0.3 * generator.normal(size=len(CAT)) + 0.2j * generator.normal(size=len(CAT))
    log_b = log_a + strength * (SIGMA.sum(axis=1) + 2j * SIGMA[:, 0])
    exact = alarm.exact_fidelity(log_a, log_b)
    states = [FullSummation.from_log_psi(SITES, log_psi) for log_psi in (log_a, log_b)]
    assert exact == pytest.approx(1 - states[0].infidelity(states[1]))
    found = estimate(log_a, log_b)
    assert found.known
    assert abs(found.value - exact) <= 4 * found.error + 1e-12


def test_the_error_of_the_fidelity_is_its_scatter():
    log_b = CAT + 0.1 * SIGMA.sum(axis=1)
    found = [estimate(CAT, log_b, seed) for seed in range(0, 120, 2)]
    scatter = np.std([each.value for each in found])
    assert np.mean([each.error for each in found]) == pytest.approx(scatter, rel=0.25)


def test_samples_that_do_not_reach_each_other_give_a_bound_only():
    pair = judged(3 * UP, 3 * DOWN)
    assert not pair.fidelity.known
    assert pair.fidelity_bound >= alarm.exact_fidelity(3 * UP, 3 * DOWN)
    assert pair.best_fidelity == pair.fidelity_bound < 0.1
    assert "fidelity at most" in alarm.verdict(pair)


@pytest.mark.parametrize("strength", [0.05, 0.2, 0.5])
def test_the_bound_lies_above_the_fidelity(strength):
    log_b = CAT + strength * SIGMA.sum(axis=1)
    bound = alarm.fidelity_bound(MAGNETIZATION[born(CAT, 1)], MAGNETIZATION[born(log_b, 2)])
    assert bound >= alarm.exact_fidelity(CAT, log_b) - 0.02


def test_many_samples_do_not_raise_an_alarm_about_nothing():
    generator = np.random.default_rng(2)
    a, b = (generator.normal(size=(64, 2000, 1)) for _ in range(2))
    found = alarm.difference(a + 0.05, b)
    assert found.z[0] > 5
    assert not found.counts(1).any()


def test_equal_states_are_rarely_told_apart():
    """Family-wise: of 200 comparisons of 20 observables at most a few find one that differs, effect size aside."""
    generator = np.random.default_rng(3)
    wrong = sum(
        (alarm.difference(*generator.normal(size=(2, 8, 4, 20))).adjusted(20) < 0.05).any()
        for _ in range(200)
    )
    assert wrong <= 20


def test_constant_and_missing_quantities_are_no_difference():
    same = alarm.difference(np.ones((4, 8, 1)), np.ones((4, 8, 1)))
    assert not same.counts(1).any()
    assert same.z[0] == 0
    other = alarm.difference(np.ones((4, 8, 1)), -np.ones((4, 8, 1)))
    assert other.counts(1).all()
    missing = alarm.difference(np.full((4, 8, 1), np.nan), np.ones((4, 8, 1)))
    assert not missing.counts(1).any()


def test_nearly_degenerate_by_error_by_share_and_by_v_score():
    assert alarm.nearly_degenerate((-10.0, -10.2), (0.1, 0.1), (np.nan, np.nan))
    assert alarm.nearly_degenerate((-10.0, -10.009), (0.0, 0.0), (0.0, 0.0))
    assert alarm.nearly_degenerate((-10.0, -10.2), (1e-3, 1e-3), (0.03, 1e-5))
    assert not alarm.nearly_degenerate((-10.0, -10.2), (1e-3, 1e-3), (0.01, 1e-5))


def test_the_flip_balance_vanishes_for_good_samples_and_shows_chains_in_one_sector():
    for log_psi in (CAT, UP, CAT + 0.05 * SIGMA.sum(axis=1)):
        places = born(log_psi, 7)
        balance = alarm.flip_balance(SIGMA[places], log_psi[places], log_psi[MIRROR][places])
        assert abs(balance[0]) < 5 * balance[1] + 1e-12
        assert not alarm.out_of_balance(*balance)
    stuck = born(np.where(SIGMA.sum(axis=1) > 0, CAT, -50.0), 7)
    assert alarm.out_of_balance(*alarm.flip_balance(SIGMA[stuck], CAT[stuck], CAT[MIRROR][stuck]))


def test_an_energy_that_the_check_sample_does_not_see_is_locked():
    assert alarm.locked(-10.0, 1e-3, -9.8, 0.01)
    assert not alarm.locked(-10.0, 1e-3, -9.98, 0.01)
    assert not alarm.locked(-10.0, 0.0, -9.9999, 0.0)
    assert not alarm.locked(-10.0, 1e-3, np.nan, np.nan)


def test_near_zeros_that_born_samples_do_not_show_are_seen_by_the_check_sample():
    """psi nearly vanishes on a fifth of the configurations, H psi does not: samples of |psi|^2 hardly go there."""
    operator = TransverseFieldIsing(
        LATTICES["chain"](kind="chain", length=SITES).build(), 1.0, 2.0
    ).to_sparse()
    good = np.abs(np.linalg.eigh(operator.toarray())[1][:, 0])
    locked = np.where(np.random.default_rng(4).random(len(good)) < 0.2, 0.01, 1.0) * good
    hidden = []
    for psi in (good, locked):
        energy = psi @ operator @ psi / (psi @ psi)
        score = SITES * np.abs(operator @ psi / psi - energy) ** 2 / energy**2
        places, checked = born(np.log(psi), 1, chains=256), born(np.log(psi) / 2, 2, chains=256)
        check = weighted_mean(score[checked], psi[checked])
        hidden.append(alarm.hidden(score[places].mean(), *map(float, check)))
        exact = (psi**2 / (psi @ psi)) @ score
        assert abs(check[0] - exact) < 5 * check[1] + 1e-12
    assert hidden == [False, True]


def test_permuted_features_are_matched_and_a_foreign_one_is_not():
    generator = np.random.default_rng(1)
    a = generator.normal(size=(8, 100, 6))
    order = np.array([3, 0, 5, 1, 4])
    b = np.concatenate(
        [a[..., order] + 0.1 * generator.normal(size=(8, 100, 5)), generator.normal(size=(8, 100, 2))],
        axis=-1,
    )
    partner, r = alarm.match(a, b)
    assert partner.tolist() == [1, 3, -1, 0, 4, 2]
    assert r[[0, 1, 3, 4, 5]].min() > 0.9


def test_the_feature_that_carries_the_difference_is_found():
    generator = np.random.default_rng(1)
    a, b = born(UP, 1), born(DOWN, 2)
    on_a, on_b = (np.maximum(0, generator.normal(size=(*places.shape, 5))) for places in (a, b))
    on_a[..., 3] = np.maximum(0, MAGNETIZATION[a])
    on_b[..., 3] = np.maximum(0, MAGNETIZATION[b])
    r = np.zeros((5, 2))
    r[3] = [0.95, 0.1]
    found = alarm.carrier(alarm.difference(on_a, on_b), r, NAMES, 1, "residual_2")
    assert (found.feature, found.observable, found.side, found.layer) == (3, "magnetization", 1, "residual_2")
    assert found.shift > 1
    assert found.z > 10
    assert alarm.carrier(alarm.difference(on_a, on_a), r, NAMES, 0, "residual_2") is None
