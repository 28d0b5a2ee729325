"""The parameters of a transformer with linear heads, or heads of several kinds, as its CPU kernels want them.

Where weights of values do not sum to something known beforehand (a kernel head divides by q z + 1e-6, the delta rule has no
weights) or a norm follows (joined heads), the bias of the values stays with the values. In blocks of full or of positional
heads alone it moves into the bias of the output as in ``transformer_packing.py``. The gammas of joined heads go into the map
of the output.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .linear_attention import DeltaRule, HeadGroup, KernelAttention, LocalMix, head_groups
from .primitives import Attention, Heads, Mix
from .state import State
from .transformer_packing import (
    DELTA,
    FULL,
    KERNEL,
    NO_SCANS,
    NO_TABLE,
    POSITIONAL,
    Packing,
    Table,
    Weights,
    depth,
    folded,
)

_KIND: dict[type[Heads], int] = {
    Attention: FULL,
    Mix: POSITIONAL,
    KernelAttention: KERNEL,
    DeltaRule: DELTA,
}
_ASK, _PAIRED = (
    (FULL, KERNEL, DELTA),
    (FULL, POSITIONAL),
)  # with queries and keys; with a number for each pair of tokens


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
        self.kinds = np.zeros((self.depth, self.heads), np.int64)
        for own, groups in zip(self.kinds, self.groups, strict=True):
            for group in groups:
                own[list(group.places)] = _kind(group)
        windows = [brick.windows for brick in state.bricks if isinstance(brick, LocalMix)]
        self.windows = windows[0] if windows else np.empty((self.tokens, 0), np.int64)
        self.order = self.scans = NO_SCANS
        for brick in state.bricks:
            if isinstance(brick, DeltaRule):
                self.order, self.scans = _scans(brick)

    def weights(self) -> Weights:
        """All weights, folded and rounded to float32."""
        taps = np.zeros((self.depth, self.heads, self.channels, self.windows.shape[1]), np.float32)
        for l, groups in enumerate(self.groups):
            for group in groups:
                if _kind(group) == KERNEL:
                    own = list(group.places)
                    taps[l, own] = self.w[f"{group.name}.local.taps"].reshape(len(own), self.channels, -1)
        query, gates, used = self._channels()
        return (
            super()
            .weights()
            ._replace(
                kinds=self.kinds,
                query=query,
                own_pair=_before(np.isin(self.kinds, _PAIRED)),
                channels=used,
                joined=np.asarray([len(groups) > 1 for groups in self.groups]),
                taps=taps.reshape(self.depth, self.width, -1),
                runs=_runs(self.windows),
                gates=gates,
                order=self.order,
                scans=self.scans,
            )
        )

    def _channels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Channels of projections: where queries and gates of every head begin (block, head), how many there are (block,)."""
        asks, ruled = np.isin(self.kinds, _ASK), self.kinds == DELTA
        each, gates = 2 * self.channels, 2 * len(self.scans)
        behind = self.width + each * asks.sum(axis=1)
        return (
            self.width + each * _before(asks),
            behind[:, None] + gates * _before(ruled),
            behind + gates * ruled.sum(axis=1),
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
        gates: dict[int, tuple[np.ndarray, np.ndarray]] = {}
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
            if _kind(group) in _PAIRED:
                pairs |= dict(zip(own, self._pairs_of(group.name, group.mix), strict=True))
            if _kind(group) == DELTA:
                gates |= dict(zip(own, self._gates_of(group.name, a, len(own)), strict=True))
        out, out_bias = w[f"{a}.out.weight"], np.tile(w[f"{a}.out.bias"], (self.tokens, 1))
        if len(groups) > 1:
            out = np.repeat(w[f"{a}.join.gamma"], c)[:, None] * out
        elif _kind(groups[0]) in _PAIRED:
            full = _kind(groups[0]) == FULL
            share = np.ones((heads, self.tokens)) if full else _shares(pairs)
            out_bias = out_bias + np.einsum("ht,hc,hcd->td", share, bias[0], out.reshape(heads, c, -1))
            bias[0] = 0
        asks = np.isin(self.kinds[i - 1], _ASK)
        columns = [*weight[0], *weight[1:, asks].swapaxes(0, 1).reshape(-1, self.width, c)]
        biases = [*bias[0], *bias[1:, asks].swapaxes(0, 1).reshape(-1, c)]
        for head in sorted(gates):
            columns.append(gates[head][0])
            biases.append(gates[head][1])
        projection, its_bias = np.concatenate(columns, axis=1), np.concatenate(biases)
        missing = self._channels()[2].max() - its_bias.size
        return (
            np.pad(projection, ((0, 0), (0, missing))),
            np.pad(its_bias, (0, missing)),
            self._padded_pairs(pairs),
            out,
            out_bias,
        )

    def _gates_of(self, name: str, block: str, heads: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each of the heads of a delta rule: weight (d, 2 scans) and bias of alpha of every scan, then of beta."""
        weight, bias = folded(self.w, f"{block}.norm", f"{name}.gates")
        weight, bias = weight.reshape(self.width, -1, 2, heads), bias.reshape(-1, 2, heads)
        for h in range(heads):
            yield weight[..., h].swapaxes(1, 2).reshape(self.width, -1), bias[..., h].T.ravel()

    def _padded_pairs(self, pairs: dict[int, np.ndarray]) -> np.ndarray:
        """Those of the heads that have any, in their order, (as many as in any block, token, token)."""
        most = np.isin(self.kinds, _PAIRED).sum(axis=1).max()
        padded = np.zeros((most, self.tokens, self.tokens))
        for place, head in enumerate(sorted(pairs)):
            padded[place] = pairs[head]
        return padded


def _before(chosen: np.ndarray) -> np.ndarray:
    """How many before each are chosen, along the last axis."""
    return np.cumsum(chosen, axis=-1) - chosen


def _scans(rule: DeltaRule) -> tuple[np.ndarray, np.ndarray]:
    """Tokens line after line, as each scan of the delta rule goes, and the lengths of lines and whether they are rings."""
    tokens = np.arange(rule.tokens).reshape(rule.extent)
    order: list[np.ndarray] = []
    scans: list[tuple[int, bool]] = []
    for axis, (length, ring) in enumerate(zip(rule.extent, rule.wraps, strict=True)):
        lines = np.moveaxis(tokens, axis, -1).reshape(-1, length)
        order += [lines.ravel(), lines[:, ::-1].ravel()]
        scans += 2 * [(length, ring)]
    return np.asarray(order, np.int64), np.asarray(scans, np.int64)


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
