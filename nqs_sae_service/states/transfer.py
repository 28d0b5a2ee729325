"""Parameters of one network as the start of another: on the same lattice, or on a larger one of the same kind.

Parameters are matched by name. What does not depend on the lattice is copied; what belongs to displacements on a periodic
grid is embedded into the larger grid (``displacements.py``; ``Brick.carried`` says what a brick does). A network whose
parameters belong to single sites, such as the dense RBM, cannot go to another lattice.

log psi grows with the lattice, but a LayerNorm behind the sum over tokens forgets how many there were. So where log psi is a
sum of log cosh a with a from a LayerNorm, its gain and bias grow by the ratio of the numbers of tokens: log cosh a is |a| but
for a constant where |a| is large, and log psi is then as extensive as it should be.
"""

from __future__ import annotations

import math

import numpy as np

from .loading import Misfit, arranged
from .primitives import Brick, LayerNorm, LogCosh
from .state import State


def transferred(source: State, parameters: np.ndarray, target: State) -> np.ndarray:
    """Parameters (n_parameters,) of ``target`` made of those of ``source``. Raises Misfit naming the arrays that do not fit."""
    weights = source.unpack(parameters)
    bricks = {brick.name: brick for brick in source.bricks}
    carried = dict(weights)
    for brick in target.bricks:
        if (counterpart := bricks.get(brick.name)) is not None and brick.shapes():
            _refuse_other_grid(counterpart, brick)
            carried |= brick.carried(counterpart, weights)
    for name in _that_grow(target):
        if name in carried:
            carried[name] = carried[name] * carried[name].dtype.type(target.n_tokens / source.n_tokens)
    return arranged(carried, target)


def _refuse_other_grid(source: Brick, target: Brick) -> None:
    """Raise Misfit for as many displacements on another grid: their shapes would fit, their meaning would not."""
    old, new = getattr(source, "grid", ()), getattr(target, "grid", ())
    if old and new and old != new and math.prod(old) == math.prod(new):
        raise Misfit(
            f"{target.name} belongs to displacements on a grid {old}, here it is {new}: another lattice"
        )


def _that_grow(state: State) -> list[str]:
    """Parameters of the LayerNorms that log psi is the sum of log cosh of."""
    ends = {edge for brick in state.bricks if isinstance(brick, LogCosh) for edge in brick.inputs}
    norms = [brick for brick in state.bricks if isinstance(brick, LayerNorm) and brick.output in ends]
    return [name for norm in norms for name in norm.shapes()]
