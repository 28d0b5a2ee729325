"""Stage ``ground_state``: train the network on energy alone, then measure the energy on fresh samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..datasets.schema import labelled
from ..engine.arrays import to_host
from ..engine.random import Stream
from ..sampling import drift, process_of
from ..vmc.estimators import local_values
from ..vmc.statistics import autocorrelation_time, mean_and_error, split_r_hat, v_score
from ..vmc.training import HISTORIES, Trainer, Training
from .cost import Cost, flip_flops, seconds_for
from .inputs import economy_of
from .stage import Context, Stage
from .starts import LOAD, START_FROM, check_start, start_of

if TYPE_CHECKING:
    from ..spec import Spec


def run(context: Context) -> xr.Dataset:
    """Train for ``steps`` steps (checkpointed after any of them), then the final energy."""
    spec = context.spec
    lattice = spec.lattice.build()
    trainer = Trainer(
        spec.state.build(lattice),
        lattice,
        spec.hamiltonian.build(lattice),
        spec.sampling,
        spec.ground_state,
        economy_of(spec),
        context.device,
        context.ranks,
    )
    exact = spec.hamiltonian.exact_energy(lattice, spec.sampling.fixed_magnetization)
    before, taught = (context.upstream.get(name) for name in (START_FROM, "transfer"))
    parameters, chains = start_of(spec, trainer.state, before, taught)
    saved = context.restore()
    training = (
        Training.from_arrays(saved, context.device, context.ranks)
        if saved
        else trainer.start(parameters, chains)
    )

    def state() -> dict[str, np.ndarray]:
        return training.arrays(context.ranks) | (kept if checkpoints else {})

    def keep() -> None:
        if training.step in checkpoints:
            at = checkpoints.index(training.step)
            kept["checkpoint_parameters"][at] = to_host(training.parameters)

    steps, checkpoints = spec.ground_state.steps, spec.ground_state.checkpoints
    kept = {"checkpoint_parameters": np.zeros((len(checkpoints), parameters.size), trainer.state.dtype)}
    kept |= {name: saved[name] for name in kept if saved and name in saved}
    final_draws = spec.ground_state.final_samples // spec.sampling.chains
    total = steps + final_draws
    keep()
    while training.step < steps:
        context.tick(training.step, total, _message(training, exact), state)
        trainer.advance(training)
        keep()
    final = _final_energy(context, trainer, training, lambda n: context.tick(n, total, "final energy", state))
    if exact is not None:
        final |= {"exact_energy": exact, "relative_error": (final["final_energy"] - exact) / abs(exact)}
    variables = {name: np.asarray(training.history[name]) for name in HISTORIES}
    variables["step_bounded"] = variables["step_bounded"].astype(np.int8)
    variables["parameters"] = to_host(training.parameters)
    variables["initial_parameters"] = parameters
    for name in ("mean_configuration", "final_configuration"):
        variables[name] = final.pop(name)
    if not checkpoints:
        return labelled("ground_state", variables, {}, final)
    return labelled("ground_state", variables | kept, {"checkpoint": np.asarray(checkpoints)}, final)


def _message(training: Training, exact: float | None) -> str:
    if not training.step:
        return "E = ?"
    energy = training.history["energy"][-1]
    return f"E = {energy:.4f}" + (f" ({(energy - exact) / abs(exact):+.1e})" if exact else "")


def _final_energy(
    context: Context, trainer: Trainer, training: Training, tick: Callable[[int], None]
) -> dict:
    """Energy with an honest error from samples that no step was taken on."""
    spec, state, ranks = context.spec, trainer.state, context.ranks
    psi = state.bind(training.parameters)
    process = process_of(
        spec.sampling, trainer.lattice, spec.ground_state.seed, Stream.FINAL_ENERGY, economy_of(spec)
    )
    chains = process.start(psi, training.sigma, number=trainer.share.start)
    tick(spec.ground_state.steps)
    for _ in range(spec.sampling.burn_in):
        ranks.together(lambda: process.sweep(psi, chains))
        tick(spec.ground_state.steps)
    chains.clear_counters()
    energies, spins, seconds = [], [], 0.0
    for draw in range(spec.ground_state.final_samples // spec.sampling.chains):
        began = time.perf_counter()
        for _ in range(spec.sampling.sweeps):
            ranks.together(lambda: process.sweep(psi, chains))
        seconds += time.perf_counter() - began
        (values,) = local_values(psi, [trainer.hamiltonian], chains.sigma, chains.log_psi, economy_of(spec))
        energies.append(to_host(values))
        spins.append(to_host(chains.sigma).copy())
        tick(spec.ground_state.steps + draw + 1)
    values = ranks.gather(np.stack(energies, axis=1))
    sigma = ranks.gather(np.stack(spins, axis=1))
    accepted, proposed = ranks.sum(np.asarray([chains.accepted, chains.proposed]))
    mean, error = mean_and_error(values.real)
    moment = sigma.mean(axis=2)
    tau = float(autocorrelation_time(values.real))
    return {
        "final_energy": float(mean),
        "final_energy_error": float(error),
        "final_energy_variance": float(values.var()),
        "r_hat": float(split_r_hat(values.real)),
        "tau": tau,
        "effective_samples_per_second": values.size / tau / seconds,
        "v_score": float(v_score(float(mean), float(values.var()), state.n_sites)),
        "acceptance": float(accepted / max(proposed, 1)),
        "sector_occupancy": [float((moment > 0).mean()), float((moment < 0).mean())],
        "drift": max(ranks.collect(drift(psi, psi.reference, chains))),
        "mean_configuration": sigma.mean(axis=(0, 1)),
        "final_configuration": ranks.gather(to_host(chains.sigma)),
        "volatile": "effective_samples_per_second",
    }


def estimate(spec: Spec) -> Cost:
    """Sampling and local energies dominate: (sweeps + 1) x sites network calls per sample, plus the minSR matrix."""
    lattice = spec.lattice.build()
    state = spec.state.build(lattice)
    options, n = spec.ground_state, state.n_sites
    draws = options.samples // spec.sampling.chains
    sampling = spec.sampling
    each = sampling.sweeps * sampling.evaluations(n) + n  # of a sample: the chains, the local energy
    calls = (options.steps * options.samples + options.final_samples) * each
    calls += 2 * sampling.burn_in * sampling.chains * sampling.evaluations(n)
    calls += (options.steps + 2) * sampling.listed(n)
    rows = options.samples * (2 if state.complex_amplitude else 1)
    gram = options.steps * (
        rows * rows * (state.gram_width or state.n_parameters) + rows**3 / 3 + draws * 3e7
    )
    edges = 56 * options.samples * state.n_tokens * state.width * len(state.bricks)
    memory = 3 * 8 * rows * rows + edges
    if state.n_copies > 1:  # every column of O-bar is kept
        memory += rows * state.n_parameters * state.dtype.itemsize
    return Cost(
        seconds_for(flip_flops(spec) * calls + gram),
        8.0 * (2 * state.n_parameters + 9 * options.steps),
        memory,
    )


STAGE = Stage(
    name="ground_state",
    reads=("lattice", "hamiltonian", "state", "sampling", "ground_state"),
    upstream=("transfer",),
    version=2,
    run=run,
    estimate=estimate,
    distributed=True,
    sources=(START_FROM, LOAD),
    check=check_start,
)
