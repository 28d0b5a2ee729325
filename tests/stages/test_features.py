"""The features stage on a small experiment in which one feature knows |m| and nothing else does."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from nqs_sae_service.datasets.schema import SCHEMA, labelled
from nqs_sae_service.errors import UserError
from nqs_sae_service.interpret import series
from nqs_sae_service.interpret.controls import CONTROLS
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.spec.root import Spec
from nqs_sae_service.spec.sections import Features
from nqs_sae_service.stages.features import STAGE

CHAINS, DRAWS, SITES, PATCH, WIDTH, FEATURES = 80, 20, 12, 4, 5, 7
TOKENS = SITES // PATCH
LAYERS, SEEDS, INITIALISATIONS = ["residual_1", "residual_2"], [5, 6], [0, 1, 2]
NAMES = ["abs_magnetization", "magnetization", "noise", "constant"]


class Network:
    """Tokens are random linear maps of the patches, given by the parameters."""

    n_sites, dtype = SITES, np.float32
    sites = np.arange(SITES).reshape(TOKENS, PATCH)

    def activations(self, parameters, sigma, layers):
        weights = parameters.reshape(PATCH, WIDTH)
        return {layer: sigma.reshape(-1, TOKENS, PATCH).astype(np.float32) @ weights for layer in layers}


class Context:
    """A runner that only counts."""

    def __init__(self, upstream, pooled=False, **section):
        self.upstream, self.ticks = upstream, []
        options = {"seed": 3, "bootstrap": 200, "permutations": 400} | section
        build = SimpleNamespace(build=lambda *_: Network())
        self.spec = SimpleNamespace(
            features=Features(**options),
            sae=SimpleNamespace(input="pooled" if pooled else "token"),
            state=build,
            lattice=Chain(kind="chain", length=SITES),
            sampling=SimpleNamespace(fixed_magnetization=None),
            final_hamiltonian=Tfim(kind="tfim", h=1.0),
        )

    def tick(self, done, total, message="", state=None):
        assert 0 <= done < total
        self.ticks.append((done, message))


def planted_activations(rng, m, u, others):
    """(chain, draw, token, width): |m| along u, as loud as noise along directions not orthogonal to u, and a trace."""
    x = np.abs(m)[..., None] / np.abs(m).std() * u + rng.standard_normal((*m.shape, len(others))) @ others
    return x[:, :, None] + 1e-3 * rng.standard_normal((*m.shape, TOKENS, WIDTH))


@pytest.fixture(scope="module")
def upstream():
    rng = np.random.default_rng(1)
    sigma = rng.choice(np.array([-1, 1], np.int8), (CHAINS, DRAWS, SITES))
    m = sigma.mean(axis=2)
    u, *others = directions = np.linalg.qr(rng.standard_normal((WIDTH, 3)))[0].T @ (np.eye(WIDTH) + 0.2)
    reader = np.linalg.pinv(directions)[:, 0]  # sees u and is blind to the others
    encoder = rng.standard_normal((FEATURES, WIDTH))
    encoder[3], encoder[5] = reader, 0.0
    bias = np.zeros(FEATURES)
    bias[5] = -1.0  # a dead feature
    order = rng.permutation(FEATURES)
    both = [np.stack([a, a[order]])[None].repeat(2, axis=0) for a in (encoder, bias)]
    untrained = rng.standard_normal((2, 3, FEATURES, WIDTH))
    value = np.stack([np.abs(m), m, rng.standard_normal(m.shape), np.full(m.shape, 2.0)], axis=-1)
    split = np.array(["select", "train", "test", "train"])[np.arange(CHAINS) % 4]
    return {
        "ground_state": labelled("ground_state", {"parameters": rng.standard_normal(PATCH * WIDTH)}),
        "samples": labelled(
            "samples", {"configuration": sigma, "log_psi": 0j * m}, {"split": ("chain", split)}
        ),
        "observables": labelled(
            "observables", {"value": value, "simple_function_r2": [1, 1, 0, 1]}, {"observable": NAMES}
        ),
        "activations": labelled(
            "activations",
            {
                name: planted_activations(rng, m, u, loudness * np.array(others)).astype(np.float32)
                for name, loudness in zip(LAYERS, (1.0, 0.3), strict=True)
            },
            {"layer": LAYERS},
        ),
        "sae": labelled(
            "sae",
            {
                "encoder": both[0],
                "decoder": both[0],
                "encoder_bias": both[1],
                "decoder_bias": np.zeros((2, 2, WIDTH)),
                "untrained_parameters": rng.standard_normal((3, PATCH * WIDTH)),
                "untrained_encoder": untrained,
                "untrained_decoder": untrained,
                "untrained_encoder_bias": np.zeros((2, 3, FEATURES)),
                "untrained_decoder_bias": np.zeros((2, 3, WIDTH)),
            },
            {"layer": LAYERS, "sae_seed": SEEDS, "initialisation": INITIALISATIONS},
            {"kind": "relu-l1", "k": 0},
        ),
    }


@pytest.fixture(scope="module")
def result(upstream):
    return STAGE.run(Context(upstream))


def test_every_declared_variable_is_there_and_labelled(result):
    through_time = {name for name in SCHEMA["features"] if name.startswith("followed_")}
    assert set(result.data_vars) == set(SCHEMA["features"]) - through_time
    assert result.control.values.tolist() == list(CONTROLS)
    assert result.observable.values.tolist() == NAMES
    assert result.layer.values.tolist() == LAYERS
    assert result.initialisation.values.tolist() == INITIALISATIONS


def test_the_planted_feature_is_found(result):
    found = result.sel(layer="residual_1", observable="abs_magnetization")
    assert found.best_feature == 3
    assert found.best_pearson > 0.999
    assert found.gain > 0.05
    assert found.gain_low > 0
    assert found.gain == pytest.approx(float(found.best_pearson - abs(found.control_pearson).max()))
    assert str(found.verdict.values).startswith("feature found: feature 3 follows abs_magnetization")
    assert "explain 100.0 %" in str(found.verdict.values)
    assert found.p_value.sel(feature=3) == pytest.approx(1 / 401)
    assert found.spearman.sel(feature=3) > 0.9  # |m| has few values, so ranks tie
    assert result.sel(observable="abs_magnetization").verdict.values[1].startswith("SAE not informative here")


def test_controls_are_measured(result):
    m = result.sel(layer="residual_1", observable="magnetization")
    assert m.control_pearson.sel(control="raw_spins") == pytest.approx(1.0, abs=1e-3)
    assert m.best_control == "raw_spins"
    assert str(m.verdict.values).startswith("no better than controls")
    assert m.gain < 0
    known = result.sel(layer="residual_1", observable="abs_magnetization").control_pearson
    assert abs(known.sel(control="raw_spins")) < 0.2
    assert abs(known.sel(control="shuffled")) < 0.2
    assert np.all(abs(known) < 0.95)
    strongest = abs(result.untrained_pearson).max("initialisation")
    np.testing.assert_allclose(abs(result.control_pearson.sel(control="untrained", drop=True)), strongest)
    defined = result.isel(observable=[0, 1, 2])
    assert np.all(defined.control_low <= defined.control_pearson)
    assert np.all(defined.control_pearson <= defined.control_high)


def test_noise_has_no_feature(result):
    noise = result.sel(observable="noise")
    assert np.all(abs(noise.best_pearson) < 0.2)
    assert noise.verdict.values[0].startswith("no better than controls")


def test_a_constant_observable_is_undefined(result):
    constant = result.sel(observable="constant")
    assert np.all(constant.best_feature == -1)
    for name in ("pearson", "p_value", "q_value", "best_pearson", "control_pearson", "gain_low"):
        assert np.all(np.isnan(constant[name]))
    assert np.all(constant.best_control == "")
    assert constant.verdict.values[0] == "undefined: constant does not vary on the test chains."


def test_dead_features_are_marked(result):
    dead = result.sel(feature=5, observable=NAMES[:3])
    assert np.all(dead.density == 0)
    assert np.all(dead.pearson == 0)
    assert np.all(dead.p_value == 1)
    assert np.all(dead.q_value == 1)
    assert np.all(result.density.sel(feature=[0, 1, 2, 3, 4, 6]) > 0)


def test_features_that_return_with_another_seed_are_stable(result):
    alive = result.sel(feature=[0, 1, 2, 3, 4, 6])
    np.testing.assert_allclose(alive.stability, 1.0, atol=1e-5)
    np.testing.assert_allclose(alive.stability_activation, 1.0, atol=1e-5)


def with_changed_values(upstream, part):
    """The same experiment with the first observable of one part of the split replaced by noise."""
    value = upstream["observables"]["value"].copy()
    chains = upstream["samples"]["split"].values == part
    value[chains, :, 0] = np.random.default_rng(2).standard_normal((chains.sum(), DRAWS))
    return upstream | {"observables": upstream["observables"].assign(value=value)}


def test_features_are_chosen_on_select_chains_and_measured_on_test_chains(upstream, result):
    numbers = ["pearson", "pearson_low", "spearman", "p_value", "q_value"]
    train, select, test = (
        STAGE.run(Context(with_changed_values(upstream, part))).sel(observable="abs_magnetization")
        for part in ("train", "select", "test")
    )
    expected = result.sel(observable="abs_magnetization")
    for other in (train, select):
        xr.testing.assert_identical(other[numbers], expected[numbers])
    xr.testing.assert_identical(train.best_feature, expected.best_feature)
    xr.testing.assert_identical(test.best_feature, expected.best_feature)
    assert np.all(abs(test.best_pearson) < 0.2)


def test_the_same_seed_gives_the_same_data_and_another_seed_other_intervals(upstream, result):
    context = Context(upstream)
    xr.testing.assert_identical(STAGE.run(context), result)
    done = [done for done, _ in context.ticks]
    assert done == sorted(done)
    other = STAGE.run(Context(upstream, seed=4))
    assert np.any(other.pearson_low != result.pearson_low)
    xr.testing.assert_identical(other.pearson, result.pearson)


def test_files_opened_lazily_serve_as_well_and_the_result_survives_its_own(upstream, result, tmp_path):
    for name, dataset in upstream.items():
        dataset.to_netcdf(tmp_path / f"{name}.nc")
    lazy = {name: xr.open_dataset(tmp_path / f"{name}.nc") for name in upstream}
    STAGE.run(Context(lazy)).to_netcdf(tmp_path / "features.nc")
    for dataset in lazy.values():
        dataset.close()
    with xr.open_dataset(tmp_path / "features.nc") as read:
        xr.testing.assert_equal(read, result)


def test_the_forecast_grows_with_the_work():
    text = {
        "name": "x",
        "lattice": {"kind": "chain", "length": 40},
        "hamiltonian": {"kind": "tfim", "h": 1.0},
    }
    small = STAGE.estimate(Spec.model_validate(text).completed())
    large = STAGE.estimate(
        Spec.model_validate(text | {"sae": {"kind": "topk", "features": 8192}}).completed()
    )
    for a, b in ((small.seconds, large.seconds), (small.disk, large.disk), (small.memory, large.memory)):
        assert 0 < a < b < 1e11


def test_blocks_of_samples_change_nothing(upstream, result, monkeypatch):
    monkeypatch.setattr(series, "BLOCK", 300)
    blocked = STAGE.run(Context(upstream))
    for name, expected in result.data_vars.items():
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(blocked[name], expected, atol=2e-5, err_msg=str(name))


def test_pooled_dictionaries_see_the_mean_of_the_tokens(upstream):
    found = STAGE.run(Context(upstream, pooled=True)).sel(layer="residual_1", observable="abs_magnetization")
    assert found.best_feature == 3
    assert found.best_pearson > 0.999


def test_no_untrained_networks_no_such_control(upstream):
    kept = {name: ds for name, ds in upstream.items() if name != "sae"}
    names = [name for name in upstream["sae"].variables if "untrained" in str(name)]
    bare = kept | {"sae": upstream["sae"].drop_vars([*names, "initialisation"])}
    found = STAGE.run(Context(bare))
    assert "untrained" not in found.control.values
    assert "untrained_pearson" not in found


def test_a_single_dictionary_has_no_stability(upstream):
    single = upstream | {"sae": upstream["sae"].isel(sae_seed=[0])}
    assert np.all(np.isnan(STAGE.run(Context(single)).stability))


def test_too_few_test_chains_are_refused(upstream):
    few = upstream | {"samples": upstream["samples"].isel(chain=[0, 1, 2, 4, 5])}
    with pytest.raises(UserError, match="1 test chains are too few"):
        STAGE.run(Context(few))


# ---- what features are like, once more in plain loops ----------------------------------------------------------------


def tokens_of(x, upstream):
    """Features (..., feature) of rows of the first layer, first dictionary; float64."""
    dictionary = upstream["sae"].isel(layer=0, sae_seed=0)
    z = x @ dictionary["encoder"].values.T.astype(np.float64) + dictionary["encoder_bias"].values
    return np.maximum(z, 0)


@pytest.fixture(scope="module")
def tested(upstream):
    """Of the test chains: spins, features (chain, draw, token, feature), observables."""
    chains = np.flatnonzero(upstream["samples"]["split"].values == "test")
    x = upstream["activations"][LAYERS[0]].values[chains].astype(np.float64)
    sigma = upstream["samples"]["configuration"].values[chains]
    return sigma, tokens_of(x, upstream), upstream["observables"]["value"].values[chains]


def test_other_seeds_with_the_same_features_span_the_same_subspaces(result):
    """The second dictionary has the features of the first in another order."""
    angles = result.subspace_angle.sel(sae_seed=6)
    assert np.all(np.isnan(result.subspace_angle.sel(sae_seed=5)))
    for layer in LAYERS:
        m = int(np.ceil(result.participation_ratio.sel(layer=layer)))
        np.testing.assert_allclose(angles.sel(layer=layer)[:m], 0, atol=1e-4)
        assert np.all(np.isnan(angles.sel(layer=layer)[m:]))
        assert result.subspace_angle_random.sel(layer=layer)[m - 1] > 5
    np.testing.assert_allclose(result.subspace_p_value.sel(sae_seed=6), 1 / 201)


def test_nearest_features(upstream, result, tested):
    _, f, _ = tested
    decoder = upstream["sae"]["decoder"].values[0, 0]
    flat = f.reshape(-1, FEATURES)
    for feature in range(FEATURES):
        found = result.isel(layer=0).sel(feature=feature)
        if feature == 5:  # dead
            assert np.all(found.nearest_feature == -1)
            continue
        cosine = {
            j: decoder[feature] @ decoder[j] / np.linalg.norm(decoder[feature]) / np.linalg.norm(decoder[j])
            for j in range(FEATURES)
            if j not in (feature, 5)
        }
        wanted = sorted(cosine, key=cosine.get, reverse=True)[:5]
        assert found.nearest_feature.values.tolist() == wanted
        np.testing.assert_allclose(found.nearest_cosine, [cosine[j] for j in wanted], atol=1e-5)
        together = [np.corrcoef(flat[:, feature], flat[:, j])[0, 1] for j in wanted]
        np.testing.assert_allclose(found.nearest_pearson, together, atol=1e-4)


def test_top_configurations(result, tested):
    sigma, f, o = tested
    found = result.isel(layer=0).sel(observable="abs_magnetization")
    active, value = f.mean(axis=2)[..., 3].ravel(), o[..., 0].ravel()
    order, seen = np.argsort(-active), []
    for sample in order:
        if not any(np.array_equal(sigma.reshape(-1, SITES)[sample], s) for s, _ in seen):
            seen.append((sigma.reshape(-1, SITES)[sample], sample))
    samples = [sample for _, sample in seen[:8]]
    np.testing.assert_array_equal(found.top_configuration, [s for s, _ in seen[:8]])
    np.testing.assert_allclose(found.top_activation, active[samples], rtol=1e-4)
    np.testing.assert_allclose(found.top_value, value[samples])
    percentiles = [100 * (np.mean(value < v) + np.mean(value == v) / 2) for v in value[samples]]
    np.testing.assert_allclose(found.top_percentile, percentiles)
    assert (
        found.top_token.values.tolist() == f.reshape(-1, TOKENS, FEATURES)[samples, :, 3].argmax(1).tolist()
    )
    assert result.site_token.values.tolist() == np.repeat(range(TOKENS), PATCH).tolist()
    constant = result.isel(layer=0).sel(observable="constant")
    assert not constant.top_configuration.values.any()
    assert np.all(constant.top_token == -1)


def test_behaviour_under_symmetries(upstream, result, tested):
    """Of a network whose activations are linear in the spins, held against the stored ones."""
    sigma, f, _ = tested
    network = Network()
    parameters = upstream["ground_state"]["parameters"].values.astype(np.float32)
    moves = {
        "translation": np.roll(sigma, -1, axis=-1),
        "reflection": sigma[..., -np.arange(SITES) % SITES],
        "spin_flip": -sigma,
    }
    assert result.symmetry.values.tolist() == list(moves)
    own = f.mean(axis=2)
    for name, moved in moves.items():
        x = network.activations(parameters, moved.reshape(-1, SITES), ["x"])["x"].astype(np.float64)
        there = tokens_of(x, upstream).mean(axis=1)[:, 3]
        here = own[..., 3].ravel()
        found = result.isel(layer=0).sel(observable="abs_magnetization", symmetry=name)
        assert found.symmetry_pearson == pytest.approx(np.corrcoef(here, there)[0, 1], abs=1e-4)
        assert found.symmetry_shift == pytest.approx((there.mean() - here.mean()) / here.std(), abs=1e-3)
        partner = int(found.symmetry_partner)
        assert partner != 3
        r = np.corrcoef(own[..., partner].ravel(), there)[0, 1]
        assert found.symmetry_partner_pearson == pytest.approx(r, abs=1e-4)
        assert found.symmetry_behaviour == "neither"
    constant = result.sel(observable="constant")
    assert np.all(constant.symmetry_behaviour == "")
    assert np.all(constant.symmetry_partner == -1)


def test_networks_that_know_a_symmetry_have_invariant_features(upstream):
    """The stored activations are those of the network; its token means do not change when tokens move."""
    network, sigma = Network(), upstream["samples"]["configuration"].values
    one = upstream["ground_state"]["parameters"].values[:WIDTH].astype(np.float32)
    parameters = np.tile(one, PATCH)  # every spin of a patch counts alike
    x = network.activations(parameters, sigma.reshape(-1, SITES), LAYERS)
    stored = {name: a.reshape(CHAINS, DRAWS, TOKENS, WIDTH) for name, a in x.items()}
    known = {
        "ground_state": labelled("ground_state", {"parameters": parameters}),
        "activations": labelled("activations", stored, {"layer": LAYERS}),
    }
    context = Context(upstream | known, pooled=True)
    found = STAGE.run(context).sel(observable="magnetization")
    for name in ("translation", "reflection"):
        assert np.all(found.symmetry_behaviour.sel(symmetry=name) == "invariant")
        np.testing.assert_allclose(found.symmetry_pearson.sel(symmetry=name), 1, atol=1e-5)
        np.testing.assert_allclose(found.symmetry_shift.sel(symmetry=name), 0, atol=1e-5)
    assert np.all(found.symmetry_behaviour.sel(symmetry="spin_flip") != "invariant")
    assert np.all(found.top_token == -1)  # pooled: there are none


def test_large_dictionaries_know_the_neighbours_of_the_best_features_alone(upstream, result, monkeypatch):
    monkeypatch.setattr("nqs_sae_service.stages.portraits.MATCHED_FEATURES", FEATURES - 1)
    found, best = STAGE.run(Context(upstream)).isel(layer=0), result.isel(layer=0).best_feature.values
    others = [feature for feature in range(FEATURES) if feature not in best]
    assert np.all(found.nearest_feature.sel(feature=others) == -1)
    known = result.isel(layer=0).sel(feature=best[best >= 0])
    xr.testing.assert_equal(found.nearest_feature.sel(feature=best[best >= 0]), known.nearest_feature)


def test_without_symmetries_nothing_is_said_about_them(upstream):
    context = Context(upstream)
    context.spec.final_hamiltonian = Tfim(
        kind="tfim", h=1.0, hz=0.1, disorder="uniform", disorder_width=0.5, disorder_of="hz"
    )
    found = STAGE.run(context)
    assert not any(str(name).startswith("symmetry") for name in found.variables)
