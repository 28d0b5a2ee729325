"""The networks of this project written for NetKet, in flax: the same maps, with the same parameter arrays.

A parameter ``attention_1.norm.gain`` here is ``{"attention_1_norm": {"scale": ...}}`` there, so that weights can be carried
over by name (``flax_parameters``). Runs in the virtual environment of NetKet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import netket as nk
import numpy as np
from netket_physics import lengths

_ROLES = {"weight": "kernel", "gain": "scale", "bias": "bias"}
_OWN = {"mix.weight": "mix", "position.code": "position"}  # single arrays, which belong to no flax module


def log_cosh(z: jax.Array) -> jax.Array:
    """log cosh z without overflow."""
    z = jnp.where(z.real < 0, -z, z)
    return z + jnp.log1p(jnp.exp(-2 * z)) - jnp.log(2.0).astype(z.real.dtype)


class Transformer(nn.Module):
    """sigma (n, n_sites) -> log psi (n,): patches, pre-LayerNorm blocks, sum over tokens, head.

    ``lengths`` sites and ``patch`` spins along every axis of the lattice. ``translation_invariant`` holds for positional
    attention; full attention has a position code and no bias.
    """

    lengths: tuple[int, ...]
    patch: tuple[int, ...]
    width: int
    heads: int
    layers: int
    attention: str
    amplitude: str
    translation_invariant: bool
    dtype: Any = jnp.float32
    mlp_ratio: int = 4

    def dense(self, name: str, features: int) -> nn.Dense:
        return nn.Dense(
            features,
            name=name,
            dtype=self.dtype,
            param_dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
        )

    def norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(name=name, dtype=self.dtype, param_dtype=self.dtype)

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along every axis."""
        return tuple(length // b for length, b in zip(self.lengths, self.patch, strict=True))

    def patches(self, sigma: jax.Array) -> jax.Array:
        """(n, n_sites) -> (n, token, spin of the patch): tokens, and the spins of each, counted row by row."""
        apart = [extent for both in zip(self.grid, self.patch, strict=True) for extent in both]
        order = (0, *range(1, len(apart) + 1, 2), *range(2, len(apart) + 1, 2))
        x = sigma.reshape(len(sigma), *apart).transpose(order)
        return x.reshape(len(sigma), -1, math.prod(self.patch))

    def split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, self.width // self.heads)

    def position_weights(self, name: str, tokens: int) -> jax.Array:
        """Weights (head, i, j): learned as such, or for each displacement i - j modulo the grid of tokens."""
        init = nn.initializers.xavier_uniform()
        if not self.translation_invariant:
            return self.param(name, init, (self.heads, tokens, tokens), self.dtype)
        place = np.indices(self.grid).reshape(len(self.grid), tokens)
        apart = place[:, :, None] - place[:, None, :]
        displacement = np.ravel_multi_index(tuple(apart), self.grid, mode="wrap")
        return self.param(name, init, (self.heads, tokens), self.dtype)[:, displacement]

    def mixed(self, a: str, x: jax.Array) -> jax.Array:
        value = self.split(self.dense(f"{a}_value", self.width)(x))
        tokens = x.shape[1]
        if self.attention == "positional":
            weight = self.position_weights(f"{a}_mix", tokens)
            y = jnp.einsum("hij,bjhd->bihd", weight, value)
        else:
            query = self.split(self.dense(f"{a}_query", self.width)(x))
            key = self.split(self.dense(f"{a}_key", self.width)(x))
            scale = np.asarray((self.width // self.heads) ** -0.5, self.dtype)
            weight = jax.nn.softmax(jnp.einsum("bihd,bjhd->bhij", query, key) * scale, axis=-1)
            y = jnp.einsum("bhij,bjhd->bihd", weight, value)
        return self.dense(f"{a}_out", self.width)(y.reshape(x.shape))

    @nn.compact
    def __call__(self, sigma: jax.Array) -> jax.Array:
        sigma = jnp.atleast_2d(sigma)
        x = self.patches(sigma).astype(self.dtype)
        x = self.dense("embedding", self.width)(x)
        if self.attention == "full":
            x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:], self.dtype)
        for i in range(1, self.layers + 1):
            x = x + self.mixed(f"attention_{i}", self.norm(f"attention_{i}_norm")(x))
            hidden = self.dense(f"mlp_{i}_up", self.mlp_ratio * self.width)(self.norm(f"mlp_{i}_norm")(x))
            x = x + self.dense(f"mlp_{i}_down", self.width)(nn.gelu(hidden))
        z = self.norm("head_norm")(x.sum(axis=1))
        a = self.norm("head_real_norm")(self.dense("head_real", self.width)(z))
        if self.amplitude == "positive":
            return log_cosh(a).sum(axis=-1)
        b = self.norm("head_imaginary_norm")(self.dense("head_imaginary", self.width)(z))
        return log_cosh(a + 1j * b).sum(axis=-1)


def make_model(network: Mapping[str, Any], lattice: Mapping[str, Any]) -> nn.Module:
    """The network that a ``[state]`` section (kind "transformer" or "rbm") describes on a ``[lattice]``."""
    if network["kind"] == "rbm":
        return nk.models.RBM(alpha=network["alpha"], param_dtype=complex)
    dtype = jnp.float64 if network["precision"] == "float64" else jnp.float32
    sites, patch = lengths(lattice), network["patch"]
    patch = (patch,) * len(sites) if isinstance(patch, int) else tuple(patch)
    names = ("width", "heads", "layers", "attention", "amplitude", "translation_invariant")
    return Transformer(sites, patch, **{name: network[name] for name in names}, dtype=dtype)


def flax_parameters(network: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """This project's parameters, by name, as the tree that the network wants."""
    if network["kind"] == "rbm":
        return _rbm_parameters(arrays)
    dtype = network["precision"]
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        module, _, role = name.rpartition(".")
        own = next((key for key in _OWN if name.endswith(key)), None)
        if own is not None:
            tree[name[: -len(own)].replace(".", "_") + _OWN[own]] = jnp.asarray(array, dtype)
        else:
            tree.setdefault(module.replace(".", "_"), {})[_ROLES[role]] = jnp.asarray(array, dtype)
    return tree


def _rbm_parameters(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Real and imaginary parts lie side by side here, and are complex numbers there."""

    def joined(name: str) -> jax.Array:
        real, imaginary = np.split(arrays[name].astype(np.float64), 2, axis=-1)
        return jnp.asarray(real + 1j * imaginary)

    visible = arrays["visible.real"] + 1j * arrays["visible.imaginary"].astype(np.float64)
    return {
        "Dense": {"kernel": joined("hidden.weight"), "bias": joined("hidden.bias")},
        "visible_bias": jnp.asarray(visible),
    }
