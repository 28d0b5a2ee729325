"""Networks as NetKet's users write them, exported as they would: ``python netket_networks.py JOB OUT``.

JOB is JSON: a list of ``name``, ``network`` ("rbm", "tutorial" or "compact"), its ``options``, ``precision``, and the spins
``sigma``. For each, OUT gets ``<name>.npz``, the parameters (drawn at random), flattened with "/", and ``<name>-log_psi.npy``.

``Tutorial`` has the modules and names of the ViT in NetKet's tutorial, ``Compact`` is the same network in one piece.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import netket as nk
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from netket_models import log_cosh


def patches(sigma: jax.Array, patch: int, dimensions: int) -> jax.Array:
    """(n, site) -> (n, token, spin): stretches of a chain, or squares of a square lattice, row by row."""
    n, sites = sigma.shape
    if dimensions == 1:
        return sigma.reshape(n, sites // patch, patch)
    side = round(sites**0.5) // patch
    tiles = sigma.reshape(n, side, patch, side, patch).swapaxes(2, 3)
    return tiles.reshape(n, side * side, patch * patch)


class Embed(nn.Module):
    width: int
    dtype: Any

    def setup(self):
        self.embed = nn.Dense(self.width, param_dtype=self.dtype)

    def __call__(self, x):
        return self.embed(x)


class FactoredAttention(nn.Module):
    """y_i = sum_j alpha_ij v_j in each head, or alpha_{j - i} on a square of tokens when ``invariant``."""

    width: int
    heads: int
    tokens: int
    invariant: bool
    dtype: Any

    def setup(self):
        self.v = nn.Dense(self.width, param_dtype=self.dtype)
        self.W = nn.Dense(self.width, param_dtype=self.dtype)
        shape = (self.heads, self.tokens) if self.invariant else (self.heads, self.tokens, self.tokens)
        self.alpha = self.param("alpha", nn.initializers.xavier_uniform(), shape, self.dtype)

    def pairs(self):
        if not self.invariant:
            return self.alpha
        side = round(self.tokens**0.5)
        square = self.alpha.reshape(-1, side, side)
        rows = [
            jnp.roll(square, (i, j), axis=(1, 2)).reshape(self.heads, -1)
            for i in range(side)
            for j in range(side)
        ]
        return jnp.stack(rows, axis=1)

    def __call__(self, x):
        v = self.v(x).reshape(*x.shape[:2], self.heads, -1)
        return self.W(jnp.einsum("hij,njhc->nihc", self.pairs(), v).reshape(x.shape))


class EncoderBlock(nn.Module):
    width: int
    heads: int
    tokens: int
    invariant: bool
    dtype: Any

    def setup(self):
        self.attn = FactoredAttention(self.width, self.heads, self.tokens, self.invariant, self.dtype)
        self.layer_norm_1 = nn.LayerNorm(param_dtype=self.dtype)
        self.layer_norm_2 = nn.LayerNorm(param_dtype=self.dtype)
        up, down = (nn.Dense(n * self.width, param_dtype=self.dtype) for n in (4, 1))
        self.ff = nn.Sequential([up, nn.gelu, down])

    def __call__(self, x):
        x = x + self.attn(self.layer_norm_1(x))
        return x + self.ff(self.layer_norm_2(x))


class Encoder(nn.Module):
    blocks: int
    width: int
    heads: int
    tokens: int
    invariant: bool
    dtype: Any

    def setup(self):
        options = (self.width, self.heads, self.tokens, self.invariant, self.dtype)
        self.layers = [EncoderBlock(*options) for _ in range(self.blocks)]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class OuputHead(nn.Module):  # spelled as in the tutorial: the name is that of the parameters
    width: int
    dtype: Any

    def setup(self):
        self.out_layer_norm, self.norm2, self.norm3 = (nn.LayerNorm(param_dtype=self.dtype) for _ in range(3))
        self.output_layer0, self.output_layer1 = (
            nn.Dense(self.width, param_dtype=self.dtype) for _ in range(2)
        )

    def __call__(self, x):
        z = self.out_layer_norm(x.sum(axis=1))
        return log_cosh(self.norm2(self.output_layer0(z)) + 1j * self.norm3(self.output_layer1(z))).sum(-1)


class Tutorial(nn.Module):
    """sigma (n, site) -> log psi (n,) by the modules of the tutorial."""

    layers: int
    width: int
    heads: int
    patch: int
    dimensions: int
    invariant: bool
    dtype: Any

    @nn.compact
    def __call__(self, sigma):
        x = patches(jnp.atleast_2d(sigma).astype(self.dtype), self.patch, self.dimensions)
        tokens = x.shape[1]
        x = Embed(self.width, self.dtype)(x)
        x = Encoder(self.layers, self.width, self.heads, tokens, self.invariant, self.dtype)(x)
        return OuputHead(self.width, self.dtype)(x)


class Compact(nn.Module):
    """The same in one piece, with factored attention J or full attention and a position code; flax counts its modules."""

    layers: int
    width: int
    heads: int
    patch: int
    dimensions: int
    factored: bool
    dtype: Any

    @nn.compact
    def __call__(self, sigma):
        def dense(features):
            return nn.Dense(features, dtype=self.dtype, param_dtype=self.dtype)

        def norm():
            return nn.LayerNorm(dtype=self.dtype, param_dtype=self.dtype)

        def heads(y):
            return y.reshape(*y.shape[:2], self.heads, -1)

        x = patches(jnp.atleast_2d(sigma).astype(self.dtype), self.patch, self.dimensions)
        tokens = x.shape[1]
        x = dense(self.width)(x)
        if not self.factored:
            x = x + self.param("pos", nn.initializers.normal(0.5), (tokens, self.width), self.dtype)
        for block in range(self.layers):
            y = norm()(x)
            v = heads(dense(self.width)(y))
            if self.factored:
                init = nn.initializers.xavier_uniform()
                weight = self.param(f"J{block}", init, (self.heads, tokens, tokens), self.dtype)
                mixed = jnp.einsum("hij,njhc->nihc", weight, v)
            else:
                q, k = heads(dense(self.width)(y)), heads(dense(self.width)(y))
                scores = jnp.einsum("nihc,njhc->nhij", q, k) / np.sqrt(self.width // self.heads)
                mixed = jnp.einsum("nhij,njhc->nihc", nn.softmax(scores.astype(self.dtype)), v)
            x = x + dense(self.width)(mixed.reshape(x.shape))
            x = x + dense(self.width)(nn.gelu(dense(4 * self.width)(norm()(x))))
        z = norm()(x.sum(axis=1))
        a = norm()(dense(self.width)(z))
        b = norm()(dense(self.width)(z))
        return log_cosh(a + 1j * b).sum(-1)


def make_network(job: dict[str, Any]) -> nn.Module:
    """The flax module of a job."""
    dtype = np.dtype(job["precision"])
    if job["network"] == "rbm":
        options = dict(job["options"])
        kind = np.result_type(dtype, np.complex64) if options.pop("complex") else dtype
        return nk.models.RBM(param_dtype=kind, **options)
    return {"tutorial": Tutorial, "compact": Compact}[job["network"]](**job["options"], dtype=dtype.type)


def random_parameters(model: nn.Module, sigma: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    """Parameters by name, every one of them (biases and gains too) moved away from its first value."""
    tree = flatten_dict(model.init(jax.random.key(0), sigma[:1])["params"], sep="/")
    generator = np.random.default_rng(5)
    moved = {}
    for name, array in tree.items():
        step = generator.normal(scale=scale, size=array.shape)
        if np.iscomplexobj(array):
            step = step + 1j * generator.normal(scale=scale, size=array.shape)
        moved[name] = (np.asarray(array) + step).astype(array.dtype)
    return moved


def main(job_file: str, out: str) -> None:
    """Draw, evaluate, write."""
    for job in json.loads(Path(job_file).read_text()):
        model, sigma = make_network(job), np.asarray(job["sigma"], job["precision"])
        parameters = random_parameters(model, sigma, job["scale"])
        log_psi = model.apply({"params": unflatten_dict(parameters, sep="/")}, sigma)
        np.savez(Path(out) / f"{job['name']}.npz", **parameters)
        np.save(Path(out) / f"{job['name']}-log_psi.npy", log_psi)


if __name__ == "__main__":
    main(*sys.argv[1:])
