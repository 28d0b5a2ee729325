"""The parameters of a transformer as its CPU kernels want them: folded, tabulated in float64, rounded to float32 once.

LayerNorm(x) = unit(x) gain + bias is followed by a dense map: Dense(LayerNorm(x)) = unit(x) (gain W) + (bias W + b), so gains
and biases disappear into it. The biases of keys shift all scores of a query alike and drop out; those of values become a bias
of the output. A patch of b spins has 2^b states, so what the first block makes of a patch, or of a pair of patches, is a table.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .primitives import LAYER_NORM_EPSILON, Attention, Heads, Mix, circulant
from .state import State

_LARGEST_PATCH = 8  # spins of a patch whose states are tabulated
_TABLE_BYTES = 4 * 1024 * 1024  # of a table: larger ones leave the third-level cache
_SPREAD = 60.0  # of the highest score of a query below the highest one in any states, at most
_TINY = 1e-37  # exponentials below are zero: denormal numbers are slow


FULL, POSITIONAL, KERNEL, DELTA = range(4)  # kinds of heads
_NONE = np.empty(0, np.int64)
NO_SCANS = np.empty((0, 2), np.int64)


class Weights(NamedTuple):
    """Parameters as the kernels want them, float32: width d, hidden h, tokens T, L blocks, LayerNorms folded.

    The last fields are for linear heads and heads of several kinds alone (``hybrid_packing.py``); elsewhere they are empty, in
    one dimension, so that the compiler knows. The projection of a block has the values of all heads first then, behind them
    queries and keys of every head that has any, and for a head of the delta rule its gates: alpha of every scan, then beta.
    """

    patch: np.ndarray  # (patch, d)
    position: np.ndarray  # (T, d): embedding bias, position code
    projection: np.ndarray  # (L, d, d): values; (L, d, 3 d): queries / sqrt(d / heads), keys, values
    query_bias: np.ndarray  # (L, d); of the whole projection where heads have ``kinds``
    pair: np.ndarray  # (L, heads, T, T): positional weights, or biases of the scores
    out: np.ndarray  # (L, d, d)
    out_bias: np.ndarray  # (L, T, d), with what the bias of the values turns into
    up: np.ndarray  # (L, d, h)
    up_bias: np.ndarray  # (L, h)
    down: np.ndarray  # (L, h, d)
    down_bias: np.ndarray  # (L, d)
    head: np.ndarray  # (1 or 2, d, d): real, imaginary part
    head_bias: np.ndarray
    head_gain: np.ndarray
    head_shift: np.ndarray  # (1 or 2, d)
    heads: int
    sites: np.ndarray  # (T, patch) int64: the sites of every token
    kinds: np.ndarray = _NONE  # (L, heads) int64: FULL, POSITIONAL, KERNEL or DELTA
    query: np.ndarray = _NONE  # (L, heads) int64: channel where a head's queries begin, its keys behind them
    own_pair: np.ndarray = _NONE  # (L, heads) int64: which of ``pair`` belongs to a head
    channels: np.ndarray = _NONE  # (L,) int64: how many of the projection are in use
    joined: np.ndarray = _NONE  # (L,) bool: whether heads are normalised; their gammas are in ``out``
    taps: np.ndarray = _NONE  # (L, d, K): of kernel heads, weights of the neighbouring tokens
    runs: np.ndarray = _NONE  # (n, 4) int64: first token, its neighbour at place k, as many after both, k
    gates: np.ndarray = _NONE  # (L, heads) int64: channel where the gates of a head of the delta rule begin
    order: np.ndarray = NO_SCANS  # (scan, T) int64: tokens line after line, as a scan goes
    scans: np.ndarray = NO_SCANS  # (scan, 2) int64: tokens in a line, whether it is a ring


class Table(NamedTuple):
    """What the first block makes of patches in their 2^b states; all empty where nothing is tabulated.

    Positional attention: after it, token i is a sum over tokens j of terms that depend on the state of patch j. What follows,
    LayerNorm and the map to the hidden units, is linear but for the size of the token: unit(x) U = scale(x) (x - mean x) U. So
    a term has d channels of x, less their mean, and behind them the h channels of (x - mean x) U.

    Softmax attention: but for the normalisation the weight of token j for token i depends on the states of these two patches.
    The maximum taken off the scores is that over all tokens j in all states: it depends on token i and its state alone.
    """

    term: np.ndarray  # (source, 2^b, term, d + h): of token j for token i at [source[j], :, place[j, i]]
    source: np.ndarray  # (T,) int64
    stream: np.ndarray  # (T, 2^b, d): the embedding
    value: np.ndarray  # (T, d, 2^b)
    weight: np.ndarray  # (pair, heads, 2^b 2^b) for states of i, j: exp(score - maximum), at place[j, i]
    place: np.ndarray  # (T, T) int64


def depth(state: State) -> int:
    """Number of blocks of a transformer."""
    return sum(name.startswith("residual_") for name in state.layers)


def folded(w: dict[str, np.ndarray], norm: str, dense: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of Dense(LayerNorm(x)) = unit(x) (gain W) + (bias W + b), from the names of both bricks."""
    weight = w[f"{dense}.weight"]
    return w[f"{norm}.gain"][:, None] * weight, w[f"{norm}.bias"] @ weight + w[f"{dense}.bias"]


