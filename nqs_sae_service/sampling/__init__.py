"""Markov chains on |psi|^2: proposals, chains, and the process that moves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.economy import DEFAULT, Economy
from ..engine.random import Stream
from .direct import Direct
from .metropolis import Chains, Metropolis, Moves, drift

if TYPE_CHECKING:
    from ..physics.lattices import Lattice
    from ..spec.sections import Sampling

__all__ = ["Chains", "Direct", "Metropolis", "Moves", "drift", "process_of"]


def process_of(
    options: Sampling, lattice: Lattice, seed: int, stream: Stream, economy: Economy = DEFAULT
) -> Metropolis:
    """The process that the section ``[sampling]`` describes, by its ``method``."""
    kind = Direct if options.method == "direct" else Metropolis
    return kind.of(options, lattice, seed, stream, economy)
