"""An autoregressive transformer: |psi|^2 is a product of conditional probabilities, so that it can be sampled directly.

    s_<t -> shift by a token -> embedding + position -> L causal pre-LayerNorm blocks -> LayerNorm -> logits a_t, phases phi_t
    log psi(s) = 1/2 sum_t log softmax(a_t)[o_t] + i sum_t phi_t[o_t]

o_t is what stands at token t: one spin, or a patch of b spins with 2^b outcomes, tokens in the order of the sites
(of the patches, row by row). See ``causal.py`` for the bricks and the sources, ``transformer.py`` for the blocks,
``autoregressive_cpu.py`` for the fast twin. At fixed magnetization psi vanishes outside its sector.

An edit of a layer that acts on every token's own stream keeps all this: token t still depends on s_<t alone, and the edited
wave function is normalised too. An edit that looks at all tokens (a pooled dictionary) is still a wave function, but no product
of conditionals. Edited wave functions are sampled by Metropolis moves, which need no such property.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from ..spec.section import Finding, Section
from .ansatz import Ansatz
from .causal import CausalAttention, LogConditionals, ShiftTokens
from .fused import Fused
from .primitives import Brick, Dense, LayerNorm, PositionCode
from .state import State
from .transformer import (
    attention_edges,
    block,
    initial,
    patch_extent,
    patch_findings,
    patches,
    projections,
    width_findings,
)

if TYPE_CHECKING:
    from ..physics.lattices import Lattice

_MOST_SPINS = 8  # of a token: 256 outcomes
_INITIAL_SHARE = (
    0.1  # of Glorot's width, for logits and phases: a training starts near the uniform superposition
)


class Autoregressive(Ansatz):
    """Causal transformer: |psi|^2 is a product of conditionals, sampled directly, token after token."""

    kind: Literal["autoregressive"] = "autoregressive"
    patch: int | tuple[int, int] = Field(
        1, description="spins per token on a chain, b or [b, c] unit cells in two dimensions; at most 8 spins"
    )
    width: int = Field(32, ge=1, le=4096, description="channels of the residual stream")
    heads: int = Field(4, ge=1, le=256, description="attention heads; must divide the width")
    layers: int = Field(2, ge=1, le=64, description="blocks of attention and feed-forward network")
    mlp_ratio: int = Field(
        4, ge=1, le=64, description="hidden width of the feed-forward network, in units of the width"
    )
    amplitude: Literal["positive", "complex"] = Field(
        "positive", description="psi >= 0, or psi with a phase: a second output for every outcome"
    )
    magnetization: int | Literal["free"] | None = Field(
        None,
        description="sum of all sigma^z outside which psi is zero, or free; default, and only choice: sampling.magnetization",
    )
    precision: Literal["float32", "float64"] = Field(
        "float32", description="precision of the network; energies are float64"
    )

    def resolved(self, sections: Mapping[str, Section]) -> Section:
        sampled = _sampled_magnetization(sections)
        if self.magnetization is not None or sampled is None:
            return self
        return self.model_copy(update={"magnetization": sampled})

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        yield from width_findings(self.width, self.heads, self.mlp_ratio)
        sampled = _sampled_magnetization(sections)
        if sampled is not None and self.magnetization != sampled:
            what = f"psi and its samples must agree: leave it out, or set it to sampling.magnetization = {sampled}"
            yield Finding("magnetization", what)
        geometry: Any = sections.get("lattice")
        if geometry is None:
            return
        lattice = geometry.build()
        yield from patch_findings(self.patch, lattice)
        spins = math.prod(patch_extent(self.patch, lattice)) * lattice.basis
        if spins > _MOST_SPINS:
            what = f"{spins} spins in a token have 2^{spins} outcomes; at most {_MOST_SPINS} spins"
            yield Finding("patch", what)

    @property
    def drawn_directly(self) -> bool:
        """Whether the wave function is the product of conditionals that the network computes: unless it is projected."""
        return not self.symmetry.wanted

    def layer_names(self) -> tuple[str, ...]:
        """Public names of the places in the network, from the input to the output."""
        blocks = range(1, self.layers + 1)
        kinds = ("heads", "attention", "hidden", "mlp", "residual")
        return ("embedding", *(f"{kind}_{i}" for i in blocks for kind in kinds))

    def wider_layers(self) -> dict[str, int]:
        """The hidden units of the feed-forward networks."""
        return {f"hidden_{i}": self.mlp_ratio * self.width for i in range(1, self.layers + 1)}

    def default_layers(self) -> tuple[str, ...]:
        """What is recorded unless a spec says otherwise: the residual stream after each block."""
        return tuple(f"residual_{i}" for i in range(1, self.layers + 1))

    def network(self, lattice: Lattice) -> State:
        """The network on a lattice."""
        sites = patches(lattice, patch_extent(self.patch, lattice))
        fixed = isinstance(self.magnetization, int)
        up = (lattice.n_sites + int(self.magnetization or 0)) // 2 if fixed else None
        return State(
            n_sites=lattice.n_sites,
            n_tokens=len(sites),
            width=self.width,
            layers=self.layer_names(),
            wider=self.wider_layers(),
            bricks=tuple(_bricks(self, len(sites), sites.shape[1], up)),
            dtype=np.dtype(self.precision),
            complex_amplitude=self.amplitude == "complex",
            sites=sites,
            initial=lambda name, shape, generator: _initial(name, shape, generator, self.layers),
            fuse=_fuse,
            fused_dtypes=("float32", "float64"),
        )


def _sampled_magnetization(sections: Mapping[str, Section]) -> int | str | None:
    """What ``sampling.magnetization`` is or will be: the sum that is held fixed or "free"; None where that is not known yet."""
    sampling, lattice, hamiltonian = (sections.get(name) for name in ("sampling", "lattice", "hamiltonian"))
    if sampling is None or lattice is None or hamiltonian is None:
        return None
    known = sampling.resolved(sections).magnetization  # type: ignore[attr-defined]
    return "free" if known is None else known


def _fuse(state: State, parameters: Any) -> Fused | None:
    from .token_by_token import TokenByToken

    if isinstance(parameters, np.ndarray) and parameters.dtype == np.float32:
        from .autoregressive_cpu import FusedAutoregressive

        return FusedAutoregressive(state, parameters)
    return TokenByToken(state, parameters)


def _bricks(record: Autoregressive, tokens: int, patch: int, up: int | None) -> Iterator[Brick]:
    d = record.width
    yield ShiftTokens("shift", ("tokens",), ".shifted")
    yield Dense("embedding", (".shifted",), ".patches", patch + 1, d)
    yield PositionCode("position", (".patches",), "embedding", tokens, d)
    stream = "embedding"
    for i in range(1, record.layers + 1):
        mix = CausalAttention(
            *attention_edges(f"attention_{i}", "qkv", f"heads_{i}"), tokens, d, record.heads, ()
        )
        attention = [*projections(f"attention_{i}", ("value", "query", "key"), f"attention_{i}.x", d, d), mix]
        yield from block(i, stream, attention, d, record.mlp_ratio)
        stream = f"residual_{i}"
    yield LayerNorm("head.norm", (stream,), ".head", d)
    outputs = ("logits", "phase") if record.amplitude == "complex" else ("logits",)
    for name in outputs:
        yield Dense(f"head.{name}", (".head",), f".{name}", d, 2**patch)
    yield LogConditionals("conditionals", (*(f".{name}" for name in outputs), "tokens"), "log_psi", up)


def _initial(name: str, shape: tuple[int, ...], generator: np.random.Generator, layers: int) -> np.ndarray:
    """As for the transformer, but for small logits and phases."""
    values = initial(name, shape, generator, layers)
    return _INITIAL_SHARE * values if name in ("head.logits.weight", "head.phase.weight") else values
