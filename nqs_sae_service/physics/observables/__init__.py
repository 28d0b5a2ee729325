"""Observables by name: what a feature may turn out to mean.

A new observable is one decorated function in a module of this package. There are five kinds:

    diagonal   f(sigma), a function of the configuration alone,
    local      an operator, seen on a sample as O_loc(sigma) = sum_s' O_{s s'} psi(s') / psi(s),
    log_psi    a function of log psi(sigma),
    phase      part of a complex number of modulus one, psi(sigma) / |psi(sigma)| times a sign; the global phase is taken out
               when all samples are known,
    ensemble   one number for the whole state, from more than one sample at a time.

Diagonal observables are in Pauli units, s_i = sigma^z_i in {-1, +1}, products S_i . S_j in spin units, S = sigma / 2. Names
with numbers are families: ``correlation_0_20`` belongs to ``correlation_<i>_<j>``. All averages are per site (or pair, or
edge), only ``local_energy`` and ``energy_variance`` are totals. Operators are rotated as the Hamiltonian is
(``physics/exchange.py``).
"""

from . import correlations, order, spins, wavefunction
from .registry import (
    WITHOUT_MEAN,
    Kind,
    Observable,
    UnknownObservable,
    changes_magnetization,
    check_observable,
    make_observable,
    observable,
    observable_kind,
    observable_names,
)
from .simple import default_names, explained_r2, simple_function_names, simple_functions
from .wavefunction import without_global_phase

__all__ = [
    "WITHOUT_MEAN",
    "Kind",
    "Observable",
    "UnknownObservable",
    "changes_magnetization",
    "check_observable",
    "correlations",
    "default_names",
    "explained_r2",
    "make_observable",
    "observable",
    "observable_kind",
    "observable_names",
    "order",
    "simple_function_names",
    "simple_functions",
    "spins",
    "wavefunction",
    "without_global_phase",
]
