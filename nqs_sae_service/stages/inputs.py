"""What several stages read from upstream: the trained wave function and its Born samples."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ..states import Wavefunction
from .stage import Context


def trained(context: Context) -> Wavefunction:
    """The network of the spec with the parameters that ``ground_state`` found, on the device."""
    state = context.spec.state.build(context.spec.lattice.build())
    return state.bind(context.device.put(context.upstream["ground_state"]["parameters"].values))


def born_samples(samples: xr.Dataset, complex_amplitude: bool) -> tuple[np.ndarray, np.ndarray]:
    """Configurations (chain, draw, spin) int8 and log psi (chain, draw): float64, or complex128 with a phase."""
    log_psi = samples["log_psi"].values
    return samples["configuration"].values, log_psi if complex_amplitude else np.ascontiguousarray(
        log_psi.real
    )
