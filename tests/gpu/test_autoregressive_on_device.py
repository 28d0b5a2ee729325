"""The autoregressive transformer where the device is: log psi, derivatives and draws of the host."""

import numpy as np
import pytest

from nqs_sae_service.engine.random import Stream
from nqs_sae_service.physics.hamiltonians.heisenberg import Heisenberg
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.sampling import process_of
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.states import Autoregressive

CHAIN = Chain(kind="chain", length=8)


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
@pytest.mark.parametrize(
    "hamiltonian", [Tfim(kind="tfim", h=1.0), Heisenberg(kind="heisenberg")], ids=["free", "fixed"]
)
def test_draws_and_derivatives_are_those_of_the_host(hamiltonian, amplitude, one_device):
    sections = {"lattice": CHAIN, "hamiltonian": hamiltonian, "sampling": Sampling()}
    record = Autoregressive(patch=2, width=8, heads=2, layers=1, amplitude=amplitude, precision="float64")
    sections["state"] = record.resolved(sections)
    sampling, state = sections["sampling"].resolved(sections), sections["state"].build(CHAIN.build())
    direct = process_of(sampling, CHAIN.build(), 2, Stream.SAMPLES)
    parameters = state.initial_parameters(1) + 0.3 * np.random.default_rng(0).normal(size=state.n_parameters)
    start, drawn = direct.random_chains(30), []
    for put in (np.asarray, one_device.put):
        psi = state.bind(put(parameters))
        chains = direct.start(psi, put(start), number=3)
        direct.sweep(psi, chains)
        arrays = (
            chains.sigma,
            chains.log_psi,
            psi.log_psi(chains.sigma),
            psi.per_sample_gradients(chains.sigma),
        )
        drawn.append([array if isinstance(array, np.ndarray) else array.get() for array in arrays])
    host, there = drawn
    np.testing.assert_array_equal(there[0], host[0])
    np.testing.assert_allclose(there[1], there[2], rtol=1e-12)
    for ours, theirs in zip(host[1:], there[1:], strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-9, atol=1e-11)
