"""Can the run be trusted? Sentences and tables on the ground state, the observables and the dictionaries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from .moments import when
from .numbers import NOTHING, number, with_error
from .records import Table, Verdict
from .values import attribute, cell, finite, labels, several

R_HAT_LIMIT = 1.1  # above it chains disagree (Gelman et al., Bayesian Data Analysis, section 11.5)
SIMPLE_R2_LIMIT = 0.99  # above it no feature can show more than simple functions of the input do
BELOW_LIMIT = (
    3.0  # standard errors below the exact energy that no correct estimate falls: it is a variational bound
)
_DIGITS = 1e-6  # published energies are exact to so much of themselves
ENERGY_LIMIT = 1e-3  # relative energy error (with two standard errors) up to which the state is called good

GROUND_STATE = {
    "energy": "mean local energy of the final state on fresh samples (total, in J), with its standard error over chains",
    "exact energy": "ground-state energy of the Hamiltonian where it is known (total, in J)",
    "relative error": "(E - E_exact) / |E_exact|",
    "V-score": "N Var(H) / E^2; 0 for an eigenstate",
    "R-hat": "split R-hat of the local energy between chains; 1 when the chains agree",
    "tau": "integrated autocorrelation time of the local energy, in recorded samples",
    "acceptance": "accepted share of the Metropolis proposals",
    "samples/s": "effective samples per second: samples drawn, divided by tau of the energy and by the time of the sweeps",
    "sectors": "share of the final samples with positive and with negative magnetization",
    "bounded steps": "training steps in which the bound on the step length held the update back",
}
OBSERVABLES = {
    "mean": "Born expectation value with its standard error (batch means over chains)",
    "exact": "ground-state expectation value where it is known",
    "R-hat": "split R-hat between chains",
}
AFTER_QUENCH = "that of the exactly evolved state where it is known"
WHOLE_STATE = {
    "energy variance": "mean of |E_loc - E|^2 (total, in J^2); 0 for an eigenstate",
    "Renyi-2 entropy": "-log tr rho_A^2 of one part of the lattice, from swapped pairs of samples",
    "exact": "that of the exact ground state where it is known",
}
DICTIONARIES = {
    "explained": "explained variance 1 - sum |e|^2 / sum |x - mean|^2 on the select split",
    "L0": "mean number of active features at the end of training",
    "dead": "share of features that no longer fire at the end of training",
    "density": "median share of inputs on which a feature is active",
    "energy recovered": "(E_ablated - E_sae) / (E_ablated - E) with the layer replaced by its reconstruction",
    "infidelity": "1 - fidelity of that state with the original",
}


def ground_state_verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """How far the energy is from the exact one, and whether the chains agree."""
    energy, error = attribute(dataset, "final_energy"), attribute(dataset, "final_energy_error")
    exact, r_hat = attribute(dataset, "exact_energy"), attribute(dataset, "r_hat")
    if math.isnan(energy):
        return [Verdict("open", "Ground state: the final energy is not known.")]
    text = f"Ground state: E = {with_error(energy, error)} J (total)"
    if math.isnan(exact):
        text += f", V-score {number(attribute(dataset, 'v_score'), 2)}; no exact energy to compare with."
        verdicts = [Verdict("open", text)]
    else:
        text += f", relative error {relative_error(dataset)} against the exact {number(exact, 9)} J."
        worst = abs(attribute(dataset, "relative_error")) + 2 * abs(error / exact if error > 0 else 0.0)
        verdicts = [Verdict("good" if worst <= ENERGY_LIMIT else "open", text)]
    if exact - energy > BELOW_LIMIT * error + _DIGITS * abs(exact):
        text = (
            f"The energy lies below the exact one by more than {BELOW_LIMIT:.0f} standard errors: no state can, so the error "
            "bar, the sampling, or the Hamiltonian is wrong."
        )
        verdicts.append(Verdict("fault", text))
    if r_hat > R_HAT_LIMIT:
        verdicts.append(
            Verdict("fault", f"The chains disagree (R-hat {r_hat:.3f}): error bars are not to be trusted.")
        )
    return verdicts


def ground_state_tables(dataset: xr.Dataset) -> list[Table]:
    """Final energy and the quality of the state and of its sampling."""
    values = {
        "energy": with_error(attribute(dataset, "final_energy"), attribute(dataset, "final_energy_error")),
        "exact energy": number(attribute(dataset, "exact_energy"), 12),
        "relative error": relative_error(dataset),
        "V-score": number(attribute(dataset, "v_score"), 3),
        "R-hat": number(attribute(dataset, "r_hat"), 5),
        "tau": number(attribute(dataset, "tau"), 3),
        "acceptance": number(attribute(dataset, "acceptance"), 3),
        "samples/s": number(attribute(dataset, "effective_samples_per_second"), 3),
        "sectors": _sectors(dataset.attrs.get("sector_occupancy")),
        "bounded steps": _bounded_steps(dataset),
    }
    return [Table("Ground state", ("quantity", "value"), list(values.items()), definitions=GROUND_STATE)]


def relative_error(dataset: xr.Dataset) -> str:
    """(E - exact) / |exact| with its error, as text; a dash where the exact energy is not known."""
    error, exact = attribute(dataset, "final_energy_error"), attribute(dataset, "exact_energy")
    return with_error(attribute(dataset, "relative_error"), abs(error / exact) if exact else math.nan)


def _sectors(value: Any) -> str:
    if value is None:
        return NOTHING
    if np.size(value) != 2 or isinstance(value, str):
        return str(value)
    up, down = np.asarray(value, dtype=float)
    return f"{number(up, 3)} up, {number(down, 3)} down"


def _bounded_steps(dataset: xr.Dataset) -> str:
    bounded = finite(dataset.get("step_bounded"))
    return f"{int((bounded > 0).sum())} of {bounded.size}" if bounded.size else NOTHING


def observable_verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """Observables that simple functions of the input already explain, and those whose chains disagree at any time."""
    names = labels(dataset, "observable")
    simple = {name: several(dataset, "simple_function_r2", observable=name) for name in names}
    means = {name: float(values.mean()) for name, values in simple.items() if values.size}
    explained = [f"{name} ({r2:.4f})" for name, r2 in means.items() if r2 > SIMPLE_R2_LIMIT]
    apart = [name for name in names if np.any(several(dataset, "r_hat", observable=name) > R_HAT_LIMIT)]
    verdicts = []
    if explained:
        kind = "R2, mean over time" if "time" in dataset.dims else "R2"
        text = f"Simple functions of the input explain ({kind}) " + ", ".join(explained)
        verdicts.append(Verdict("note", text + ": no feature can show more than those functions do."))
    if apart:
        verdicts.append(
            Verdict("fault", f"The chains disagree on {', '.join(apart)} (R-hat above {R_HAT_LIMIT}).")
        )
    return verdicts


def observable_tables(dataset: xr.Dataset) -> list[Table]:
    """Born expectation values, and what is known of the state as a whole."""
    rows = []
    for name in labels(dataset, "observable"):
        mean, error, exact, r_hat, simple = (
            cell(dataset, variable, observable=name)
            for variable in ("mean", "error", "exact", "r_hat", "simple_function_r2")
        )
        rows.append(
            (str(name), with_error(mean, error), number(exact, 6), number(r_hat, 4), number(simple, 4))
        )
    columns = ("observable", "mean", "exact", "R-hat", "simple R2")
    functions = dataset.attrs.get("simple_functions", "{1, m, |m|, m^2, zz, C_half}")
    simple_r2 = f"variance share that {functions} explain; above 0.99 no feature can show more"
    definitions = {**OBSERVABLES, "simple R2": simple_r2}
    at = when(dataset, " at ")
    if at:
        definitions["exact"] = AFTER_QUENCH
    return [Table(f"Observables{at}", columns, rows, definitions=definitions), *_whole_state(dataset)]


def _whole_state(dataset: xr.Dataset) -> list[Table]:
    """Energy variance and entanglement, where they were asked for."""
    rows = []
    if "energy_variance" in dataset:
        variance, error = cell(dataset, "energy_variance"), cell(dataset, "energy_variance_error")
        rows.append(("energy variance", with_error(variance, error), number(0.0)))
    for name in labels(dataset, "subsystem"):
        value, error, exact = (
            cell(dataset, variable, subsystem=name) for variable in ("renyi2", "renyi2_error", "renyi2_exact")
        )
        rows.append((f"Renyi-2 entropy, {name}", with_error(value, error), number(exact, 6)))
    at = when(dataset, " at ")
    definitions = WHOLE_STATE | ({"exact": AFTER_QUENCH} if at else {})
    table = Table(f"The whole state{at}", ("quantity", "value", "exact"), rows, definitions=definitions)
    return [table] if rows else []


def dictionary_verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """Dictionaries of which most features are dead."""
    verdicts = []
    for layer in labels(dataset, "layer"):
        dead = finite(_last(dataset, "dead_fraction", layer=layer))
        if dead.size and dead.mean() > 0.5:
            verdicts.append(
                Verdict("note", f"{layer}: {dead.mean():.0%} of the dictionary's features are dead.")
            )
    return verdicts


def dictionary_tables(dataset: xr.Dataset) -> list[Table]:
    """Quality of each dictionary; what depends on time as the mean over the times."""
    count = dataset.sizes.get("time", 0)
    dataset, rows = _mean_over_time(dataset), []
    for layer in labels(dataset, "layer"):
        for seed in labels(dataset, "sae_seed"):
            at = {"layer": layer, "sae_seed": seed}
            density = (
                finite(dataset["feature_density"].sel(at)) if "feature_density" in dataset else np.empty(0)
            )
            cells = (
                number(cell(dataset, "explained_variance", **at)),
                _last_number(dataset, "l0", at),
                _last_number(dataset, "dead_fraction", at),
                number(float(np.median(density)), 2) if density.size else NOTHING,
                number(cell(dataset, "energy_recovered", **at)),
                number(cell(dataset, "infidelity", **at), 3),
            )
            rows.append((str(layer), str(seed), *cells))
    settings = ", ".join(
        f"{key} = {dataset.attrs[key]}" for key in ("kind", "k", "input") if dataset.attrs.get(key)
    )
    title = f"Dictionaries ({settings})" if settings else "Dictionaries"
    definitions = dict(DICTIONARIES)
    if count:
        for name in ("energy recovered", "infidelity"):
            definitions[name] += f"; mean over {count} times"
    return [Table(title, ("layer", "seed", *DICTIONARIES), rows, group=1, definitions=definitions)]


def _mean_over_time(dataset: xr.Dataset) -> xr.Dataset:
    means = {
        name: values.mean("time")
        for name, values in dataset.data_vars.items()
        if "time" in values.dims and values.dtype.kind in "biuf"
    }
    return dataset.assign(means)


def _last(dataset: xr.Dataset, name: str, **at: Any) -> xr.DataArray | None:
    if name not in dataset or not dataset.sizes.get("step"):
        return None
    return dataset[name].sel(at).isel(step=-1)


def _last_number(dataset: xr.Dataset, name: str, at: Mapping[str, Any]) -> str:
    last = finite(_last(dataset, name, **at))
    return number(float(last[0]), 3) if last.size else NOTHING
