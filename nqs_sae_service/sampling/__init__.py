"""Draws from |psi|^2: what is proposed to Markov chains, the processes that move them, and who gets which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.economy import DEFAULT, Economy
from ..engine.random import Stream
from .direct import Direct
from .exact import Exact
from .metropolis import Metropolis, Moves, drift
from .process import Chains, Process
from .tempering import Tempering

if TYPE_CHECKING:
    from ..physics.lattices import Lattice
    from ..spec.sampling import Sampling

__all__ = ["Chains", "Direct", "Exact", "Metropolis", "Moves", "Process", "Tempering", "drift", "process_of"]


def process_of(
    options: Sampling,
    lattice: Lattice,
    seed: int,
    stream: Stream,
    economy: Economy = DEFAULT,
    exponent: float = 1.0,
) -> Process:
    """The process that the section ``[sampling]`` describes: the one place that knows which there are.

    ``exponent`` b: it draws from |psi|^(2 b); direct draws are from |psi|^2 whatever it is.
    """
    n_sites, fixed = lattice.n_sites, options.fixed_magnetization
    if options.method == "exact":
        return Exact(n_sites, seed, stream, fixed, exponent)
    chains = (n_sites, options.moves(lattice), seed, stream, economy, fixed)
    if options.method == "direct":
        return Direct(*chains)
    if options.replicas > 1:
        return Tempering(*chains, exponent, options.replicas, options.hottest)
    return Metropolis(*chains, exponent)
