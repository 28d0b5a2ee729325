"""The whole chain on a 12-site ring, up to its features, against the sum over all 4096 configurations."""

import numpy as np
import pytest

from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.operators import basis_index
from nqs_sae_service.vmc.statistics import covariance, mean_and_error

SITES, WIDTH, TOKENS = 12, 8, 4
ALL = all_configurations(SITES)
LAYERS = ("residual_1", "residual_2")
OBSERVABLES = ("magnetization", "abs_magnetization", "half_chain_correlation", "sigma_x")
SIGMAS = 4.5


# ---- small pieces of statistics, written out -------------------------------------------------------------------------


def weighted_pearson(f, o, p):
    """Correlations (F, O) of f (n, F) and o (n, O) under the weights p (n,)."""
    f, o = f - p @ f, o - p @ o
    return (f.T * p) @ o / np.sqrt(np.outer(p @ f**2, p @ o**2))


def weighted_ranks(x, p):
    """Mid-ranks in [0, 1] of the columns of x (n, K) under the weights p (n,)."""
    ranks = np.empty(x.shape)
    for k in range(x.shape[1]):
        values, place = np.unique(np.round(x[:, k], 6), return_inverse=True)
        weight = np.bincount(place, p, len(values))
        ranks[:, k] = (np.cumsum(weight) - weight / 2)[place]
    return ranks


def explained_variance(x, x_hat, weight):
    """1 - <|x - x_hat|^2> / <|x - mean|^2> of rows (n, width)."""
    weight = weight / weight.sum()
    mean = weight @ x
    return 1 - weight @ ((x - x_hat) ** 2).sum(-1) / (weight @ ((x - mean) ** 2).sum(-1))


def participation_ratio(x, weight):
    centred = x - weight @ x / weight.sum()
    eigenvalues = np.linalg.eigvalsh((centred.T * weight) @ centred)
    return eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


def rows(x):
    return x.reshape(-1, x.shape[-1])


# ---- energy and samples ----------------------------------------------------------------------------------------------


def test_the_energy_is_that_of_the_network(run, exact, agree):
    attributes = run["ground_state"].attrs
    ground, local = exact.ground[0], exact.local("energy")
    energy, variance = exact.p @ local, exact.p @ local**2 - (exact.p @ local) ** 2
    agree(attributes["final_energy"], energy, attributes["final_energy_error"], floor=0)
    assert attributes["exact_energy"] == pytest.approx(ground, abs=1e-8)
    assert ground == pytest.approx(-2 / np.sin(np.pi / (2 * SITES)), abs=1e-8)
    assert attributes["relative_error"] == pytest.approx((attributes["final_energy"] - ground) / abs(ground))
    assert 0 < (energy - ground) / abs(ground) < 5e-3  # the training has trained
    assert attributes["v_score"] == pytest.approx(SITES * variance / energy**2, rel=0.25)


def test_no_energy_is_below_the_ground_state(run, exact, assert_above):
    history, steered = run["ground_state"], run["steering"]
    ground = exact.ground[0]
    assert_above(ground, history["energy"], history["energy_error"])
    assert_above(ground, history.attrs["final_energy"], history.attrs["final_energy_error"])
    energy = (steered["energy"] + 3 * steered["energy_error"]).values
    assert np.all(energy[np.isfinite(energy)] > ground - 1e-5)


def test_the_sampler_is_the_markov_chain_that_it_says(run, exact):
    """Acceptance, autocorrelation time and error bar follow from the transition matrix."""
    attributes = run["ground_state"].attrs
    chain = exact.markov_chain()
    assert attributes["acceptance"] == pytest.approx(chain.acceptance, abs=0.01)
    local = exact.local("energy")
    tau = 2 * chain.autocorrelation(local, 16).sum() - 1
    assert attributes["tau"] == pytest.approx(tau, rel=0.2)
    variance = exact.p @ local**2 - (exact.p @ local) ** 2
    assert attributes["final_energy_error"] == pytest.approx(np.sqrt(variance * tau / 4096), rel=0.25)
    up = (exact.p * (ALL.sum(axis=1) > 0)).sum(), (exact.p * (ALL.sum(axis=1) < 0)).sum()
    np.testing.assert_allclose(attributes["sector_occupancy"], up, atol=0.08)
    assert attributes["r_hat"] < 1.1
    assert attributes["drift"] < 1e-4


