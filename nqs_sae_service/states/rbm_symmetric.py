"""The translation-symmetric RBM on the CPU: the look-up tables of the dense machine that it is, and derivatives of its own.

Unit (t, f) of the dense machine has W_j,tf = W_if where T_t puts site j in the place i, and every site the visible bias of its
place in the unit cell. Walks, ratios and log psi are those of ``rbm_cpu.py`` for these tables: no sharing makes them cheaper.
There are few parameters, though, so that O is held whole (``narrow_jacobian.py``):

    d log psi / dW_if = sum_t (T_t s)_i tanh theta_tf,      / db_f = sum_t tanh theta_tf,      / da_b = sum_t (T_t s)_b
"""

from __future__ import annotations

import numpy as np

from ..engine.jit import njit, prange
from ..engine.ranks import ALONE, Ranks
from .narrow_jacobian import NarrowJacobian
from .rbm import dense_state
from .rbm_cpu import FastRbm
from .state import State


@njit(parallel=True)
def _columns(spins, sites, tangents, weight, bias):
    """Columns of O (n, fan_in, 2 F) and (n, 2 F) of W and b, [Re, Im]: spins (n, N), sites (T, N), tangents (n, 2, T, F).

    4 N T F FLOPs a sample.
    """
    filters = tangents.shape[3]
    for n in prange(len(spins)):
        moved, t = np.empty(sites.shape), np.empty((len(sites), 2 * filters))
        own = bias[n]
        for f in range(own.size):
            own[f] = 0.0
        for k in range(len(sites)):
            for i in range(sites.shape[1]):
                moved[k, i] = spins[n, sites[k, i]]
            for f in range(filters):
                t[k, f], t[k, filters + f] = tangents[n, 0, k, f], tangents[n, 1, k, f]
                own[f] += t[k, f]
                own[filters + f] += t[k, filters + f]
        np.dot(moved.T, t, weight[n])


class SymmetricRbm:
    """The fast twin for one set of parameters, with the abilities ``Walks``, ``FlipRatios`` and ``Differentiates``."""

    def __init__(self, state: State, parameters: np.ndarray):
        self.state = state
        w = {name: array.astype(np.float64) for name, array in state.unpack(parameters).items()}
        filters, hidden = state.width // 2, state.n_tokens * state.width // 2
        weight = np.zeros((2, state.n_sites, state.n_tokens, filters))
        for t, moved in enumerate(state.sites):
            weight[:, moved, t] = w["hidden.weight"].reshape(state.n_sites, 2, filters).swapaxes(0, 1)
        cells, basis = state.n_tokens, w["visible.real"].size
        bias = np.repeat(w["hidden.bias"].reshape(2, 1, filters), cells, axis=1)
        wide = {
            "hidden.weight": weight.reshape(2, state.n_sites, hidden).swapaxes(0, 1),
            "hidden.bias": bias,
            "visible.real": np.tile(w["visible.real"], state.n_sites // basis),
            "visible.imaginary": np.tile(w["visible.imaginary"], state.n_sites // basis),
        }
        dense = dense_state(state.n_sites, hidden, np.dtype(np.float64))
        self.dense = FastRbm(dense, np.concatenate([wide[name].ravel() for name in dense.layout]))

    def log_psi(self, sigma: np.ndarray) -> np.ndarray:
        """log psi (n,) complex128 of configurations (n, n_sites) int8, the phase modulo 2 pi."""
        return self.dense.log_psi(sigma)

    def walk(self, sigma, log_psi, first, length, threshold, ahead=True) -> int:
        """Metropolis proposals in place, see ``fused.Walks``."""
        return self.dense.walk(sigma, log_psi, first, length, threshold, ahead)

    def ratios(self, sigma, log_psi, signs, wanted) -> np.ndarray:
        """psi(sigma signs_f) / psi(sigma), (n, flips) complex128, see ``fused.FlipRatios``."""
        return self.dense.ratios(sigma, log_psi, signs, wanted)

    def jacobian(self, sigma: np.ndarray, ranks: Ranks = ALONE) -> NarrowJacobian:
        """O-bar of configurations (n, n_sites): one complex row per sample."""
        state, n = self.state, len(sigma)
        filters = state.width // 2
        tangents = self.dense.jacobian(sigma).t.reshape(n, 2, state.n_tokens, filters)
        weight, bias = np.empty((n, state.n_sites, 2 * filters)), np.empty((n, 2 * filters))
        _columns(np.ascontiguousarray(sigma), state.sites, tangents, weight, bias)
        basis = state.n_sites // state.n_tokens
        visible = sigma.reshape(n, state.n_tokens, basis).sum(axis=1, dtype=np.float64)
        columns = {
            "hidden.weight": weight[..., :filters] + 1j * weight[..., filters:],
            "hidden.bias": bias[..., :filters] + 1j * bias[..., filters:],
            "visible.real": visible,
        }
        places = self._places()
        o = np.concatenate([columns[name].reshape(n, -1) for name in columns], axis=1)
        real = np.concatenate([places[name][0].ravel() for name in columns])
        imaginary = np.concatenate([places[name][1].ravel() for name in columns])
        return NarrowJacobian(o, state.n_parameters, real, imaginary, ranks)

    def _places(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Places of the real and imaginary parts of every complex parameter in the flat vector."""
        places = self.state.unpack(np.arange(self.state.n_parameters))
        filters = self.state.width // 2
        halves = {
            name: (places[name][..., :filters], places[name][..., filters:])
            for name in ("hidden.weight", "hidden.bias")
        }
        return halves | {"visible.real": (places["visible.real"], places["visible.imaginary"])}
