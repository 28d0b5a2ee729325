"""Projection of any wave function on a representation of a symmetry group,

    psi_sym(s) = (1 / |G|) sum_g conj(chi(g)) psi(g s),      psi_sym(g s) = chi(g) psi_sym(s),

with the groups and characters of ``physics.symmetries`` (Nomura, J. Phys.: Condens. Matter 33, 174003 (2021); Reh, Schmitt &
Gaerttner, Phys. Rev. B 107, 195115 (2023)). The network is evaluated on all *copies* g s, copy 0 being s itself. What it does
not distinguish anyway needs no copies: translations by whole patches, for a transformer with translation-invariant attention.
With the shares

    w_g(s) = conj(chi(g)) psi(g s) / sum_h conj(chi(h)) psi(h s),      sum_g w_g = 1,

every derivative is a mean with complex weights, d log psi_sym(s) = sum_g w_g(s) d log psi(g s). Activations of a projected
state are those of copy 0, and an edit of a layer acts on every copy alike, so that the edited state has the same symmetry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from ..engine.arrays import beside, namespace
from ..physics.symmetries import IRREPS, NoRepresentation, Symmetries, commutes, symmetries
from ..spec.section import Finding, Section
from .fused import ALIGNMENT, FlipRatios, Flips, Fused

if TYPE_CHECKING:
    from ..physics.lattices import Lattice
    from .state import State

Array = Any

_group = lru_cache(maxsize=16)(symmetries)  # the points of a sweep mostly share it
_ROWS = 2**15  # copies that the network sees at a time, where 64 configurations have no more


@dataclass(frozen=True, eq=False)
class Projection:
    """The copies of a configuration and their characters; the bare network is trained alone for ``from_step`` steps."""

    elements: Symmetries
    from_step: int = 0

    @property
    def n_copies(self) -> int:
        """Evaluations of the network for one of psi."""
        return len(self.elements)

    def copies(self, sigma: Array) -> Array:
        """Configurations (n, n_sites) with all their copies, (n copies, n_sites): those of a configuration side by side."""
        copies = sigma[:, beside(self.elements.permutations, sigma)]
        copies *= beside(self.elements.flips, sigma)[:, None]
        return copies.reshape(-1, sigma.shape[1])

    def log_mean(self, log_psi: Array) -> Array:
        """log psi_sym (n, ...) from log psi (n copies, ...) of the bare network; -inf where the copies cancel."""
        terms, top = self._terms(log_psi)
        with np.errstate(divide="ignore"):
            return top[:, 0] + namespace(terms).log(terms.mean(axis=1))

    def shares(self, log_psi: Array) -> Array:
        """w (n copies,), real or complex as log psi (n copies,) is."""
        terms, _ = self._terms(log_psi)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (terms / terms.sum(axis=1, keepdims=True)).reshape(-1)

    def _terms(self, log_psi: Array) -> tuple[Array, Array]:
        """conj(chi) psi (n, copies, ...) in units of the largest modulus, and the logarithm (n, 1, ...) of that."""
        xp = namespace(log_psi)
        values = log_psi.reshape(-1, self.n_copies, *log_psi.shape[1:])
        top = values.real.max(axis=1, keepdims=True)
        top = xp.where(xp.isinf(top), 0.0, top)
        terms = xp.exp(values - top)
        if self.elements.trivial:
            return terms, top
        weights = beside(self.elements.characters, terms).conj()
        return terms * weights.reshape(-1, *(1,) * (terms.ndim - 2)), top

    def over_copies(self, evaluate: Callable[[Array], Array], sigma: Array) -> Iterator[tuple[Array, Array]]:
        """The copies of configurations (n, n_sites) in blocks, those of a configuration in one, with ``evaluate`` of them."""
        size = ALIGNMENT * max(1, _ROWS // (ALIGNMENT * self.n_copies))
        for start in range(0, max(1, len(sigma)), size):
            copies = self.copies(sigma[start : start + size])
            yield copies, evaluate(copies)

    def log_psi(self, evaluate: Callable[[Array], Array], sigma: Array) -> Array:
        """log psi_sym (n, ...) where ``evaluate`` gives log psi (rows, ...) of the bare network."""
        return namespace(sigma).concatenate([self.log_mean(v) for _, v in self.over_copies(evaluate, sigma)])


class ProjectedTwin:
    """The fast twin of a projected state: that of the bare network on all copies."""

    def __init__(self, bare: Fused, projection: Projection):
        self.bare, self.projection = bare, projection

    def log_psi(self, sigma: Array) -> Array:
        """log psi (n,) of configurations (n, n_sites) int8."""
        return self.projection.log_psi(self.bare.log_psi, sigma)


class ProjectedFlips(ProjectedTwin):
    """With the ability ``fused.Flips``: the copies of s f, f a pattern of signs, are the copies g s times the copies of f."""

    bare: Flips

    def log_psi_flipped(self, sigma: Array, signs: Array, pairs: Array) -> Array:
        """log psi (pairs,) of configurations next to ``sigma``, see ``fused.Flips``."""
        elements = self.projection.elements
        values = [
            self.bare.log_psi_flipped(
                sigma[:, permutation] * flip, np.ascontiguousarray(signs[:, permutation]), pairs
            )
            for permutation, flip in zip(elements.permutations, elements.flips, strict=True)
        ]
        return self.projection.log_mean(np.stack(values, axis=1).reshape(-1))


class ProjectedRatios(ProjectedTwin):
    """With the ability ``fused.FlipRatios``: psi_sym(s') / psi_sym(s) = sum_g w_g(s) psi(g s') / psi(g s)."""

    bare: FlipRatios

    def ratios(self, sigma: Array, log_psi: Array, signs: Array, wanted: Array) -> Array:
        """psi(sigma signs_f) / psi(sigma), (n, flips), see ``fused.FlipRatios``."""
        elements, total = self.projection.elements, 0.0
        before = self.bare.log_psi(self.projection.copies(sigma))
        shares = self.projection.shares(before).reshape(len(sigma), -1)
        before = before.reshape(shares.shape)
        for g, (permutation, flip) in enumerate(zip(elements.permutations, elements.flips, strict=True)):
            copy, flipped = sigma[:, permutation] * flip, np.ascontiguousarray(signs[:, permutation])
            ratios = self.bare.ratios(copy, np.ascontiguousarray(before[:, g]), flipped, wanted)
            total = total + shares[:, g, None] * ratios
        return total


def projected_twin(bare: Fused | None, projection: Projection) -> Fused | None:
    """The twin of a projected state, with what abilities the twin of the bare network gives it."""
    if bare is None:
        return None
    if isinstance(bare, FlipRatios):
        return ProjectedRatios(bare, projection)
    return (ProjectedFlips if isinstance(bare, Flips) else ProjectedTwin)(bare, projection)


class Symmetry(Section):
    """Projection of the state on a representation of the symmetry group of the lattice; all off: the bare network."""

    translations: bool = Field(
        False, description="project on a momentum, over the translations along periodic axes"
    )
    momentum: tuple[int, ...] | None = Field(
        None, max_length=2, description="momentum along every axis, in units of 2 pi / length; default: zero"
    )
    point_group: bool = Field(
        False,
        description="project on an irrep of the rotations and reflections that leave the momentum alone",
    )
    irrep: Literal["A1", "A2", "B1", "B2"] = Field(
        "A1",
        description="one-dimensional representation: A, B even, odd under the smallest rotation; 1, 2 under the reflection "
        "y -> -y, or the next there is",
    )
    spin_flip: Literal[-1, 0, 1] = Field(
        0, description="parity under the flip of all spins; 0: no projection on it"
    )
    from_step: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="optimisation steps of the bare network before the projected one is trained",
    )

    @property
    def wanted(self) -> bool:
        """Whether there is anything to project on."""
        return self.translations or self.point_group or self.spin_flip != 0

    def group(self, lattice: Lattice) -> Symmetries:
        """The whole group. Raises NoRepresentation."""
        return _group(lattice, self.translations, self.momentum, self.point_group, self.irrep, self.spin_flip)

    def projected(self, state: State, lattice: Lattice) -> State:
        """The state, projected. Raises NoRepresentation."""
        if not self.wanted:
            return state
        elements = self.group(lattice).representatives(state.invariances)
        if not (elements.trivial or state.complex_amplitude):
            raise NoRepresentation("irrep", "a positive psi has characters 1 only")
        return replace(state, symmetry=Projection(elements, self.from_step))

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        if self.momentum is not None and not self.translations:
            yield Finding("momentum", "a momentum needs translations = true")
        if self.irrep != "A1" and not self.point_group:
            yield Finding("irrep", "an irrep needs point_group = true")
        if self.from_step and not self.wanted:
            yield Finding(
                "from_step", "there is nothing to project on: set translations, point_group or spin_flip"
            )
        geometry: Any = sections.get("lattice")
        if geometry is None or not self.wanted:
            return
        lattice = geometry.build()
        try:
            group = self.group(lattice)
        except NoRepresentation as problem:
            yield Finding(problem.key, problem.what, IRREPS if problem.key == "irrep" else ())
            return
        yield from self._network_findings(sections, lattice, group)
        yield from self._hamiltonian_findings(sections, lattice, group)

    def _network_findings(
        self, sections: Mapping[str, Section], lattice: Lattice, group: Symmetries
    ) -> Iterator[Finding]:
        record: Any = sections.get("state")
        if record is None or any(record.findings(sections)):
            return
        state = record.network(lattice)
        if not (group.trivial or state.complex_amplitude):
            keys = {"spin_flip": self.spin_flip < 0, "irrep": self.irrep != "A1", "momentum": True}
            key = next(name for name, odd in keys.items() if odd)
            yield Finding(key, 'a positive psi is even under every symmetry; set state.amplitude = "complex"')
            return
        try:
            group.representatives(state.invariances)
        except NoRepresentation as problem:
            remedies = ("translation_invariant", "symmetric")
            own = next((name for name in remedies if name in type(record).model_fields), None)
            remedy = f"set state.{own} = false" if own else "choose another kind of state"
            yield Finding(problem.key, f"{problem.what}; {remedy}")

    def _hamiltonian_findings(
        self, sections: Mapping[str, Section], lattice: Lattice, group: Symmetries
    ) -> Iterator[Finding]:
        sampling: Any = sections.get("sampling")
        if self.spin_flip and sampling is not None and sampling.fixed_magnetization:
            what = (
                f"flipping all spins changes a magnetization of {sampling.fixed_magnetization}: set it to 0"
            )
            yield Finding("spin_flip", what)
        hamiltonian: Any = sections.get("hamiltonian")
        if hamiltonian is None or any(hamiltonian.findings(sections)):
            return
        known = Symmetry()
        for key in (
            "translations",
            "point_group",
            "spin_flip",
        ):  # growing groups: the first broken one names the key
            update = {key: getattr(self, key)} | (
                {"momentum": self.momentum} if key == "translations" else {}
            )
            known = known.model_copy(update=update | ({"irrep": self.irrep} if key == "point_group" else {}))
            if known.wanted and not _is_symmetry(known, hamiltonian, sections["lattice"]):
                yield Finding(key, "the Hamiltonian does not have this symmetry: leave it out")
                return


@lru_cache(maxsize=256)
def _is_symmetry(known: Symmetry, hamiltonian: Any, geometry: Any) -> bool:
    """Whether the Hamiltonian of a record has it on a lattice: asked once for all points of a sweep."""
    lattice = geometry.build()
    return commutes(hamiltonian.build(lattice), known.group(lattice))