class Packing:
    """From the named parameters of a transformer, in float64, to ``Weights`` and ``Table``."""

    def __init__(self, state: State, parameters: np.ndarray):
        self.w = {name: array.astype(np.float64) for name, array in state.unpack(parameters).items()}
        self.tokens, self.width, self.depth = state.n_tokens, state.width, depth(state)
        self.mix = next(brick for brick in state.bricks if isinstance(brick, (Attention, Mix)))
        self.heads, self.grid, self.sites = self.mix.heads, self.mix.grid, state.sites
        self.invariant = self.mix.translation_invariant
        self.full = "attention_1.query.weight" in self.w
        self.side_by_side = self.full  # whether kernels treat configurations in vectors
        self.parts = ("real", "imaginary") if state.complex_amplitude else ("real",)

    def weights(self) -> Weights:
        """All weights, folded and rounded to float32."""
        w, layers = self.w, [self._layer(i) for i in range(1, self.depth + 1)]
        stacked = [np.stack(group) for group in zip(*layers, strict=True)]
        dense = [folded(w, "head.norm", f"head.{p}") for p in self.parts]
        norms = [(w[f"head.{p}_norm.gain"], w[f"head.{p}_norm.bias"]) for p in self.parts]
        head = [np.stack(group) for group in (*zip(*dense, strict=True), *zip(*norms, strict=True))]
        arrays = (w["embedding.weight"], self._position(), *stacked, *head)
        packed = [np.ascontiguousarray(a, dtype=np.float32) for a in arrays]
        return Weights(*packed, self.heads, self.sites.astype(np.int64))  # type: ignore[call-arg, arg-type]

    def _position(self) -> np.ndarray:
        return self.w.get("position.code", np.zeros((self.tokens, self.width))) + self.w["embedding.bias"]

    def _projection(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights and biases of queries, keys and values side by side, or of values alone."""
        w, a = self.w, f"attention_{i}"
        names = ("query", "key", "value") if self.full else ("value",)
        maps = [folded(w, f"{a}.norm", f"{a}.{n}") for n in names]
        if self.full:
            weight, bias = maps[0]
            scale = 1 / np.sqrt(self.width // self.heads)
            maps[0] = weight * scale, bias * scale
        return np.concatenate([m[0] for m in maps], axis=1), np.concatenate([m[1] for m in maps])

    def _pairs(self, i: int) -> np.ndarray:
        """Those of all heads of block ``i``."""
        return self._pairs_of(f"attention_{i}", self.mix)

    def _pairs_of(self, name: str, mix: Heads) -> np.ndarray:
        """Positional weights or biases of the scores, (heads of ``mix``, token, token), of the bricks that ``name`` begins."""
        stored = self.w.get(f"{name}.mix.bias", self.w.get(f"{name}.mix.weight"))
        if stored is None:
            return np.zeros((mix.heads, self.tokens, self.tokens))
        return stored[:, circulant(np, mix.grid)] if mix.grid else stored

    def _layer(self, i: int):
        """One entry of every per-block field of ``Weights``, in their order."""
        w, m = self.w, f"mlp_{i}"
        up = folded(w, f"{m}.norm", f"{m}.up")
        return (*self._attention(i), *up, w[f"{m}.down.weight"], w[f"{m}.down.bias"])

    def _attention(self, i: int) -> tuple[np.ndarray, ...]:
        """Those from ``projection`` to ``out_bias``.

        A bias of the keys shifts all scores of a query alike and drops out. Full attention weights sum to one, positional ones
        to a number per token and head: the bias of the values becomes a bias of the output, per token.
        """
        w, a, d = self.w, f"attention_{i}", self.width
        projection, bias = self._projection(i)
        pairs, of_values = self._pairs(i), bias[-d:].reshape(self.heads, -1)
        share = np.ones((self.heads, self.tokens)) if self.full else pairs.sum(axis=2)
        mixed = (share.T[:, :, None] * of_values).reshape(self.tokens, d)
        out, out_bias = w[f"{a}.out.weight"], mixed @ w[f"{a}.out.weight"] + w[f"{a}.out.bias"]
        query_bias = bias[:d] if self.full else np.zeros(d)
        return projection, query_bias, pairs, out, out_bias

    def table(self) -> Table:
        """The first block as a table, where patches have few states and the table is small enough."""
        patch, hidden = self.w["embedding.weight"].shape[0], self.w["mlp_1.up.weight"].shape[1]
        pairs, states = self.tokens if self.invariant else self.tokens**2, 2**patch
        size = self.heads * states**2 if self.full else states * (self.width + hidden)
        if patch > _LARGEST_PATCH or 4 * pairs * size > _TABLE_BYTES:
            return NO_TABLE
        bits = np.arange(states)[:, None] >> np.arange(patch)[::-1] & 1
        stream = (2.0 * bits - 1) @ self.w["embedding.weight"] + self._position()[:, None]
        return self._softmax_table(stream) if self.full else self._positional_table(stream)

    def _positional_table(self, stream: np.ndarray) -> Table:
        """From the embedding (T, 2^b, d) of all states; 2 pairs 2^b d h FLOPs."""
        tokens, states, d = stream.shape
        source = np.zeros(tokens, np.int64) if self.invariant else np.arange(tokens)
        own = np.unique(source)
        values = (_unit(stream[own]) @ self._projection(1)[0]).reshape(len(own), states, self.heads, -1)
        written = np.einsum(
            "jshc,hcd->jshd", values, self.w["attention_1.out.weight"].reshape(self.heads, -1, d)
        )
        term = np.einsum("hij,jshd->jsid", self._pairs(1)[:, :, own], written)
        _, _, _, _, out_bias, up, *_ = self._layer(1)
        term[own, :, own] += stream[own] + out_bias[own, None]  # a token brings its own stream and bias along
        term -= term.mean(axis=3, keepdims=True)
        place = circulant(np, self.grid).T if self.invariant else np.tile(np.arange(tokens), (tokens, 1))
        return NO_TABLE._replace(
            term=np.concatenate([term, term @ up], axis=3).astype(np.float32),
            source=source,
            place=np.ascontiguousarray(place),
        )

    def _softmax_table(self, stream: np.ndarray) -> Table:
        """From the embedding (T, 2^b, d) of all states; 2 pairs 2^b 2^b d FLOPs.

        Nothing is tabulated where the exponentials of all scores that a query really has could be tiny.
        """
        tokens, states, d = stream.shape
        weight, bias = self._projection(1)
        query, key, value = np.split(_unit(stream) @ weight, 3, axis=2)
        query = (query + bias[:d]).reshape(tokens, states, self.heads, -1)
        key = key.reshape(tokens, states, self.heads, -1)
        others, over_j = (1, (0, 1)) if self.invariant else (tokens, (1,))  # distances i - 0, or all pairs
        score = np.einsum("ishc,jthc->ijhst", query, key[:others], optimize=True)
        score += self._pairs(1).transpose(1, 2, 0)[:, :others, :, None, None]
        highest = score.max(axis=(*over_j, 4), keepdims=True)
        reached = score.min(axis=4, keepdims=True).max(axis=over_j, keepdims=True)
        if not (highest - reached).max() < _SPREAD:
            return NO_TABLE
        exponential = np.exp(score - highest).reshape(tokens * others, self.heads, -1)
        pairs = np.arange(tokens**2).reshape(tokens, tokens)
        return NO_TABLE._replace(
            stream=stream.astype(np.float32),
            value=np.ascontiguousarray(value.transpose(0, 2, 1), np.float32),
            weight=np.where(exponential < _TINY, 0.0, exponential).astype(np.float32),
            place=np.ascontiguousarray((circulant(np, self.grid) if self.invariant else pairs).T),
        )


NO_TABLE = Table(
    term=np.empty((0, 0, 0, 0), np.float32),
    source=np.empty(0, np.int64),
    stream=np.empty((0, 0, 0), np.float32),
    value=np.empty((0, 0, 0), np.float32),
    weight=np.empty((0, 0, 0), np.float32),
    place=np.empty((0, 0), np.int64),
)


def _unit(x: np.ndarray) -> np.ndarray:
    """LayerNorm of the last axis without gain and bias."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
