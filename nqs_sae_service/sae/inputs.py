"""What a dictionary learns from, in pieces: rows that are read block by block, and the order in which they become batches.

The order is a function of the number of rows, of the size of a block and of the epoch, never of the memory: an epoch goes
through the blocks in a random order, a buffer of ``BUFFER_ELEMENTS`` numbers at a time, and through the rows of each buffer in
a random order. So whole blocks are read, and rows from all over the data meet; data that fit into one buffer are shuffled
perfectly. Whether the rows lie in memory or are read again in every epoch changes no bit. All dictionaries see the same order;
their seeds are for their first parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

BLOCK_ROWS = 4096  # of rows in an array
BUFFER_ELEMENTS = 2**24  # rows x width that are shuffled at a time: 64 MiB


class Inputs(Protocol):
    """Rows (n_rows, width) float32 in blocks of ``block_rows`` neighbours, the last one possibly shorter."""

    n_rows: int
    width: int
    block_rows: int

    def read(self, block: int) -> np.ndarray:
        """The rows of one block, (at most block_rows, width) float32, always the same bits."""


class Held:
    """Rows that lie in memory: of an array, or of other inputs, read once."""

    def __init__(self, rows: np.ndarray, block_rows: int = BLOCK_ROWS) -> None:
        self.rows, self.block_rows = rows, block_rows
        self.n_rows, self.width = rows.shape

    @classmethod
    def of(cls, inputs: Inputs) -> Held:
        """All rows of other inputs, in blocks of the same size."""
        rows = np.empty((inputs.n_rows, inputs.width), np.float32)
        for block, part in enumerate(blocks(inputs)):
            first = block * inputs.block_rows
            rows[first : first + len(part)] = part
        return cls(rows, inputs.block_rows)

    def read(self, block: int) -> np.ndarray:
        """See ``Inputs``."""
        return self.rows[block * self.block_rows : (block + 1) * self.block_rows]


def blocks(inputs: Inputs) -> Iterator[np.ndarray]:
    """All blocks, from the first to the last."""
    return (inputs.read(block) for block in range(-(-inputs.n_rows // inputs.block_rows)))


class Batches:
    """Centred, scaled batches (size, width) float32, s (x - mean): number ``step`` of an endless sequence, on demand.

    Batches are asked for in ascending order; what an epoch leaves over is dropped. The array is overwritten by the next call.
    """

    def __init__(self, inputs: Inputs, mean: np.ndarray, scale: float, size: int) -> None:
        self.inputs, self.size = inputs, size
        self.shift, self.factor = mean.astype(np.float32), np.float32(scale)
        self.per_epoch = inputs.n_rows // size
        self._batch = np.empty((size, inputs.width), np.float32)
        self._at: tuple[int, int] | None = None  # epoch and group in the buffer
        self._buffer, self._order = np.empty((0, inputs.width), np.float32), np.empty(0, np.int64)
        self._epoch, self._groups, self._begins = -1, [np.empty(0, np.int64)], np.zeros(1, np.int64)

    def batch(self, step: int) -> np.ndarray:
        """Batch number ``step``, from 0 on."""
        epoch, place = divmod(step, self.per_epoch)
        self._plan(epoch)
        first, filled = place * self.size, 0
        while filled < self.size:
            group = int(np.searchsorted(self._begins, first + filled, side="right")) - 1
            self._fill(epoch, group)
            inside = first + filled - int(self._begins[group])
            rows = self._order[inside : inside + self.size - filled]
            part = self._batch[filled : filled + len(rows)]
            np.take(self._buffer, rows, axis=0, out=part)
            filled += len(rows)
        np.subtract(self._batch, self.shift, out=self._batch)
        return np.multiply(self._batch, self.factor, out=self._batch)

    def _plan(self, epoch: int) -> None:
        """Order of the blocks of an epoch, in groups that fill the buffer, and the row each group begins with."""
        if epoch == self._epoch:
            return
        n_blocks, size = -(-self.inputs.n_rows // self.inputs.block_rows), self.inputs.block_rows
        order = np.random.default_rng([epoch]).permutation(n_blocks)
        each = max(1, BUFFER_ELEMENTS // (size * self.inputs.width))
        self._groups = [order[first : first + each] for first in range(0, n_blocks, each)]
        lengths = [int(np.minimum(size, self.inputs.n_rows - group * size).sum()) for group in self._groups]
        self._epoch, self._begins = epoch, np.concatenate([[0], np.cumsum(lengths)[:-1]])

    def _fill(self, epoch: int, group: int) -> None:
        """Read a group of blocks into the buffer, unless it is there."""
        if self._at == (epoch, group):
            return
        chosen = self._groups[group]
        length = int(
            np.minimum(self.inputs.block_rows, self.inputs.n_rows - chosen * self.inputs.block_rows).sum()
        )
        if len(self._buffer) < length:
            self._buffer = np.empty((length, self.inputs.width), np.float32)
        filled = 0
        for block in chosen:
            part = self.inputs.read(int(block))
            self._buffer[filled : filled + len(part)] = part
            filled += len(part)
        self._order = np.random.default_rng([epoch, group]).permutation(length)
        self._at = (epoch, group)
