"""The Jastrow wave function of spins (Jastrow, Phys. Rev. 98, 1479 (1955)): one number for every site and every pair of sites.

    log psi = sum_i a_i s_i + 1/2 sum_ij v_ij s_i s_j = sum_i s_i (a_i + h_i / 2),      h_i = sum_j v_ij s_j

v is symmetric without diagonal. Where translation-invariant, v_ij depends on the displacement and a_i on the place in the unit
cell. psi is positive, or complex a and v give it a phase (real and imaginary parts are parameters of their own). The layer
``field`` holds the local fields h, a token for each site: flipping site i changes log psi by -2 s_i (a_i + h_i). The fast twin
is ``jastrow_cpu.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from ..engine.arrays import beside, namespace
from ..spec.section import Finding, Section
from .ansatz import Ansatz
from .fused import Fused
from .primitives import Array, Brick, times_real
from .state import State

if TYPE_CHECKING:
    from ..physics.lattices import Lattice

_INITIAL_WIDTH = 0.01


class Jastrow(Ansatz):
    """Jastrow wave function: couplings between all pairs of spins."""

    kind: Literal["jastrow"] = "jastrow"
    translation_invariant: bool | None = Field(
        None, description="couplings depend on displacements only; default: true on a periodic lattice"
    )
    amplitude: Literal["positive", "complex"] = Field("positive", description="psi > 0, or psi with a phase")
    precision: Literal["float32", "float64"] = Field(
        "float64", description="precision of the parameters; the arithmetic is float64"
    )

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        """Displacements need a periodic lattice."""
        geometry: Any = sections.get("lattice")
        if self.translation_invariant and geometry is not None and not geometry.build().periodic:
            what = "an open lattice has no translations; leave it out or set it to false"
            yield Finding("translation_invariant", what)

    def layer_names(self) -> tuple[str, ...]:
        """Public names of the places in the network."""
        return ("field",)

    def default_layers(self) -> tuple[str, ...]:
        """What is recorded unless a spec says otherwise."""
        return self.layer_names()

    def network(self, lattice: Lattice) -> State:
        """The wave function on a lattice."""
        n, invariant = lattice.n_sites, self.translation_invariant
        invariant = lattice.periodic if invariant is None else invariant
        sites = np.arange(n) % lattice.basis if invariant else np.arange(n)
        channels = 2 if self.amplitude == "complex" else 1
        return State(
            n_sites=n,
            n_tokens=n,
            width=channels,
            layers=self.layer_names(),
            bricks=(
                Fields("pair", ("tokens",), "field", pair_classes(lattice, invariant), channels),
                SpinsTimesFields("site", ("tokens", "field"), "log_psi", sites, channels),
            ),
            dtype=np.dtype(self.precision),
            complex_amplitude=self.amplitude == "complex",
            sites=np.arange(n)[:, None],
            initial=_initial,
            fuse=_fuse,
            fused_dtypes=("float32", "float64"),
            flip_flops=4.0 * n * channels,
            invariances=lattice.translations() if invariant else None,
        )


def _fuse(state: State, parameters: Any) -> Fused | None:
    if not isinstance(parameters, np.ndarray):
        return None  # on a GPU the bricks compute
    from .jastrow_cpu import FastJastrow

    return FastJastrow(state, parameters)


def _initial(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Small normal numbers: psi starts close to 1."""
    return generator.normal(scale=_INITIAL_WIDTH, size=shape)


def pair_classes(lattice: Lattice, invariant: bool) -> np.ndarray:
    """Number of the coupling of sites i and j, (n_sites, n_sites) int64 symmetric, counted from 0; -1 on the diagonal.

    One for every pair, or, where ``invariant``, one for all pairs that are translations of each other.
    """
    n = lattice.n_sites
    if invariant:
        cells, places, extent = lattice.cells, np.arange(n) % lattice.basis, np.asarray(lattice.extent)
        step = np.ravel_multi_index(
            tuple(
                ((cells[None, :, axis] - cells[:, None, axis]) % extent[axis]) for axis in range(len(extent))
            ),
            lattice.extent,
        )
        key = (step * lattice.basis + places[:, None]) * lattice.basis + places
        key = np.minimum(key, key.T)
    else:
        low, high = np.minimum.outer(np.arange(n), np.arange(n)), np.maximum.outer(np.arange(n), np.arange(n))
        key = low * n + high
    apart = ~np.eye(n, dtype=bool)
    classes = np.full((n, n), -1)
    classes[apart] = np.unique(key[apart], return_inverse=True)[1].reshape(-1)
    return classes


