"""Stage ``transfer``: a transformer with other attention heads learns a trained one. Only if there is a teacher.

The network takes over the parameters that it shares with the teacher (``states/head_transfer.py``); its heads learn the outputs
of the teacher's, on its Born samples (``vmc/matching.py``); its infidelity to the teacher is minimised, on samples of
its own (``vmc/infidelity.py``). After each of them the infidelity is measured on fresh samples of the network. What follows is
the training on energy, ``ground_state``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..datasets import read_stage
from ..datasets.schema import labelled
from ..engine.arrays import to_host
from ..engine.random import Stream
from ..errors import UserError
from ..sampling import process_of
from ..spec.files import TEACHER
from ..states import State, Wavefunction
from ..states.head_transfer import taken_over
from ..states.loading import Misfit
from ..vmc.ensembles import Sampled
from ..vmc.infidelity import START, Remembered, bring_onto, infidelity_to
from ..vmc.matching import Learning, Matching, set_gammas
from .cost import Cost, network_flops, seconds_for
from .inputs import economy_of
from .stage import Context, Stage
from .starts import chains_of, state_of

if TYPE_CHECKING:
    from ..spec import Spec


def run(context: Context) -> xr.Dataset:
    """Take over, match, minimise the infidelity; a checkpoint is possible after every step."""
    lesson = _Lesson(context)
    lesson.match()
    lesson.approach()
    return lesson.dataset()


class _Lesson:
    """Teacher and pupil, and how far the pupil is."""

    def __init__(self, context: Context) -> None:
        self.context, self.spec, self.options = context, context.spec, context.spec.transfer
        before, put = context.upstream[TEACHER], context.device.put
        lattice = self.spec.lattice.build()
        self.state = self.spec.state.build(lattice)
        teacher, start = _teacher_and_start(self.spec, self.state, before)
        self.teacher = teacher.state.bind(put(teacher.parameters))
        self.process = process_of(
            self.spec.sampling, lattice, self.options.seed, Stream.TRANSFER, economy_of(self.spec)
        )
        self.draws = -(-self.options.samples // self.spec.sampling.chains)
        saved = context.restore()
        if saved is None:
            self._begin(start, chains_of(before, self.spec))
        else:
            self._continue(saved)

    @property
    def _total(self) -> int:
        return self.options.match_steps + self.options.infidelity_steps

    @property
    def _done(self) -> int:
        return len(self.learning.losses) + self.rounds

    def _begin(self, start: np.ndarray, chains: np.ndarray | None) -> None:
        put = self.context.device.put
        self.walkers = self.process.random_chains(self.spec.sampling.chains) if chains is None else chains
        self.sweeps, self.rounds, self.damping = 0, 0, START
        self.infidelities: list[float] = []
        self.measured = np.full(2, np.nan)
        parameters = put(start.copy())
        self.learning = Learning.start(parameters)
        self.sigma = to_host(self._sampled(self.teacher, burn_in=chains is None).of(self.teacher).sigma)
        set_gammas(self.state, parameters, self.teacher, put(self.sigma[: self.options.batch]))
        self.measured[0] = self._infidelity()

    def _continue(self, saved: dict[str, np.ndarray]) -> None:
        put = self.context.device.put
        parameters, first, second = (put(saved[name]) for name in ("parameters", "first", "second"))
        self.learning = Learning(parameters, first, second, list(saved["losses"]))
        self.walkers, self.sigma = saved["walkers"], saved["sigma"]
        self.sweeps, self.rounds = (int(v) for v in saved["counters"])
        self.damping = float(saved["damping"])
        self.infidelities, self.measured = saved["infidelities"].tolist(), saved["measured"]

    def _arrays(self) -> dict[str, np.ndarray]:
        learning = self.learning
        return {
            "parameters": to_host(learning.parameters),
            "first": to_host(learning.first),
            "second": to_host(learning.second),
            "losses": np.asarray(learning.losses).reshape(-1, self._blocks),
            "walkers": to_host(self.walkers),
            "sigma": self.sigma,
            "counters": np.asarray([self.sweeps, self.rounds]),
            "damping": np.asarray(self.damping),
            "infidelities": np.asarray(self.infidelities),
            "measured": self.measured,
        }

    @property
    def _blocks(self) -> int:
        return self.spec.state.layers

    @property
    def _psi(self) -> Wavefunction:
        return self.state.bind(self.learning.parameters)

    def _sampled(self, psi: Wavefunction, burn_in: bool = False) -> Sampled:
        """Samples of the chains, which are thermalised first with ``burn_in``."""
        walkers = self.context.device.put(self.walkers)
        if burn_in:
            chains = self.process.start(psi, walkers, self.sweeps)
            for _ in range(self.spec.sampling.burn_in):
                self.context.tick(self._done, self._total, "burn-in")
                self.process.sweep(psi, chains)
            walkers, self.sweeps = chains.walkers, chains.sweeps
        self.walkers = walkers
        return Sampled(self.process, walkers, self.draws, self.spec.sampling.sweeps, self.sweeps)

    def _infidelity(self) -> float:
        """Of the network to the teacher, on fresh samples; the chains go on from there."""
        psi = self._psi
        ensembles = self._sampled(psi, burn_in=True)
        return infidelity_to(self.teacher, ensembles.of(psi))

    def match(self) -> None:
        """The heads learn the outputs of the teacher's."""
        steps = self.options.match_steps
        matching = Matching(self.teacher, self.state, steps, self.options.learning_rate)
        while (step := len(self.learning.losses)) < steps:
            loss = f"loss {self.learning.losses[-1].max():.1e}" if step else "loss ?"
            self._tick(f"heads: {loss}")
            rows = np.random.default_rng([self.options.seed, step]).choice(
                len(self.sigma), self.options.batch, replace=False
            )
            matching.advance(self.learning, self.context.device.put(np.ascontiguousarray(self.sigma[rows])))
        if np.isnan(self.measured[1]):
            self.measured[1] = self._infidelity()

    def approach(self) -> None:
        """Natural-gradient steps on the infidelity, each on samples of its own."""
        options = self.options
        while self.rounds < options.infidelity_steps:
            known = f"{self.infidelities[-1]:.1e}" if self.infidelities else "?"
            self._tick(f"infidelity {known}")
            psi = self._psi
            ensembles = self._sampled(psi)
            target = Remembered(self.teacher)
            self.infidelities.append(infidelity_to(target, ensembles.of(psi)))
            if self.infidelities[-1] <= options.infidelity:
                return
            theta = to_host(self.learning.parameters).astype(np.float64)
            found = bring_onto(
                target,
                self.state,
                theta,
                ensembles,
                options.infidelity,
                1,
                self.context.device.put,
                damping=self.damping,
            )
            self.damping, self.rounds = found.damping, self.rounds + 1
            self.learning.parameters = self.context.device.put(found.theta.astype(self.state.dtype))
            ensembles.move_on(self._psi)
            self.walkers, self.sweeps = ensembles.walkers, ensembles.done
        self.infidelities.append(self._infidelity())

    def _tick(self, message: str) -> None:
        self.context.tick(self._done, self._total, message, self._arrays)

    def dataset(self) -> xr.Dataset:
        """transfer.nc."""
        variables = {
            "matching_loss": np.asarray(self.learning.losses).reshape(-1, self._blocks),
            "infidelity": np.asarray(self.infidelities),
            "parameters": to_host(self.learning.parameters),
            "final_configuration": to_host(self.walkers),
        }
        taken, matched = self.measured
        attributes = {
            "infidelity_taken_over": float(taken),
            "infidelity_matched": float(matched),
            "final_infidelity": float(self.infidelities[-1]),
            "infidelity_samples": self.draws * self.spec.sampling.chains,
        }
        coordinates = {"block": np.arange(1, self._blocks + 1)}
        return labelled("transfer", variables, coordinates, attributes)


