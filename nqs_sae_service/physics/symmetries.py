"""Symmetry groups of a lattice with spins, and their one-dimensional representations.

An element g permutes the sites and may flip all spins: (g s)_i = f_g s_{p_g(i)}, with f_g = +1 or -1. A wave function belongs
to a one-dimensional representation, with characters chi, if

    psi(g s) = chi(g) psi(s)    for every g,    chi(g h) = chi(g) chi(h).

The group is made of the translations along periodic axes, chi = exp(2 pi i sum_a k_a t_a / L_a) for a shift by t cells and
the momentum k in units of 2 pi / L; of the rotations and reflections about a centre, as far as they leave the momentum alone
(its little group); and of the flip of all spins. Representations of the point group are called as in chemistry (Mulliken): A
and B are even and odd under the smallest rotation, 1 and 2 under the reflection that leaves the first axis alone (y -> -y),
or the next one that there is. A1 is the trivial one. With two-dimensional ones (E) no single function belongs to itself: they
are left out.

A Marshall rotation U multiplies psi by (-1)^(number of up spins on one sublattice). Elements that exchange the sublattices
have U(g s) U(s) = (-1)^(number of up spins), the flip of all spins U(-s) U(s) = (-1)^(sites of the sublattice): constants
where the magnetization is fixed. So the same elements are symmetries before and after, the characters before being those
after times these constants. By Marshall's theorem the ground state of an unfrustrated antiferromagnet is positive after the
rotation, and all its characters there are 1: on a ring of 6 sites with 3 up spins momentum 0 after the rotation is momentum
pi before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError

if TYPE_CHECKING:
    from .lattices import Lattice
    from .operators import Operator

IRREPS = ("A1", "A2", "B1", "B2")
MAX_ELEMENTS = 8192
_CLOSE = 1e-9
_CONFIGURATIONS = 8  # on which an operator is compared with its image


class NoRepresentation(UserError):
    """There is no such group, or representation: ``what`` is wrong with which ``key`` of the request."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"symmetry.{key}: {what}")
        self.key, self.what = key, what


@dataclass(frozen=True, eq=False)
class Symmetries:
    """Elements, the identity first: sites ``permutations`` (g, n_sites) int32, ``flips`` (g,) int8, ``characters`` (g,).

    Element g maps sigma to flips[g] * sigma[:, permutations[g]]; applying g, then h, has the permutation p_g[p_h]. Characters
    are float64 where all are real, else complex128. ``generators`` are the places of elements that generate the group.
    """

    permutations: np.ndarray
    flips: np.ndarray
    characters: np.ndarray
    generators: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.flips)

    @property
    def trivial(self) -> bool:
        """Whether every character is 1."""
        return bool(np.all(np.abs(self.characters - 1) < _CLOSE))

    def keys(self) -> list[bytes]:
        """A name for every element, the same for equal elements."""
        return [p.tobytes() + f.tobytes() for p, f in zip(self.permutations, self.flips, strict=True)]

    def representatives(self, invariances: np.ndarray | None) -> Symmetries:
        """One element of every coset of a subgroup of permutations (m, n_sites), under which psi does not change.

        The mean over the group of conj(chi(g)) psi(g s) is the mean over these, as psi(h g s) = psi(g s) for h in the subgroup.
        Permutations that are not in the group are left out. Raises NoRepresentation where a character of the subgroup is
        not 1: the mean is zero then.
        """
        if invariances is None:
            return self
        known = dict(zip(self.keys(), self.characters, strict=True))
        up = np.int8(1).tobytes()
        within = [p for p in invariances.astype(np.int32) if p.tobytes() + up in known]
        if any(abs(known[p.tobytes() + up] - 1) > _CLOSE for p in within):
            what = (
                "the network does not change under translations that should change its sign or phase: the projection "
                "is zero"
            )
            raise NoRepresentation("momentum", what)
        seen: set[bytes] = set()
        kept = []
        for place, (permutation, flip) in enumerate(zip(self.permutations, self.flips, strict=True)):
            if permutation.tobytes() + flip.tobytes() not in seen:
                kept.append(place)
                seen.update(permutation[p].tobytes() + flip.tobytes() for p in within)
        return Symmetries(self.permutations[kept], self.flips[kept], self.characters[kept])


