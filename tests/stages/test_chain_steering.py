"""The whole chain on a 12-site ring: steering, against the sum over all 4096 configurations."""

import numpy as np
import pytest
from scipy.sparse import diags_array
from scipy.sparse.linalg import eigsh

from nqs_sae_service.interpret.kinds import DIRECTIONS
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.operators import basis_index

SITES = 12
ALL = all_configurations(SITES)
LAYERS = ("residual_1", "residual_2")
OBSERVABLES = ("magnetization", "abs_magnetization", "half_chain_correlation", "sigma_x")
TARGETS = ("abs_magnetization", "sigma_x")
SAMPLED = ("reweighted", "resampled")
WRITTEN_OUT = [
    *(
        (target, name)
        for target in TARGETS
        for name in ("feature", "leverage_feature", "difference_of_means")
    ),
    (TARGETS[0], "jastrow_dial"),
]


def curves(run):
    """(layer, target, direction) of every curve that was measured."""
    steering = run["steering"]
    for layer in LAYERS:
        for target in TARGETS:
            for direction in steering["direction"].values:
                curve = steering.sel(layer=layer, target=target, direction=direction)
                if np.isfinite(curve["strength"]).any():
                    yield layer, target, str(direction), curve


def turned(exact, run, layer, target, direction, strengths):
    """log psi (4096, strength) with the feature turned, or with the dial, written out."""
    if direction == "jastrow_dial":
        return exact.psi.log_psi(ALL)[:, None] + 0.5 * exact.local(target)[:, None] * strengths
    x = exact.stream(layer)
    if direction == "difference_of_means":
        push = means_apart(run, layer, target)
    else:
        i = int(run["steering"]["turned_feature"].sel(layer=layer, target=target, direction=direction))
        sae = run["sae"].sel(layer=layer, sae_seed=1)
        push = exact.encode(sae, x)[..., i, None] * sae["decoder"].values[i]
    return np.stack(
        [exact.psi.log_psi_from(layer, (x + s * push).astype(np.float32)) for s in strengths], axis=1
    )


