"""Patched and knocked-out heads where the network is on a device, against the same on the host."""

import numpy as np
import pytest

from nqs_sae_service.engine.arrays import to_host
from nqs_sae_service.interpret.counterfactuals import distant, region, sector
from nqs_sae_service.interpret.heads import Heads, Knocked, Patched, mean_outputs, tangents_of_heads
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.states import Transformer
from nqs_sae_service.states.projection import Symmetry

SITES = 8
LATTICE = Chain(kind="chain", length=SITES).build()
HEADS = Heads(("heads_1", "heads_2"), 2, 8)
ALL = all_configurations(SITES)
OPTIONS = {
    "full": {},
    "positional": {"attention": "positional"},
    "projected": {"amplitude": "complex", "symmetry": Symmetry(translations=True)},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_heads_on_the_device_are_those_on_the_host(one_device, options):
    record = Transformer(patch=2, width=8, heads=2, layers=2, precision="float64", **OPTIONS[options])
    state, rng = record.build(LATTICE), np.random.default_rng(1)
    parameters = state.initial_parameters(1)
    host, there = state.bind(parameters), state.bind(one_device.put(parameters))
    sigma, samples = one_device.put(ALL), ALL[::7]
    for f in (
        sector(np.ones(SITES), samples, rng),
        region(np.array([0, 1, 5]), SITES, conserving=True),
        distant(samples, rng),
    ):
        np.testing.assert_array_equal(to_host(f.of(sigma)), f.of(ALL))
        ours, theirs = (
            to_host(Patched(psi, HEADS, f).log_psi(s)) for psi, s in ((there, sigma), (host, ALL))
        )
        np.testing.assert_allclose(np.exp(ours - theirs), 1.0, atol=1e-9)
        ours, theirs = (tangents_of_heads(psi, HEADS, f, s) for psi, s in ((there, sigma), (host, ALL)))
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    sets = rng.random((3, 2, 2)) < 0.5
    logs = []
    for psi, s in ((there, sigma), (host, ALL)):
        mean = mean_outputs(psi, HEADS, s)
        logs.append(to_host(Knocked(psi, HEADS, sets, mean).log_psi(s)))
    np.testing.assert_allclose(np.exp(logs[0] - logs[1]), 1.0, atol=1e-9)
