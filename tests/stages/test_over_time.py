"""The stages after a quench, on four states of a ring of six sites that stand for an evolution: the times 0 and 2 train."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from stopping import Context

from nqs_sae_service.datasets import Origin, read_stage
from nqs_sae_service.datasets.netcdf import write_stage
from nqs_sae_service.datasets.schema import SCHEMA, labelled
from nqs_sae_service.errors import Stopped
from nqs_sae_service.physics.exact import FullSummation, all_configurations
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES, sae
from nqs_sae_service.stages.over_time import contexts, everywhere, held_out, place, training

SITES, CHAINS, DRAWS = 6, 24, 20
NAMES = ("magnetization", "half_chain_correlation", "sigma_x", "abs_magnetization")
TIMES = [0.0, 0.1, 0.2, 0.3]
LAYERS = ["embedding", "residual_1"]
CHAIN = ("samples", "observables", "activations", "sae", "features", "attribution")
SPEC = f"""
name = "quench"
[lattice]
kind = "chain"
length = {SITES}
[hamiltonian]
kind = "tfim"
h = 2.0
[dynamics]
duration = 0.3
hamiltonian = {{ kind = "tfim", h = 0.5 }}
samples = {CHAINS}
measurements = {CHAINS}
[state]
kind = "cnn"
channels = 4
blocks = 1
amplitude = "complex"
[sampling]
chains = {CHAINS}
burn_in = 3
[ground_state]
samples = {CHAINS}
final_samples = {CHAINS}
[samples]
count = {CHAINS * DRAWS}
[observables]
names = {[*NAMES, "energy_variance", "renyi2"]}
[activations]
layers = {LAYERS}
[sae]
kind = "topk"
features = 8
k = 2
steps = 30
batch = 64
seeds = [1, 2]
untrained = 2
[features]
bootstrap = 50
permutations = 30
[attribution]
samples = 96
ablated = 4
ablation_samples = 48
edges = 2
steps = 2
"""
DECLARED = [name for name in SCHEMA["sae"] if not name.endswith("threshold")]  # these dictionaries have none


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("spec") / "spec.toml"
    path.write_text(SPEC)
    (point,) = load_spec(str(path))
    return point.spec


@pytest.fixture(scope="module")
def network(spec):
    return spec.state.build(spec.lattice.build())


@pytest.fixture(scope="module")
def evolution(spec, network):
    """ground_state.nc and dynamics.nc: random parameters, and small steps away from them."""
    rng = np.random.default_rng(3)
    first = network.initial_parameters(0)
    first = first + rng.normal(scale=0.3, size=first.shape).astype(first.dtype)
    steps = rng.normal(scale=0.05, size=(len(TIMES), *first.shape)).astype(first.dtype)
    sigma = rng.choice(np.array([-1, 1], np.int8), (len(TIMES), CHAINS, SITES))
    known = ("sigma_x", "magnetization")
    dynamics = {
        "energy": rng.normal(size=len(TIMES)),
        "observable_exact": rng.normal(size=(len(TIMES), len(known))),
        "parameters": first + steps.cumsum(axis=0),
        "final_configuration": sigma,
    }
    return {
        "ground_state": labelled("ground_state", {"parameters": first, "final_configuration": sigma[0]}),
        "dynamics": labelled("dynamics", dynamics, {"time": TIMES, "observable": np.array(known, object)}),
    }


def file_of(name, dataset, folder):
    """A stage's dataset written and opened again, as the next stage finds it."""
    write_stage(dataset, folder / f"{name}.nc", Origin(name, "key", 1, "{}", 0, 1, "", ""))
    return read_stage(folder / f"{name}.nc")


def computed(spec, evolution, folder):
    """The files of all stages, and the ticks of each."""
    files = {name: file_of(name, dataset, folder) for name, dataset in evolution.items()}
    ticks = {}
    for name in CHAIN:
        upstream = {above: files[above] for above in STAGES[name].upstream if above in files}
        context = Context(spec, upstream)
        files[name] = file_of(name, STAGES[name].run(context), folder)
        ticks[name] = context.ticks
    return files, ticks


@pytest.fixture(scope="module")
def run(spec, evolution, tmp_path_factory):
    files, ticks = computed(spec, evolution, tmp_path_factory.mktemp("run"))
    yield SimpleNamespace(**files, files=files, ticks=ticks)
    for file in files.values():
        file.close()


def at(run, number):
    """All datasets at one time."""
    return {n: d.isel(time=number) if "time" in d.dims else d for n, d in run.files.items()}


