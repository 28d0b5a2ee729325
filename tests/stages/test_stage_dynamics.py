"""Stage dynamics on 6 sites: against exact evolution, stopped and continued, collapsed, refused."""

import numpy as np
import pytest
import xarray as xr

from nqs_sae_service.engine.devices import HOST
from nqs_sae_service.engine.ranks import ALONE
from nqs_sae_service.errors import NumericalError, Stopped
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES, dynamics
from nqs_sae_service.vmc.steps import METHODS, Tdvp

SPEC = """
name = "quench"
[lattice]
kind = "chain"
length = 6
[hamiltonian]
kind = "tfim"
h = 2.0
[state]
kind = "cnn"
channels = 6
kernel = 5
blocks = 1
amplitude = "complex"
[sampling]
chains = 64
[ground_state]
steps = 0
[samples]
count = 64
[dynamics]
start = "x"
duration = 0.3
every = 0.1
samples = 512
measurements = 4096
cutoff = 1e-4
tolerance = 1e-3
observables = ["sigma_x", "correlation_0_1"]
[dynamics.hamiltonian]
kind = "tfim"
h = 1.0
"""


class Context:
    """A runner that may stop at a tick, and keeps what a checkpoint would."""

    device, ranks = HOST, ALONE

    def __init__(self, folder, sets=(), stop_at=None, saved=None):
        path = folder / "quench.toml"
        path.write_text(SPEC)
        self.spec = load_spec(path, sets)[0].spec
        lattice = self.spec.lattice.build()
        state = self.spec.state.build(lattice)
        walkers = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (64, lattice.n_sites))
        self.upstream = {
            "ground_state": xr.Dataset(
                {
                    "parameters": ("parameter", state.initial_parameters(1)),
                    "final_configuration": (("chain", "spin"), walkers),
                }
            )
        }
        self.stop_at, self.saved, self.ticks, self.messages = stop_at, saved, 0, []

    def tick(self, done, total, message="", state=None):
        assert 0 <= done <= total
        self.ticks += 1
        self.messages.append(message)
        if state is not None and self.ticks == self.stop_at:
            self.saved = {name: np.array(array) for name, array in state().items()}
            raise Stopped

    def restore(self):
        return self.saved


def run(folder, *sets, **options):
    context = Context(folder, sets, **options)
    return context, dynamics.run(context)


FULL = (
    'state.precision="float64"',
    "dynamics.full_summation=true",
    "dynamics.cutoff=1e-9",
    "dynamics.tolerance=3e-5",
)


