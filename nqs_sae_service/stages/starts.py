"""Where a training begins: at random, at parameters from a file, at the end of another run, or at what a teacher taught."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from pydantic import ValidationError

from ..datasets import read_stage
from ..errors import UserError
from ..physics.lattices import LATTICES
from ..spec.files import LOAD, START_FROM
from ..states import STATES, State
from ..states.loading import Misfit, load_parameters
from ..states.transfer import transferred

if TYPE_CHECKING:
    from ..spec import Spec


def start_of(
    spec: Spec, state: State, before: xr.Dataset | None, taught: xr.Dataset | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Parameters (n_parameters,) that a training begins with, and chains (chains, n_sites) int8 or None for random ones.

    ``before``: the ground state of the run to start from. Its chains go on if lattice, magnetization and number of chains are
    the same. ``taught``: what a teacher has taught. Raises UserError where file or run do not fit.
    """
    if taught is not None:
        return taught["parameters"].values, taught["final_configuration"].values
    if before is not None:
        return _parameters_of(before, state), chains_of(before, spec)
    if spec.state.load:
        return _loaded(spec.state.load, state), None
    return state.initial_parameters(spec.ground_state.seed), None


def check_start(spec: Spec, sources: Mapping[str, Path]) -> None:
    """Raise UserError where what is in the sources (by their keys in the spec) does not fit the network."""
    state = spec.state.build(spec.lattice.build())
    if path := sources.get(START_FROM):
        with read_stage(path) as before:
            _parameters_of(before, state)
    elif path := sources.get(LOAD):
        _loaded(path, state)


def _loaded(path: str | Path, state: State) -> np.ndarray:
    try:
        return load_parameters(path, state)
    except Misfit as problem:
        raise UserError(f"{LOAD}: {problem}") from None


def _parameters_of(before: xr.Dataset, state: State) -> np.ndarray:
    file = before.encoding.get("source", "the run to start from")
    try:
        return transferred(state_of(before), before["parameters"].values, state)
    except Misfit as problem:
        raise UserError(f"{START_FROM}: {file}: {problem}") from None


def state_of(before: xr.Dataset) -> State:
    """The network that a ground state was computed with. Raises Misfit."""
    try:
        sections = sections_of(before)
        kind, lattice = sections["state"], sections["lattice"]
        record = STATES[kind["kind"]].model_validate_json(json.dumps(kind))
        geometry = LATTICES[lattice["kind"]].model_validate_json(json.dumps(lattice))
    except (KeyError, TypeError, ValueError, ValidationError):
        raise Misfit("its network is not known to this version; run its spec again") from None
    return record.build(geometry.build())


def sections_of(before: xr.Dataset) -> dict[str, Any]:
    """The hashed sections of a stage file. Raises KeyError or ValueError where it does not say."""
    return json.loads(before.attrs["sections"])


def chains_of(before: xr.Dataset, spec: Spec) -> np.ndarray | None:
    """The chains at the end of another run, if this one would have them."""
    there, here = sections_of(before), spec.sampling.fixed_magnetization
    sigma = before["final_configuration"].values
    lattice = LATTICES[there["lattice"]["kind"]].model_validate_json(json.dumps(there["lattice"]))
    same = lattice == spec.lattice and len(sigma) == spec.sampling.chains
    fixed = there["sampling"].get("magnetization")
    fits = (fixed if isinstance(fixed, int) else None) == here
    return sigma if same and fits else None


__all__ = ["LOAD", "START_FROM", "chains_of", "check_start", "sections_of", "start_of", "state_of"]
