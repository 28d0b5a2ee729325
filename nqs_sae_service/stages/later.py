"""What a turned feature does later: a steered state is brought onto the network, and evolves on under the same Hamiltonian."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from loguru import logger

from ..errors import NumericalError
from ..states import LogPsi
from ..vmc.dynamics import Flight, close_enough
from .dynamics import evolution_of
from .over_time import At
from .stage import Context


def later_numbers(context: Context, steered: Callable[[Context], Sequence[int]]) -> range:
    """Numbers of the recorded times after the first steered one; none without a dynamics."""
    if not isinstance(context, At):
        return range(0)
    return range(steered(context.whole)[0] + 1, context.whole.upstream["dynamics"].sizes["time"])


class Later:
    """The recorded times after that of a context, and what becomes of its state there."""

    def __init__(self, at: At, names: Sequence[str], tick: Callable[[], None]):
        self._at, self._recorded = at, at.whole.upstream["dynamics"]
        self.numbers = range(at.number + 1, self._recorded.sizes["time"])
        self._evolution = evolution_of(at, lambda flight: tick(), tuple(names))

    def of(self, psi: LogPsi | None) -> tuple[np.ndarray, float]:
        """Observables (later, observable) of psi, or of the states that were recorded; the infidelity that psi starts with.

        NaN where a step collapses on the way.
        """
        flight, evolution = self._flight(self._at.number), self._evolution
        infidelity, found = 0.0, np.full((len(self.numbers), len(evolution.observables) - 1), np.nan)
        if psi is not None:
            infidelity = evolution.onto(flight, psi, close_enough(self._at.spec.dynamics))
        try:
            for row, number in zip(found, self.numbers, strict=True):
                there = self._flight(number)
                if psi is None:
                    flight.theta, flight.walkers, flight.time = there.theta, there.walkers, there.time
                evolution.advance_to(flight, there.time)
                evolution.record(flight)
                row[:] = flight.records["observable_mean"][-1]
        except NumericalError as problem:
            logger.warning("a steered state evolves to t = {:.6g} only: {}", flight.time, problem)
        return found, infidelity

    def _flight(self, number: int) -> Flight:
        there = self._recorded.isel(time=number)
        return Flight(
            there["parameters"].values.astype(np.float64),
            there["final_configuration"].values,
            time=float(there["time"]),
            length=self._at.spec.dynamics.step,
        )