def static(spec):
    """The same experiment without a quench, in the Hamiltonian after it."""
    return spec.model_copy(
        update={
            "hamiltonian": spec.final_hamiltonian,
            "dynamics": spec.dynamics.model_copy(update={"duration": 0.0}),
        }
    )


def as_ground_state(run, number):
    """Upstream datasets of a run whose ground state is the state at one time."""
    upstream = {name: dataset.drop_vars("time", errors="ignore") for name, dataset in at(run, number).items()}
    dynamics = upstream.pop("dynamics")
    return upstream | {"ground_state": dynamics.assign_attrs(final_energy=float(dynamics["energy"]))}


def test_every_other_time_is_held_out():
    assert [held_out(n).tolist() for n in (1, 2, 5)] == [[0], [0, 1], [0, 1, 0, 1, 0]]
    assert held_out(300).dtype == np.int8


@pytest.mark.parametrize("stage", CHAIN)
def test_files_have_the_times_of_the_dynamics(run, stage):
    dataset = run.files[stage]
    np.testing.assert_array_equal(dataset["time"], TIMES)
    assert dataset["time"].attrs["units"] == "1/J"
    for name, variable in dataset.data_vars.items():
        assert variable.attrs["long_name"], name
        declared = SCHEMA[stage].get(name)
        if declared is not None and stage != "sae":
            expected = ("time", *(d for d in declared.dims if d != "time"))
            assert variable.dims == (declared.dims if name.startswith("followed_") else expected), name


def test_samples_are_those_of_the_state_of_their_time(run, network):
    samples = run.samples
    assert samples["configuration"].dims == ("time", "chain", "draw", "spin")
    assert samples["configuration"].dtype == np.int8
    assert samples["configuration"].encoding["zlib"]
    assert samples["split"].dims == ("chain",)
    for number, parameters in enumerate(run.dynamics["parameters"].values):
        here = samples.isel(time=number)
        log_psi = network.log_psi(parameters, here["configuration"].values.reshape(-1, SITES))
        np.testing.assert_allclose(here["log_psi"].values.ravel(), log_psi, atol=1e-5)


def test_the_first_time_has_the_random_numbers_of_a_single_state(run, spec):
    alone = STAGES["samples"].run(Context(static(spec), as_ground_state(run, 0)))
    np.testing.assert_array_equal(alone["configuration"], run.samples["configuration"][0])


def test_equal_states_are_sampled_with_other_random_numbers(spec, evolution):
    dynamics = evolution["dynamics"].isel(time=[0, 0]).assign_coords(time=[0.0, 0.1])
    sigma = STAGES["samples"].run(Context(spec, evolution | {"dynamics": dynamics}))["configuration"].values
    assert (sigma[0] != sigma[1]).any(axis=-1).mean() > 0.5


@pytest.mark.parametrize("number", range(len(TIMES)))
def test_observables_of_a_time_are_those_of_its_state_alone(run, spec, number):
    alone = STAGES["observables"].run(Context(static(spec), as_ground_state(run, number)))
    here = run.observables.isel(time=number)
    for name in set(alone.data_vars) - {"exact", "renyi2_exact"}:
        np.testing.assert_array_equal(here[name], alone[name], err_msg=name)
    exact = dict(zip(here["observable"].values, here["exact"].values, strict=True))
    given = run.dynamics["observable_exact"].isel(time=number)
    for name in NAMES:
        expected = given.sel(observable=name) if name in given["observable"] else np.nan
        np.testing.assert_array_equal(exact[name], expected)
    assert np.isnan(here["renyi2_exact"]).all()
    assert "evolved" in here["exact"].attrs["long_name"]
    assert "ground" in alone["exact"].attrs["long_name"]


def test_activations_are_those_of_the_samples(run, network):
    activations = run.activations
    assert activations["residual_1"].dims == ("time", "chain", "draw", "token", "width")
    assert activations["participation_ratio"].dims == ("time", "layer")
    for number, parameters in enumerate(run.dynamics["parameters"].values):
        sigma = run.samples["configuration"][number].values.reshape(-1, SITES)
        for layer, expected in network.activations(parameters, sigma, LAYERS).items():
            found = activations[layer][number].values.reshape(expected.shape)
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.isfinite(activations["participation_ratio"]).all()


def test_one_dictionary_serves_all_times(run):
    np.testing.assert_array_equal(run.sae["held_out"], [0, 1, 0, 1])
    for name in DECLARED:
        times = ("time",) if name in ("energy_recovered", "infidelity") else ()
        assert run.sae[name].dims == times + SCHEMA["sae"][name].dims, name
    assert (run.sae["infidelity"] > 0).all()


