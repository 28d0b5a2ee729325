"""Markov chains on |psi|^2: proposals, chains, and the process that moves them."""

from .metropolis import Chains, Metropolis, drift

__all__ = ["Chains", "Metropolis", "drift"]
