"""Neural quantum states: each architecture is a list of bricks with named layers. A new one is a record registered here."""

from .ansatz import Ansatz
from .autoregressive import Autoregressive
from .cnn import Cnn
from .jastrow import Jastrow
from .rbm import Rbm
from .state import EditedWavefunction, LogPsi, State, Wavefunction
from .transformer import Transformer

STATES: dict[str, type[Ansatz]] = {
    "transformer": Transformer,
    "rbm": Rbm,
    "cnn": Cnn,
    "jastrow": Jastrow,
    "autoregressive": Autoregressive,
}

__all__ = [
    "STATES",
    "Autoregressive",
    "Cnn",
    "EditedWavefunction",
    "Jastrow",
    "LogPsi",
    "Rbm",
    "State",
    "Transformer",
    "Wavefunction",
]