def test_a_dictionary_knows_the_training_times_alone(run, spec, evolution, tmp_path):
    """Other states at the held-out times change what is measured there and nothing else."""
    rng = np.random.default_rng(5)
    dynamics = evolution["dynamics"].copy(deep=True)
    dynamics["parameters"][1::2] += rng.normal(scale=0.2, size=dynamics["parameters"][1::2].shape)
    other, _ = computed(spec, evolution | {"dynamics": dynamics}, tmp_path)
    assert (other["samples"]["configuration"][1] != run.samples["configuration"][1]).any()
    for name in DECLARED:
        measured = name in ("energy_recovered", "infidelity")
        there, here = (d[name][::2] if measured else d[name] for d in (other["sae"], run.sae))
        np.testing.assert_array_equal(there, here, err_msg=name)
    assert (other["sae"]["infidelity"][1::2] != run.sae["infidelity"][1::2]).all()
    np.testing.assert_array_equal(other["features"]["followed_feature"], run.features["followed_feature"])
    for name in ("followed_pearson", "followed_control_pearson", "control_pearson", "pearson"):
        np.testing.assert_array_equal(other["features"][name][::2], run.features[name][::2], err_msg=name)
    for file in other.values():
        file.close()


def rows(run, layer, part, numbers):
    """Activations (row, width) of some chains at some times."""
    chains = np.flatnonzero(run.samples["split"].values == part)
    x = run.activations[layer].isel(time=numbers, chain=chains).values
    return x.reshape(-1, x.shape[-1])


def test_a_dictionary_is_judged_on_all_training_times(run):
    for layer in LAYERS:
        x = rows(run, layer, "select", [0, 2]).astype(np.float64)
        found = run.sae.sel(layer=layer, sae_seed=1)
        z = (x - found["decoder_bias"].values) @ found["encoder"].values.T + found["encoder_bias"].values
        active = z >= np.sort(z, axis=1)[:, [-2]]
        f = np.where(active, np.maximum(z, 0), 0)
        error = ((x - f @ found["decoder"].values - found["decoder_bias"].values) ** 2).sum()
        variance = ((x - x.mean(axis=0)) ** 2).sum()
        assert float(found["explained_variance"]) == pytest.approx(1 - error / variance, abs=1e-4)
        np.testing.assert_allclose(found["feature_density"], (f > 0).mean(axis=0), atol=1e-3)


def test_what_a_dictionary_keeps_is_measured_on_the_state_of_each_time(run, network):
    sigma, layer = all_configurations(SITES), "residual_1"
    found = run.sae.sel(layer=layer, sae_seed=2)

    def rebuilt(x):
        z = (x - found["decoder_bias"].values) @ found["encoder"].values.T + found["encoder_bias"].values
        f = np.where(z >= np.sort(z, axis=-1)[..., [-2]], np.maximum(z, 0), 0)
        return (f @ found["decoder"].values + found["decoder_bias"].values).astype(x.dtype)

    for number, parameters in enumerate(run.dynamics["parameters"].values):
        psi = network.bind(parameters)
        there, kept = (
            FullSummation.from_log_psi(SITES, each.log_psi(sigma).astype(np.complex128))
            for each in (psi, psi.edited(layer, rebuilt))
        )
        expected = there.infidelity(kept)
        assert float(found["infidelity"][number]) == pytest.approx(expected, rel=1e-2, abs=1e-5)


def test_large_systems_are_measured_on_samples(run, spec, monkeypatch):
    monkeypatch.setattr(sae, "MAX_SITES_DIAGONALISED", 0)
    upstream = {name: run.files[name] for name in STAGES["sae"].upstream}
    sampled = STAGES["sae"].run(Context(spec, upstream))
    np.testing.assert_allclose(sampled["infidelity"], run.sae["infidelity"], rtol=0.5)
    workshop = sae._Workshop(Context(spec, upstream))
    for time, energy in zip(workshop.times, run.dynamics["energy"].values, strict=True):
        assert workshop.yardstick(time).reference == energy


