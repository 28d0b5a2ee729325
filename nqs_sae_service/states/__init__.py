"""Neural quantum states: each architecture is a list of bricks with named layers. A new one is a record registered here."""

from .rbm import Rbm
from .state import EditedWavefunction, LogPsi, State, Wavefunction
from .transformer import Transformer

STATES = {"transformer": Transformer, "rbm": Rbm}

__all__ = ["STATES", "EditedWavefunction", "LogPsi", "Rbm", "State", "Transformer", "Wavefunction"]
