"""The transformer wave function (Viteritti, Rende, Becca, PRL 130, 236401; Rende et al., arXiv:2405.18874), as bricks.

    sigma -> patches of b spins -> embedding -> L pre-LayerNorm blocks -> sum over tokens -> LayerNorm -> head -> log psi

A block adds attention(LayerNorm(x)) and then mlp(LayerNorm(x)) to the residual stream. The head is a dense map and LayerNorm
(for a complex amplitude two of them, a and b) followed by the sum over channels of log cosh(a), or log cosh(a + i b). The fused
twins are ``transformer_cpu.py`` and ``transformer_gpu.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ..spec.section import Finding, Section
from .ansatz import Ansatz
from .fused import Fused
from .head import head
from .primitives import Add, Attention, Brick, Dense, Gelu, LayerNorm, Mix, PositionCode
from .state import State

if TYPE_CHECKING:
    from ..physics.lattices import Lattice

PatchLength = Annotated[int, Field(ge=1, le=4096)]


class Transformer(Ansatz):
    """Transformer over patches of neighbouring spins."""

    kind: Literal["transformer"] = "transformer"
    patch: PatchLength | tuple[PatchLength, PatchLength] | None = Field(
        None,
        description="spins per token on a chain (4), b or [b, c] for patches of b x c unit cells in two dimensions (2); "
        "must divide the lengths",
    )
    width: int = Field(32, ge=1, le=4096, description="channels of the residual stream")
    heads: int = Field(4, ge=1, le=256, description="attention heads; must divide the width")
    layers: int = Field(2, ge=1, le=64, description="blocks of attention and feed-forward network")
    mlp_ratio: int = Field(
        4, ge=1, le=64, description="hidden width of the feed-forward network, in units of the width"
    )
    attention: Literal["full", "positional"] = Field(
        "full",
        description="softmax of queries and keys, or learned weights that depend on the positions alone",
    )
    translation_invariant: bool | None = Field(
        None, description="attention depends on distances only; default: true on a periodic lattice"
    )
    amplitude: Literal["positive", "complex"] = Field("positive", description="psi > 0, or psi with a phase")
    precision: Literal["float32", "float64"] = Field(
        "float32", description="precision of the network; energies are float64"
    )

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        """Widths and patches must divide; distances need a periodic lattice."""
        yield from width_findings(self.width, self.heads, self.mlp_ratio)
        geometry: Any = sections.get("lattice")
        if geometry is None:
            return
        lattice = geometry.build()
        yield from patch_findings(self.patch or self.patch_extent(lattice)[0], lattice)
        if self.translation_invariant and not lattice.periodic:
            yield Finding(
                "translation_invariant",
                "an open lattice has no translations; leave it out or set it to false",
            )

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        geometry: Any = sections.get("lattice")
        if self.patch is not None or geometry is None:
            return self
        return self.model_copy(update={"patch": 2 if geometry.build().dimensions == 2 else 4})

    def patch_extent(self, lattice: Lattice) -> tuple[int, ...]:
        """Unit cells of a patch along every axis; a graph without axes is cut in the order of its sites."""
        return patch_extent(self.patch or (2 if lattice.dimensions == 2 else 4), lattice)

    def layer_names(self) -> tuple[str, ...]:
        """Public names of the places in the network, from the input to the output."""
        blocks = range(1, self.layers + 1)
        return (
            "embedding",
            *(f"{kind}_{i}" for i in blocks for kind in ("heads", "attention", "hidden", "mlp", "residual")),
            "head",
        )

    def wider_layers(self) -> dict[str, int]:
        """The hidden units of the feed-forward networks."""
        return {f"hidden_{i}": self.mlp_ratio * self.width for i in range(1, self.layers + 1)}

    def residual_names(self) -> tuple[str, ...]:
        """The residual stream after each block."""
        return tuple(f"residual_{i}" for i in range(1, self.layers + 1))

    def default_layers(self) -> tuple[str, ...]:
        """What is recorded unless a spec says otherwise: the residual stream."""
        return self.residual_names()

    def network(self, lattice: Lattice) -> State:
        """The bare network on a lattice."""
        invariant = lattice.periodic if self.translation_invariant is None else self.translation_invariant
        sites = patches(lattice, self.patch_extent(lattice))
        tokens, spins = sites.shape
        grid = tuple(n // b for n, b in zip(lattice.extent, self.patch_extent(lattice), strict=False))
        return State(
            n_sites=lattice.n_sites,
            n_tokens=tokens,
            width=self.width,
            layers=self.layer_names(),
            wider=self.wider_layers(),
            bricks=tuple(_bricks(self, tokens, spins, grid if invariant else ())),
            dtype=np.dtype(self.precision),
            complex_amplitude=self.amplitude == "complex",
            sites=sites,
            initial=lambda name, shape, generator: initial(name, shape, generator, self.layers),
            fuse=_fuse,
            fused_layers=("embedding", *self.residual_names()),
            invariances=shifted_tokens(sites, grid) if invariant else None,
        )


def _fuse(state: State, parameters: Any) -> Fused | None:
    if isinstance(parameters, np.ndarray):
        from .transformer_cpu import FusedTransformer

        return FusedTransformer(state, parameters)
    from .transformer_gpu import fused_on_device

    return fused_on_device(state, parameters)


def width_findings(width: int, heads: int, mlp_ratio: int) -> Iterator[Finding]:
    """Heads must divide the width, and the hidden width has a bound."""
    if width % heads:
        yield Finding("heads", f"{heads} heads do not divide the width {width}")
    if width * mlp_ratio > 65536:
        yield Finding("mlp_ratio", f"a hidden width of {width * mlp_ratio} is more than 65536")


def patch_extent(patch: int | tuple[int, int], lattice: Lattice) -> tuple[int, ...]:
    """Unit cells of a patch along every axis of the lattice: two numbers, or the same for all."""
    return patch if isinstance(patch, tuple) else (patch,) * max(1, lattice.dimensions)


def patch_findings(patch: int | tuple[int, int], lattice: Lattice) -> Iterator[Finding]:
    """Patches must divide the lengths of the lattice."""
    extent = lattice.extent or (lattice.n_sites,)
    if isinstance(patch, tuple) and len(extent) == 1:
        yield Finding("patch", "two lengths are for lattices in two dimensions; give one number")
        return
    for axis, (length, b) in enumerate(zip(extent, patch_extent(patch, lattice), strict=True)):
        if b < 1 or length % b:
            divisors = [b for b in range(1, length + 1) if length % b == 0]
            sites = f"the {length} sites" if len(extent) == 1 else f"the {length} cells along axis {axis}"
            yield Finding("patch", f"{b} does not divide {sites}; one of {divisors} would")


def patches(lattice: Lattice, extent: tuple[int, ...]) -> np.ndarray:
    """Sites (token, spins per token) int64 of patches of ``extent`` unit cells, tokens and cells counted row by row."""
    lengths = lattice.extent or (lattice.n_sites,)
    cells = np.arange(math.prod(lengths)).reshape(lengths)
    for axis, (n, b) in enumerate(zip(lengths, extent, strict=True)):
        cells = cells.reshape(*cells.shape[: 2 * axis], n // b, b, *cells.shape[2 * axis + 1 :])
    order = (*range(0, cells.ndim, 2), *range(1, cells.ndim, 2))
    cells = cells.transpose(order).reshape(-1, math.prod(extent))
    return (cells[:, :, None] * lattice.basis + np.arange(lattice.basis)).reshape(len(cells), -1)


def shifted_tokens(sites: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Permutations (token, n_sites) int32 that move tokens, with sites (token, spins), around their periodic grid."""
    shifts, axes = np.indices(grid).reshape(len(grid), -1).T, tuple(range(len(grid)))
    permutations = np.empty((len(sites), sites.size), np.int32)
    for permutation, shift in zip(permutations, shifts, strict=True):
        permutation[sites] = np.roll(sites.reshape(*grid, -1), tuple(shift), axes).reshape(sites.shape)
    return permutations


