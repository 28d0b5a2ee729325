"""NetKet as a contender: VMC of the transverse-field Ising ring. Runs in the virtual environment of NetKet.

The time of a step depends on how NetKet solves stochastic reconfiguration, so each method is a driver of its own on one
state: ``dense`` and ``on_the_fly`` are VMC_SR in sample space (minSR); ``cg`` is conjugate gradients on the dense complex
Jacobian of a holomorphic network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import netket as nk
import numpy as np
import optax
from netket_models import make_model
from protocol import Answer, serve


class Vmc:
    """One network on one ring, with a driver for each method."""

    def __init__(self, work: Mapping[str, Any]) -> None:
        self.work = work
        n = work["sites"]
        hilbert = nk.hilbert.Spin(0.5, n)
        graph = nk.graph.Chain(n, pbc=True)
        self.hamiltonian = nk.operator.Ising(hilbert, graph, h=work["h"], J=-1.0)
        sampler = nk.sampler.MetropolisLocal(hilbert, n_chains=work["chains"], sweep_size=n)
        self.state = nk.vqs.MCState(
            sampler,
            make_model(work["network"]),
            n_samples=work["samples"],
            n_discard_per_chain=0,
            seed=work["seed"],
            sampler_seed=work["seed"] + 1,
        )
        self.drivers: dict[str, Any] = {}

    def driver(self, method: str) -> Any:
        if method not in self.drivers:
            self.drivers[method] = self._make_driver(method)
        return self.drivers[method]

    def _make_driver(self, method: str) -> Any:
        work = self.work
        options = work["ground_state"]
        rate, shift = _learning_rate(options), _shift(options)
        if method == "cg":
            metric = nk.optimizer.qgt.QGTJacobianDense(holomorphic=True)
            return nk.driver.VMC(
                self.hamiltonian,
                optax.sgd(rate),
                variational_state=self.state,
                preconditioner=nk.optimizer.SR(qgt=metric, diag_shift=shift),
            )
        return nk.driver.VMC_SR(
            self.hamiltonian,
            optax.sgd(rate),
            diag_shift=shift,
            momentum=options["momentum"] or None,
            variational_state=self.state,
            mode="real" if work["network"].get("amplitude") == "positive" else "complex",
            use_ntk=True,
            on_the_fly=method == "on_the_fly",
        )

    def step(self, method: str) -> float:
        """One whole step: sample, local energies, update. Returns the energy of its batch."""
        driver = self.driver(method)
        self.state.reset()
        energy, update = driver.compute_loss_and_update()
        driver.update_parameters(update)
        driver._step_count += 1  # what ``driver.run`` does after each step; schedules follow it
        jax.block_until_ready(self.state.parameters)
        return float(np.real(energy.mean))

    def sampling(self) -> None:
        self.state.reset()
        jax.block_until_ready(self.state.sample())

    def local_energy(self) -> None:
        jax.block_until_ready(self.state.local_estimators(self.hamiltonian))

    def measure(self, draws: int) -> tuple[float, float]:
        """Energy and its standard error (scatter of the chains' means) from fresh samples; the chains move on."""
        means = []
        for _ in range(draws):
            self.sampling()
            values = np.asarray(self.state.local_estimators(self.hamiltonian).data).real
            means.append(values.reshape(self.work["chains"], -1).mean(axis=1))
        of_chains = np.mean(means, axis=0)
        return float(of_chains.mean()), float(of_chains.std(ddof=1) / np.sqrt(len(of_chains)))


def _learning_rate(options: Mapping[str, Any]) -> Any:
    """The project's cosine decay; a number where it does not decay.

    NetKet's update carries the factor 2 of the gradient of the energy, this project's does not: half the rate is the same step.
    """
    start, left = options["learning_rate"] / 2, options["final_learning_rate"]
    if left == 1:
        return start

    def rate(step: Any) -> Any:
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * step / options["steps"]))
        return start * (left + (1 - left) * cosine)

    return rate


def _shift(options: Mapping[str, Any]) -> Any:
    """The project's geometric decay of the diagonal shift; the shift itself where it does not decay."""
    start, end = options["shift_start"], options["shift"]
    if start == end:
        return end
    return lambda step: max(end, start * (end / start) ** (int(step) / options["shift_steps"]))


class Server:
    """The requests that this contender answers."""

    def __init__(self) -> None:
        self.vmc: Vmc | None = None

    def build(self, request: Mapping[str, Any]) -> Answer:
        self.vmc = Vmc(request["work"])
        return {
            "parameters": int(sum(np.iscomplexobj(p) * p.size + p.size for p in self._leaves())),
            "versions": {"netket": nk.__version__, "jax": jax.__version__},
            "device": str(jax.devices()[0]),
        }

    def _leaves(self) -> list[Any]:
        assert self.vmc is not None
        return jax.tree_util.tree_leaves(self.vmc.state.parameters)

    def step(self, request: Mapping[str, Any]) -> Answer:
        assert self.vmc is not None
        return {"energy": self.vmc.step(request["method"])}

    def sampling(self, request: Mapping[str, Any]) -> None:
        assert self.vmc is not None
        self.vmc.sampling()

    def local_energy(self, request: Mapping[str, Any]) -> None:
        assert self.vmc is not None
        self.vmc.local_energy()

    def train(self, request: Mapping[str, Any]) -> Answer:
        assert self.vmc is not None
        began = time.perf_counter()
        energies = [self.vmc.step(request["method"]) for _ in range(request["steps"])]
        return {"seconds": time.perf_counter() - began, "energy": energies[-1]}

    def measure(self, request: Mapping[str, Any]) -> Answer:
        assert self.vmc is not None
        energy, error = self.vmc.measure(request["draws"])
        return {"energy": energy, "error": error}

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Answer | None]]:
        names = ("build", "step", "sampling", "local_energy", "train", "measure")
        return {name: getattr(self, name) for name in names}


if __name__ == "__main__":
    serve(Server().handlers())
