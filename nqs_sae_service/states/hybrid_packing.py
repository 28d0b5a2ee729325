"""The parameters of a transformer with kernel heads, or heads of several kinds, as its CPU kernels want them.

Where weights of values do not sum to something known beforehand (a kernel head divides by q z + 1e-6) or a norm follows (joined
heads), the bias of the values stays with the values. In blocks of full or of positional heads alone it moves into the bias of
the output as in ``transformer_packing.py``. The gammas of joined heads go into the map of the output.
"""

from __future__ import annotations

import numpy as np

from .linear_attention import HeadGroup, KernelAttention, LocalMix, head_groups
from .primitives import Attention, Heads, Mix
from .state import State
from .transformer_packing import FULL, KERNEL, NO_TABLE, POSITIONAL, Packing, Table, Weights, depth, folded

_KIND: dict[type[Heads], int] = {Attention: FULL, Mix: POSITIONAL, KernelAttention: KERNEL}


def of_one_kind(state: State) -> bool:
    """Whether all heads of all blocks are full, or all of them positional."""
    return {type(brick) for brick in state.bricks if isinstance(brick, Heads)} in ({Attention}, {Mix})


def packing_of(state: State, parameters: np.ndarray) -> Packing:
    """What packs the parameters of this network."""
    return Packing(state, parameters) if of_one_kind(state) else HybridPacking(state, parameters)


def _kind(group: HeadGroup) -> int:
    return _KIND[type(group.mix)]