def test_samples_follow_the_born_distribution(run, exact, agree):
    samples = run["samples"]
    sigma = samples["configuration"].values
    index = basis_index(sigma.reshape(-1, SITES)).reshape(sigma.shape[:2])
    np.testing.assert_allclose(
        samples["log_psi"].values.real, exact.psi.log_psi(ALL)[index], rtol=0, atol=2e-5
    )
    assert np.all(samples["log_psi"].values.imag == 0)
    groups = np.random.default_rng(3).integers(0, 32, len(ALL))  # random groups of configurations
    inside = groups[index][..., None] == np.arange(32)
    share, error = mean_and_error(inside.astype(float))
    agree(share, np.bincount(groups, exact.p, 32), error)
    pairs = sigma[..., :, None] * sigma[..., None, :].astype(float)
    mean, error = mean_and_error(pairs)
    agree(mean, np.einsum("n,ni,nj->ij", exact.p, ALL, ALL), error)


def test_gradients_of_the_energy_agree(run, exact, agree):
    """2 Cov(O_k, E_loc) on the samples against the sum over all configurations, every parameter."""
    sigma = run["samples"]["configuration"].values[:, ::8]
    index = basis_index(sigma.reshape(-1, SITES)).reshape(sigma.shape[:2])
    o = exact.psi.per_sample_gradients(ALL).astype(np.float64)
    local = exact.local("energy")
    gradient = 2 * (o - exact.p @ o).T @ (exact.p * (local - exact.p @ local))
    sampled, error = covariance(o[index], local[index][..., None])
    assert np.abs(gradient).max() > 1e-3
    agree(2 * sampled, gradient, 2 * error, floor=1e-6)


def test_observables_agree(run, exact, agree):
    observables = run["observables"]
    index = basis_index(run["samples"]["configuration"].values.reshape(-1, SITES))
    np.testing.assert_allclose(rows(observables["value"].values), exact.values[index], atol=1e-4)
    agree(observables["mean"].values, exact.p @ exact.values, observables["error"].values)
    vector = exact.ground[1]
    solved = [vector**2 @ exact.local(name, vector) for name in OBSERVABLES]
    np.testing.assert_allclose(observables["exact"].values, solved, atol=1e-7)