def _bricks(record: Transformer, tokens: int, patch: int, grid: tuple[int, ...]) -> Iterator[Brick]:
    d = record.width
    positional = record.attention == "positional"
    if positional or grid:
        yield Dense("embedding", ("tokens",), "embedding", patch, d)
    else:
        yield Dense("embedding", ("tokens",), ".patches", patch, d)
        yield PositionCode("position", (".patches",), "embedding", tokens, d)
    stream = "embedding"
    for i in range(1, record.layers + 1):
        mix = (
            Mix(f"attention_{i}.mix", (f"attention_{i}.v",), f"heads_{i}", tokens, d, record.heads, grid)
            if positional
            else Attention(*softmax_edges(i), tokens, d, record.heads, grid)
        )
        yield from block(i, stream, mix, d, record.mlp_ratio)
        stream = f"residual_{i}"
    yield from head(stream, d, record.amplitude == "complex")


def softmax_edges(i: int) -> tuple[str, tuple[str, ...], str]:
    """Name, inputs and output of the softmax attention of block ``i``."""
    a = f"attention_{i}"
    return f"{a}.mix", (f"{a}.q", f"{a}.k", f"{a}.v"), f"heads_{i}"


def block(i: int, stream: str, mix: Brick, d: int, mlp_ratio: int) -> Iterator[Brick]:
    """Block ``i``: attention, of which ``mix`` is the part between tokens, and feed-forward network, added to ``stream``."""
    a, m = f"attention_{i}", f"mlp_{i}"
    yield LayerNorm(f"{a}.norm", (stream,), f"{a}.x", d)
    yield Dense(f"{a}.value", (f"{a}.x",), f"{a}.v", d, d)
    if isinstance(mix, Attention):
        yield Dense(f"{a}.query", (f"{a}.x",), f"{a}.q", d, d)
        yield Dense(f"{a}.key", (f"{a}.x",), f"{a}.k", d, d)
    yield mix
    yield Dense(f"{a}.out", (f"heads_{i}",), a, d, d)
    yield Add(f"{a}.add", (stream, a), f"{a}.stream")
    yield LayerNorm(f"{m}.norm", (f"{a}.stream",), f"{m}.x", d)
    yield Dense(f"{m}.up", (f"{m}.x",), f"{m}.u", d, d * mlp_ratio)
    yield Gelu(f"{m}.gelu", (f"{m}.u",), f"hidden_{i}")
    yield Dense(f"{m}.down", (f"hidden_{i}",), m, d * mlp_ratio, d)
    yield Add(f"{m}.add", (f"{a}.stream", m), f"residual_{i}")


def initial(name: str, shape: tuple[int, ...], generator: np.random.Generator, layers: int) -> np.ndarray:
    """Glorot-uniform weights, unit gains, zero biases; the two maps that write into the residual stream start smaller.

    A block's output is scaled by 1 / sqrt(2 layers), so that the stream's variance does not grow with depth.
    """
    role = name.rpartition(".")[2]
    if role == "gain":
        return np.ones(shape)
    if role == "bias":
        return np.zeros(shape)
    if role == "code":
        return generator.normal(scale=0.02, size=shape)
    fan_in, fan_out = (shape[-1], shape[-1]) if ".mix." in name else shape
    bound = math.sqrt(6 / (fan_in + fan_out))
    if name.endswith((".out.weight", ".down.weight")):
        bound /= math.sqrt(2 * layers)
    return generator.uniform(-bound, bound, size=shape)
