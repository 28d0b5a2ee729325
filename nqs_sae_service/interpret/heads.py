"""Which attention heads carry the physics: counterfactual patching of single heads, beside gradients and knock-outs.

The output O_h of head h of block i owns d_head channels of the edge ``heads_i``. At every configuration sigma it is replaced by
its output on a counterfactual F(sigma) (``counterfactuals.py``), and the rest of the network runs on sigma in three ways:

    receiver   the outputs of all heads of later blocks stay what they are on sigma: the effect that needs no later attention
    sender     the outputs of all heads of later blocks become what they are with O_h replaced, O_h itself stays: the effect
               that reaches log psi through later heads alone (path patching); none in the last block
    total      O_h is replaced, everything behind it is computed again

Feed-forward networks and the residual stream are always computed again. Outputs of heads are held, not attention weights:
the definition is the same for softmax, positional and any other attention. Each of these is a wave function psi_h. With
all heads at once at their counterfactual outputs it is psi_all. After HydraHead (arXiv:2606.20097), for a readout m,

    log_psi      IE = sum (m - m_h)(m - m') / sum (m - m')^2 over Born samples, m = log|psi(sigma)|, m' = log|psi(F(sigma))|,
                 the ratio (m - m_h) / (m - m') of every sample weighted by (m - m')^2
    <O>, energy  IE = (<O> - <O>_h) / (<O> - <O>_all), expectation values by reweighting, with psi_h's own local estimators
    infidelity   IE = (1 - |<psi|psi_h>|^2) / (1 - |<psi|psi_all>|^2)

psi(F(sigma)) is no wave function that samples of psi reach: expectation values are compared with psi_all. One sub-probe is one
map F on one set of samples. From its IE, with the means over sub-probes,

    kappa_h = share of the sub-probes with max(|receiver|, |sender|) >= threshold
    s_h     = max(|receiver|, |sender|) kappa_h,    scaled to 0..1 over the heads for every readout; the score is the mean

(sizes, as a head that pushes against the others carries physics too). A readout that patching all heads does not move beyond
twice its error says nothing: NaN. One that says nothing in more than half of the sub-probes is left out of the mean.

Gradients predict the total effect of all heads from one backward pass for each sample: in place of log psi - log psi_h the sum
a_h over tokens and channels of (O_h(sigma) - O_h(F(sigma))) d log psi / d O_h, in place of <O> - <O>_h the slope
2 Re Cov(a_h, O_loc), in place of the infidelity Var(a_h).

A head that is knocked out has the mean of its output over Born samples, for every token and channel, in place of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..engine.arrays import namespace, to_host
from ..states import Wavefunction
from ..states.state import Edit, Tape
from .atlas import atlas, no_tick
from .correlation import spearman
from .counterfactuals import Counterfactual
from .expectation import Curve
from .steering import change

Array = Any

LOG_PSI, ENERGY, INFIDELITY = "log_psi", "energy", "infidelity"
RECEIVER, SENDER, TOTAL = PATHS = ("receiver", "sender", "total")
_CLEAN, _ALL, _FIRST = 0, 1, 2  # columns of ``Patched``
_BEYOND = 2.0  # standard errors of an effect that says something
_ENOUGH = 0.5  # share of the sub-probes in which a readout has to say something


@dataclass(frozen=True)
class Heads:
    """Where they are: ``edges``, the joined outputs of each block in order, of ``count`` heads and ``width`` channels."""

    edges: tuple[str, ...]
    count: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """(block, head)."""
        return len(self.edges), self.count

    def channels(self, chosen: np.ndarray) -> np.ndarray:
        """Which channels (..., width) belong to the ``chosen`` (..., head) heads of a block."""
        return np.repeat(chosen, self.width // self.count, axis=-1)

    def each(self, x: Array) -> Array:
        """Sums over tokens and channels (n, head) of x (n, token, width)."""
        return x.reshape(*x.shape[:2], self.count, -1).sum(axis=(1, 3))


def replay(tape: Tape, held: Mapping[str, Array]) -> dict[str, Array]:
    """The edges that change when those ``held`` have other values, ``log_psi`` among them; only what is needed is computed."""
    needed, bricks = {"log_psi"}, []
    for brick in reversed(tape.state.bricks):
        if brick.output in needed and brick.output not in held:
            needed.update(brick.inputs)
            bricks.append(brick)
    edges = {name: value for name, value in held.items() if value is not tape.edges[name]}
    for brick in reversed(bricks):
        if any(name in edges for name in brick.inputs):
            x = (edges.get(name, tape.edges[name]) for name in brick.inputs)
            edges[brick.output] = brick.forward(tape.weights, *x)
    return edges


class _Family:
    """Wave functions with changed heads along a trailing axis, from ``_columns`` of the network."""

    psi: Wavefunction

    def log_psi(self, sigma: Array) -> Array:
        """(n, member) of configurations (n, n_sites)."""
        return self.psi.over_copies(self._of_network, sigma)

    def _of_network(self, psi: Wavefunction, sigma: Array) -> Array:
        return psi.passes(partial(self._columns, psi.fast_bricks), sigma)

    def _columns(self, psi: Wavefunction, sigma: Array) -> Array:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Patched(_Family):
    """psi, psi_all, and psi_h of every head by every one of ``PATHS``: 2 + 3 block head members.

    Of a projected state the network is patched in every copy g sigma, by its counterfactual F(g sigma).
    """

    psi: Wavefunction
    heads: Heads
    counterfactual: Counterfactual
    tick: Callable[[], None] = no_tick

    def _columns(self, psi: Wavefunction, sigma: Array) -> Array:
        self.tick()
        xp, edges = namespace(sigma), self.heads.edges
        tape, other = psi.tape(sigma), psi.tape(self.counterfactual.of(sigma)).edges
        clean = tape.edges
        logs = [clean["log_psi"], replay(tape, {edge: other[edge] for edge in edges})["log_psi"]]
        for block, edge in enumerate(edges):
            later = edges[block + 1 :]
            for own in self.heads.channels(np.eye(self.heads.count, dtype=bool)):
                patch = {edge: xp.where(xp.asarray(own), other[edge], clean[edge])}
                whole = replay(tape, patch)
                receiver = replay(tape, patch | {name: clean[name] for name in later}) if later else whole
                sender = replay(tape, {name: whole[name] for name in later}) if later else clean
                logs += [receiver["log_psi"], sender["log_psi"], whole["log_psi"]]
        return xp.stack(logs, axis=-1)


def tangents_of_heads(
    psi: Wavefunction, heads: Heads, counterfactual: Counterfactual, sigma: Array
) -> np.ndarray:
    """a_h (n, block, head) of configurations (n, n_sites) on the host, complex if psi is."""
    symmetry = psi.state.symmetry

    def evaluate(rows: Array) -> Array:
        tape = psi.tape(rows)
        deltas = tape.backward(until=heads.edges[0])
        copies = rows if symmetry is None else symmetry.copies(rows)
        other = psi.bare.tape(counterfactual.of(copies)).edges
        a = [heads.each((tape.edges[edge] - other[edge]) * deltas[edge]) for edge in heads.edges]
        of_copies = namespace(rows).stack(a, axis=1)
        return of_copies.reshape(len(rows), -1, *heads.shape).sum(axis=1)

    return to_host(psi.passes(evaluate, sigma))


@dataclass(frozen=True)
class Effects:
    """IE of one sub-probe: ``patched`` (path, readout, block, head), by gradients ``predicted`` (readout, block, head).

    ``whole`` (readout,): m - m' or what takes its place, of log|psi| the root mean square.
    """

    patched: np.ndarray
    predicted: np.ndarray
    whole: np.ndarray


def effects(
    readouts: Sequence[str],
    curve: Curve,
    log_psi: tuple[np.ndarray, np.ndarray],
    tangent: np.ndarray,
    values: np.ndarray,
    heads: Heads,
    weights: np.ndarray | None = None,
) -> Effects:
    """IE from the ``curve`` of a ``Patched`` family on some samples, and what ``tangent`` predicts (chain, draw, block, head).

    ``log_psi``: log|psi| of the family (chain, draw, column) and of F(sigma) (chain, draw). Columns of the curve and of the
    local estimators ``values`` (chain, draw, observable) are the readouts that are neither log|psi| nor the infidelity, in
    their order. ``weights`` (chain, draw) of the samples.
    """
    found = [
        _of_log_psi(*log_psi, tangent.real, weights)
        if readout == LOG_PSI
        else _of_infidelity(curve, atlas(_flat(tangent), _flat(tangent).real[..., :1], weights).metric)
        if readout == INFIDELITY
        else _of_mean(curve, column, atlas(_flat(tangent), values[..., column, None], weights).slope[:, 0])
        for readout, column in zip(readouts, columns_of(readouts), strict=True)
    ]
    patched = np.stack([each for each, _, _ in found], axis=1)
    return Effects(
        patched.reshape(len(PATHS), len(readouts), *heads.shape),
        np.stack([each for _, each, _ in found]).reshape(len(readouts), *heads.shape),
        np.asarray([whole for _, _, whole in found]),
    )


def columns_of(readouts: Sequence[str]) -> list[int]:
    """Column of every readout among the measured ones, -1 for those that need no observable."""
    measured = [readout for readout in readouts if readout not in (LOG_PSI, INFIDELITY)]
    return [measured.index(readout) if readout in measured else -1 for readout in readouts]


def _flat(tangent: np.ndarray) -> np.ndarray:
    return tangent.reshape(*tangent.shape[:2], -1)


def _of_log_psi(family, other, tangent, weights):
    """(path, head), (head,) and the root mean square of the whole effect, of log|psi|."""
    weights = np.full(other.shape, 1 / other.size) if weights is None else weights / weights.sum()
    whole = family[..., _CLEAN] - other
    size = np.sum(weights * whole**2)
    share = weights * whole / size if size > 0 else np.full(whole.shape, np.nan)
    patched = np.tensordot(share, family[..., _CLEAN, None] - family[..., _FIRST:], axes=2)
    return _by_path(patched), np.tensordot(share, _flat(tangent), axes=2), np.sqrt(size)


def _of_mean(curve, column, slope):
    """The same of an expectation value; NaN where all heads together do not change it beyond its error."""
    difference, error = change(curve, _CLEAN, _ALL)
    whole = difference[column]
    size = whole if abs(whole) > _BEYOND * error[column] else np.nan
    mean = curve.mean[:, column]
    return _by_path((mean[_CLEAN] - mean[_FIRST:]) / size), slope / size, whole


def _of_infidelity(curve, metric):
    whole = curve.infidelity[_ALL]
    size = whole if whole > 0 else np.nan
    return _by_path(curve.infidelity[_FIRST:] / size), metric / size, whole


def _by_path(columns: np.ndarray) -> np.ndarray:
    """(head path,) as (path, head)."""
    return columns.reshape(-1, len(PATHS)).T


@dataclass(frozen=True)
class Scores:
    """Of every head: ``kappa``, ``raw`` s_h and ``scaled`` (..., readout, block, head), and their ``mean`` (block, head)."""

    kappa: np.ndarray
    raw: np.ndarray
    scaled: np.ndarray
    mean: np.ndarray


def scores(receiver: np.ndarray, sender: np.ndarray, threshold: float) -> Scores:
    """Scores from IE (sub-probe, ..., block, head); sub-probes that say nothing (NaN) do not count."""
    reached = np.fmax(np.abs(receiver), np.abs(sender)) >= threshold
    kappa = mean_of_known(np.where(np.isnan(receiver), np.nan, reached))
    size = np.maximum(np.abs(mean_of_known(receiver)), np.abs(mean_of_known(sender)))
    raw = np.where((~np.isnan(receiver)).mean(axis=0) >= _ENOUGH, size * kappa, np.nan)
    scaled = scaled_to_one(raw)
    mean = mean_of_known(scaled.reshape(-1, *scaled.shape[-2:]))
    return Scores(kappa, raw, scaled, np.nan_to_num(mean))


def scaled_to_one(size: np.ndarray) -> np.ndarray:
    """(x - min) / (max - min) over the heads (..., block, head); 0 where all are equal."""
    low, high = (f(size, axis=(-2, -1), keepdims=True) for f in (np.min, np.max))
    spread = high - low
    return np.where(spread == 0, 0.0 * size, (size - low) / np.where(spread == 0, 1.0, spread))


def mean_of_known(x: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is known."""
    known = ~np.isnan(x)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, x, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def ranks(score: np.ndarray) -> np.ndarray:
    """Place (block, head) int32 of every head, 1 for the largest score; of equal ones the earlier block is first."""
    rank = np.empty(score.size, np.int32)
    rank[np.argsort(-score.ravel(), kind="stable")] = np.arange(1, score.size + 1)
    return rank.reshape(score.shape)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman correlation of two arrays of one shape over what is known of both; NaN where one side does not vary."""
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearman(a.reshape(1, -1, 1), b.reshape(1, -1, 1))[0, 0])


def mean_outputs(psi: Wavefunction, heads: Heads, sigma: Array) -> Array:
    """Mean of every head's output over configurations (n, n_sites): (block, token, width); of a projected state in copy 0."""

    def evaluate(rows: Array) -> Array:
        edges = psi.bare.tape(rows).edges
        return namespace(rows).stack([edges[edge].sum(axis=0) for edge in heads.edges])[None]

    return psi.bare.passes(evaluate, sigma).sum(axis=0) / len(sigma)