def means_apart(run, layer, target):
    """Mean activation (width,) where the target is above its median minus the mean elsewhere, 2048 samples of train chains."""
    train, draws = np.flatnonzero(run["samples"]["split"].values == "train"), run["samples"].sizes["draw"]
    each = np.unique(np.linspace(0, draws - 1, 2048 // len(train)).round().astype(int))
    x = run["activations"][layer].isel(chain=train, draw=each).values.astype(np.float64).mean(axis=2)
    value = run["observables"]["value"].isel(chain=train, draw=each).sel(observable=target).values
    above = value > np.median(value) + 1e-5 * np.ptp(
        value
    )  # many local estimators are the same but for rounding
    return x[above].mean(axis=0) - x[~above].mean(axis=0)


def test_directions_are_all_there(run):
    """A feature and twelve others, in one order; the dial for the diagonal target only."""
    assert tuple(run["steering"]["direction"].values) == DIRECTIONS
    expected = {
        (layer, target, direction)
        for layer in LAYERS
        for target in TARGETS
        for direction in DIRECTIONS
        if (target, direction) != ("sigma_x", "jastrow_dial")
    }
    assert {(layer, target, direction) for layer, target, direction, _ in curves(run)} == expected


def test_features_are_those_of_the_files(run):
    steering = run["steering"]
    turned = steering["turned_feature"]
    best = run["features"]["best_feature"].sel(observable=list(TARGETS)).values
    for direction in ("feature", "random_direction", "clamp", "add"):
        np.testing.assert_array_equal(turned.sel(direction=direction), best)
    np.testing.assert_array_equal(steering["feature"], best)
    assert np.all(turned.sel(direction="other_feature").values != best)
    none = [
        "jastrow_dial",
        "constant_shift",
        "difference_of_means",
        "probe",
        "principal_component",
        "natural_gradient",
        "natural_gradient_held",
    ]
    assert np.all(turned.sel(direction=none).values == -1)
    assert steering["held"].values.tolist() == ["sigma_x, energy", "abs_magnetization, energy"]


def leverage(curve, observable):
    """Exact |slope| / sqrt(metric) of an observable; the metric is that of the two smallest steps."""
    at = curve.sel(estimator="exact").isel(scale=[2, 4])
    slope = float(curve["slope_predicted"].sel(estimator="exact", observable=observable))
    return abs(slope) / float(np.sqrt((at["infidelity"] / at["strength"] ** 2).mean()))


def test_the_natural_gradient_moves_the_target_most(run):
    """Fitted on select chains, compared by full summation: further than any feature, and nearly as far as the dial."""
    found = {at[:3]: leverage(at[3], at[1]) for at in curves(run)}
    for layer in LAYERS:
        for target in TARGETS:
            best = found[layer, target, "natural_gradient"]
            for direction in ("feature", "random_direction", "other_feature", "leverage_feature"):
                if (layer, target, direction) in found:
                    assert best > 0.98 * found[layer, target, direction]
            assert found[layer, target, "leverage_feature"] > 0.9 * found[layer, target, "feature"]
        dial = found[layer, TARGETS[0], "jastrow_dial"]
        assert 0.7 * dial < found[layer, TARGETS[0], "natural_gradient"] < 1.05 * dial


def test_held_observables_hardly_move(run):
    for layer in LAYERS:
        for target, other in (TARGETS, TARGETS[::-1]):
            at = run["steering"].sel(layer=layer, target=target)
            free, held = (at.sel(direction=f"natural_gradient{end}") for end in ("", "_held"))
            assert leverage(held, other) < 0.2 * leverage(free, other)
            assert leverage(held, target) < leverage(free, target)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("target", "direction"), WRITTEN_OUT)
def test_exact_curves_are_the_sum_over_all_configurations(run, exact, layer, target, direction):
    curve = run["steering"].sel(layer=layer, target=target, direction=direction, estimator="exact")
    strengths = curve["strength"].values
    if direction == "feature":
        np.testing.assert_allclose(strengths, curve["scale"].values - 1, atol=1e-12)
    for s, log_psi in enumerate(turned(exact, run, layer, target, direction, strengths).T):
        psi = exact.amplitude_of(log_psi)
        at = curve.isel(scale=s)
        means = [psi**2 @ exact.local(name, psi) for name in OBSERVABLES]
        np.testing.assert_allclose(at["observable_mean"], means, atol=2e-4)
        energy = psi @ exact.hamiltonian @ psi
        assert float(at["energy"]) == pytest.approx(energy, abs=2e-4)
        original = exact.amplitude @ exact.hamiltonian @ exact.amplitude
        assert float(at["relative_energy_deviation"]) == pytest.approx(
            (energy - original) / abs(original), abs=2e-5
        )
        assert float(at["infidelity"]) == pytest.approx(exact.infidelity(psi), rel=2e-2, abs=1e-6)


def test_steered_expectations_agree(run, agree):
    """Both sampled estimators of every curve within their error bars of full summation."""
    compared = 0
    for *_, curve in curves(run):
        truth = curve.sel(estimator="exact")
        for estimator in SAMPLED:
            at = curve.sel(estimator=estimator)
            if not np.isfinite(at["energy"]).any():
                continue
            agree(
                at["observable_mean"].values, truth["observable_mean"].values, at["observable_error"].values
            )
            agree(at["energy"].values, truth["energy"].values, at["energy_error"].values)
            agree(
                at["relative_energy_deviation"].values,
                truth["relative_energy_deviation"].values,
                at["relative_energy_deviation_error"].values,
                floor=1e-6,
            )
            compared += 1
    assert compared == 50 + 4  # all curves reweighted, the features' also sampled afresh


def test_infidelities_agree(run):
    for *_, curve in curves(run):
        truth = curve["infidelity"].sel(estimator="exact").values
        for estimator in SAMPLED:
            sampled = curve["infidelity"].sel(estimator=estimator).values
            if np.isfinite(sampled).any():
                np.testing.assert_allclose(sampled, truth, rtol=0.3, atol=1e-9)


def test_controls_move_the_state_as_far_as_the_feature(run):
    for layer, target, direction, curve in curves(run):
        feature = run["steering"].sel(layer=layer, target=target, direction="feature")
        assert float(curve["strength"].sel(scale=1.0)) == 0, direction
        for estimator, tolerance in (("reweighted", 0.06), ("exact", 0.3)):  # matched on samples
            wanted = feature["infidelity"].sel(estimator=estimator).values
            reached = curve["infidelity"].sel(estimator=estimator).values
            known = np.isfinite(reached)
            assert known.sum() >= 4
            np.testing.assert_allclose(reached[known], wanted[known], rtol=tolerance, atol=1e-9)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("target", "direction"), WRITTEN_OUT)
