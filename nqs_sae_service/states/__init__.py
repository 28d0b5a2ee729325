"""Neural quantum states: each architecture is a list of bricks with named layers. A new one is a record registered here."""

from .state import EditedWavefunction, LogPsi, State, Wavefunction
from .transformer import Transformer

STATES = {"transformer": Transformer}

__all__ = ["STATES", "EditedWavefunction", "LogPsi", "State", "Transformer", "Wavefunction"]
