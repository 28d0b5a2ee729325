"""Neural quantum states: each architecture is a list of bricks with named layers. A new one is a record registered here."""

from ..spec.section import Section
from .autoregressive import Autoregressive
from .rbm import Rbm
from .state import EditedWavefunction, LogPsi, State, Wavefunction
from .transformer import Transformer

STATES: dict[str, type[Section]] = {"transformer": Transformer, "rbm": Rbm, "autoregressive": Autoregressive}

__all__ = [
    "STATES",
    "Autoregressive",
    "EditedWavefunction",
    "LogPsi",
    "Rbm",
    "State",
    "Transformer",
    "Wavefunction",
]
