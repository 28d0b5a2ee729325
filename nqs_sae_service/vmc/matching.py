"""Attention heads learn what those of another network do: block by block, on that network's own residual stream.

Every block of attention of the network is given the stream x that enters this block of the teacher, and learns its output t:

    loss = sum |y - t|^2 / sum |t|^2

by Adam (Kingma & Ba, arXiv:1412.6980), all blocks at once and none depending on another: the first stage of HydraHead's
transfer (arXiv:2606.20097), layer by layer as in MOHAWK (arXiv:2408.10189).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..engine.arrays import namespace
from ..errors import NumericalError
from ..states import State, Wavefunction
from ..states.primitives import Brick
from ..states.state import run_backward, run_forward
from ..states.transformer_packing import depth

Array = Any

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_ROUNDING = 1e-10  # a loss that is nothing but rounding: its gradient is noise, which Adam would blow up


@dataclass(frozen=True)
class Block:
    """The attention of a block: the ``bricks`` that lead from the edge ``stream`` to the edge ``output``."""

    stream: str
    output: str
    bricks: tuple[Brick, ...]


def blocks_of(state: State) -> list[Block]:
    """The attention of every block, LayerNorm and output map included."""
    names = [brick.name for brick in state.bricks]
    found = []
    for i in range(1, depth(state) + 1):
        first, last = names.index(f"attention_{i}.norm"), names.index(f"attention_{i}.out")
        bricks = state.bricks[first : last + 1]
        found.append(Block(bricks[0].inputs[0], bricks[-1].output, bricks))
    return found


def loss_and_gradient(
    block: Block, weights: dict[str, Array], x: Array, target: Array
) -> tuple[Array, dict[str, Array]]:
    """The loss of a block on streams x and outputs ``target`` (n, token, width), and its gradient by the block's parameters."""
    edges = {block.stream: x}
    run_forward(block.bricks, weights, edges)
    missed, scale = edges[block.output] - target, (target * target).sum()
    loss = (missed * missed).sum() / scale
    deltas = {block.output: 2 / scale * missed}
    run_backward(block.bricks, weights, edges, deltas)
    gradients: dict[str, Array] = {}
    for brick in block.bricks:
        inputs = tuple(edges[name] for name in brick.inputs)
        gradients |= brick.gradient(weights, inputs, deltas[brick.output], True)
    return loss, gradients


@dataclass
class Learning:
    """A network that learns: parameters and moments of Adam (n_parameters,), and the losses of every step so far, (block,)."""

    parameters: Array
    first: Array
    second: Array
    losses: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def start(cls, parameters: Array) -> Learning:
        """At its beginning."""
        zeros = namespace(parameters).zeros_like
        return cls(parameters, zeros(parameters), zeros(parameters))


class Matching:
    """Steps of a network ``state`` towards the attention of the ``teacher``."""

    def __init__(self, teacher: Wavefunction, state: State, steps: int, learning_rate: float) -> None:
        self.teacher, self.state, self.blocks = teacher.fast_bricks, state, blocks_of(state)
        self.steps, self.learning_rate = steps, learning_rate

    def advance(self, learning: Learning, sigma: Array) -> None:
        """One step on configurations (n, n_sites), in place. Raises NumericalError when a loss is not finite."""
        step = len(learning.losses)
        edges, weights = self.teacher.tape(sigma).edges, self.state.unpack(learning.parameters)
        xp = namespace(learning.parameters)
        gradient, losses = xp.zeros_like(learning.parameters), np.zeros(len(self.blocks))
        for number, block in enumerate(self.blocks):
            loss, gradients = loss_and_gradient(block, weights, edges[block.stream], edges[block.output])
            losses[number] = float(loss)
            if losses[number] > _ROUNDING:
                for name, part in gradients.items():
                    gradient[self.state.layout[name][0]] = part.ravel()
        if not np.isfinite(losses).all():
            raise NumericalError(
                f"the loss is not finite at step {step} of the matching; lower transfer.learning_rate"
            )
        learning.losses.append(losses)
        learning.first = _BETA1 * learning.first + (1 - _BETA1) * gradient
        learning.second = _BETA2 * learning.second + (1 - _BETA2) * gradient**2
        mean = learning.first / (1 - _BETA1 ** (step + 1))
        root = xp.sqrt(learning.second / (1 - _BETA2 ** (step + 1)))
        rate = 0.5 * self.learning_rate * (1 + math.cos(math.pi * step / self.steps))
        learning.parameters = (learning.parameters - rate * mean / (root + _EPSILON)).astype(self.state.dtype)


def set_gammas(state: State, parameters: Array, teacher: Wavefunction, sigma: Array) -> None:
    """Give heads that are normalised the root mean square that the teacher's have on configurations (n, n_sites), in place."""
    weights, edges = state.unpack(parameters), teacher.fast_bricks.tape(sigma).edges
    for number in range(1, depth(state) + 1):
        gammas = weights.get(f"attention_{number}.join.gamma")
        if gammas is not None:
            x = edges[f"heads_{number}"]
            by_head = x.reshape(*x.shape[:-1], len(gammas), -1)
            gammas[...] = namespace(x).sqrt((by_head**2).mean(axis=(0, 1, 3)))
