"""Stage ``observables`` of a frustrated magnet, with a network of random parameters: held against the sum over its sector."""

from types import SimpleNamespace

import numpy as np
import pytest

from nqs_sae_service.datasets.schema import labelled
from nqs_sae_service.engine.devices import HOST
from nqs_sae_service.physics.exact import FullSummation, all_configurations, ground_state
from nqs_sae_service.physics.observables import make_observable, without_global_phase
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages.observables import STAGE
from nqs_sae_service.vmc.entanglement import halves

SITES, CHAINS, DRAWS = 8, 32, 64
NAMES = (
    "staggered_magnetization_squared",
    "stripe_magnetization_x",
    "spin_correlation_1",
    "bond_energy_2",
    "dimer_x",
    "scalar_chirality",
    "structure_factor_2_1",
    "log_abs_psi",
    "marshall_sign",
    "cos_phase",
    "sin_phase",
)
SPEC = f"""
name = "magnet"
[lattice]
kind = "rectangular"
lengths = [4, 2]
periodic = [true, false]
[hamiltonian]
kind = "heisenberg"
J2 = 0.6
[state]
kind = "rbm"
[sampling]
chains = {CHAINS}
[ground_state]
samples = {CHAINS}
final_samples = {CHAINS}
[samples]
count = {CHAINS * DRAWS}
[observables]
names = {[*NAMES, "energy_variance", "renyi2"]}
"""


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "marshall"])
def magnet(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("magnet") / "spec.toml"
    path.write_text(SPEC)
    (point,) = load_spec(str(path), [f"hamiltonian.marshall={str(request.param).lower()}"])
    spec = point.spec
    assert spec.sampling.fixed_magnetization == 0
    lattice = spec.lattice.build()
    network, rng = spec.state.build(lattice), np.random.default_rng(4)
    parameters = rng.normal(scale=0.35, size=network.n_parameters)
    sigma = all_configurations(SITES)
    log_psi = np.where(sigma.sum(axis=1) == 0, network.log_psi(parameters, sigma), -np.inf)
    state = FullSummation.from_log_psi(SITES, log_psi)
    drawn = rng.choice(len(sigma), size=(CHAINS, DRAWS), p=state.probability)
    split = np.array(["train", "select", "test", "train"])[np.arange(CHAINS) % 4]
    samples = {"configuration": sigma[drawn], "log_psi": log_psi[drawn]}
    ticks = []
    context = SimpleNamespace(
        spec=spec,
        device=HOST,
        upstream={
            "ground_state": labelled("ground_state", {"parameters": parameters}),
            "samples": labelled("samples", samples, {"split": ("chain", split)}),
        },
        tick=lambda done, total, message="": ticks.append(message),
    )
    result = STAGE.run(context)
    return SimpleNamespace(
        result=result, state=state, log_psi=log_psi, drawn=drawn, spec=spec, lattice=lattice, ticks=ticks
    )


def by_name(magnet, name):
    """Values of an observable on all configurations of the sector, NaN outside."""
    observable = make_observable(name, magnet.lattice, magnet.spec.hamiltonian.build(magnet.lattice))
    values = np.full(2**SITES, np.nan)
    inside = np.isfinite(magnet.log_psi)
    if observable.operator is not None:
        psi = magnet.state.psi
        values[inside] = ((observable.operator.to_sparse() @ psi)[inside] / psi[inside]).real
    elif observable.kind == "log_psi":
        values[inside] = magnet.log_psi[inside].real
    elif observable.kind == "phase":
        sigma, log_psi = magnet.state.configurations[inside], magnet.log_psi[inside]
        seen = observable.values(magnet.state.configurations, magnet.log_psi)[magnet.drawn].ravel()
        gauge = without_global_phase(seen)[0] / seen[0]  # that of the samples
        values[inside] = getattr(gauge * observable.values(sigma, log_psi), observable.part)
    else:
        values[inside] = observable.values(magnet.state.configurations[inside])
    return values


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_that_of_its_configuration(magnet, name):
    found = magnet.result["value"].sel(observable=name).values
    np.testing.assert_allclose(found, by_name(magnet, name)[magnet.drawn], atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_means_agree_with_the_sum(magnet, name):
    row = magnet.result.sel(observable=name)
    expected = np.nansum(magnet.state.probability * by_name(magnet, name))
    assert abs(float(row["mean"]) - expected) < 4.5 * float(row["error"])


def test_variance_of_the_energy_and_entanglement(magnet):
    result, state = magnet.result, magnet.state
    variance = state.operator_variance(magnet.spec.hamiltonian.build(magnet.lattice).to_sparse())
    assert abs(float(result["energy_variance"]) - variance) < 4.5 * float(result["energy_variance_error"])
    assert "local_energy" not in result["observable"].values
    for name, sites in halves(magnet.lattice).items():
        row = result.sel(subsystem=name)
        assert abs(float(row["renyi2"]) - state.renyi2(sites)) < 4.5 * float(row["renyi2_error"])
        assert float(row["renyi2_error"]) < 0.1
        operator = magnet.spec.hamiltonian.build(magnet.lattice)
        ground = FullSummation(all_configurations(SITES), ground_state(operator).vector)
        assert float(row["renyi2_exact"]) == pytest.approx(ground.renyi2(sites), abs=1e-9)
    assert set(magnet.ticks) == {"observables", "Renyi entropy, half_x", "Renyi entropy, half_y"}


def test_simple_functions_are_those_of_a_magnet(magnet):
    result = magnet.result
    assert result.attrs["simple_functions"] == "{1, m_s, |m_s|, m_s^2, zz, zz_2, stripe^2}"
    explained = result["simple_function_r2"].sel(observable="staggered_magnetization_squared")
    assert float(explained) == pytest.approx(1)
    assert 0 < float(result["simple_function_r2"].sel(observable="cos_phase")) < 1


def test_the_forecast_counts_the_connected_configurations(magnet):
    more = STAGE.estimate(magnet.spec)
    names = ("staggered_magnetization",)
    observables = magnet.spec.observables.model_copy(update={"names": names})
    less = STAGE.estimate(magnet.spec.model_copy(update={"observables": observables}))
    assert more.seconds > less.seconds == 0
