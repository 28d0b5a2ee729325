"""Direct sampling: |psi|^2 by chi-square, independent from sweep to sweep, the same for any share of the chains."""

import numpy as np
import pytest
from scipy.stats import chi2

from nqs_sae_service.engine.random import Stream
from nqs_sae_service.errors import NumericalError
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians.heisenberg import Heisenberg
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.sampling import drift, process_of
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.states import Autoregressive, Rbm
from nqs_sae_service.states.projection import Symmetry

SITES = 10
CHAIN = Chain(kind="chain", length=SITES)
ISING, HEISENBERG = Tfim(kind="tfim", h=1.0), Heisenberg(kind="heisenberg")


def resolved(hamiltonian, state=None, **sampling):
    """The sections [state] and [sampling] as a spec would have them."""
    sections = {"lattice": CHAIN, "hamiltonian": hamiltonian, "state": state or Autoregressive()}
    sections["sampling"] = Sampling(**sampling)
    for name in ("state", "sampling"):
        sections[name] = sections[name].resolved(sections)
    return sections


def wave(hamiltonian, dtype=np.float32, **options):
    network = Autoregressive(width=8, heads=2, layers=1, **options)
    state = resolved(hamiltonian, network)["state"].build(CHAIN.build())
    noise = 0.4 * np.random.default_rng(2).normal(size=state.n_parameters)
    return state.bind((state.initial_parameters(1) + noise).astype(dtype))


def process(hamiltonian, **sampling):
    options = resolved(hamiltonian, **sampling)["sampling"]
    return process_of(options, CHAIN.build(), 5, Stream.SAMPLES)


def p_value(sigma, psi):
    """Chi-square of configurations (n, SITES), rare ones counted together."""
    expected = len(sigma) * np.exp(2 * psi.reference.log_psi(all_configurations(SITES)).real)
    counted = np.bincount(((sigma < 0) << np.arange(SITES)[::-1]).sum(axis=1), minlength=2**SITES)
    assert counted[expected == 0].sum() == 0
    often = expected >= 10
    expected = np.append(expected[often], expected[~often].sum())
    counted = np.append(counted[often], counted[~often].sum())
    return chi2.sf(((counted - expected) ** 2 / expected).sum(), len(expected) - 1)


@pytest.mark.parametrize("hamiltonian", [ISING, HEISENBERG], ids=["free", "fixed"])
def test_draws_follow_psi_squared_from_the_first_sweep_on(hamiltonian):
    psi, direct = wave(hamiltonian, patch=2), process(hamiltonian)
    chains = direct.start(psi, direct.random_chains(4000))
    sigma, log_psi = direct.draws(psi, chains, 5, 1)
    assert chains.acceptance == 1
    assert p_value(sigma.reshape(-1, SITES), psi) > 1e-4
    assert p_value(sigma[:, 0], psi) > 1e-4
    np.testing.assert_array_equal(psi.log_psi(sigma[:, -1]), log_psi[:, -1])
    assert drift(psi, psi.reference, chains) < 1e-4
    moments = sigma @ np.arange(1.0, SITES + 1)
    between = np.corrcoef(moments[:, 0], moments[:, 1])[0, 1]
    assert abs(between) < 4.5 / np.sqrt(4000)


@pytest.mark.parametrize("hamiltonian", [ISING, HEISENBERG], ids=["free", "fixed"])
def test_an_edited_state_is_sampled_by_metropolis_moves(hamiltonian):
    psi, direct = wave(hamiltonian), process(hamiltonian)
    edited = psi.edited("residual_1", lambda x: x + np.tanh(x[..., :1]))
    born = direct.start(psi, direct.random_chains(300))
    direct.sweep(psi, born)
    chains = direct.start(edited, born.sigma)
    for _ in range(40):
        direct.sweep(edited, chains)
    assert 0 < chains.acceptance < 1
    total = chains.sigma.sum(axis=1, dtype=int)
    assert hamiltonian is ISING or (total == 0).all()
    p = np.exp(2 * edited.log_psi(all_configurations(SITES)).real)
    assert abs(p.sum() - 1) < 1e-4
    first = all_configurations(SITES)[:, 0]
    mean, expected = chains.sigma[:, 0].mean(), p @ first
    assert abs(mean - expected) < 4.5 * np.sqrt((1 - expected**2) / 300)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_share_of_the_chains_draws_what_all_would_draw(dtype):
    psi, direct = wave(HEISENBERG, dtype, amplitude="complex"), process(HEISENBERG)
    start = direct.random_chains(150)
    whole, part = direct.start(psi, start), direct.start(psi, start[70:131], number=70)
    for _ in range(2):
        direct.sweep(psi, whole)
        direct.sweep(psi, part)
    np.testing.assert_array_equal(part.sigma, whole.sigma[70:131])
    np.testing.assert_allclose(part.log_psi, whole.log_psi[70:131], rtol=1e-12)


def test_nan_is_refused():
    psi, direct = wave(ISING), process(ISING)
    chains = direct.start(psi, direct.random_chains(10))
    psi.parameters[:] = np.nan
    del psi.__dict__["fused"]
    with pytest.raises(NumericalError, match="NaN"):
        direct.sweep(psi, chains)


def test_what_a_spec_resolves_to():
    ising, heisenberg = resolved(ISING), resolved(HEISENBERG)
    assert (ising["state"].magnetization, heisenberg["state"].magnetization) == ("free", 0)
    assert (ising["sampling"].method, ising["sampling"].burn_in) == ("direct", 0)
    assert resolved(ISING, burn_in=3)["sampling"].burn_in == 3
    by_moves = resolved(ISING, method="metropolis")["sampling"]
    assert (by_moves.method, by_moves.burn_in) == ("metropolis", 20)
    assert resolved(ISING, Rbm())["sampling"].method is None
    projected = Autoregressive(symmetry=Symmetry(translations=True))
    assert resolved(ISING, projected)["sampling"].method is None
    assert resolved(HEISENBERG, magnetization=2)["state"].magnetization == 2
    assert resolved(HEISENBERG, magnetization="free")["state"].magnetization == "free"


def test_what_a_spec_is_refused_for():
    def findings(name, sections):
        return [f"{found.key}: {found.what}" for found in sections[name].findings(sections)]

    assert not findings("sampling", resolved(HEISENBERG)) + findings("state", resolved(HEISENBERG))
    (found,) = findings("sampling", resolved(ISING, Rbm(), method="direct"))
    assert found.startswith('method: a state of kind "rbm" is no product of conditionals')
    (found,) = findings("state", resolved(HEISENBERG, Autoregressive(magnetization=2)))
    assert found.endswith("sampling.magnetization = 0")
    (found,) = findings("state", resolved(ISING, Autoregressive(patch=10)))
    assert found.startswith("patch: 10 spins in a token")
    (found,) = findings("state", resolved(ISING, Autoregressive(patch=3)))
    assert found.startswith("patch: 3 does not divide the 10 sites")
