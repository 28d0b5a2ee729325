"""Markov chains on |psi|^2: proposals, chains, and the process that moves them."""

from .metropolis import Chains, Metropolis, Moves, drift

__all__ = ["Chains", "Metropolis", "Moves", "drift"]
