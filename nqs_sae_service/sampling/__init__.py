"""Draws from |psi|^2: what is proposed to Markov chains, the processes that move them, and who gets which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.economy import DEFAULT, Economy
from ..engine.random import Stream
from .direct import Direct
from .metropolis import Metropolis, Moves, drift
from .process import Chains, Process

if TYPE_CHECKING:
    from ..physics.lattices import Lattice
    from ..spec.sections import Sampling

__all__ = ["Chains", "Direct", "Metropolis", "Moves", "Process", "drift", "process_of"]


def process_of(
    options: Sampling, lattice: Lattice, seed: int, stream: Stream, economy: Economy = DEFAULT
) -> Process:
    """The process that the section ``[sampling]`` describes: the one place that knows which there are."""
    kind = Direct if options.method == "direct" else Metropolis
    return kind.of(options, lattice, seed, stream, economy)
