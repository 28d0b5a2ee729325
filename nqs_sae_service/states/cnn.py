"""A residual convolutional network on any lattice with axes, as bricks (in the spirit of Chen & Heyl, arXiv:2302.01941).

    sigma -> convolution -> L blocks -> sum over tokens -> LayerNorm -> head -> log psi       (or a local head, ``head.py``)

A token is a unit cell. A convolution maps the k x k cells around a token, seen along the axes of the lattice, to its channels;
periodic axes wrap, beyond open ones is zero. A block adds conv(GELU(conv(LayerNorm(x)))) to the residual stream; LayerNorm,
over the channels of a token, and a small start of the second convolution keep deep networks trainable. On a periodic lattice
psi is invariant under translations, and so are all layers up to a shift of their tokens. The fused twin is ``cnn_cpu.py``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from ..spec.section import Finding, Section
from .ansatz import Ansatz
from .fused import Fused
from .head import head, local_head
from .primitives import Add, Brick, Dense, Gelu, LayerNorm, Neighbours
from .state import State

if TYPE_CHECKING:
    from ..physics.lattices import Lattice


_SMALL = 0.2  # of the usual bound


class Cnn(Ansatz):
    """Residual convolutional network over unit cells."""

    kind: Literal["cnn"] = "cnn"
    channels: int = Field(16, ge=1, le=4096, description="channels of the residual stream")
    kernel: int | tuple[int, int] = Field(
        3, description="unit cells along an axis that a convolution sees, or [b, c] along both; odd numbers"
    )
    blocks: int = Field(2, ge=1, le=64, description="residual blocks of two convolutions")
    head: Literal["pooled", "local"] = Field(
        "pooled",
        description="pooled: log psi from the sum over tokens; local: log psi is a sum over tokens itself, for dynamics",
        json_schema_extra={"neutral": True},
    )
    amplitude: Literal["positive", "complex"] = Field("positive", description="psi > 0, or psi with a phase")
    precision: Literal["float32", "float64"] = Field(
        "float32", description="precision of the network; energies are float64"
    )

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        """Windows need axes, a centre, and no more cells than there are."""
        kernel = self.kernel if isinstance(self.kernel, tuple) else (self.kernel,)
        for k in kernel:
            if k < 1 or k % 2 == 0:
                yield Finding(
                    "kernel", f"{k} is not a positive odd number: a window has a cell in its middle"
                )
                return
        geometry: Any = sections.get("lattice")
        if geometry is None:
            return
        extent = geometry.build().extent
        if not extent:
            what = (
                "a graph has no axes to convolve along; choose another kind of state, or a lattice with axes"
            )
            yield Finding("kind", what)
        elif len(kernel) > len(extent):
            yield Finding("kernel", "two lengths are for lattices in two dimensions; give one number")
        else:
            for axis, (n, k) in enumerate(zip(extent, self._kernel_extent(len(extent)), strict=True)):
                if k > n:
                    largest = n - 1 + n % 2
                    what = f"{k} cells are more than the {n} along axis {axis}; at most {largest}"
                    yield Finding("kernel", what)

    def _kernel_extent(self, axes: int) -> tuple[int, ...]:
        return self.kernel if isinstance(self.kernel, tuple) else (self.kernel,) * axes

    def layer_names(self) -> tuple[str, ...]:
        """Public names of the places in the network, from the input to the output."""
        blocks = range(1, self.blocks + 1)
        places = [f"{kind}_{i}" for i in blocks for kind in ("conv", "residual")]
        return ("embedding", *places, *(["head"] if self.head == "pooled" else []))

    def residual_names(self) -> tuple[str, ...]:
        """The residual stream after each block."""
        return tuple(f"residual_{i}" for i in range(1, self.blocks + 1))

    def default_layers(self) -> tuple[str, ...]:
        """What is recorded unless a spec says otherwise: the residual stream."""
        return self.residual_names()

    def network(self, lattice: Lattice) -> State:
        """The network on a lattice."""
        around = windows(lattice, self._kernel_extent(lattice.dimensions))
        return State(
            n_sites=lattice.n_sites,
            n_tokens=len(around),
            width=self.channels,
            layers=self.layer_names(),
            bricks=tuple(_bricks(self, around, lattice.basis)),
            dtype=np.dtype(self.precision),
            complex_amplitude=self.amplitude == "complex",
            sites=np.arange(lattice.n_sites).reshape(-1, lattice.basis),
            initial=lambda name, shape, generator: _initial(name, shape, generator, self.blocks, self.head),
            fuse=_fuse,
            fused_layers=("embedding", *self.residual_names()),
            invariances=lattice.translations() if lattice.periodic else None,
        )


def _fuse(state: State, parameters: Any) -> Fused | None:
    if not isinstance(parameters, np.ndarray):
        return None  # on a GPU the bricks compute
    from .cnn_cpu import FusedCnn

    return FusedCnn(state, parameters)


def windows(lattice: Lattice, kernel: tuple[int, ...]) -> np.ndarray:
    """Cells (cell, place) int64 around every cell, row by row; the number of cells for a place beyond an open boundary."""
    cells = lattice.cells[:: lattice.basis]
    steps = itertools.product(*(range(-(k // 2), k // 2 + 1) for k in kernel))
    target = cells[:, None] + np.asarray(list(steps), np.int64)
    extent = np.asarray(lattice.extent)
    inside = ((target >= 0) & (target < extent) | np.asarray(lattice.wraps)).all(axis=-1)
    number = np.ravel_multi_index(tuple(np.moveaxis(target % extent, -1, 0)), lattice.extent)
    return np.where(inside, number, len(cells))


def _bricks(record: Cnn, around: np.ndarray, basis: int) -> Iterator[Brick]:
    d, places = record.channels, around.shape[1]
    yield Neighbours("window", ("tokens",), ".window", around, basis)
    yield Dense("embedding", (".window",), "embedding", places * basis, d)
    stream = "embedding"
    for i in range(1, record.blocks + 1):
        c = f"conv_{i}"
        yield LayerNorm(f"{c}.norm", (stream,), f"{c}.x", d)
        yield Neighbours(f"{c}.first_window", (f"{c}.x",), f"{c}.w", around, d)
        yield Dense(f"{c}.first", (f"{c}.w",), f"{c}.u", places * d, d)
        yield Gelu(f"{c}.gelu", (f"{c}.u",), f"{c}.g")
        yield Neighbours(f"{c}.second_window", (f"{c}.g",), f"{c}.h", around, d)
        yield Dense(f"{c}.second", (f"{c}.h",), c, places * d, d)
        yield Add(f"{c}.add", (stream, c), f"residual_{i}")
        stream = f"residual_{i}"
    last = head if record.head == "pooled" else local_head
    yield from last(stream, d, record.amplitude == "complex")


def _initial(
    name: str, shape: tuple[int, ...], generator: np.random.Generator, blocks: int, head: str
) -> np.ndarray:
    """Glorot-uniform weights, unit gains, zero biases; what a block adds is scaled by 1 / sqrt(blocks), a local head small."""
    role = name.rpartition(".")[2]
    if role == "gain":
        return np.ones(shape)
    if role == "bias":
        return np.zeros(shape)
    bound = math.sqrt(6 / sum(shape))
    if name.endswith(".second.weight"):
        bound /= math.sqrt(blocks)
    if head == "local" and role == "weight" and name.startswith("head."):
        bound *= _SMALL
    return generator.uniform(-bound, bound, size=shape)
