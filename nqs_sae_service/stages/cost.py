"""Forecasts for ``--dry-run``: good to a factor of two or three on two cores of a present-day server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..sae.record import SaeSection
    from ..spec import Spec

_SUSTAINED_FLOPS = 1.5e11  # float32, two cores, fused kernels
_BRICKS_PENALTY = 30.0  # networks without a fast twin run on the reference bricks


@dataclass(frozen=True)
class Cost:
    """A rough forecast: seconds on 2 cores, bytes on disk, peak bytes of memory."""

    seconds: float
    disk: float
    memory: float

    def repeated(self, times: int, kept: float = 0.0) -> Cost:
        """The same work so many times, ``kept`` bytes of each staying in memory until the end."""
        return Cost(times * self.seconds, times * self.disk, self.memory + (times - 1) * kept)


def network_flops(spec: Spec, edited: Sequence[str] = ()) -> float:
    """Arithmetic of one log psi, some layers of it ``edited``: every parameter multiplies once per token, in every copy."""
    state = spec.state.build(spec.lattice.build())
    flops = 2.0 * state.n_parameters * state.n_tokens * state.n_copies
    fast = state.dtype.name in state.fused_dtypes and set(edited) <= set(state.fused_layers)
    return flops * (1.0 if fast else _BRICKS_PENALTY)


def flip_flops(spec: Spec) -> float:
    """Arithmetic of psi'/psi for a configuration that differs by a flip: a proposal, or a term of a local estimator."""
    state = spec.state.build(spec.lattice.build())
    return state.n_copies * state.flip_flops if state.flip_flops else network_flops(spec)


def training_seconds(record: SaeSection, width: int) -> float:
    """Wall time of the training of one dictionary: encoding dominates a step, and about as much again for narrow layers."""
    step = 2.0 * record.batch * record.features * (width + 32)
    passed = 48.0 * record.features * width / 2e10
    return record.steps * (seconds_for(step) + passed + 3e-4) + 1


def seconds_for(flops: float) -> float:
    """Wall time of so much arithmetic."""
    return flops / _SUSTAINED_FLOPS
