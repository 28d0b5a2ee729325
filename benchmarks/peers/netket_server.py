"""NetKet as a contender: variational Monte Carlo. Runs in the virtual environment of NetKet.

The time of a step depends on how NetKet solves stochastic reconfiguration, so each method is a driver of its own on one
state: ``dense`` and ``on_the_fly`` are VMC_SR in sample space (minSR); ``cg`` is conjugate gradients on the dense complex
Jacobian of a holomorphic network. It also depends on the type of the operator. NetKet's own choice, for JAX, evaluates a
configuration for every term of H, whether its matrix element is zero or not. The one for Numba (``..., Numba operator``)
evaluates as many as the configuration of the batch with most nonzero elements has, and JAX compiles anew whenever that
number was not met before.
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
from netket_physics import make_hamiltonian, make_hilbert, make_sampler
from protocol import Answer, serve

NUMBA = ", Numba operator"


class Vmc:
    """One network and one Hamiltonian, with a driver for each method."""

    def __init__(self, work: Mapping[str, Any]) -> None:
        self.work = work
        lattice, sampling = work["lattice"], work["sampling"]
        hilbert = make_hilbert(lattice, sampling)
        self.hamiltonian = make_hamiltonian(hilbert, lattice, work["hamiltonian"])
        self.state = nk.vqs.MCState(
            make_sampler(hilbert, lattice, sampling),
            make_model(work["network"], lattice),
            n_samples=work["samples"],
            n_discard_per_chain=0,
            seed=work["seed"],
            sampler_seed=work["seed"] + 1,
        )
        self.drivers: dict[str, Any] = {}
        self.operators: dict[bool, Any] = {False: self.hamiltonian}

    def operator(self, method: str) -> Any:
        """The Hamiltonian in the type that the method asks for."""
        numba = method.endswith(NUMBA)
        if numba not in self.operators:
            self.operators[numba] = self.hamiltonian.to_numba_operator()
        return self.operators[numba]

    def driver(self, method: str) -> Any:
        if method not in self.drivers:
            self.drivers[method] = self._make_driver(method)
        return self.drivers[method]

    def _make_driver(self, method: str) -> Any:
        work = self.work
        options = work["ground_state"]
        rate, shift = _learning_rate(options), _shift(options)
        operator, solver = self.operator(method), method.removesuffix(NUMBA)
        if solver == "cg":
            metric = nk.optimizer.qgt.QGTJacobianDense(holomorphic=True)
            return nk.driver.VMC(
                operator,
                optax.sgd(rate),
                variational_state=self.state,
                preconditioner=nk.optimizer.SR(qgt=metric, diag_shift=shift),
            )
        return nk.driver.VMC_SR(
            operator,
            optax.sgd(rate),
            diag_shift=shift,
            momentum=options["momentum"] or None,
            variational_state=self.state,
            mode="real" if work["network"].get("amplitude") == "positive" else "complex",
            use_ntk=True,
            on_the_fly=solver == "on_the_fly",
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

    def local_energy(self, method: str) -> None:
        jax.block_until_ready(self.state.local_estimators(self.operator(method)))

    def measure(self, draws: int) -> tuple[float, float]:
        """Energy and its standard error (scatter of the chains' means) from fresh samples; the chains move on."""
        means = []
        for _ in range(draws):
            self.sampling()
            values = np.asarray(self.state.local_estimators(self.hamiltonian).data).real
            means.append(values.reshape(self.work["sampling"]["chains"], -1).mean(axis=1))
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
        self.vmc.local_energy(request["method"])

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