def test_overlaps_of_reweighted_samples_agree(
    run, exact, layer, target, direction, agree, chains_of, chain_error
):
    """ESS (E w)^2 / E w^2 and infidelity 1 - (E r)^2 / E r^2 with r = psi_s / psi = sqrt(w), under |psi|^2."""
    curve = run["steering"].sel(layer=layer, target=target, direction=direction, estimator="reweighted")
    log_psi = turned(exact, run, layer, target, direction, curve["strength"].values)
    r = np.exp((log_psi - exact.psi.log_psi(ALL)[:, None]).astype(np.float64))
    sigma = run["samples"]["configuration"].values[chains_of(run, "test")]  # those that steering reweights
    index = basis_index(sigma.reshape(-1, SITES)).reshape(sigma.shape[:2])

    def overlaps(weight):
        return np.stack([(weight @ x) ** 2 / (weight @ x**2) for x in (r**2, r)]) / weight.sum()

    expected = overlaps(exact.p)
    error = chain_error(
        lambda chains: overlaps(np.bincount(index[chains].ravel(), minlength=4096)), np.arange(len(index))
    )
    agree(curve["ess"].values, expected[0], error[0])
    agree(curve["infidelity"].values, 1 - expected[1], error[1])


def test_fresh_samples_are_as_good_as_they_say(run, exact):
    """ESS = 1 / tau of the energy, and its error bar, from the transition matrix of the steered state; 4 draws per chain."""
    layer, target = LAYERS[0], TARGETS[1]
    curve = run["steering"].sel(layer=layer, target=target, direction="feature", estimator="resampled")
    log_psi = turned(exact, run, layer, target, "feature", curve["strength"].values)
    for scale in (0, 2, 5):
        psi = exact.amplitude_of(log_psi[:, scale])
        local = exact.local("energy", psi)
        rho = exact.markov_chain(psi**2).autocorrelation(local, 4)
        assert float(curve["ess"][scale]) == pytest.approx(1 / (2 * rho.sum() - 1), rel=0.25)
        variance = psi**2 @ local**2 - (psi**2 @ local) ** 2
        of_a_chain = variance * (1 + 2 * np.sum((1 - np.arange(1, 4) / 4) * rho[1:])) / 4
        assert float(curve["energy_error"][scale]) == pytest.approx(np.sqrt(of_a_chain / 256), rel=0.25)


