"""Parameters of a transformer for one of the same shape with other attention heads.

What does not belong to heads is copied; of every head the maps to queries, keys and values, and its weights over positions
where both are of one kind. What the teacher has no counterpart of, local taps, gates, weights over positions, stays as it was.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .linear_attention import head_groups
from .loading import Misfit
from .primitives import Dense
from .state import State
from .transformer_packing import depth

_BY_CHANNEL = ("query", "key", "value")
_BY_HEAD = ("mix.weight", "mix.bias")


class Head(NamedTuple):
    """Where the parameters of a head are: in arrays called ``<prefix>.<role>``, ``place`` of the heads there."""

    prefix: str
    place: int
    channels: int

    @property
    def columns(self) -> slice:
        """Its channels among those of the heads there."""
        return slice(self.place * self.channels, (self.place + 1) * self.channels)


def heads_of(state: State, block: int) -> list[Head]:
    """The heads of a block (counted from 1) in their order."""
    groups = head_groups(state, block)
    channels = state.width // sum(len(group.places) for group in groups)
    found = {
        head: Head(group.name, place, channels) for group in groups for place, head in enumerate(group.places)
    }
    return [found[head] for head in sorted(found)]


def taken_over(teacher: State, parameters: np.ndarray, state: State, initial: np.ndarray) -> np.ndarray:
    """Parameters (n_parameters,) of ``state``, from those of the teacher and, where it has none, the ``initial`` ones.

    Raises Misfit where the networks differ in more than their heads.
    """
    _refuse_other_shape(teacher, state)
    result = initial.copy()
    theirs, ours = teacher.unpack(parameters), state.unpack(result)
    of_heads = {
        f"{head.prefix}.{role}"
        for network in (teacher, state)
        for block in range(1, depth(network) + 1)
        for head in heads_of(network, block)
        for role in (*(f"{name}.{part}" for name in _BY_CHANNEL for part in ("weight", "bias")), *_BY_HEAD)
    }
    for name, array in ours.items():
        if name in theirs and name not in of_heads:
            if theirs[name].shape != array.shape:
                raise Misfit(
                    f"{name} of the teacher has the shape {theirs[name].shape}, needed {array.shape}"
                )
            array[...] = theirs[name]
    for block in range(1, depth(state) + 1):
        for theirs_at, ours_at in zip(heads_of(teacher, block), heads_of(state, block), strict=True):
            _copy_head(theirs, theirs_at, ours, ours_at)
    return result


def _refuse_other_shape(teacher: State, state: State) -> None:
    def shape(network: State) -> dict[str, object]:
        blocks = range(1, depth(network) + 1)
        up = [
            brick.fan_out for brick in network.bricks if isinstance(brick, Dense) and brick.name == "mlp_1.up"
        ]
        return {
            "sites": network.n_sites,
            "tokens": network.n_tokens,
            "width": network.width,
            "layers": len(blocks),
            "heads": len(heads_of(network, 1)) if blocks else 0,
            "hidden units": up[0] if up else 0,
            "amplitude": "complex" if network.complex_amplitude else "positive",
        }

    theirs, ours = shape(teacher), shape(state)
    differing = [f"{name} {theirs[name]}, here {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if differing:
        raise Misfit(f"the teacher is a network of another shape: {'; '.join(differing)}")


def _copy_head(theirs: dict[str, np.ndarray], there: Head, ours: dict[str, np.ndarray], here: Head) -> None:
    for role in _BY_CHANNEL:
        for part in ("weight", "bias"):
            source, target = f"{there.prefix}.{role}.{part}", f"{here.prefix}.{role}.{part}"
            if source in theirs and target in ours:
                ours[target][..., here.columns] = theirs[source][..., there.columns]
    for role in _BY_HEAD:
        source, target = f"{there.prefix}.{role}", f"{here.prefix}.{role}"
        if source in theirs and target in ours and theirs[source].shape[1:] == ours[target].shape[1:]:
            ours[target][here.place] = theirs[source][there.place]