def test_a_quench_summed_in_full(tmp_path):
    context, found = run(tmp_path, *FULL)
    np.testing.assert_allclose(found["time"], [0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(found["observable_mean"], found["observable_exact"], atol=1e-3)
    assert (found["infidelity"] < 1e-4).all()
    assert (abs(found["energy"] / found["energy"][0] - 1) < 1e-3).all()
    assert (found["energy_error"] == 0).all()
    assert (found["tdvp_error"][1:] < 1e-2).all()
    assert np.isnan(found["step_size"][0])
    assert (np.diff(found["steps"]) > 0).all()
    assert found.attrs["start_infidelity"] < 1e-5
    assert found["final_configuration"].shape == (4, 64, 6)
    assert "drift" in context.messages[-1]
    state = context.spec.state.build(context.spec.lattice.build())
    assert found["parameters"].shape == (4, state.n_parameters)
    assert "ended" not in found.attrs


@pytest.mark.parametrize(("method", "exponent"), [("tdvp", 1.0), ("ptvmc", 1.0), ("ptvmc", 0.5)])
def test_a_quench_from_samples(tmp_path, method, exponent):
    options = (
        f"dynamics.exponent={exponent}",
        "dynamics.duration=0.06",
        "dynamics.every=0.03",
        "dynamics.step=0.02",
        "dynamics.infidelity=1e-6",
        "dynamics.order=3",
    )
    _, found = run(tmp_path, f"dynamics.method={method}", *options)
    distance = abs(found["observable_mean"] - found["observable_exact"])
    assert (distance < 4 * found["observable_error"] + 5e-3).all()
    assert (found["observable_error"] < 0.02).all()
    assert (found["infidelity"] < 5e-3).all()


@pytest.mark.parametrize(
    "sets",
    [
        FULL,
        ("dynamics.method=ptvmc", "dynamics.duration=0.1", "dynamics.infidelity=1e-6"),
        ("dynamics.duration=0.04", "dynamics.every=0.02", "dynamics.exponent=0.7"),
    ],
)
def test_stopped_and_continued_it_ends_with_the_same_bits(tmp_path, sets):
    context, whole = run(tmp_path, *sets)
    for share in (0.3, 0.7):
        stopped = Context(tmp_path, sets, stop_at=int(share * context.ticks))
        with pytest.raises(Stopped):
            dynamics.run(stopped)
        _, continued = run(tmp_path, *sets, saved=stopped.saved)
        xr.testing.assert_identical(continued, whole)


def test_imaginary_time_lowers_the_energy(tmp_path):
    _, found = run(tmp_path, *FULL, "dynamics.imaginary=true")
    assert (np.diff(found["energy"]) < 0).all()
    np.testing.assert_allclose(found["observable_mean"], found["observable_exact"], atol=1e-3)


def test_a_step_that_collapses_ends_it_with_what_there_is(tmp_path, monkeypatch):
    """Later stages use the times that were reached."""
    _, whole = run(tmp_path, *FULL)
    longest = float(whole["step_size"].max())
    context = Context(tmp_path, (*FULL, f"dynamics.shortest={0.8 * longest}", "dynamics.step=0.1"))
    with pytest.raises(NumericalError, match="collapsed"):
        dynamics.run(context)  # at once: nothing was reached

    class Collapsing(Tdvp):
        left = 5

        def step(self, *arguments):
            type(self).left -= 1
            if not self.left:
                raise NumericalError("the time step collapsed below 1e-06: raise the cutoff")
            return super().step(*arguments)

    monkeypatch.setitem(METHODS, "tdvp", Collapsing)
    found = dynamics.run(Context(tmp_path, (*FULL, "dynamics.every=0.01")))
    assert found.attrs["ended"].startswith("t = 0.0")
    assert "raise the cutoff" in found.attrs["ended"]
    reached = found["time"].values
    assert 0.0 < reached[-1] < 0.3
    assert (np.diff(reached) > 0).all()
    np.testing.assert_allclose(found["observable_mean"], found["observable_exact"], atol=1e-3)


def test_a_product_state_that_the_network_cannot_be_is_refused(tmp_path):
    """A network that does not see translations has no Neel state."""
    context = Context(tmp_path, (*FULL, 'dynamics.start="neel"', "dynamics.method=ptvmc"))
    with pytest.raises(NumericalError, match="cannot be the product state neel: it has symmetries"):
        dynamics.run(context)


def test_the_chain_has_it_only_where_it_is_wanted(tmp_path):
    path = tmp_path / "quench.toml"
    path.write_text(SPEC)
    with_it = load_spec(path)[0].spec
    without = load_spec(path, ["dynamics.duration=0", "ground_state.steps=3"])[0].spec
    assert STAGES["dynamics"].wanted(with_it)
    assert not STAGES["dynamics"].wanted(without)
    assert with_it.final_hamiltonian.h == 1.0
    assert without.final_hamiltonian.h == 2.0
    assert with_it.dynamics.times == (0.0, 0.1, 0.2, 0.3)


def test_forecast(tmp_path):
    context = Context(tmp_path)
    cost = dynamics.estimate(context.spec)
    longer = dynamics.estimate(Context(tmp_path, ["dynamics.duration=3.0"]).spec)
    assert 0 < cost.seconds < longer.seconds
