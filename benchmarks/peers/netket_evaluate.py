"""log psi, local energies and log-derivatives by NetKet for given parameters: ``python netket_evaluate.py IN.npz OUT.npz``.

IN holds ``work`` (JSON: network, lattice, hamiltonian, sampling), ``sigma`` (n, n_sites) and the parameters by this project's
names after ``parameter:``. OUT gets ``log_psi`` (n,), ``local_energy`` (n,), ``gram`` (n, n), the minSR matrix of the
log-derivatives, and ``pairs`` (n_pairs, 2), whose spins are exchanged at fixed magnetization.
"""

from __future__ import annotations

import json
import sys

import jax.numpy as jnp
import netket as nk
import numpy as np
from netket_models import flax_parameters, make_model
from netket_physics import exchanged_pairs, make_hamiltonian, make_hilbert

_PREFIX = "parameter:"


def main(source: str, target: str) -> None:
    """Read, evaluate, write."""
    given = np.load(source)
    work = json.loads(str(given["work"]))
    network, lattice, sampling = work["network"], work["lattice"], work["sampling"]
    arrays = {name.removeprefix(_PREFIX): given[name] for name in given.files if name.startswith(_PREFIX)}
    sigma = given["sigma"].astype(np.float64)
    n_sites = sigma.shape[1]
    model = make_model(network, lattice)
    variables = {"params": flax_parameters(network, arrays)}
    hamiltonian = make_hamiltonian(make_hilbert(lattice, sampling), lattice, work["hamiltonian"])
    log_psi = model.apply(variables, sigma)
    connected, elements = hamiltonian.get_conn_padded(sigma)
    log_connected = model.apply(variables, connected.reshape(-1, n_sites)).reshape(elements.shape)
    local_energy = jnp.sum(elements * jnp.exp(log_connected - log_psi[:, None]), axis=-1)
    mode = "real" if network.get("amplitude") == "positive" else "complex"
    gram = _gram(model, variables, sigma, mode)
    pairs = exchanged_pairs(lattice, sampling) if "exchange_shells" in sampling else np.empty((0, 2), int)
    np.savez(target, log_psi=log_psi, local_energy=local_energy, gram=gram, pairs=pairs)


def _gram(model, variables, sigma, mode):
    """The minSR matrix Re sum_k conj(O_nk) O_mk over real parameters, O centred over the samples."""
    jacobian = nk.jax.jacobian(model.apply, variables["params"], sigma, mode=mode, dense=True, center=True)
    jacobian = jacobian.reshape(
        len(sigma), -1
    )  # a complex log psi: real beside imaginary parts of its derivatives
    return jacobian @ jacobian.T


if __name__ == "__main__":
    main(*sys.argv[1:])
