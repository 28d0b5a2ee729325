"""Observables by name: the record, the registry, and what is said about names that do not exist."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ...errors import UserError
from ..lattices import Lattice
from ..operators import Operator

Kind = Literal["diagonal", "local", "log_psi", "phase", "ensemble"]
# Kinds without a mean over samples that another state could be compared by, and the reason.
WITHOUT_MEAN: dict[str, str] = {
    "log_psi": "it depends on the norm of psi",
    "phase": "it depends on the global phase of psi",
    "ensemble": "it is one number for the whole state",
}


@dataclass(frozen=True)
class Observable:
    """An observable on a given lattice.

    ``values`` maps sigma (n, n_sites) to (n,) float64 when the kind is diagonal, log psi (n, ...) to (n, ...) when it is
    log_psi, and (sigma, log psi) to numbers (n, ...) of modulus one when it is phase. ``operator`` is given when the kind is
    local. ``part`` of a phase, "real" or "imag", is what counts once the global phase is taken out. ``degree`` is 1 for a
    linear form in the spins, 2 for a quadratic one (plus a constant), else None.
    """

    name: str
    long_name: str
    units: str
    kind: Kind
    values: Callable[..., np.ndarray]
    operator: Operator | None = None
    degree: int | None = None
    part: Literal["real", "imag"] = "real"


class UnknownObservable(UserError):
    """No such observable on this lattice. ``name``, ``what`` is wrong, and near ``candidates``."""

    def __init__(self, name: str, what: str, candidates: tuple[str, ...] = ()) -> None:
        hint = f" (did you mean {', '.join(candidates)}?)" if candidates else ""
        super().__init__(f"{what}{hint}")
        self.name, self.what, self.candidates = name, what, candidates


# The values of each index on a lattice (none where ``Missing`` says why), and why a lattice has no such observable, or None.
Indices = Callable[[Lattice], tuple[range, ...]]
Missing = Callable[..., str | None]


@dataclass(frozen=True)
class _Family:
    """Registered function. ``template`` has a placeholder <i> for every index."""

    template: str
    long_name: str
    units: str
    kind: Kind
    degree: int | None
    indices: Indices
    missing: Missing
    example: tuple[int, ...] | None
    part: Literal["real", "imag"]
    changes_magnetization: bool
    of_hamiltonian: bool
    function: Callable[..., Any]

    @property
    def index_names(self) -> list[str]:
        return re.findall(r"<(\w+)>", self.template)

    def fill(self, indices: tuple[int, ...]) -> str:
        name = self.template
        for index in indices:
            name = re.sub(r"<\w+>", str(index), name, count=1)
        return name

    def problem(self, lattice: Lattice, indices: tuple[int, ...]) -> str | None:
        """Why the lattice does not have this member, None if it has."""
        allowed = self.indices(lattice)
        for label, index, values in zip(self.index_names, indices, allowed, strict=False):
            if index not in values:
                return f"{label} = {index} is outside {values[0]} ... {values[-1]}"
        return self.missing(lattice, *indices)

    def member(self, lattice: Lattice) -> str | None:
        """An example that the lattice has, if it has one."""
        allowed = self.indices(lattice)
        if len(allowed) < len(self.index_names):
            return None
        indices = self.example or tuple(
            values[len(values) // 2] if values is allowed[-1] else values[0] for values in allowed
        )
        return None if self.problem(lattice, indices) else self.fill(indices)


_FAMILIES: dict[str, _Family] = {}
_INDEX = r"(0|[1-9][0-9]{0,8})"


def observable(
    template: str,
    *,
    long_name: str,
    units: str = "1",
    kind: Kind = "diagonal",
    degree: int | None = None,
    indices: Indices = lambda lattice: (),
    missing: Missing = lambda lattice, *indices: None,
    example: tuple[int, ...] | None = None,
    part: Literal["real", "imag"] = "real",
    changes_magnetization: bool = False,
    of_hamiltonian: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an observable under a name, or a family under a template such as ``correlation_<i>_<j>``.

    The function takes (lattice, sigma, *indices) when diagonal, (lattice, hamiltonian, *indices) and returns an operator when
    local, (log_psi) when the kind is log_psi, (rotated, lattice, sigma, log_psi) when it is phase; an ensemble one is
    computed by the stage. ``indices`` gives the values each index may take on a lattice, ``missing`` the reason why the
    lattice does not have the observable. ``changes_magnetization``: the operator leads out of a sector of fixed
    magnetization. ``of_hamiltonian``: whether it exists depends on the Hamiltonian too. Diagonal functions use plain
    arithmetic, so that they also accept float "spins" (exact references rely on it) and arrays on a GPU.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _FAMILIES[_skeleton(template)] = _Family(
            template, long_name, units, kind, degree, indices, missing, example, part,
            changes_magnetization, of_hamiltonian, function,
        )  # fmt: skip
        return function

    return register


def make_observable(name: str, lattice: Lattice, hamiltonian: Operator) -> Observable:
    """The observable ``name`` on a lattice, rotated as the Hamiltonian is. Raises UnknownObservable."""
    family, indices = _resolve(name, lattice)
    long_name = family.long_name.format(**dict(zip(family.index_names, indices, strict=True)))
    declare = partial(
        Observable, name, long_name, family.units, family.kind, degree=family.degree, part=family.part
    )
    if family.kind == "log_psi":
        return declare(values=family.function)
    if family.kind == "phase":
        return declare(values=partial(family.function, hamiltonian.rotated, lattice))
    if family.kind == "ensemble":
        return declare(values=_needs_all_samples)
    if family.kind == "local":
        return declare(values=_needs_psi, operator=family.function(lattice, hamiltonian, *indices))
    return declare(
        values=lambda sigma: family.function(lattice, sigma, *indices).astype(np.float64, copy=False)
    )


def check_observable(name: str, lattice: Lattice, hamiltonian: Callable[[], Operator] | None = None) -> None:
    """Raise UnknownObservable, with near names, unless the lattice has this observable; a few depend on the Hamiltonian too."""
    family, _ = _resolve(name, lattice)
    if family.of_hamiltonian and hamiltonian is not None:
        make_observable(name, lattice, hamiltonian())


def observable_kind(name: str, lattice: Lattice) -> Kind:
    """diagonal, local, log_psi, phase or ensemble. Raises UnknownObservable."""
    return _resolve(name, lattice)[0].kind


def changes_magnetization(name: str, lattice: Lattice) -> bool:
    """Whether the observable leads out of a sector of fixed magnetization. Raises UnknownObservable."""
    return _resolve(name, lattice)[0].changes_magnetization


def observable_names(lattice: Lattice) -> list[str]:
    """Every observable that the lattice has, one example of each family."""
    examples = (family.member(lattice) for family in _FAMILIES.values())
    return [name for name in examples if name is not None]


def _needs_psi(*_: np.ndarray) -> np.ndarray:
    raise TypeError("a local observable is no function of the configuration alone: use its operator")


def _needs_all_samples(*_: np.ndarray) -> np.ndarray:
    raise TypeError("an ensemble observable has no value on one configuration")


def _skeleton(name: str) -> str:
    return re.sub(r"<\w+>|[0-9]+", "#", name)


def _resolve(name: str, lattice: Lattice) -> tuple[_Family, tuple[int, ...]]:
    family = _FAMILIES.get(_skeleton(name))
    match = re.fullmatch(re.sub(r"<\w+>", _INDEX, family.template), name) if family else None
    if family is None or match is None:
        raise UnknownObservable(name, f"unknown observable {name[:80]!r}", _near_names(name, lattice))
    indices = tuple(int(text) for text in match.groups())
    if problem := family.problem(lattice, indices):
        raise UnknownObservable(name, f"{name}: {problem}")
    return family, indices


def _near_names(name: str, lattice: Lattice) -> tuple[str, ...]:
    known = [key for key, family in _FAMILIES.items() if family.member(lattice) is not None]
    near = difflib.get_close_matches(_skeleton(name[:80]), known, n=3, cutoff=0.5)
    return tuple(_with_indices(_FAMILIES[key], name[:80], lattice) for key in near)


def _with_indices(family: _Family, name: str, lattice: Lattice) -> str:
    """The member of the family with the numbers of a misspelt name if valid, else the template."""
    numbers = tuple(int(text) for text in re.findall(r"[0-9]+", name))
    if len(numbers) != len(family.index_names) or family.problem(lattice, numbers):
        return family.template
    return family.fill(numbers)
