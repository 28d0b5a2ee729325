"""attribution.nc of the 12-site ring against the sum over all 4096 configurations."""

import numpy as np
import pytest

from nqs_sae_service.physics.exact import all_configurations

ALL = all_configurations(12)
LAYERS = ("residual_1", "residual_2")
OBSERVABLES = ("magnetization", "abs_magnetization", "half_chain_correlation", "sigma_x")
SMALL = 2e-3


@pytest.fixture(scope="module", params=LAYERS)
def layer(request, run):
    return Layer(request.param, run)


class Layer:
    def __init__(self, name, run):
        self.name, self.found = name, run["attribution"].sel(layer=name)
        self.sae = run["sae"].sel(layer=name, sae_seed=1)
        self.decoder = self.sae["decoder"].values.astype(np.float64)

    def ablated(self, exact, i, baseline):
        """Normalised psi with feature ``i`` held at the baseline."""
        x = exact.stream(self.name)
        push = (baseline - exact.encode(self.sae, x)[..., i])[..., None] * self.decoder[i]
        return exact.amplitude_of(exact.psi.log_psi_from(self.name, (x + push).astype(np.float32)))


def expectations(exact, psi):
    return np.array([psi**2 @ exact.local(name, psi) for name in (*OBSERVABLES, "energy")])


def test_the_atlas_agrees_with_full_summation(exact, layer, agree):
    """g from the reference network in double precision, one gradient for all features; covariances with Born weights."""
    gradient = exact.psi.reference.layer_gradient(ALL, layer.name)
    g = (exact.encode(layer.sae, exact.stream(layer.name)) * (gradient @ layer.decoder.T)).sum(axis=1)
    g = g - exact.p @ g
    values = np.column_stack([exact.values, exact.local("energy")])
    slopes, found = 2 * (g.T * exact.p) @ (values - exact.p @ values), layer.found
    agree(found["slope"].values, slopes[:, :-1], found["slope_error"].values, floor=1e-4)
    agree(found["energy_force"].values, slopes[:, -1], found["energy_force_error"].values, floor=1e-3)
    agree(found["metric"].values, exact.p @ g**2, found["metric_error"].values, floor=1e-4)
    assert np.abs(slopes).max() > 0.1
    np.testing.assert_allclose(
        found["leverage"],
        (found["slope"] / np.sqrt(found["metric"])).where(found["metric"] > 0),
        rtol=1e-12,
    )


def test_the_slopes_are_those_of_steering(run, layer):
    steered = run["steering"].sel(layer=layer.name, direction="feature", estimator="reweighted")
    for target in steered["target"].values:
        at = steered.sel(target=target)
        slope = layer.found["slope"].sel(feature=int(at["feature"]))
        error = layer.found["slope_error"].sel(feature=int(at["feature"]))
        assert np.all(
            np.abs(slope - at["slope_predicted"]) < 4.5 * np.hypot(error, at["slope_predicted_error"])
        )


def test_ablation_agrees_with_full_summation(exact, layer, agree):
    """Of zero and mean ablation on expectation values, where the ablated state is not too far."""
    found = layer.found
    own, names = expectations(exact, exact.amplitude), [f"mean_{name}" for name in (*OBSERVABLES, "energy")]
    mean = (exact.encode(layer.sae, exact.stream(layer.name)).mean(axis=1) * exact.p[:, None]).sum(axis=0)
    for place, i in enumerate(found["ablated_feature"].values):
        for ablation, baseline in (("zero", 0.0), ("mean", mean[i])):
            here = found.sel(ablation=ablation).isel(ablated=place)
            psi = layer.ablated(exact, i, baseline)
            infidelity = exact.infidelity(psi)
            assert float(here["ablation_infidelity"]) == pytest.approx(infidelity, rel=0.3, abs=SMALL)
            if float(here["ablation_ess"]) > 0.5:
                effect, error = (
                    here[name].sel(quantity=names).values
                    for name in ("ablation_effect", "ablation_effect_error")
                )
                agree(effect, own - expectations(exact, psi), error + 0.02 * np.abs(effect), floor=SMALL)


def test_attribution_agrees_with_ablation_and_activation_does_not(layer):
    agreement = layer.found["agreement"].sel(quantity=["log_abs_psi", "local_energy"])
    assert agreement.sel(predictor="gradient").min() > 0.85
    assert agreement.sel(predictor="integrated").min() > 0.6
    assert agreement.sel(predictor="activation").max() < 0.6
    assert float(layer.found["completeness_error"]) < 0.02
    assert (np.abs(layer.found["rank_agreement"]) <= 1).all()


def test_half_of_the_ablated_features_have_the_largest_metric(layer):
    metric = layer.found["metric"].values
    chosen = layer.found["ablated_feature"].values
    live = chosen[chosen >= 0]
    assert len(set(live)) == len(live) == min(8, (metric > 0).sum())
    np.testing.assert_array_equal(live[:4], np.argsort(-metric)[:4])
    assert np.all(metric[live] > 0)
    filled = layer.found["ablation_effect"].notnull().all(("ablation", "quantity")).values
    np.testing.assert_array_equal(filled, chosen >= 0)


def test_edges_lead_to_the_best_features(run, exact, agree):
    """Effects of ablation against the exact mean; the weights predict their sign and most of their size."""
    found = run["attribution"]
    best = run["features"].sel(layer="residual_2")
    assert found.sizes["edge"] == 3 * len(OBSERVABLES)
    assert set(found["source_layer"].values) == {"residual_1"}
    assert set(found["target_layer"].values) == {"residual_2"}
    sources, targets = (run["sae"].sel(layer=name, sae_seed=1) for name in LAYERS)
    x = exact.stream("residual_1")
    f = exact.encode(sources, x)
    psi = exact.psi.reference

    def activation(stream, j):
        later = psi.tape(ALL, {"residual_1": lambda _: stream}).edges["residual_2"]
        return exact.p @ exact.encode(targets, later)[..., j].sum(axis=1)

    for edge in range(found.sizes["edge"]):
        here = found.isel(edge=edge)
        i, j = int(here["source_feature"]), int(here["target_feature"])
        assert j == int(best["best_feature"].sel(observable=str(here["target_observable"].values)))
        without = x - f[..., i, None] * sources["decoder"].values[i]
        effect = activation(x, j) - activation(without, j)
        agree(float(here["edge_effect"]), effect, float(here["edge_effect_error"]), floor=0.02)
    weight, effect = found["weight"].values, found["edge_effect"].values
    assert np.corrcoef(weight, effect)[0, 1] > 0.9
    first = np.abs(weight.reshape(len(OBSERVABLES), 3))
    assert np.all(np.diff(first, axis=1) <= 0)
