"""crosscoder.nc of small rings against plain sums in float64; stopped and continued; other runs as views; what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from stopping import Context

from nqs_sae_service.datasets import differences, read_stage
from nqs_sae_service.errors import Stopped, UserError
from nqs_sae_service.sae.classes import COMMON, NEITHER, NEVER
from nqs_sae_service.service.log import log_to_stderr
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES, crosscoder
from nqs_sae_service.stages.sae import UNTRAINED_SEED
from nqs_sae_service.stages.views import told_apart

SITES, WIDTH, FEATURES, CHAINS, DRAWS = 8, 8, 12, 32, 8
SPEC = f"""
name = "views"
[lattice]
kind = "chain"
length = {SITES}
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
kind = "transformer"
patch = 2
width = {WIDTH}
heads = 2
layers = 2
attention = "positional"
[sampling]
chains = {CHAINS}
burn_in = 3
[ground_state]
steps = 12
samples = 64
final_samples = 64
checkpoints = [0, 5, 12]
[samples]
count = {CHAINS * DRAWS}
[sae]
kind = "topk"
features = {FEATURES}
k = 2
steps = 30
batch = 128
seeds = [1, 2]
untrained = 2
[features]
bootstrap = 60
permutations = 20
[output]
report = false
figures = false
"""
BOTH = ("crosscoder.layers=['residual_1', 'residual_2']", "crosscoder.checkpoints=[5]")
VIEWS = ["step 5, residual_1", "step 5, residual_2", "final, residual_1", "final, residual_2"]


def load(folder: Path, *sets: str, name: str = "views"):
    path = folder / f"{name}.toml"
    path.write_text(SPEC.replace('"views"', f'"{name}"'), encoding="utf-8")
    return load_spec(path, sets)


def plan(folder: Path, *sets: str, name: str = "views", until: str = "crosscoder"):
    return make_plan(load(folder, *sets, name=name), STAGES, folder / "results", [until])


def compute(folder: Path, *sets: str, **options: str) -> Path:
    log_to_stderr()
    outcome = run_plans(plan(folder, *sets, **options))
    assert outcome.code == 0
    return outcome.directories[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("crosscoder")


@pytest.fixture(scope="module")
def directory(folder):
    return compute(folder, *BOTH)


@pytest.fixture(scope="module")
def found(directory):
    with xr.open_dataset(directory / "crosscoder.nc") as dataset:
        yield dataset.load()


@pytest.fixture(scope="module")
def spec(folder):
    return load(folder, *BOTH)[0].spec


@pytest.fixture(scope="module")
def network(spec):
    return spec.state.build(spec.lattice.build())


@pytest.fixture(scope="module")
def other(folder):
    """A run at another field, with its samples."""
    return compute(folder, "hamiltonian.h=0.5", "samples.count=512", name="ordered", until="samples")


# ---- checkpoints of the training --------------------------------------------------------------------------------------


def test_parameters_of_steps_are_kept(directory, folder):
    with xr.open_dataset(directory / "ground_state.nc") as ground:
        assert ground.checkpoint.values.tolist() == [0, 5, 12]
        kept = ground.checkpoint_parameters.values
        np.testing.assert_array_equal(kept[0], ground.initial_parameters)
        np.testing.assert_array_equal(kept[2], ground.parameters)
        assert np.abs(kept[1] - kept[0]).max() > 0
        assert np.abs(kept[1] - kept[2]).max() > 0
        plain = compute(folder, "ground_state.checkpoints=[]", name="plain", until="ground_state")
        with xr.open_dataset(plain / "ground_state.nc") as without:
            np.testing.assert_array_equal(without.parameters, ground.parameters)
            assert "checkpoint_parameters" not in without


def interrupted(stage, spec, upstream, path, *stops):
    """The dataset of a stage that was stopped at these ticks, each time in a new attempt."""
    for stop in stops:
        with pytest.raises(Stopped):
            STAGES[stage].run(Context(spec, upstream, path, stop))
    return STAGES[stage].run(Context(spec, upstream, path))


@pytest.mark.parametrize("stops", [(1,), (4, 3), (8,), (12, 1)])
def test_they_survive_a_stop(directory, spec, tmp_path, stops):
    again = interrupted("ground_state", spec, {}, tmp_path / "ground.npz", *stops)
    with read_stage(directory / "ground_state.nc") as before:
        for name in ("checkpoint_parameters", "parameters", "energy"):
            np.testing.assert_array_equal(again[name], before[name])


# ---- the file ---------------------------------------------------------------------------------------------------------


def test_views_are_networks_times_layers(found):
    assert found.view.values.tolist() == found.other_view.values.tolist() == VIEWS
    assert found.view_layer.values.tolist() == ["residual_1", "residual_2"] * 2
    assert found.view_network.values.tolist() == ["step 5"] * 2 + ["final"] * 2
    assert found.control.values.tolist() == ["untrained", "neuron", "separate"]
    assert found.encoder.dims == ("sae_seed", "view", "feature", "width")
    assert found.encoder.shape == (2, 4, FEATURES, WIDTH)
    assert all(variable.attrs["long_name"] for variable in found.data_vars.values())
    assert found.initialisation.values.tolist() == [UNTRAINED_SEED, UNTRAINED_SEED + 2]


def streams(network, parameters, sigma):
    """Views (view, sample, token, width) float64."""
    views = [
        network.activations(p, sigma, [layer])[layer]
        for p in parameters
        for layer in ("residual_1", "residual_2")
    ]
    return np.stack(views).astype(np.float64)


def encoded(found, seed, x):
    """TopK features (..., F) of views (view, ..., width) in float64."""
    encoder, bias = (found[name].values[seed].astype(np.float64) for name in ("encoder", "decoder_bias"))
    z = sum((x[v] - bias[v]) @ encoder[v].T for v in range(len(x))) + found.encoder_bias.values[seed]
    return np.where(z >= np.sort(z, axis=-1)[..., -2, None], np.maximum(z, 0), 0)


@pytest.fixture(scope="module")
def parameters(directory):
    with xr.open_dataset(directory / "ground_state.nc") as ground:
        return [ground.checkpoint_parameters.values[1], ground.parameters.values]


@pytest.fixture(scope="module")
def samples(directory):
    with xr.open_dataset(directory / "samples.nc") as dataset:
        yield dataset.load()


def sigma_of(samples, part):
    return samples.configuration.values[samples.split.values.astype(str) == part]


def test_numbers_of_the_views(found, network, parameters, samples):
    train, select = (
        streams(network, parameters, sigma_of(samples, p).reshape(-1, SITES)) for p in ("train", "select")
    )
    flat = train.reshape(4, -1, WIDTH)
    variance = ((flat - flat.mean(axis=1, keepdims=True)) ** 2).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(found.view_scale, np.sqrt(WIDTH / variance), rtol=1e-5)
    x = select.reshape(4, -1, WIDTH)
    centred = x - x.mean(axis=1, keepdims=True)
    for seed in range(2):
        f, decoder = encoded(found, seed, x), found.decoder.values[seed].astype(np.float64)
        density = (f > 0).mean(axis=0)
        np.testing.assert_allclose(found.feature_density[seed], density, atol=0.01)
        norms = found.view_scale.values[:, None] * np.linalg.norm(decoder, axis=2)
        np.testing.assert_allclose(found.decoder_norm[seed], norms, rtol=1e-6)
        np.testing.assert_allclose(found.norm_share[seed], norms / norms.sum(axis=0), rtol=1e-6)
        for v in range(4):
            error = ((x[v] - f @ decoder[v] - found.decoder_bias.values[seed, v]) ** 2).sum()
            np.testing.assert_allclose(
                found.explained_variance[seed, v], 1 - error / (centred[v] ** 2).sum(), atol=2e-3
            )
    assert ((found.separate_explained_variance > 0.3) & (found.separate_explained_variance <= 1)).all()
    assert found.untrained_explained_variance.shape == (2, 4)


def test_classes_count_live_features(found):
    classes, live = found.specific_view.values, (found.feature_density.values > 0)
    np.testing.assert_array_equal(classes == NEVER, ~live)
    np.testing.assert_array_equal(found.live_features, live.sum(axis=1))
    np.testing.assert_array_equal(found.shared_features, (classes == COMMON).sum(axis=1))
    specific = np.stack([(classes == view).sum(axis=1) for view in range(4)], axis=1)
    np.testing.assert_array_equal(found.specific_features, specific)
    relative = found.decoder_norm.values / found.decoder_norm.values.max(axis=1, keepdims=True)
    np.testing.assert_array_equal((classes == COMMON), live & (relative.min(axis=1) >= 0.5))
    assert ((classes >= NEITHER) == live).all()


def test_the_best_feature_is_chosen_on_select_and_measured_on_test_chains(
    found, network, parameters, samples, directory
):
    with xr.open_dataset(directory / "observables.nc") as observables:
        value, split = observables.value.values, samples.split.values.astype(str)
        np.testing.assert_array_equal(found.observable, observables.observable)
    series = {}
    for part in ("select", "test"):
        sigma = sigma_of(samples, part)
        x = streams(network, parameters, sigma.reshape(-1, SITES))
        series[part] = encoded(found, 0, x).mean(axis=1)
    observed = {part: value[split == part].reshape(-1, value.shape[-1]) for part in series}
    for o, name in enumerate(found.observable.values):
        with np.errstate(invalid="ignore"):
            r = {
                part: np.array([np.corrcoef(f, observed[part][:, o])[0, 1] for f in series[part].T])
                for part in series
            }
        best = int(found.best_feature.sel(observable=name))
        np.testing.assert_allclose(np.abs(r["select"][best]), np.nanmax(np.abs(r["select"])), atol=2e-3)
        np.testing.assert_allclose(found.best_pearson.values[o], r["test"][best], atol=2e-3)
    np.testing.assert_array_less(found.best_low - 1e-9, found.best_pearson)
    np.testing.assert_array_less(found.best_pearson, found.best_high + 1e-9)
    strongest = np.abs(found.control_pearson).max("control")
    np.testing.assert_allclose(found.gain, np.abs(found.best_pearson) - strongest, atol=1e-12)
    each = np.abs(found.untrained_pearson).max("initialisation")
    np.testing.assert_allclose(np.abs(found.control_pearson.sel(control="untrained")), each, atol=1e-12)


def test_cosines_only_within_a_common_basis(found):
    assert np.isfinite(found.decoder_cosine).all()  # one training, one residual stream
    d = found.decoder.values[0].astype(np.float64)
    d /= np.linalg.norm(d, axis=2, keepdims=True)
    np.testing.assert_allclose(found.decoder_cosine[0, 1, 2], (d[1] * d[2]).sum(axis=1), rtol=1e-6)


# ---- stopped and continued --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(3,), (20, 25), (60, 70, 90), (200,)])
def test_stopped_and_continued_it_ends_with_the_same_bits(directory, found, spec, tmp_path, stops):
    upstream = {
        name: read_stage(directory / f"{name}.nc") for name in ("ground_state", "samples", "observables")
    }
    again = interrupted("crosscoder", spec, upstream, tmp_path / "crosscoder.npz", *stops)
    for name, variable in found.data_vars.items():
        np.testing.assert_array_equal(again[name].values, variable.values, err_msg=name)


def test_the_same_again_and_no_stage_without_views(folder, directory, tmp_path):
    again = compute(tmp_path, *BOTH)
    assert differences(directory / "crosscoder.nc", again / "crosscoder.nc") == []
    with pytest.raises(UserError, match=r"crosscoder is no stage of this spec: it has no \[crosscoder\]"):
        plan(folder)


# ---- other kinds, inputs and runs -------------------------------------------------------------------------------------


def test_pooled_inputs_may_join_the_head_and_kinds_have_thresholds(tmp_path):
    sets = (
        "sae.input='pooled'",
        "crosscoder.layers=['residual_2', 'head']",
        "sae.kind='jumprelu'",
        "sae.untrained=0",
    )
    text = SPEC.replace("k = 2\n", "")
    path = tmp_path / "views.toml"
    path.write_text(text, encoding="utf-8")
    outcome = run_plans(make_plan(load_spec(path, sets), STAGES, tmp_path / "results", ["crosscoder"]))
    assert outcome.code == 0
    with xr.open_dataset(outcome.directories[0] / "crosscoder.nc") as dataset:
        assert dataset.view.values.tolist() == ["residual_2", "head"]
        assert dataset.threshold.shape == (2, FEATURES)
        assert "untrained_pearson" not in dataset
        assert dataset.control.values.tolist() == ["neuron", "separate"]
        assert np.isnan(dataset.decoder_cosine[:, 0, 1]).all()
        assert np.isfinite(dataset.explained_variance).all()


def test_the_section_may_have_its_own_size(folder):
    own = compute(folder, *BOTH, "crosscoder.features=20", "crosscoder.k=3", name="larger")
    with xr.open_dataset(own / "crosscoder.nc") as dataset:
        assert dataset.sizes["feature"] == 20
        assert dataset.attrs["k"] == 3


def test_other_runs_are_views_in_equal_shares(folder, other):
    run = compute(folder, "crosscoder.runs=['ordered']", name="couplings")
    with xr.open_dataset(run / "crosscoder.nc") as dataset:
        assert dataset.view.values.tolist() == ["h = 1.0", "h = 0.5"]
        assert dataset.view_layer.values.tolist() == ["residual_2"] * 2
        assert np.isnan(dataset.decoder_cosine.values[:, 0, 1]).all()
        np.testing.assert_allclose(dataset.decoder_cosine.values[:, 0, 0], 1, rtol=1e-6)
    files = {name: read_stage(run / f"{name}.nc") for name in ("ground_state", "samples", "observables")} | {
        f"crosscoder.runs[0].{name}": read_stage(other / f"{name}.nc") for name in ("ground_state", "samples")
    }
    spec = load(folder, "crosscoder.runs=['ordered']", name="couplings")[0].spec
    workshop = crosscoder._Workshop(Context(spec, files))
    for part, chains in (("train", CHAINS // 2), ("select", CHAINS // 4)):
        sigma, n = workshop.configurations(part), chains * DRAWS
        assert len(sigma) == 2 * n  # the other run has twice as many
        np.testing.assert_array_equal(sigma[:n], sigma_of(files["samples"], part).reshape(-1, SITES))
        there = {
            row.tobytes() for row in sigma_of(files["crosscoder.runs[0].samples"], part).reshape(-1, SITES)
        }
        assert {row.tobytes() for row in sigma[n:]} <= there


def test_the_content_of_other_runs_counts_and_their_name_does_not(folder, other):
    def step(*sets, name="couplings"):
        return plan(folder, *sets, name=name)[0].steps[-1]

    there = step("crosscoder.runs=['ordered']")
    assert not there.runs
    assert step(f"crosscoder.runs=['{other}']").key == there.key
    relative = SPEC.replace('"views"', '"couplings"') + "[crosscoder]\nruns = ['../results/ordered']\n"
    (folder / "specs").mkdir()
    (folder / "specs" / "relative.toml").write_text(relative, encoding="utf-8")
    points = load_spec(folder / "specs" / "relative.toml")
    assert points[0].spec.crosscoder.runs == (str(other),)
    assert make_plan(points, STAGES, folder / "results", ["crosscoder"])[0].steps[-1].key == there.key
    compute(folder, "hamiltonian.h=0.6", "samples.count=512", name="third", until="samples")
    assert step("crosscoder.runs=['third']").key != there.key
    sections = json.loads(there.sections)["crosscoder"]["runs"]
    assert len(sections) == 2  # ground state and samples
    assert {len(digest) for digest in sections} == {20}


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (("crosscoder.runs=['nothing']",), "crosscoder.runs[0].ground_state: {results}/nothing: no such run"),
        (
            ("crosscoder.runs=['couplings']",),
            "crosscoder.runs[0].ground_state: a run cannot start from itself",
        ),
        (
            ("crosscoder.runs=['plain']",),
            "crosscoder.runs[0].samples: the run in {results}/plain has no samples.nc yet",
        ),
        (
            ("crosscoder.runs=['ordered']", "state.width=4"),
            "state.width is 8 there and 4 here: views need the same",
        ),
        (("crosscoder.runs=['ordered']", "lattice.length=10"), "lattice.length is 8 there and 10 here"),
    ],
)
def test_runs_that_do_not_fit_are_refused_before_anything_runs(folder, other, directory, sets, told):
    compute(folder, "ground_state.checkpoints=[]", name="plain", until="ground_state")
    with pytest.raises(UserError) as error:
        plan(folder, *sets, name="couplings")
    assert told.format(results=folder / "results") in str(error.value)


def test_labels_from_what_differs():
    assert told_apart([{"kind": "tfim", "h": 1.0}, {"kind": "tfim", "h": 0.5}]) == ["h = 1.0", "h = 0.5"]
    several = [{"J": 1.0, "J2": 0.0}, {"J": 1.0, "J2": 0.5}, {"J": 2.0, "J2": 0.5}]
    assert told_apart(several) == ["J = 1.0, J2 = 0.0", "J = 1.0, J2 = 0.5", "J = 2.0, J2 = 0.5"]
    assert told_apart([{"h": 1.0}] * 3) == ["this run", "run 1", "run 2"]
