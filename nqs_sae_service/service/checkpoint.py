"""Checkpoints: the arrays a stage needs to continue with the same bits, in one plain npz file without pickles.

Every member of an npz archive carries a checksum, so that a truncated or damaged file is noticed when it is read; such a
file is said and ignored, and the stage starts anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from loguru import logger

from ..datasets.files import is_own_file, replace_atomically


def save_checkpoint(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays atomically. Raises TypeError for arrays of Python objects, OSError when the disk refuses."""
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"checkpoint array {name!r} holds Python objects")

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # an open file: numpy adds ".npz" to names
            np.savez(file, **arrays)  # type: ignore[arg-type]

    replace_atomically(path, write)


def load_checkpoint(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a checkpoint, or None when there is none or it is damaged (which is said)."""
    if not is_own_file(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as problem:  # zipfile, zlib and numpy.lib.format have dozens for a damaged archive
        logger.warning("{}: damaged checkpoint ignored ({}); the stage starts anew", path, problem)
        return None