def _teacher_and_start(spec: Spec, state: State, before: xr.Dataset) -> tuple[Wavefunction, np.ndarray]:
    """The teacher, and what the network takes over of its parameters (n_parameters,).

    Raises UserError where the two do not fit.
    """
    file = before.encoding.get("source", "the run to learn from")
    try:
        teacher = state_of(before)
        initial = state.initial_parameters(spec.transfer.seed)
        parameters = before["parameters"].values
        return teacher.bind(parameters), taken_over(teacher.bare, parameters, state.bare, initial)
    except Misfit as problem:
        raise UserError(f"{TEACHER}: {file}: {problem}") from None


def check(spec: Spec, sources: Mapping[str, Path]) -> None:
    """Raise UserError where the teacher is a network of another shape."""
    with read_stage(sources[TEACHER]) as before:
        _teacher_and_start(spec, spec.state.build(spec.lattice.build()), before)


def wanted(spec: Spec) -> bool:
    """Only where there is a teacher."""
    return bool(spec.transfer.wanted)


def estimate(spec: Spec) -> Cost:
    """Three passes of either network for a step of matching; samples, twice, and derivatives for one on the infidelity."""
    lattice, options = spec.lattice.build(), spec.transfer
    state = spec.state.build(lattice)
    flops, rows = network_flops(spec), max(options.samples, spec.sampling.chains)
    sweep = spec.sampling.sweeps * spec.sampling.evaluations(state.n_sites)
    calls = 6.0 * options.match_steps * options.batch
    calls += (2 * options.infidelity_steps + 4) * rows * (sweep + 4)
    wide = rows * (2 if state.complex_amplitude else 1)
    gram = options.infidelity_steps * (wide**2 * state.n_parameters + wide**3)
    memory = wide * state.n_parameters * 12.0 + 3.0 * 8 * wide**2
    return Cost(seconds_for(flops * calls + gram), 8.0 * state.n_parameters + 1e5, memory)


STAGE = Stage(
    name="transfer",
    reads=("lattice", "state", "sampling", "transfer"),
    upstream=(),
    version=1,
    run=run,
    estimate=estimate,
    sources=(TEACHER,),
    check=check,
    wanted=wanted,
)