def test_what_simple_functions_explain_agrees(run, exact, agree, chain_error):
    """R^2 of {1, m, |m|, m^2, zz, C_half} for the local estimator of sigma_x; the diagonal ones are in the span."""
    explained = run["observables"]["simple_function_r2"]
    m = ALL.mean(axis=1)
    zz, half = ((ALL * np.roll(ALL, shift, axis=1)).mean(axis=1) for shift in (1, SITES // 2))
    design = np.stack([np.ones(len(ALL)), m, np.abs(m), m**2, zz, half], axis=1)
    target, index = (
        exact.local("sigma_x"),
        basis_index(run["samples"]["configuration"].values.reshape(-1, SITES)).reshape(256, -1),
    )

    def unexplained(weight):
        root = np.sqrt(weight)
        residual = np.linalg.lstsq(design * root[:, None], target * root, rcond=None)[1][0] / weight.sum()
        return residual / np.average((target - np.average(target, weights=weight)) ** 2, weights=weight)

    error = chain_error(
        lambda chains: unexplained(np.bincount(index[chains].ravel(), minlength=4096) + 0.0),
        np.arange(256),
        20,
    )
    agree(1 - float(explained.sel(observable="sigma_x")), unexplained(exact.p), error)
    np.testing.assert_allclose(explained.values[:3], 1, atol=1e-9)


# ---- activations and dictionaries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_activations_agree(run, exact, layer, agree, chain_error):
    x, stored = exact.stream(layer), run["activations"][layer].values
    index = basis_index(run["samples"]["configuration"].values.reshape(-1, SITES))
    np.testing.assert_allclose(stored.reshape(-1, TOKENS, WIDTH), x[index], atol=1e-4)
    ratio = float(run["activations"]["participation_ratio"].sel(layer=layer))

    def sampled(chains):
        flat = rows(stored[chains]).astype(np.float64)
        return participation_ratio(flat, np.ones(len(flat)))

    agree(
        ratio,
        participation_ratio(rows(x), np.repeat(exact.p, TOKENS)),
        chain_error(sampled, np.arange(256), 20),
    )


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seed", [1, 2])
def test_dictionaries_explain_as_much_as_they_say(run, exact, layer, seed, agree, chains_of, chain_error):
    sae, select = run["sae"].sel(layer=layer, sae_seed=seed), chains_of(run, "select")
    x, stored = exact.stream(layer), run["activations"][layer].values.astype(np.float64)
    x_hat, stored_hat = exact.reconstruct(sae, x), exact.reconstruct(sae, stored)
    expected = explained_variance(rows(x), rows(x_hat), np.repeat(exact.p, TOKENS))

    def sampled(chains):
        flat = rows(stored[chains])
        return explained_variance(flat, rows(stored_hat[chains]), np.ones(len(flat)))

    agree(float(sae["explained_variance"]), expected, chain_error(sampled, select))
    active = (exact.encode(sae, x) > 0).mean(axis=1)
    _, error = mean_and_error((exact.encode(sae, stored[select]) > 0).mean(axis=2))
    agree(sae["feature_density"].values, exact.p @ active, error, floor=2e-3)
    # what the reconstruction keeps of the state is summed exactly on a small system
    replaced = exact.amplitude_of(exact.psi.log_psi_from(layer, x_hat.astype(np.float32)))
    assert float(sae["infidelity"]) == pytest.approx(exact.infidelity(replaced), rel=1e-2)
    mean = rows(stored[chains_of(run, "train")]).mean(axis=0)
    ablated = exact.amplitude_of(
        exact.psi.log_psi_from(layer, np.broadcast_to(mean, x.shape).astype(np.float32))
    )
    energy, worse, worst = (psi @ exact.hamiltonian @ psi for psi in (exact.amplitude, replaced, ablated))
    assert float(sae["energy_recovered"]) == pytest.approx((worst - worse) / (worst - energy), abs=2e-3)


@pytest.mark.parametrize("layer", LAYERS)
def test_dictionaries_of_untrained_networks_agree(run, exact, layer, agree, chains_of, chain_error):
    select = chains_of(run, "select")
    index = basis_index(run["samples"]["configuration"].values.reshape(-1, SITES)).reshape(256, -1)
    for sae in (run["sae"].isel(initialisation=i).sel(layer=layer) for i in range(2)):
        x = exact.stream(layer, exact.state.bind(sae["untrained_parameters"].values))
        x_hat = exact.reconstruct(sae, x, "untrained_")

        def sampled(chains, x=x, x_hat=x_hat):
            flat = rows(x[index[chains]])
            return explained_variance(flat, rows(x_hat[index[chains]]), np.ones(len(flat)))

        expected = explained_variance(rows(x), rows(x_hat), np.repeat(exact.p, TOKENS))
        agree(float(sae["untrained_explained_variance"]), expected, chain_error(sampled, select, 30))


# ---- features and their controls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_correlations_agree(run, exact, layer, agree):
    """Pearson and Spearman on test chains, every feature that is alive and every observable."""
    features, sae = run["features"].sel(layer=layer), run["sae"].sel(layer=layer, sae_seed=1)
    f = exact.encode(sae, exact.stream(layer)).mean(axis=1)  # over tokens
    alive = features["density"].values > 0.01
    assert alive.sum() >= 4
    error = ((features["pearson_high"] - features["pearson_low"]) / (2 * 1.96)).values[alive]
    expected = weighted_pearson(f[:, alive], exact.values, exact.p)
    agree(features["pearson"].values[alive], expected, error, floor=2e-3)
    ranks = weighted_pearson(
        weighted_ranks(f[:, alive], exact.p), weighted_ranks(exact.values, exact.p), exact.p
    )
    agree(features["spearman"].values[alive], ranks, error, floor=0.02)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_best_feature_is_the_best_of_the_select_chains(run, exact, layer, chains_of):
    features, sae = run["features"].sel(layer=layer), run["sae"].sel(layer=layer, sae_seed=1)
    index = basis_index(run["samples"]["configuration"].values[chains_of(run, "select")].reshape(-1, SITES))
    f = exact.encode(sae, exact.stream(layer)).mean(axis=1)[index]
    varies = f.std(axis=0) > 0
    r = np.zeros((f.shape[1], len(OBSERVABLES)))
    r[varies] = weighted_pearson(f[:, varies], exact.values[index], np.full(len(f), 1 / len(f)))
    best = features["best_feature"].values
    np.testing.assert_array_equal(best, np.abs(r).argmax(axis=0))
    np.testing.assert_array_equal(
        features["best_pearson"].values, features["pearson"].values[best, np.arange(len(best))]
    )
    assert np.all(features["p_value"].values[best, np.arange(len(best))] < 0.01)


@pytest.mark.parametrize("layer", LAYERS)
def test_controls_agree(run, exact, layer, agree):
    """Every control's |r| on test chains is that of one of its candidates, and of nearly the best one."""
    features, x = run["features"].sel(layer=layer), exact.stream(layer)
    token_mean = x.mean(axis=1)
    centred = rows(x) - np.repeat(exact.p, TOKENS) @ rows(x) / TOKENS
    principal = np.linalg.eigh((centred.T * np.repeat(exact.p, TOKENS)) @ centred)[1]
    spins = np.column_stack([np.ones(len(ALL)), ALL])
    root = np.sqrt(exact.p)[:, None]
    regression = spins @ np.linalg.lstsq(spins * root, exact.values * root, rcond=None)[0]
    linear = np.abs(np.diag(weighted_pearson(regression, exact.values, exact.p)))
    candidates = {
        "neuron": token_mean,
        "pca": np.concatenate(
            [np.maximum(s * (x @ principal), 0).mean(1) for s in (1, -1)] + [token_mean @ principal], 1
        ),
    }
    for i in range(2):
        sae = run["sae"].isel(initialisation=i).sel(layer=layer)
        stream = exact.stream(layer, exact.state.bind(sae["untrained_parameters"].values))
        candidates[f"untrained {i}"] = exact.encode(sae, stream, "untrained_").mean(axis=1)
    measured = {
        **{name: features["control_pearson"].sel(control=name).values for name in ("neuron", "pca")},
        **{f"untrained {i}": features["untrained_pearson"].values[i] for i in range(2)},
    }
    error = ((features["control_high"] - features["control_low"]) / (2 * 1.96)).max("control").values
    for name, f in candidates.items():
        varies = exact.p @ f**2 - (exact.p @ f) ** 2 > 1e-10
        r = np.abs(weighted_pearson(f[:, varies], exact.values, exact.p))
        nearest = np.abs(r - np.abs(measured[name])).argmin(axis=0)
        chosen = r[nearest, np.arange(len(nearest))]
        agree(np.abs(measured[name]), chosen, error)
        agree(chosen, r.max(axis=0), error, floor=0.03)
    assert np.abs(
        features["control_pearson"].sel(control="raw_spins", observable="magnetization")
    ) == pytest.approx(1)
    even = features["control_pearson"].sel(control="raw_spins").values[1:]
    agree(
        np.abs(even), linear[1:], error[1:], floor=0.1
    )  # even under a flip of all spins: hardly anything linear
    assert np.all(np.abs(features["control_pearson"].sel(control="shuffled")) < SIGMAS * error.max())


def test_the_gain_is_over_the_best_control(run):
    features = run["features"]
    best = np.abs(features["control_pearson"]).max("control")
    np.testing.assert_allclose(features["gain"], np.abs(features["best_pearson"]) - best, atol=1e-12)
    assert np.all(features["gain_low"] <= features["gain"])
    assert np.all(features["gain"] <= features["gain_high"])