class HybridPacking(Packing):
    """From the named parameters, in float64, to ``Weights`` with the kinds of heads; no table."""

    def __init__(self, state: State, parameters: np.ndarray):
        self.w = {name: array.astype(np.float64) for name, array in state.unpack(parameters).items()}
        self.tokens, self.width, self.depth = state.n_tokens, state.width, depth(state)
        self.sites, self.side_by_side = state.sites, True
        self.parts = ("real", "imaginary") if state.complex_amplitude else ("real",)
        self.groups = [head_groups(state, i) for i in range(1, self.depth + 1)]
        self.heads = sum(len(group.places) for group in self.groups[0])
        self.channels = self.width // self.heads
        windows = [brick.windows for brick in state.bricks if isinstance(brick, LocalMix)]
        self.windows = windows[0] if windows else np.empty((self.tokens, 0), np.int64)

    def weights(self) -> Weights:
        """All weights, folded and rounded to float32."""
        kinds, query, own_pair = np.zeros((3, self.depth, self.heads), np.int64)
        taps = np.zeros((self.depth, self.heads, self.channels, self.windows.shape[1]), np.float32)
        for l, groups in enumerate(self.groups):
            for group in groups:
                own = list(group.places)
                kinds[l, own] = _kind(group)
                if _kind(group) == KERNEL:
                    taps[l, own] = self.w[f"{group.name}.local.taps"].reshape(len(own), self.channels, -1)
            asks, paired = kinds[l] != POSITIONAL, kinds[l] != KERNEL
            query[l] = self.width + 2 * self.channels * (np.cumsum(asks) - asks)
            own_pair[l] = np.cumsum(paired) - paired
        return (
            super()
            .weights()
            ._replace(
                kinds=kinds,
                query=query,
                own_pair=own_pair,
                channels=self.width + 2 * self.channels * (kinds != POSITIONAL).sum(axis=1),
                joined=np.asarray([len(groups) > 1 for groups in self.groups]),
                taps=taps.reshape(self.depth, self.width, -1),
                runs=_runs(self.windows),
            )
        )

    def table(self) -> Table:
        """None."""
        return NO_TABLE

    def _by_head(self, maps: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Weight (d, channels) and bias (channels,) of a map as (head, d, c) and (head, c)."""
        weight, bias = maps
        c = self.channels
        return weight.reshape(self.width, -1, c).swapaxes(0, 1), bias.reshape(-1, c)

    def _attention(self, i: int) -> tuple[np.ndarray, ...]:
        """``projection`` to ``out_bias`` of block ``i``, padded to the size of the largest block."""
        w, a, groups, heads, c = self.w, f"attention_{i}", self.groups[i - 1], self.heads, self.channels
        weight, bias = np.zeros((3, heads, self.width, c)), np.zeros((3, heads, c))
        pairs: dict[int, np.ndarray] = {}
        asks = np.zeros(heads, bool)
        for group in groups:
            own = list(group.places)
            for role, name in enumerate(("value", "query", "key")):
                if f"{group.name}.{name}.weight" in w:
                    maps = folded(w, f"{a}.norm", f"{group.name}.{name}")
                    weight[role, own], bias[role, own] = self._by_head(maps)
            if _kind(group) == FULL:
                weight[1, own] /= np.sqrt(c)
                bias[1, own] /= np.sqrt(c)
                bias[2, own] = 0  # shifts all scores of a query alike
            if _kind(group) != KERNEL:
                pairs |= dict(zip(own, self._pairs_of(group.name, group.mix), strict=True))
            asks[own] = _kind(group) != POSITIONAL
        out, out_bias = w[f"{a}.out.weight"], np.tile(w[f"{a}.out.bias"], (self.tokens, 1))
        if len(groups) > 1:
            out = np.repeat(w[f"{a}.join.gamma"], c)[:, None] * out
        elif _kind(groups[0]) != KERNEL:
            full = _kind(groups[0]) == FULL
            share = np.ones((heads, self.tokens)) if full else _shares(pairs)
            out_bias = out_bias + np.einsum("ht,hc,hcd->td", share, bias[0], out.reshape(heads, c, -1))
            bias[0] = 0
        return (*self._projected(weight, bias, asks), self._padded_pairs(pairs), out, out_bias)

    def _projected(
        self, weight: np.ndarray, bias: np.ndarray, asks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values of all heads, then queries and keys of those that ``ask``: (d, channels) and (channels,)."""
        columns = [*weight[0], *weight[1:, asks].swapaxes(0, 1).reshape(-1, self.width, self.channels)]
        biases = [*bias[0], *bias[1:, asks].swapaxes(0, 1).reshape(-1, self.channels)]
        most = self.width + 2 * self.channels * max(
            sum(len(group.places) for group in groups if _kind(group) != POSITIONAL) for groups in self.groups
        )
        missing = most - self.channels * len(columns)
        return (
            np.pad(np.concatenate(columns, axis=1), ((0, 0), (0, missing))),
            np.pad(np.concatenate(biases), (0, missing)),
        )

    def _padded_pairs(self, pairs: dict[int, np.ndarray]) -> np.ndarray:
        """Those of the heads that have any, in their order, (as many as in any block, token, token)."""
        most = max(
            sum(len(group.places) for group in groups if _kind(group) != KERNEL) for groups in self.groups
        )
        padded = np.zeros((most, self.tokens, self.tokens))
        for place, head in enumerate(sorted(pairs)):
            padded[place] = pairs[head]
        return padded


def _shares(pairs: dict[int, np.ndarray]) -> np.ndarray:
    """Sums of positional weights over tokens, (head, token)."""
    return np.stack([pairs[head].sum(axis=1) for head in sorted(pairs)])


def _runs(windows: np.ndarray) -> np.ndarray:
    """Where neighbours windows[t, k] of tokens t, t + 1, ... follow one another, see ``Weights.runs``."""
    tokens, runs = len(windows), []
    for k, column in enumerate(windows.T):
        inside = column < tokens
        start = 0
        for t in range(1, tokens + 1):
            if t == tokens or column[t] != column[t - 1] + 1 or not inside[t]:
                if inside[start]:
                    runs.append((start, int(column[start]), t - start, k))
                start = t
    return np.asarray(runs, np.int64).reshape(-1, 4)