def test_features_of_a_time_are_those_of_its_samples_alone(run, spec):
    for number in range(len(TIMES)):
        alone = STAGES["features"].run(Context(static(spec), as_ground_state(run, number)))
        here = run.features.isel(time=number)
        for name in ("pearson", "pearson_low", "p_value", "q_value", "spearman", "best_feature", "density"):
            np.testing.assert_array_equal(here[name], alone[name], err_msg=name)
        for control in ("neuron", "untrained", "shuffled"):  # nothing is fitted
            np.testing.assert_array_equal(
                here["control_pearson"].sel(control=control), alone["control_pearson"].sel(control=control)
            )


def series(run, part, number):
    """Observables (chain, draw, observable) of some chains at a time."""
    chains = np.flatnonzero(run.samples["split"].values == part)
    return run.observables["value"].isel(time=number, chain=chains).values


def test_the_followed_feature_is_the_strongest_over_the_training_times(run):
    features = run.features
    for layer in LAYERS:
        found = run.sae.sel(layer=layer, sae_seed=1)
        strength = 0
        for number in (0, 2):
            o = series(run, "select", number).reshape(-1, len(NAMES))
            x = rows(run, layer, "select", number).astype(np.float64)
            z = (x - found["decoder_bias"].values) @ found["encoder"].values.T + found["encoder_bias"].values
            f = np.where(z >= np.sort(z, axis=1)[:, [-2]], np.maximum(z, 0), 0)
            f = f.reshape(len(o), -1, f.shape[-1]).mean(axis=1)
            with np.errstate(invalid="ignore"):
                strength = strength + np.nan_to_num(np.abs(np.corrcoef(f.T, o.T)[: f.shape[1], f.shape[1] :]))
        chosen = features["followed_feature"].sel(layer=layer).values
        assert (strength[chosen, np.arange(len(NAMES))] > strength.max(axis=0) - 1e-4).all()
    chosen = features["followed_feature"]
    for followed, table in (("pearson", "pearson"), ("low", "pearson_low"), ("high", "pearson_high")):
        expected = features[table].isel(feature=chosen)
        xr.testing.assert_equal(
            features[f"followed_{followed}"].drop_vars("feature", errors="ignore"),
            expected.drop_vars("feature").transpose("time", "layer", "observable"),
        )


def test_the_followed_neuron_is_one_for_all_times(run):
    for layer, o in np.ndindex(len(LAYERS), len(NAMES)):
        r = {}
        for part, number in np.ndindex(2, len(TIMES)):
            name = ("select", "test")[part]
            observed = series(run, name, number)[..., o].ravel()
            x = rows(run, LAYERS[layer], name, number).reshape(len(observed), -1, 4).mean(axis=1)
            r[name, number] = [np.corrcoef(column, observed)[0, 1] for column in x.T.astype(np.float64)]
        best = np.abs([r["select", 0], r["select", 2]]).mean(axis=0).argmax()
        found = run.features["followed_control_pearson"].sel(control="neuron")[:, layer, o]
        np.testing.assert_allclose(
            found, [r["test", number][best] for number in range(len(TIMES))], atol=1e-4
        )


def test_the_followed_regression_is_fitted_on_all_training_times(run):
    chains = np.flatnonzero(run.samples["split"].values == "train")
    sigma = run.samples["configuration"]
    x = sigma.isel(time=[0, 2], chain=chains).values.reshape(-1, SITES).astype(np.float64)
    y = np.concatenate([series(run, "train", n).reshape(-1, len(NAMES)) for n in (0, 2)])
    x_mean, n = x.mean(axis=0), len(x)
    covariance = (x - x_mean).T @ (x - x_mean) / n
    weights = np.linalg.solve(covariance + np.eye(SITES) / n, (x - x_mean).T @ (y - y.mean(axis=0)) / n)
    test = np.flatnonzero(run.samples["split"].values == "test")
    for number in range(len(TIMES)):
        predicted = (sigma.isel(time=number, chain=test).values.reshape(-1, SITES) - x_mean) @ weights
        observed = series(run, "test", number).reshape(-1, len(NAMES))
        expected = [np.corrcoef(predicted[:, o], observed[:, o])[0, 1] for o in range(len(NAMES))]
        found = run.features["followed_control_pearson"].sel(control="raw_spins")[number, 0]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_verdict_names_the_weakest_held_out_time(run):
    features = run.features
    np.testing.assert_array_equal(features["held_out"], [0, 1, 0, 1])
    for layer, o in np.ndindex(len(LAYERS), len(NAMES)):
        sentence = str(features["followed_verdict"].values[layer, o])
        lowest = float(np.abs(features["followed_pearson"][1::2, layer, o]).min())
        control = float(np.abs(features["followed_control_pearson"][1::2, layer, :, o]).min("time").max())
        assert f"|r| of at least {lowest:.3f}" in sentence
        assert f"with at least {control:.3f}" in sentence
        assert sentence.startswith("no better than controls") == (lowest <= control)