def test_at_scale_one_everything_is_psi(run, exact, chains_of):
    energy, means = exact.p @ exact.local("energy"), exact.p @ exact.values
    sampled = run["steering"].sel(scale=1.0)
    for *_, curve in curves(run):
        truth, born = (curve.sel(scale=1.0, estimator=e) for e in ("exact", "reweighted"))
        assert float(truth["energy"]) == pytest.approx(energy, abs=1e-5)
        np.testing.assert_allclose(truth["observable_mean"], means, atol=1e-5)
        assert float(born["ess"]) == pytest.approx(1, abs=1e-9)
        for at in (truth, born):
            assert float(at["relative_energy_deviation"]) == 0
            assert float(at["relative_energy_deviation_error"]) == 0
            assert float(at["infidelity"]) < 1e-10
    # reweighting with weights of one is plain averaging, over the same samples for every curve
    plain = sampled["observable_mean"].sel(estimator="reweighted", target=TARGETS[0]).values.reshape(-1, 4)
    np.testing.assert_allclose(plain, plain[:1].repeat(len(plain), axis=0), atol=1e-5)
    value = run["observables"]["value"].values[chains_of(run, "test")]
    np.testing.assert_allclose(plain[0], value.mean(axis=(0, 1)), atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("target", "direction"), WRITTEN_OUT)
def test_predicted_slopes_are_derivatives(run, exact, layer, target, direction, agree):
    """2 Re Cov(O_loc, d log psi / d strength) against a difference quotient of full summations; sampled against exact."""
    step = 0.02
    ends = []
    for log_psi in turned(exact, run, layer, target, direction, np.array([-step, step])).T:
        psi = exact.amplitude_of(log_psi)
        ends.append(np.array([psi**2 @ exact.local(name, psi) for name in OBSERVABLES]))
    quotient = (ends[1] - ends[0]) / (2 * step)
    curve = run["steering"].sel(layer=layer, target=target, direction=direction)
    predicted = curve["slope_predicted"].sel(estimator="exact").values
    np.testing.assert_allclose(predicted, quotient, atol=0.01 * np.abs(quotient).max())
    sampled = curve.sel(estimator="reweighted")
    agree(sampled["slope_predicted"].values, predicted, sampled["slope_predicted_error"].values)


def test_measured_slopes_agree(run, agree):
    """The same quadratic through scale 1 and its four neighbours, on the exact curve, is what the sampled slopes estimate."""
    for *_, curve in curves(run):
        strengths, base = curve["strength"].values, 3
        if not np.isfinite(strengths).all():
            continue
        near = [1, 2, 4, 5]
        truth = curve["observable_mean"].sel(estimator="exact").values
        powers = np.stack([strengths[near], strengths[near] ** 2], axis=1)
        expected = np.linalg.lstsq(powers, truth[near] - truth[base], rcond=None)[0][0]
        for estimator in SAMPLED:
            at = curve.sel(estimator=estimator)
            if np.isfinite(at["slope_measured"]).any():
                agree(at["slope_measured"].values, expected, at["slope_measured_error"].values)


def test_reaches_agree(run, agree):
    """Largest change within the energy budget: the sampled energies decide where the curve is left, and the error bar knows."""
    for *_, curve in curves(run):
        at = curve.sel(estimator="reweighted")
        agree(at["reach"].values, curve["reach"].sel(estimator="exact").values, at["reach_error"].values)


def test_the_efficiency_follows_from_slope_curvature_and_susceptibility(run, exact):
    """chi = - d^2 E_0 / d lambda^2 of H - lambda O; eta = slope^2 / (chi d^2E / d strength^2)."""
    field = diags_array(exact.local("abs_magnetization"))
    step = 0.05
    low, middle, high = (
        eigsh(exact.hamiltonian - x * field, k=1, which="SA")[0][0] for x in (-step, 0.0, step)
    )
    chi = -(low - 2 * middle + high) / step**2
    for _, target, _, curve in curves(run):
        at = curve.sel(estimator="exact")
        if target == "abs_magnetization" and np.isfinite(at["efficiency"]):
            slope = float(at["slope_measured"].sel(observable=target))
            expected = slope**2 / (chi * float(at["energy_curvature"]))
            assert float(at["efficiency"]) == pytest.approx(expected, rel=0.02)
