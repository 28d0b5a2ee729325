"""This project as a contender, by what a user gets: records of a spec, ``Trainer.advance``, a dictionary's learner and Adam."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from protocol import Answer, serve

from nqs_sae_service import __version__
from nqs_sae_service.engine.random import Stream
from nqs_sae_service.engine.threads import configure_threads
from nqs_sae_service.sae.training import Adam
from nqs_sae_service.sampling import process_of
from nqs_sae_service.spec.root import REGISTRIES
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.vmc.estimators import local_values
from nqs_sae_service.vmc.statistics import mean_and_error
from nqs_sae_service.vmc.training import Trainer, Training


def record(section: str, **values: Any) -> Any:
    """The record of a section that comes in kinds."""
    return REGISTRIES[section][values["kind"]].model_validate(values)


class Vmc:
    """A training of one network, one step at a time."""

    def __init__(self, work: Mapping[str, Any]) -> None:
        self.work = work
        sections = {name: record(name, **work[name]) for name in ("lattice", "hamiltonian")}
        self.lattice = lattice = sections["lattice"].build()
        sampling = Sampling.model_validate(work["sampling"]).resolved(sections)
        assert isinstance(sampling, Sampling)
        self.sampling_record = sampling
        options = GroundState.model_validate(
            {"samples": work["samples"], "seed": work["seed"], **work["ground_state"]}
        )
        self.hamiltonian = sections["hamiltonian"].build(lattice)
        state = record("state", **work["network"]).build(lattice)
        self.trainer = Trainer(state, lattice, self.hamiltonian, self.sampling_record, options)
        self.training: Training = self.trainer.start()
        self.draws = work["samples"] // sampling.chains

    def step(self) -> float:
        """One whole step. Returns the energy of its batch."""
        self.trainer.advance(self.training)
        return self.training.history["energy"][-1]

    def sample(self) -> tuple[Any, np.ndarray, np.ndarray]:
        """psi, configurations and log psi as a step draws them."""
        psi = self.trainer.state.bind(self.training.parameters)
        chains = self.trainer.process.start(psi, self.training.sigma, self.training.sweeps)
        sigma, log_psi = self.trainer.process.draws(psi, chains, self.draws, self.sampling_record.sweeps)
        return psi, sigma.reshape(-1, sigma.shape[-1]), log_psi.reshape(-1)

    def local_energy(self) -> float:
        """Seconds that the local energies of one batch take, the sampling not counted."""
        psi, sigma, log_psi = self.sample()
        began = time.perf_counter()
        local_values(psi, [self.hamiltonian], sigma, log_psi)
        return time.perf_counter() - began

    def measure(self, draws: int) -> tuple[float, float]:
        """Energy and its standard error from fresh samples, leaving the training as it was."""
        psi = self.trainer.state.bind(self.training.parameters)
        process = process_of(self.sampling_record, self.lattice, self.work["seed"], Stream.FINAL_ENERGY)
        chains = process.start(psi, self.training.sigma)
        energies = []
        for _ in range(draws):
            process.draws(psi, chains, 1, self.sampling_record.sweeps)
            (values,) = local_values(psi, [self.hamiltonian], chains.sigma, chains.log_psi)
            energies.append(values.real)
        mean, error = mean_and_error(np.stack(energies, axis=1))
        return float(mean), float(error)


class Sae:
    """One dictionary in training on normally distributed inputs."""

    def __init__(self, work: Mapping[str, Any]) -> None:
        generator = np.random.default_rng(work["seed"])
        self.batch = generator.standard_normal((work["batch"], work["width"]), dtype=np.float32)
        options = record("sae", kind="topk", features=work["features"], k=work["k"], batch=work["batch"])
        self.learner = options.learner(generator, self.batch)
        self.adam = Adam(self.learner.parameters)
        self.dead = np.zeros(work["features"], bool)

    def step(self) -> None:
        """Forward, backward, Adam with unit decoder rows."""
        self.learner.step(self.batch, 0.0, self.dead, self.adam, 1e-4)


class Server:
    """The requests that this contender answers."""

    def __init__(self) -> None:
        self.work: Any = None

    def build(self, request: Mapping[str, Any]) -> Answer:
        threads = configure_threads(request.get("threads", 0))
        work = request["work"]
        self.work = Sae(work) if work["kind"] == "sae" else Vmc(work)
        answer: Answer = {"threads": threads, "versions": {"nqs_sae_service": __version__}}
        if work["kind"] != "sae":
            answer["parameters"] = self.work.trainer.state.n_parameters
        return answer

    def threads(self, request: Mapping[str, Any]) -> None:
        configure_threads(request["threads"])

    def step(self, request: Mapping[str, Any]) -> Answer:
        return {"energy": self.work.step()}

    def sampling(self, request: Mapping[str, Any]) -> None:
        self.work.sample()

    def local_energy(self, request: Mapping[str, Any]) -> Answer:
        return {"seconds": self.work.local_energy()}

    def train(self, request: Mapping[str, Any]) -> Answer:
        began = time.perf_counter()
        energies = [self.work.step() for _ in range(request["steps"])]
        return {"seconds": time.perf_counter() - began, "energy": energies[-1]}

    def measure(self, request: Mapping[str, Any]) -> Answer:
        energy, error = self.work.measure(request["draws"])
        return {"energy": energy, "error": error}

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Answer | None]]:
        names = ("build", "threads", "step", "sampling", "local_energy", "train", "measure")
        return {name: getattr(self, name) for name in names}


if __name__ == "__main__":
    serve(Server().handlers())
