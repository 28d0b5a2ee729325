"""Susceptibilities of the targets of ``steering``: exact where a system can be diagonalised, else from trainings in a field."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from loguru import logger

from ..engine.arrays import to_host
from ..errors import NumericalError
from ..interpret.bench import Bench
from ..interpret.expectation import Tick, infidelity, reweighted
from ..vmc.response import FieldTrainer, Together, in_both_fields
from ..vmc.training import Trainer, Training
from .inputs import economy_of
from .over_time import over_time
from .stage import Context

if TYPE_CHECKING:
    from ..states import Wavefunction

_FIRST_FIELD = 0.03  # energy per site, in units of which the field times the spread of the target is given
_SAMPLES = 1024  # Born samples that tell how far two states are apart
_UNKNOWN = (float("nan"),) * 3


def susceptibility(context: Context, bench: Bench, column: int, tick: Tick) -> tuple[float, float, float]:
    """chi of an observable of the bench, its standard error, and the strength of the field it was found with.

    Where chi is exact the error is 0 and the strength NaN. All are NaN on more sites without
    ``steering.susceptibility_steps``, after a quench, and where a training in the field diverges.
    """
    if bench.exact is not None:
        return bench.susceptibility(column), 0.0, float("nan")
    if not context.spec.steering.susceptibility_steps or over_time(context):
        return _UNKNOWN
    target, (few, _) = bench.observables[column], bench.thinned(_SAMPLES)

    def distance(plus: Wavefunction, minus: Wavefunction) -> float:
        return infidelity(to_host(plus.log_psi(few) - minus.log_psi(few)))

    spread, energy = bench.values[..., column].real.std(), abs(bench.values[..., -1].real.mean())
    first = _FIRST_FIELD * energy / bench.psi.state.n_sites / max(spread, 1e-12)
    try:
        strength, both = in_both_fields(
            _starts(context, bench, column), first, distance, lambda: tick("in a field")
        )
    except NumericalError as problem:
        logger.warning("{}: no susceptibility, a training in a field diverges: {}", target.name, problem)
        return _UNKNOWN
    curve = reweighted(Together(both), [target], bench.sigma, bench.log_psi, bench.sampling.economy, tick)
    value, error = curve.combination(np.asarray([0.5, -0.5]) / strength)
    return float(value[0]), float(error[0]), float(strength)


def _starts(context: Context, bench: Bench, column: int) -> Callable[[float], tuple[Trainer, Training]]:
    """Makes a trainer in a field of a given strength, and a training at the trained state, by the options of its training."""
    spec, lattice = context.spec, context.spec.lattice.build()
    options = spec.ground_state.model_copy(
        update={
            "seed": spec.steering.seed,
            "steps": spec.steering.susceptibility_steps,
            "shift_start": spec.ground_state.shift,
        }
    )
    parameters = to_host(bench.psi.parameters)
    chains = context.upstream["ground_state"]["final_configuration"].values

    def start(strength: float) -> tuple[Trainer, Training]:
        trainer = FieldTrainer(
            bench.psi.state,
            lattice,
            bench.observables[-1].operator,
            spec.sampling,
            options,
            economy_of(spec),
            context.device,
            observable=bench.observables[column],
            strength=strength,
        )
        return trainer, trainer.start(parameters, chains)

    return start