@dataclass(frozen=True, eq=False)
class Fields(Brick):
    """h_i = sum_j v_ij s_j of spins (n, site, 1): (n, site, channel), v_ij = coupling[channel, classes[i, j]], v_ii = 0."""

    classes: np.ndarray
    channels: int

    @cached_property
    def _members(self) -> np.ndarray:
        """Pairs i * n_sites + j of every class, (most, class); short ones are filled up with n_sites^2."""
        flat = self.classes.ravel()
        order = np.argsort(flat, kind="stable")[(flat < 0).sum() :]
        counts = np.bincount(flat[order])
        members = np.full((counts.max(), len(counts)), flat.size)
        rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        members[rank, flat[order]] = order
        return members

    def shapes(self):
        return {f"{self.name}.coupling": (self.channels, self._members.shape[1])}

    def couplings(self, w) -> Array:
        """v (channel, site, site)."""
        stored = w[f"{self.name}.coupling"]
        return stored[:, beside(self.classes, stored)] * beside(self.classes >= 0, stored)

    def forward(self, w, x):
        xp = namespace(x)
        return xp.stack([x[..., 0] @ v for v in self.couplings(w)], axis=-1)

    def backward(self, w, x, y, delta):
        parts = (times_real(delta[..., c], v) for c, v in enumerate(self.couplings(w)))
        return (sum(parts)[..., None],)

    def gradient(self, w, x, delta, total):
        xp, (spins,) = namespace(delta), x
        members = beside(self._members, delta)
        columns = []
        for c in range(self.channels):
            outer = delta[..., :, None, c] * spins[:, None, :, 0]
            outer = outer.reshape(*outer.shape[:-2], -1)
            outer = xp.concatenate([outer, xp.zeros_like(outer[..., :1])], axis=-1)
            columns.append(sum(outer[..., pairs] for pairs in members))
        g = xp.stack(columns, axis=-2)
        return {f"{self.name}.coupling": g.sum(axis=0) if total else g}


@dataclass(frozen=True, eq=False)
class SpinsTimesFields(Brick):
    """log psi = sum_i s_i (a_i + h_i / 2) of spins (n, site, 1) and fields (n, site, channel), a_i = bias[channel, classes[i]].

    A second channel is the imaginary part. The sum is taken in double precision.
    """

    classes: np.ndarray
    channels: int

    def shapes(self):
        return {f"{self.name}.bias": (self.channels, int(self.classes.max()) + 1)}

    def _complex(self, parts):
        return parts[0] + 1j * parts[1] if self.channels == 2 else parts[0]

    def forward(self, w, x, h):
        xp, bias = namespace(x), w[f"{self.name}.bias"].astype(np.float64)
        spins, fields = x[..., 0].astype(xp.float64), h.astype(xp.float64)
        a = bias[:, beside(self.classes, bias)]
        return self._complex(
            [(spins * (a[c] + fields[..., c] / 2)).sum(axis=1) for c in range(self.channels)]
        )

    def backward(self, w, x, y, delta):
        xp, (spins, h) = namespace(delta), x
        bias = w[f"{self.name}.bias"]
        a = self._complex(bias[:, beside(self.classes, bias)])
        half = delta[:, None] * spins[..., 0] / 2
        of_fields = xp.stack([half, 1j * half] if self.channels == 2 else [half], axis=-1)
        fields = self._complex([h[..., c] for c in range(self.channels)])
        return (delta[:, None] * (a + fields / 2))[..., None], of_fields

    def gradient(self, w, x, delta, total):
        xp, spins = namespace(delta), x[0][..., 0]
        count = int(self.classes.max()) + 1
        same = beside(self.classes[:, None] == np.arange(count), spins) if count < len(self.classes) else None
        g = delta[:, None] * (spins if same is None else spins @ same.astype(spins.dtype))
        g = xp.stack([g, 1j * g] if self.channels == 2 else [g], axis=1)
        return {f"{self.name}.bias": g.sum(axis=0) if total else g}
