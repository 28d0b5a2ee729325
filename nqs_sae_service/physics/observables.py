"""Observables by name: what a feature may turn out to mean.

A new observable is one decorated function. There are three kinds:

    diagonal   f(sigma), a function of the configuration alone,
    local      an operator, seen on a sample as O_loc(sigma) = sum_s' O_{s s'} psi(s') / psi(s),
    log_psi    a function of log psi(sigma).

Spins are in Pauli units, s_i = sigma^z_i in {-1, +1}. Names with numbers are families: ``correlation_0_20``
belongs to ``correlation_<i>_<j>``. All averages are per site (or pair, or edge), only ``local_energy`` is a
total.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ..engine.arrays import beside, namespace
from ..errors import UserError
from .lattices import Lattice
from .operators import Operator, SigmaX

Kind = Literal["diagonal", "local", "log_psi"]


@dataclass(frozen=True)
class Observable:
    """An observable on a given lattice.

    ``values`` maps sigma (n, n_sites) to (n,) float64 when the kind is diagonal, and log psi (n,) to (n,)
    when it is log_psi. ``operator`` is given when the kind is local. ``degree`` is 1 for a linear form in the
    spins, 2 for a quadratic one (plus a constant), else None.
    """

    name: str
    long_name: str
    units: str
    kind: Kind
    values: Callable[[np.ndarray], np.ndarray]
    operator: Operator | None = None
    degree: int | None = None


class UnknownObservable(UserError):
    """No such observable on this lattice. ``name``, ``what`` is wrong, and near ``candidates``."""

    def __init__(self, name: str, what: str, candidates: tuple[str, ...] = ()) -> None:
        hint = f" (did you mean {', '.join(candidates)}?)" if candidates else ""
        super().__init__(f"{what}{hint}")
        self.name, self.what, self.candidates = name, what, candidates


@dataclass(frozen=True)
class _Family:
    """Registered function. ``template`` has a placeholder <i> for every index, ``lowest`` its least value."""

    template: str
    long_name: str
    units: str
    kind: Kind
    lowest: tuple[int, ...]
    degree: int | None
    function: Callable[..., Any]

    @property
    def index_names(self) -> list[str]:
        return re.findall(r"<(\w+)>", self.template)

    def fill(self, indices: tuple[int, ...]) -> str:
        name = self.template
        for index in indices:
            name = re.sub(r"<\w+>", str(index), name, count=1)
        return name


_FAMILIES: dict[str, _Family] = {}
_INDEX = r"(0|[1-9][0-9]{0,8})"


def observable(
    template: str,
    *,
    long_name: str,
    units: str = "1",
    kind: Kind = "diagonal",
    lowest: tuple[int, ...] = (),
    degree: int | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an observable under a name, or a family under a template such as ``correlation_<i>_<j>``.

    The function takes (lattice, sigma, *indices) when diagonal, (lattice, hamiltonian, *indices) and returns
    an operator when local, and (log_psi) when the kind is log_psi. Indices run from ``lowest`` to n_sites - 1
    and must differ from each other. Diagonal functions use plain arithmetic, so that they also accept float
    "spins" (exact references rely on it) and arrays on a GPU.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _FAMILIES[_skeleton(template)] = _Family(template, long_name, units, kind, lowest, degree, function)
        return function

    return register


def make_observable(name: str, lattice: Lattice, hamiltonian: Operator) -> Observable:
    """The observable ``name`` on a lattice. Raises UnknownObservable."""
    family, indices = _resolve(name, lattice.n_sites)
    long_name = family.long_name.format(**dict(zip(family.index_names, indices, strict=True)))
    declare = partial(Observable, name, long_name, family.units, family.kind, degree=family.degree)
    if family.kind == "log_psi":
        return declare(values=family.function)
    if family.kind == "local":
        return declare(values=_needs_psi, operator=family.function(lattice, hamiltonian, *indices))
    return declare(
        values=lambda sigma: family.function(lattice, sigma, *indices).astype(np.float64, copy=False)
    )


def check_observable(name: str, n_sites: int) -> None:
    """Raise UnknownObservable, with near names, unless a lattice of ``n_sites`` sites has this observable."""
    _resolve(name, n_sites)


def observable_kind(name: str, n_sites: int) -> Kind:
    """diagonal, local or log_psi. Raises UnknownObservable."""
    return _resolve(name, n_sites)[0].kind


def observable_names(n_sites: int) -> list[str]:
    """Every observable, one example of each family: all are valid names on ``n_sites`` sites."""
    return [family.fill((*family.lowest[:-1], n_sites // 2)) for family in _FAMILIES.values()]


def _needs_psi(sigma: np.ndarray) -> np.ndarray:
    raise TypeError("a local observable is no function of the configuration alone: use its operator")


def _skeleton(name: str) -> str:
    return re.sub(r"<\w+>|[0-9]+", "#", name)


def _resolve(name: str, n_sites: int) -> tuple[_Family, tuple[int, ...]]:
    family = _FAMILIES.get(_skeleton(name))
    match = re.fullmatch(re.sub(r"<\w+>", _INDEX, family.template), name) if family else None
    if family is None or match is None:
        raise UnknownObservable(name, f"unknown observable {name[:80]!r}", _near_names(name, n_sites))
    indices = tuple(int(text) for text in match.groups())
    if problem := _index_problem(family, indices, n_sites):
        raise UnknownObservable(name, f"{name}: {problem}")
    return family, indices


def _index_problem(family: _Family, indices: tuple[int, ...], n_sites: int) -> str | None:
    for label, index, lowest in zip(family.index_names, indices, family.lowest, strict=True):
        if not lowest <= index < n_sites:
            return f"{label} = {index} is outside {lowest} ... {n_sites - 1} on {n_sites} sites"
    if len(set(indices)) < len(indices):
        return f"{' and '.join(family.index_names)} must differ"
    return None


def _near_names(name: str, n_sites: int) -> tuple[str, ...]:
    near = difflib.get_close_matches(_skeleton(name[:80]), _FAMILIES, n=3, cutoff=0.5)
    return tuple(_with_indices(_FAMILIES[key], name[:80], n_sites) for key in near)


def _with_indices(family: _Family, name: str, n_sites: int) -> str:
    """The member of the family with the numbers of a misspelt name if valid, else the template."""
    numbers = tuple(int(text) for text in re.findall(r"[0-9]+", name))
    if len(numbers) != len(family.lowest) or _index_problem(family, numbers, n_sites):
        return family.template
    return family.fill(numbers)


# The observables.


@observable("magnetization", long_name="magnetization per site", degree=1)
def magnetization(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """m = (1/N) sum_i s_i."""
    return sigma.mean(axis=1)


@observable("abs_magnetization", long_name="absolute magnetization per site")
def abs_magnetization(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """|m|."""
    return abs(magnetization(lattice, sigma))


@observable("magnetization_squared", long_name="squared magnetization per site", degree=2)
def magnetization_squared(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """m^2."""
    return magnetization(lattice, sigma) ** 2


@observable("staggered_magnetization", long_name="staggered magnetization per site", degree=1)
def staggered_magnetization(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """m_s = (1/N) sum_i (-1)^i s_i, the sign by sublattice."""
    return (sigma * (1 - 2 * beside(lattice.sublattice, sigma))).mean(axis=1)


@observable("abs_staggered_magnetization", long_name="absolute staggered magnetization per site")
def abs_staggered_magnetization(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """|m_s|."""
    return abs(staggered_magnetization(lattice, sigma))


@observable("staggered_magnetization_squared", long_name="squared staggered magnetization per site", degree=2)
def staggered_magnetization_squared(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """m_s^2."""
    return staggered_magnetization(lattice, sigma) ** 2


@observable("correlation_<i>_<j>", long_name="sigma^z_{i} sigma^z_{j}", lowest=(0, 0), degree=2)
def correlation(lattice: Lattice, sigma: np.ndarray, i: int, j: int) -> np.ndarray:
    """s_i s_j of one pair of sites."""
    return sigma[:, i] * sigma[:, j]


@observable("correlation_r_<r>", long_name="mean of sigma^z_i sigma^z_(i+{r})", lowest=(1,), degree=2)
def correlation_at_distance(lattice: Lattice, sigma: np.ndarray, r: int) -> np.ndarray:
    """Mean of s_i s_{i+r} over all pairs that exist: N on a ring, N - r on an open chain."""
    return _mean_product(sigma, lattice.pairs(r))


@observable("nearest_neighbour_correlation", long_name="mean of sigma^z_i sigma^z_j over edges", degree=2)
def nearest_neighbour_correlation(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """zz = mean of s_i s_j over the edges."""
    return _mean_product(sigma, lattice.edges)


@observable("half_chain_correlation", long_name="mean of sigma^z_i sigma^z_(i+N/2)", degree=2)
def half_chain_correlation(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """C_half = mean of s_i s_{i + N//2} over all pairs that exist (all N translations on a ring)."""
    return correlation_at_distance(lattice, sigma, lattice.n_sites // 2)


@observable("domain_walls", long_name="domain walls per edge", degree=2)
def domain_walls(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """Share of edges between opposite spins, mean of (1 - s_i s_j) / 2 over edges: in [0, 1], not a count."""
    return (1 - nearest_neighbour_correlation(lattice, sigma)) / 2


@observable("structure_factor_<k>", long_name="structure factor at q = 2 pi {k} / N", lowest=(0,), degree=2)
def structure_factor(lattice: Lattice, sigma: np.ndarray, k: int) -> np.ndarray:
    """S(q) = |sum_j e^{i q j} s_j|^2 / N at q = 2 pi k / N: N m^2 at k = 0."""
    xp = namespace(sigma)
    phase = 2 * np.pi * k / lattice.n_sites * beside(lattice.positions, sigma)[:, 0]
    return ((sigma @ xp.cos(phase)) ** 2 + (sigma @ xp.sin(phase)) ** 2) / lattice.n_sites


@observable("sigma_x", long_name="transverse magnetization per site, local estimator", kind="local")
def sigma_x(lattice: Lattice, hamiltonian: Operator) -> Operator:
    """(1/N) sum_i sigma^x_i."""
    return SigmaX(lattice)


@observable("local_energy", long_name="local energy (total)", units="J", kind="local")
def local_energy(lattice: Lattice, hamiltonian: Operator) -> Operator:
    """E_loc(sigma) = sum_s' H_{s s'} psi(s') / psi(s)."""
    return hamiltonian


@observable("log_abs_psi", long_name="log |psi|, unnormalised", kind="log_psi")
def log_abs_psi(log_psi: np.ndarray) -> np.ndarray:
    """log |psi(sigma)| = Re log psi."""
    return log_psi.real


def _mean_product(sigma: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    pairs = namespace(sigma).asarray(pairs)
    return (sigma[:, pairs[:, 0]] * sigma[:, pairs[:, 1]]).mean(axis=1)


def simple_functions(lattice: Lattice, sigma: np.ndarray) -> np.ndarray:
    """The simplest functions of the input, {1, m, |m|, m^2, zz, C_half}.

    (n, n_sites) -> design matrix (n, 6) float64. What these explain needs no learning; the rest might.
    """
    m = magnetization(lattice, sigma)
    zz = nearest_neighbour_correlation(lattice, sigma)
    return np.stack(
        [np.ones(len(sigma)), m, np.abs(m), m**2, zz, half_chain_correlation(lattice, sigma)], axis=1
    )


def explained_r2(design: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of the variance of ``y`` (n,) or (n, n_y) that a design matrix (n, p) explains by least squares.

    R^2 = 1 - sum (y - y_hat)^2 / sum (y - mean y)^2, shape () or (n_y,); NaN where y does not vary. The
    design should contain a constant.
    """
    centred = y - y.mean(axis=0)
    residual = centred - design @ np.linalg.lstsq(design, centred, rcond=None)[0]
    total = np.sum(centred**2, axis=0)
    varies = total > 1e-24 * (len(y) + np.sum(np.square(y), axis=0))
    return np.where(varies, 1 - np.sum(residual**2, axis=0) / np.where(varies, total, 1.0), np.nan)