@pytest.mark.parametrize("stage", CHAIN)
def test_progress_only_grows(run, stage):
    by_total = {}
    for done, total, _ in run.ticks[stage]:
        by_total.setdefault(total, []).append(done)
    for done in by_total.values():
        assert done == sorted(done)
    if stage != "sae":
        assert run.ticks[stage][-1][2].startswith("t = 0.3: ")


@pytest.mark.parametrize("stage", ["samples", "observables", "sae", "features", "attribution"])
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_stopped_stage_goes_on_with_the_same_bits(run, spec, tmp_path, stage, share):
    upstream = {name: run.files[name] for name in STAGES[stage].upstream if name in run.files}
    whole, checkpoint = Context(spec, upstream), tmp_path / "checkpoint.npz"
    expected = STAGES[stage].run(whole)
    with pytest.raises(Stopped):
        STAGES[stage].run(Context(spec, upstream, checkpoint, int(share * len(whole.ticks))))
    assert checkpoint.exists()
    later = Context(spec, upstream, checkpoint)
    xr.testing.assert_identical(STAGES[stage].run(later), expected)
    assert len(later.ticks) < len(whole.ticks)


def counting(context):
    """A stage with a state of its own: it draws numbers one by one."""
    state = context.restore() or {"drawn": np.zeros(0)}
    for i in range(len(state["drawn"]), 4):
        number = place(context)[0] * 10.0 + i
        state = {"drawn": np.append(state["drawn"], number)}
        context.tick(i + 1, 4, "drawing", lambda state=state: state)
    labels = {"label": ("x", np.array(["a", "b", "c", "d"], object))}
    return xr.Dataset({"drawn": ("x", state["drawn"])}, labels, {"kind": "count", "scale": 0.1})


@pytest.mark.parametrize("stop_at", range(1, 17))
def test_a_stage_with_a_state_of_its_own_goes_on_inside_its_time(spec, evolution, tmp_path, stop_at):
    run, checkpoint = everywhere(counting), tmp_path / "checkpoint.npz"
    expected = run(Context(spec, evolution))
    np.testing.assert_array_equal(expected["drawn"].values, 10.0 * np.arange(4)[:, None] + np.arange(4))
    with pytest.raises(Stopped):
        run(Context(spec, evolution, checkpoint, stop_at))
    later = Context(spec, evolution, checkpoint)
    xr.testing.assert_identical(run(later), expected)
    assert len(later.ticks) == 16 - stop_at


def test_without_a_dynamics_there_is_one_context(spec, evolution):
    alone = Context(spec, {"ground_state": evolution["ground_state"]})
    assert contexts(alone) == [alone] == training(contexts(alone))
    assert place(alone) == ()
    assert [place(each) for each in training(contexts(Context(spec, evolution)))] == [(0,), (2,)]


def test_a_dynamics_that_ended_at_once_has_nothing_held_out(spec, evolution, tmp_path):
    first = evolution | {"dynamics": evolution["dynamics"].isel(time=[0])}
    files, _ = computed(spec, first, tmp_path)
    assert files["features"]["held_out"].values.tolist() == [0]
    assert (files["features"]["followed_verdict"].values == "undefined: no time is held out.").all()
    for file in files.values():
        file.close()


def test_keys_without_a_dynamics_know_nothing_of_it(tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text(SPEC.replace("duration = 0.3", "duration = 0.0"))
    points = load_spec(str(path))
    bare = {
        name: replace(stage, upstream=tuple(above for above in stage.upstream if above != "dynamics"))
        for name, stage in STAGES.items()
        if name != "dynamics"
    }
    (here,), (before,) = (make_plan(points, stages, tmp_path) for stages in (STAGES, bare))
    assert [step.key for step in here.steps] == [step.key for step in before.steps]
    path.write_text(SPEC)
    (quenched,) = make_plan(load_spec(str(path)), STAGES, tmp_path)
    keys = {step.stage.name: step.key for step in quenched.steps}
    for step in here.steps[1:]:
        assert keys[step.stage.name] != step.key


@pytest.mark.parametrize("stage", CHAIN)
def test_forecasts_grow_with_the_times(spec, stage):
    often, once = STAGES[stage].estimate(spec), STAGES[stage].estimate(static(spec))
    assert often.disk >= once.disk
    assert often.memory >= once.memory
