"""Several processes, one GPU each: a step is that of one process. The ranks are threads of this one, the GPUs pretended."""

import numpy as np
import pytest
from strict_cupy import pretended_gpu

from nqs_sae_service.engine.devices import choose_device
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.states import Transformer
from nqs_sae_service.vmc.reconfiguration import natural_step


@pytest.mark.parametrize("doubles", [2, 64], ids=["fast doubles", "slow doubles"])
@pytest.mark.parametrize("amplitude", ["positive", "complex"])
def test_a_step_is_that_of_one_process(in_ranks, amplitude, doubles):
    state = Transformer(patch=2, width=8, heads=2, layers=1, amplitude=amplitude).build(
        Chain(kind="chain", length=6).build()
    )
    generator = np.random.default_rng(0)
    parameters = state.initial_parameters(1) + 0.3 * generator.normal(size=state.n_parameters)
    sigma = generator.choice(np.array([-1, 1], np.int8), size=(41, 6))
    energies = generator.normal(size=41) + 1j * generator.normal(size=41)
    energies = energies if amplitude == "complex" else energies.real.copy()
    previous = 0.1 * generator.normal(size=state.n_parameters)
    expected = natural_step(state.bind(parameters).reference, sigma, energies, previous, 1e-2, 0.8, 0.3)
    with pretended_gpu(singles_per_double=doubles):
        device = choose_device("gpu")

        def step(ranks):
            mine = ranks.share(41)
            psi = state.bind(device.put(parameters)).reference
            arrays = map(device.put, (sigma[mine], energies[mine], previous))
            return natural_step(psi, *arrays, 1e-2, 0.8, 0.3, ranks=ranks)

        for found in in_ranks(3, step):
            np.testing.assert_allclose(
                found.direction.get(), expected.direction, atol=1e-9 * np.abs(expected.direction).max()
            )
            assert found.norm == pytest.approx(expected.norm, rel=1e-9)
