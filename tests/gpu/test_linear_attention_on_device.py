"""Heads of linear attention on a device: log psi, layers and derivatives are those of the host."""

import numpy as np
import pytest

from nqs_sae_service.physics.lattices import Chain, Rectangular
from nqs_sae_service.states import Transformer

LATTICES = [
    pytest.param(Chain(kind="chain", length=8), id="ring"),
    pytest.param(Rectangular(kind="rectangular", lengths=(4, 6), periodic=(True, False)), id="cylinder"),
]


@pytest.mark.parametrize("attention", ["kernel", "delta", ("delta", "full", "kernel", "positional")], ids=str)
@pytest.mark.parametrize("geometry", LATTICES)
def test_the_same_as_on_the_host(geometry, attention, one_device):
    record = Transformer(
        patch=2, width=16, heads=4, layers=1, amplitude="complex", precision="float64", attention=attention
    )
    lattice = geometry.build()
    state = record.build(lattice)
    parameters = state.initial_parameters(1) + 0.3 * np.random.default_rng(0).normal(size=state.n_parameters)
    sigma = np.random.default_rng(1).choice(np.array([-1, 1], np.int8), (6, lattice.n_sites))
    host, there = state.bind(parameters), state.bind(one_device.put(parameters))
    on_device = one_device.put(sigma)
    for found, expected in (
        (there.log_psi(on_device), host.log_psi(sigma)),
        (there.stream_at(on_device, "heads_1"), host.stream_at(sigma, "heads_1")),
        (there.per_sample_gradients(on_device), host.per_sample_gradients(sigma)),
    ):
        np.testing.assert_allclose(found.get(), expected, rtol=1e-9, atol=1e-10)
    tape = there.tape(on_device)
    deltas = tape.backward(until="embedding", parts=True)["embedding"].get()
    expected = host.tape(sigma).backward(until="embedding")["embedding"]
    np.testing.assert_allclose(deltas[0] + 1j * deltas[1], expected, rtol=1e-9, atol=1e-10)
