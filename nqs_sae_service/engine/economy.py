"""How much is computed at a time, and what is not computed at all: ``[engine]`` as the numerical rooms see it.

Nothing here changes a result beyond the rounding of the network's precision, so none of it belongs to a stage's key.
"""

from __future__ import annotations

from dataclasses import dataclass

from .memory import available_memory

_MOST, _FEWEST = 16384, 1024  # configurations in a network call, unless asked for
_SHARE = 0.05  # of the free memory that the largest arrays of a call may fill


@dataclass(frozen=True)
class Economy:
    """``chunk``: configurations per network call (0: chosen by ``chunk_that_fits``). The savings, each exact:

    duplicates    connected configurations that several samples reach are evaluated once
    increments    what a flip leaves as it was is not computed again: the first attention of a transformer, the look-up
                  tables of an RBM
    proposals     where chains are few, later proposals of a chain are evaluated together with the next one, in case it
                  is rejected
    """

    chunk: int = 0
    duplicates: bool = True
    increments: bool = True
    proposals: bool = True

    def chunk_that_fits(self, bytes_each: float) -> int:
        """Configurations per call, ``bytes_each`` wide: ``chunk``, or 16384 and less where memory is short (a power of two)."""
        if self.chunk:
            return self.chunk
        fitting = int(_SHARE * available_memory() / max(bytes_each, 1.0))
        return max(_FEWEST, min(_MOST, 1 << max(0, fitting.bit_length() - 1)))


DEFAULT = Economy()