def symmetries(
    lattice: Lattice,
    translations: bool = False,
    momentum: Sequence[int] | None = None,
    point_group: bool = False,
    irrep: str = "A1",
    spin_flip: int = 0,
) -> Symmetries:
    """The group, with the characters of one representation; ``spin_flip`` is the parity +1 or -1, 0 to leave the flip out.

    Raises NoRepresentation where the lattice has no such symmetry or the group no such representation.
    """
    sites = np.arange(lattice.n_sites, dtype=np.int32)[None]
    moves, phases = (sites, np.ones(1)) if not translations else _translations(lattice, momentum)
    turns, characters = (sites, np.ones(1)) if not point_group else _rotations(lattice, moves, phases, irrep)
    count = len(moves) * len(turns) * (2 if spin_flip else 1)
    if count > MAX_ELEMENTS:
        raise NoRepresentation("translations", f"a group of {count} elements is more than {MAX_ELEMENTS}")
    permutations = moves[:, turns].reshape(-1, lattice.n_sites)
    chi = np.multiply.outer(phases, characters).ravel()
    flips = np.ones(len(chi), np.int8)
    if spin_flip:
        permutations = np.concatenate([permutations, permutations])
        flips, chi = np.concatenate([flips, -flips]), np.concatenate([chi, spin_flip * chi])
    generating = (
        [*_axis_places(lattice, len(turns)), *range(1, len(turns))]
        if translations
        else [*range(1, len(turns))]
    )
    generating += [len(chi) // 2] if spin_flip else []
    return _distinct(Symmetries(permutations, flips, chi, tuple(generating)))


def _axis_places(lattice: Lattice, each: int) -> Iterator[int]:
    """Places of the translations by one cell along every periodic axis, ``each`` elements for every translation."""
    stride = each
    for n, wraps in reversed(list(zip(lattice.extent, lattice.wraps, strict=True))):
        if wraps:
            yield stride
            stride *= n


def _translations(lattice: Lattice, momentum: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Permutations (n_t, n_sites), characters (n_t,) of a momentum."""
    if not any(lattice.wraps):
        raise NoRepresentation("translations", "this lattice has no periodic axis, hence no translations")
    k = tuple(momentum) if momentum is not None else (0,) * lattice.dimensions
    if len(k) != lattice.dimensions:
        raise NoRepresentation(
            "momentum", f"this lattice has {lattice.dimensions} axes: give as many integers"
        )
    for axis, (n, wraps) in enumerate(zip(lattice.extent, lattice.wraps, strict=True)):
        if not 0 <= k[axis] < (n if wraps else 1):
            allowed = f"0 ... {n - 1}, in units of 2 pi / {n}" if wraps else "0: it is open"
            raise NoRepresentation("momentum", f"{k[axis]} along axis {axis} must be {allowed}")
    extent = [n if wraps else 1 for n, wraps in zip(lattice.extent, lattice.wraps, strict=True)]
    shifts = np.indices(extent).reshape(len(extent), -1).T
    turns = (shifts * np.asarray(k) / np.asarray(extent)).sum(axis=1)
    return lattice.translations(), _real_if_close(np.exp(2j * np.pi * turns))


def _real_if_close(characters: np.ndarray) -> np.ndarray:
    if np.any(np.abs(characters.imag) > _CLOSE):
        return characters
    return np.where(characters.real > 0, 1.0, -1.0)


def _rotations(
    lattice: Lattice, moves: np.ndarray, phases: np.ndarray, irrep: str
) -> tuple[np.ndarray, np.ndarray]:
    """Permutations (n_p, n_sites) of the little group of the momentum, characters (n_p,) of the representation ``irrep``."""
    turns, matrices = lattice.point_group(), lattice.point_group_matrices()
    if len(turns) == 1:
        raise NoRepresentation("point_group", "this lattice has no rotations and reflections")
    phase = {move.tobytes(): chi for move, chi in zip(moves, phases, strict=True)}

    def leaves_momentum(turn: np.ndarray) -> bool:
        back = np.argsort(turn)
        return all(
            abs(phase.get(turn[move[back]].astype(np.int32).tobytes(), np.inf) - phase[move.tobytes()])
            < _CLOSE
            for move in moves
        )

    little = [place for place, turn in enumerate(turns) if leaves_momentum(turn)]
    characters = point_characters(matrices[little], irrep)
    if characters is None:
        known = [name for name in IRREPS if point_characters(matrices[little], name) is not None]
        raise NoRepresentation(
            "irrep",
            f'there is no "{irrep}" for the {len(little)} rotations and reflections here; one of {", ".join(known)}',
        )
    return turns[little], characters


def point_characters(matrices: np.ndarray, irrep: str) -> np.ndarray | None:
    """Characters (n,) of a representation, ``IRREPS``, of orthogonal matrices (n, d, d), d = 1 or 2; None if there is none.

    A group of n_r rotations R^m and their products R^m S with a reflection S has chi = chi(R)^m chi(S)^(0 or 1).
    """
    odd_rotation, odd_reflection = irrep[0] == "B", irrep[1] == "2"
    if matrices.shape[1] == 1:
        reflected, steps, rotations = matrices[:, 0, 0] < 0, np.zeros(len(matrices), int), 1
    else:
        reflected = np.linalg.det(matrices) < 0
        angles = np.round(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]) / (2 * np.pi), 9) % 1
        rotations = max(1, int((~reflected).sum()))
        start = angles[reflected].min() if reflected.any() else 0.0
        steps = np.rint((angles - np.where(reflected, start, 0.0)) * rotations).astype(int)
    if (odd_rotation and rotations % 2) or (odd_reflection and not reflected.any()):
        return None
    return np.where(odd_rotation, -1.0, 1.0) ** steps * np.where(reflected & odd_reflection, -1.0, 1.0)


def _distinct(group: Symmetries) -> Symmetries:
    """Every element once: on small lattices rotations may be translations. NoRepresentation unless characters multiply."""
    places: dict[bytes, int] = {}
    keys = group.keys()
    for place, key in enumerate(keys):
        places.setdefault(key, place)
    for p, f, chi in zip(group.permutations, group.flips, group.characters, strict=True):
        for h in (*group.generators, 0):
            product = p[group.permutations[h]].tobytes() + np.int8(f * group.flips[h]).tobytes()
            found = places.get(product)
            if found is None or abs(group.characters[found] - chi * group.characters[h]) > _CLOSE:
                raise NoRepresentation(
                    "irrep", "momentum and irrep contradict each other on this small lattice"
                )
    kept = sorted(places.values())
    number = {place: n for n, place in enumerate(kept)}
    generators = tuple(dict.fromkeys(number[places[keys[h]]] for h in group.generators))
    return Symmetries(group.permutations[kept], group.flips[kept], group.characters[kept], generators)


def commutes(operator: Operator, group: Symmetries) -> bool:
    """Whether an operator commutes with the group: <g s|O|g s'> = <s|O|s'> for the generators g and a few random s, all s'.

    Configurations are told apart by random sums over their spins, exact in float64; none but the s are ever made.
    """
    sigma = np.random.default_rng(0).choice(
        np.array([-1, 1], np.int8), size=(_CONFIGURATIONS, operator.n_sites)
    )
    weights = np.random.default_rng(1).integers(-(2**40), 2**40, operator.n_sites).astype(np.float64)
    elements = _row_elements(operator, sigma)
    for g in group.generators:
        permutation, flip = group.permutations[g], group.flips[g]
        moved = np.empty_like(weights)
        moved[permutation] = flip * weights
        images = sigma[:, permutation] * flip
        names = _row_names(operator, sigma, moved), _row_names(operator, images, weights)
        if not all(map(_same, *names, elements, _row_elements(operator, images))):
            return False
    return True


def generators(
    lattice: Lattice, operator: Operator, magnetization: int | None = None
) -> dict[str, Symmetries]:
    """What generates the symmetries that the lattice and an operator have in common, by name: groups' worth of one element.

    ``translation`` by a cell along the only axis or ``translation_1``, ... along each periodic one; the ``rotation`` by the
    smallest angle and the first ``reflection`` of the point group; the ``spin_flip`` of all spins, where the fixed
    ``magnetization``, if any, is zero. Each is there if it alone commutes with the operator.
    """
    found = {name: (permutation, 1) for name, permutation in _of_lattice(lattice)}
    if not magnetization:
        found["spin_flip"] = np.arange(lattice.n_sites, dtype=np.int32), -1
    single = {
        name: Symmetries(permutation[None], np.array([flip], np.int8), np.ones(1), (0,))
        for name, (permutation, flip) in found.items()
    }
    return {name: element for name, element in single.items() if commutes(operator, element)}


def _of_lattice(lattice: Lattice) -> Iterator[tuple[str, np.ndarray]]:
    """Names and permutations (n_sites,) of translations, the smallest rotation and a reflection."""
    places = list(_axis_places(lattice, 1))[::-1]
    for axis, place in zip(np.flatnonzero(lattice.wraps), places, strict=True):
        yield (
            "translation" if lattice.dimensions == 1 else f"translation_{axis + 1}",
            lattice.translations()[place],
        )
    turns, matrices = lattice.point_group(), lattice.point_group_matrices()
    if len(turns) == 1:
        return
    reflected = np.linalg.det(matrices) < 0
    traces = np.where(reflected, -np.inf, np.trace(matrices, axis1=1, axis2=2))
    traces[0] = -np.inf  # the identity
    if np.isfinite(traces).any():
        yield "rotation", turns[traces.argmax()]
    if reflected.any():
        yield "reflection", turns[reflected.argmax()]


def _row_elements(operator: Operator, sigma: np.ndarray) -> np.ndarray:
    """Elements (n, 1 + n_connected) of the rows of sigma (n, n_sites), the diagonal first."""
    diagonal = operator.diagonal(sigma)[:, None]
    return np.concatenate([diagonal, operator.element(sigma)], axis=1) if operator.n_connected else diagonal


def _row_names(operator: Operator, sigma: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Names (n, 1 + n_connected) of the configurations of these rows: sums over their spins times ``weights`` (n_sites,)."""
    terms = sigma * weights
    names = terms.sum(axis=1, keepdims=True)
    if not operator.n_connected:
        return names
    flips = np.sort(operator.flips, axis=1)
    counted = np.diff(flips, axis=1, prepend=-1) != 0  # a site may stand twice in a set
    flipped = np.stack([(own[flips] * counted).sum(axis=1) for own in terms])
    return np.concatenate([names, names - 2 * flipped], axis=1)


def _same(wanted: np.ndarray, found: np.ndarray, elements: np.ndarray, others: np.ndarray) -> bool:
    """Whether two rows, names and elements (m,) of each, are the same; what has one name is added up."""
    _, place = np.unique(np.concatenate([wanted, found]), return_inverse=True)
    values = np.concatenate([elements, -others])
    place = place.reshape(-1)
    difference = np.bincount(place, values.real) + 1j * np.bincount(place, values.imag)
    return bool(np.abs(difference).max() <= 1e-9 * max(1.0, float(np.abs(elements).max())))
