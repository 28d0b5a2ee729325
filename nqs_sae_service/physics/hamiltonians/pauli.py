"""Any Hamiltonian that is a real sum of Pauli strings, written out in the spec,

    H = sum_t c_t P_t,    P_t = product of X, Y, Z at some sites.

A string maps a configuration to a single other one: X and Y flip their spins, and with s_j = sigma^z_j of the row

    <s|P|s'> = prod_{j in Y} (-i s_j)  prod_{j in Z} s_j,    s' = s with the sites of X and Y flipped.

It is imaginary where the number of Y is odd. Strings that flip the same sites are one element of a row, strings of Z alone
are the diagonal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from ...engine.arrays import beside, namespace
from ...spec.section import Finding, Section
from ..lattices import MAX_SITES, Lattice
from ..operators import Operator
from . import Hamiltonian

PauliString = tuple[float, str, tuple[int, ...]]  # coefficient, letters, their sites
_MOST_STRINGS = 200_000


class Term(Section):
    """One string, at given sites, or at all of a kind: every pair of a shell (two letters), every site (one letter)."""

    coefficient: float = Field(ge=-1e6, le=1e6, description="in units of energy")
    string: str = Field(min_length=1, max_length=64, description="letters X, Y, Z, such as XX or ZXZ")
    sites: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="the sites of the letters; default: every pair of the shell, or every site",
    )
    shell: int | None = Field(None, ge=1, le=64, description="shell of neighbours for strings of two letters")

    @field_validator("string")
    @classmethod
    def _letters(cls, string: str) -> str:
        if foreign := set(string) - set("XYZ"):
            raise ValueError(f"a Pauli string is made of X, Y and Z, got {sorted(foreign)[0]!r}")
        return string

    @field_validator("sites")
    @classmethod
    def _distinct(cls, sites: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if sites is not None and (len(set(sites)) < len(sites) or min(sites) < 0 or max(sites) >= MAX_SITES):
            raise ValueError(f"sites are different numbers from 0 on, got {list(sites)[:20]}")
        return sites

    @model_validator(mode="after")
    def _one_place(self) -> Term:
        letters = len(self.string)
        if self.sites is not None and self.shell is not None:
            raise ValueError("give either sites or a shell")
        if self.sites is not None and len(self.sites) != letters:
            raise ValueError(f"{self.string} needs {letters} sites, got {len(self.sites)}")
        if self.shell is not None and letters != 2:
            raise ValueError(f"a shell is made of pairs: {self.string} has {letters} letters")
        if self.shell is not None and self.string[0] != self.string[1]:
            raise ValueError(f"the pairs of a shell have no direction: say at which sites {self.string} acts")
        if self.sites is None and self.shell is None and letters > 1:
            raise ValueError(f"say at which sites {self.string} acts (or on which shell)")
        return self

    def strings(self, lattice: Lattice) -> Iterator[PauliString]:
        """The strings that this term stands for."""
        if self.sites is not None:
            places: Any = [self.sites]
        elif self.shell is not None:
            places = map(tuple, lattice.shell(self.shell).tolist())
        else:
            places = ((i,) for i in range(lattice.n_sites))
        return ((self.coefficient, self.string, place) for place in places)


class PauliSum(Operator):
    """sum_t c_t P_t. Strings are merged by the sites they flip; elements are complex if some string has an odd number of Y.

    Parities of the spins at the sites of Y and Z are counted by one matrix product: 2 n_strings n_sites FLOPs per row.
    """

    def __init__(self, n_sites: int, strings: list[PauliString]) -> None:
        self.n_sites = n_sites
        merged: dict[tuple[tuple[int, ...], tuple[int, ...]], complex] = defaultdict(complex)
        for coefficient, letters, sites in strings:
            flipped, signed = (
                tuple(sorted(site for site, letter in zip(sites, letters, strict=True) if letter in kinds))
                for kinds in ("XY", "YZ")
            )
            merged[flipped, signed] += coefficient * (-1j) ** letters.count("Y")
        kept = sorted((key, c) for key, c in merged.items() if c != 0)
        self._diagonal = _Signs(n_sites, [(signed, c) for (flipped, signed), c in kept if not flipped])
        groups = groupby((item for item in kept if item[0][0]), key=lambda item: item[0][0])
        rows = [(flipped, [(signed, c) for (_, signed), c in members]) for flipped, members in groups]
        self._rows = _Signs(n_sites, [string for _, members in rows for string in members])
        most = max((len(flipped) for flipped, _ in rows), default=1)
        # A site named twice is flipped once: shorter strings repeat their last site.
        padded = [flipped + flipped[-1:] * (most - len(flipped)) for flipped, _ in rows]
        self.flips = np.asarray(padded, np.int32).reshape(len(rows), most)
        # Place of the k-th string of every element; the one after the last is an empty one.
        self._places = np.full((max((len(m) for _, m in rows), default=0), len(rows)), len(self._rows.weight))
        end = 0
        for column, (_, members) in enumerate(rows):
            self._places[: len(members), column] = range(end, end + len(members))
            end += len(members)
        weight = np.append(self._rows.weight, 0.0)
        if not np.any(weight.imag):
            weight = weight.real
        self.dtype, self._weights = weight.dtype, weight[self._places]

    def diagonal(self, sigma: np.ndarray) -> np.ndarray:
        return self._diagonal.of(sigma) @ beside(self._diagonal.real, sigma)

    def element(self, sigma: np.ndarray) -> np.ndarray:
        xp = namespace(sigma)
        value = xp.zeros((len(sigma), self.n_connected), self.dtype)
        signs = xp.concatenate([self._rows.of(sigma), xp.ones((len(sigma), 1))], axis=1)
        for places, weights in zip(self._places, self._weights, strict=True):
            value += signs[:, xp.asarray(places)] * xp.asarray(weights)
        return value


class _Signs:
    """Products of the spins at the sites of each string, (rows, n_strings) of +1 and -1, and the weights of the strings."""

    def __init__(self, n_sites: int, strings: list[tuple[tuple[int, ...], complex]]) -> None:
        self.mask = np.zeros((n_sites, len(strings)), np.float32)
        for column, (signed, _) in enumerate(strings):
            self.mask[list(signed), column] = 1.0
        self.weight = np.array([c for _, c in strings], np.complex128)
        self.real = self.weight.real.copy()

    def of(self, sigma: np.ndarray) -> np.ndarray:
        xp = namespace(sigma)
        down = (sigma < 0).astype(xp.float32) @ beside(self.mask, sigma)  # integers: exact
        return 1.0 - 2.0 * (down.astype(xp.int64) % 2)


class Pauli(Hamiltonian):
    """Any real sum of Pauli strings: H = sum coefficient * string."""

    kind: Literal["pauli"]
    terms: tuple[Term, ...] = Field(
        min_length=1,
        max_length=10_000,
        description='[{coefficient = -1.0, string = "ZZ", shell = 1}, {coefficient = 0.5, string = "XY", sites = [0, 1]}, ...]',
    )

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        odd = [i for i, term in enumerate(self.terms) if term.string.count("Y") % 2]
        if odd and getattr(sections.get("state"), "amplitude", None) == "positive":
            what = f'{self.terms[odd[0]].string} has imaginary elements, so psi is complex: set state.amplitude = "complex"'
            yield Finding(f"terms[{odd[0]}]", what)
        geometry: Any = sections.get("lattice")
        if geometry is None:
            return
        lattice, strings = geometry.build(), 0
        for index, term in enumerate(self.terms):
            if term.sites is not None and max(term.sites) >= lattice.n_sites:
                what = f"site {max(term.sites)} is outside 0 ... {lattice.n_sites - 1}"
                yield Finding(f"terms[{index}].sites", what)
            elif term.shell is not None and not len(lattice.shell(term.shell)):
                yield Finding(
                    f"terms[{index}].shell", f"this lattice has no shell {term.shell} of neighbours"
                )
            else:
                strings += sum(1 for _ in term.strings(lattice))
        if strings * lattice.n_sites > _MOST_STRINGS * 64:
            yield Finding(
                "terms", f"these are {strings} strings on {lattice.n_sites} sites: more than fit in memory"
            )

    @property
    def conserves_magnetization(self) -> bool:
        """Whether H commutes with sum_i S^z_i: only strings of Z, and XX + YY and XY - YX of equal weight on two sites.

        Strings of Z beside them change nothing as long as they are the same.
        """
        weights: dict[Any, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for term in self.terms:
            sites = term.sites or tuple(range(len(term.string)))
            letters = sorted(zip(sites, term.string, strict=True))
            flipped = tuple(site for site, letter in letters if letter != "Z")
            dressing = tuple(site for site, letter in letters if letter == "Z")
            kind = "".join(letter for _, letter in letters if letter != "Z")
            weights[term.sites is None, term.shell, flipped, dressing][kind] += term.coefficient
        return all(_conserves(kinds) for (_, _, flipped, _), kinds in weights.items() if flipped)

    def build(self, lattice: Lattice) -> PauliSum:
        """The operator on a lattice."""
        return PauliSum(lattice.n_sites, [string for term in self.terms for string in term.strings(lattice)])


def _conserves(kinds: Mapping[str, float]) -> bool:
    """Whether the strings that flip the same sites exchange spins: XX + YY, XY - YX; or cancel."""
    left = {kind: weight for kind, weight in kinds.items() if weight}
    if not set(left) <= {"XX", "YY", "XY", "YX"}:
        return False
    return left.get("XX", 0.0) == left.get("YY", 0.0) and left.get("XY", 0.0) == -left.get("YX", 0.0)