@dataclass(frozen=True, eq=False)
class Knocked(_Family):
    """psi with each of the ``sets`` (m, block, head) of heads knocked out, along a trailing axis; ``mean`` of their outputs."""

    psi: Wavefunction
    heads: Heads
    sets: np.ndarray
    mean: Array
    tick: Callable[[], None] = no_tick

    def _columns(self, psi: Wavefunction, sigma: Array) -> Array:
        xp, logs = namespace(sigma), []
        for chosen in self.sets:
            self.tick()
            edits: dict[str, Edit] = {
                edge: partial(_held, own=xp.asarray(self.heads.channels(of_block)), mean=mean)
                for edge, of_block, mean in zip(self.heads.edges, chosen, self.mean, strict=True)
                if of_block.any()
            }
            logs.append(psi.tape(sigma, edits).edges["log_psi"])
        return xp.stack(logs, axis=-1)


def _held(x: Array, own: Array, mean: Array) -> Array:
    return namespace(x).where(own, mean.astype(x.dtype), x)


def knocked_sets(orders: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The first ``counts`` (point,) heads of every order (order, head number): booleans (order, point, head number)."""
    place = np.argsort(orders, axis=1)
    return place[:, None, :] < counts[:, None]


def area(curve: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean height (...) of curves (..., point) over the share of heads that are knocked out."""
    steps = np.diff(counts / counts[-1])
    return ((curve[..., 1:] + curve[..., :-1]) / 2 * steps).sum(axis=-1)
