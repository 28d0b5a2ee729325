"""The transformer on a GPU, float32: cuBLAS for the products, one CUDA kernel for everything between two of them.

Per configuration of T tokens, width d, hidden width H and L blocks the products take T (2 b d + L (4 d^2 + 4 d H))
operations (8 d^2 with queries and keys). The bricks as array operations read and write the stream some forty times a block
(LayerNorm alone five times); fused, an elementwise step reads and writes it once: about 4 T (14 d + 2 H) bytes a block and
configuration between the products, so T = 10, d = 32, H = 128, L = 2 moves 57 kB for 0.42 MFLOP. On a device with 3 TB/s
and 50 TFLOP/s that is bandwidth by a factor of two, and calls as small as one Metropolis proposal of 1024 chains (0.4 GFLOP
in some 25 launches of 5 to 10 microseconds each) are launch latency by a factor of ten.

Hence ``walk``: a whole sweep is one kernel. A block is a chain, its configuration's activations stay in shared memory (17
kB at d = 72), weights come from the caches: 4 bytes a parameter and proposal, 4 GB a sweep of 1024 chains and 40 sites at
24,000 parameters, where a weight serves up to ten tokens from a register. Where a configuration does not fit, or the weights
are many, the chains move by the two small kernels of ``sampling.metropolis_gpu`` around ``log_psi``, which otherwise is one
such kernel, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..engine.arrays import namespace, to_host
from ..engine.cuda import SHARED_BYTES, Kernels
from ..engine.devices import rows_that_fit
from .primitives import Attention, Mix, circulant
from .state import State
from .transformer_jacobian_gpu import per_sample_columns
from .transformer_packing import depth, folded

Array = Any

_KERNELS = Kernels(Path(__file__).with_suffix(".cu"))
_THREADS, _LANES = 256, 8
_ROWS = _THREADS // _LANES
_BLOCK_THREADS = 128  # about, of a kernel whose block is a configuration
# Every chain reads every weight for every proposal: 1 GB a row of 1024 chains, at the speed of a second-level cache the time of
# the launches that are saved. By counting, not by measurement.
_WALK_PARAMETERS = 2**18
_PASS = 2**14  # configurations at a time: enough that launches no longer count, few enough for any device
_PIECES = 8  # as in the source

# The packed arrays, in the order that ``evaluate`` and ``walk`` take them.
_NAMES = (
    *("patch_w", "code", "proj_w", "proj_b", "pair", "out_w", "out_b", "up_w", "up_b", "down_w", "down_b"),
    *("head_w", "head_b", "head_gain", "head_shift", "zero"),
)


class GpuTransformer:
    """Parameters of a transformer packed for the kernels: the fast twin of the bricks for float32 parameters on a device."""

    def __init__(self, state: State, parameters: Array):
        self.state, self.xp, self.parameters = state, namespace(parameters), parameters
        mixer = next(brick for brick in state.bricks if isinstance(brick, (Attention, Mix)))
        self.heads, self.positional = mixer.heads, isinstance(mixer, Mix)
        self.parts = 2 if state.complex_amplitude else 1
        packed = _packed(state, to_host(parameters), mixer)
        self.blocks, self.hidden = len(packed["up_w"]), packed["up_w"].shape[2]
        self.patch = len(packed["patch_w"])
        self.arrays = _moved(packed, parameters)
        self.order = self.xp.asarray(state.sites.astype(np.int32))

    @property
    def channels(self) -> int:
        """Width of what attention reads: values, or queries, keys and values side by side."""
        return self.state.width * (1 if self.positional else 3)

    def _rows(self, rows: int) -> int:
        bytes_per_row = 4 * self.state.n_tokens * (4 * self.state.width + self.channels + self.hidden)
        return rows_that_fit(bytes_per_row, self.arrays["code"], _PASS, rows)

    def _passes(self, evaluate, rows: Array) -> Array:
        size = self._rows(len(rows))
        parts = [evaluate(rows[i : i + size]) for i in range(0, max(len(rows), 1), size)]
        return parts[0] if len(parts) == 1 else self.xp.concatenate(parts)

    def log_psi(self, sigma: Array) -> Array:
        """log psi (n,) of configurations (n, n_sites) int8."""
        return self._passes(lambda s: self._head(self._through(self._embedded(s), 0, self.blocks)), sigma)

    def stream_at(self, sigma: Array, layer: str) -> Array:
        """Residual stream (n, token, width) at ``embedding`` or ``residual_i``."""
        return self._passes(lambda s: self._through(self._embedded(s), 0, _depth(layer)), sigma)

    def log_psi_from(self, layer: str, stream: Array) -> Array:
        """log psi (n,) when the residual stream at ``layer`` is ``stream`` (n, token, width), which is left as it is."""
        return self._passes(
            lambda x: self._head(self._through(self._copied(x), _depth(layer), self.blocks)), stream
        )

    def columns(self, sigma: Array) -> Array:
        """Per-sample derivatives: see ``states.fused.Columns``."""
        return per_sample_columns(self.state, self.parameters, sigma)

    def _copied(self, stream: Array) -> Array:
        return self.xp.array(stream, dtype=self.xp.float32, order="C")

    def _embedded(self, sigma: Array) -> Array:
        """Embedding (n, token, width): 2 patch operations and one write a number, instead of a float copy of the spins."""
        state, a = self.state, self.arrays
        x = self.xp.empty((len(sigma), state.n_tokens, state.width), dtype=self.xp.float32)
        spins = self.xp.ascontiguousarray(sigma)
        weights = (a["patch_w"], a["code"], self.order)
        self._flat("embed", x, spins, *weights, x, *x.shape[:2], self.patch, state.width)
        return x

    def _through(self, x: Array, first: int, last: int) -> Array:
        """The stream x (n, token, width) after the blocks ``first`` ... ``last - 1``, in place."""
        n, tokens, d = x.shape
        a, rows = self.arrays, x.reshape(n * tokens, d)
        h = self.xp.empty_like(rows)
        for l in range(first, last):
            self._rowwise("normalise", rows, rows, h, *rows.shape)
            v = h @ a["proj_w"][l]
            self._attention(v, a["proj_b"][l], a["pair"][l], h, n)
            self._flat("add_to", rows, rows, h @ a["out_w"][l], a["out_b"][l], *rows.shape)
            self._rowwise("normalise", rows, rows, h, *rows.shape)
            u = h @ a["up_w"][l]
            self._flat("bias_gelu", u, u, a["up_b"][l], *u.shape)
            self._flat("add_to", rows, rows, u @ a["down_w"][l], a["down_b"][l], *rows.shape)
        return x

    def _attention(self, v: Array, bias: Array, pair: Array, out: Array, n: int) -> None:
        """Positional: out_i = sum_j a_ij (v_j + bias), 2 T d operations a token. Full: softmax of scores in shared memory."""
        shape = (n, self.state.n_tokens, self.state.width, self.heads)
        if self.positional:
            self._flat("mix", out, v, bias, pair, out, *shape)
        else:
            _KERNELS.launch(
                "attend", n * self.heads, (_BLOCK_THREADS,), v, bias, pair, out, *shape,
                shared_bytes=4 * self.state.n_tokens**2,
            )  # fmt: skip

    def _head(self, x: Array) -> Array:
        """log psi (n,) of the stream x (n, token, width) after the last block."""
        n, tokens, d = x.shape
        xp, a = self.xp, self.arrays
        total, head = xp.empty((n, d), dtype=xp.float32), xp.empty((self.parts, n, d), dtype=xp.float32)
        log_psi = xp.empty((n, self.parts), dtype=xp.float64)
        self._flat("sum_tokens", total, x, total, n, tokens, d)
        unit = xp.empty_like(total)
        self._rowwise("normalise", total, total, unit, n, d)
        for part in range(self.parts):
            head[part] = unit @ a["head_w"][part]
        norms = (a["head_b"], a["head_gain"], a["head_shift"])
        self._rowwise("log_cosh_head", total, head, *norms, log_psi, n, d, self.parts)
        return log_psi.view(xp.complex128)[:, 0] if self.parts == 2 else log_psi[:, 0]

    def _flat(self, name: str, like: Array, *arguments: Any) -> None:
        """A kernel with one thread per number of ``like``."""
        _KERNELS.launch(name, -(-like.size // _THREADS), (_THREADS,), *arguments)

    def _rowwise(self, name: str, like: Array, *arguments: Any) -> None:
        """A kernel with some lanes per row of ``like``."""
        _KERNELS.launch(name, -(-len(like) // _ROWS), (_LANES, _ROWS), *arguments, shared_bytes=8 * _THREADS)


class WalkingTransformer(GpuTransformer):
    """A network so small that the activations of a configuration fit the shared memory of a block."""

    @property
    def block_threads(self) -> int:
        """Threads of a block: a few for every channel, rounded up to a warp."""
        each = max(1, round(_BLOCK_THREADS / self.state.width))
        return min(_THREADS, -(-each * self.state.width // 32) * 32)

    @property
    def block_bytes(self) -> int:
        """Shared memory of a block, as ``Activations`` in the source lays it out."""
        tokens, d = self.state.n_tokens, self.state.width
        wide = max(tokens * max(self.channels, self.hidden), 4 * self.block_threads)
        part = max(2 * tokens * _PIECES, self.heads * tokens**2, 4 * _PIECES)
        parts = (tokens * d, tokens * d, wide, part, self.parts * d, self.state.n_sites)
        return 4 * sum(-(-part // 4) * 4 for part in parts)

    def log_psi(self, sigma: Array) -> Array:
        """log psi (n,) of configurations (n, n_sites) int8, in one launch."""
        log_psi = self.xp.empty((len(sigma), self.parts), dtype=self.xp.float64)
        self._in_blocks("evaluate", len(sigma), (self.xp.ascontiguousarray(sigma), log_psi), (len(sigma),))
        return log_psi.view(self.xp.complex128)[:, 0] if self.parts == 2 else log_psi[:, 0]

    def walk(
        self, sigma: Array, log_psi: Array, first: Array, length: Array, threshold: Array, ahead: bool = True
    ) -> int:
        """``states.fused.Walks.walk`` as one kernel: 2 n_parameters n_tokens operations a proposal, one block a chain.

        A block has no room to evaluate proposals ``ahead``.
        """
        proposals, chains = threshold.shape
        accepted = self.xp.zeros(chains, dtype=self.xp.int32)
        own = (sigma, log_psi.view(self.xp.float64))
        self._in_blocks("walk", chains, own, (first, length, threshold, accepted, chains, proposals))
        return int(accepted.sum())

    def _in_blocks(self, name: str, blocks: int, before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
        """A kernel whose block is a configuration; the network stands between its other arguments."""
        state = self.state
        sizes = (state.n_tokens, self.patch, state.width, self.hidden, self.heads, self.blocks, self.parts)
        network = (*(self.arrays[name] for name in _NAMES), self.order, *sizes, self.positional)
        _KERNELS.launch(
            name, blocks, (self.block_threads,), *before, *network, *after, shared_bytes=self.block_bytes
        )


def fused_on_device(state: State, parameters: Array) -> GpuTransformer | None:
    """The fast twin that fits the device; None for softmax attention over so many tokens that the scores of a head do not."""
    twin = WalkingTransformer(state, parameters)
    if not twin.positional and 4 * state.n_tokens**2 > SHARED_BYTES:
        return None
    walks = twin.block_bytes <= SHARED_BYTES and state.n_parameters <= _WALK_PARAMETERS
    return twin if walks else GpuTransformer(state, parameters)


def _depth(layer: str) -> int:
    return 0 if layer == "embedding" else int(layer.removeprefix("residual_"))


def _moved(packed: dict[str, np.ndarray], like: Array) -> dict[str, Array]:
    """All arrays in one upload, each of them a view into it."""
    flat = namespace(like).asarray(
        np.concatenate([packed[name].ravel() for name in _NAMES]).astype(np.float32)
    )
    views, start = {}, 0
    for name in _NAMES:
        size = packed[name].size
        views[name] = flat[start : start + size].reshape(packed[name].shape)
        start += size
    return views


def _packed(state: State, parameters: np.ndarray, mixer: Attention | Mix) -> dict[str, np.ndarray]:
    """Arrays of the network in float64, LayerNorm gains and biases folded into the map that follows, blocks stacked."""
    w = {name: array.astype(np.float64) for name, array in state.unpack(parameters).items()}
    layers = [_layer(w, state.n_tokens, mixer, i) for i in range(1, depth(state) + 1)]
    parts = ("real", "imaginary") if state.complex_amplitude else ("real",)
    heads = [folded(w, "head.norm", f"head.{part}") for part in parts]
    code = w.get("position.code", np.zeros((state.n_tokens, state.width)))
    return {
        "patch_w": w["embedding.weight"],
        "code": code + w["embedding.bias"],
        **{name: np.stack([layer[name] for layer in layers]) for name in layers[0]},
        "head_w": np.stack([weight for weight, _ in heads]),
        "head_b": np.stack([bias for _, bias in heads]),
        "head_gain": np.stack([w[f"head.{part}_norm.gain"] for part in parts]),
        "head_shift": np.stack([w[f"head.{part}_norm.bias"] for part in parts]),
        "zero": np.zeros(3 * state.width),
    }


def _layer(w: dict[str, np.ndarray], tokens: int, mixer: Attention | Mix, i: int) -> dict[str, np.ndarray]:
    a, m = f"attention_{i}", f"mlp_{i}"
    full = isinstance(mixer, Attention)
    read = [
        folded(w, f"{a}.norm", f"{a}.{name}") for name in (("query", "key", "value") if full else ("value",))
    ]
    up, up_bias = folded(w, f"{m}.norm", f"{m}.up")
    pair = w.get(f"{a}.mix.bias" if full else f"{a}.mix.weight")
    if pair is None:
        pair = np.zeros((mixer.heads, tokens, tokens))
    elif mixer.translation_invariant:
        pair = pair[:, circulant(np, mixer.grid)]
    return {
        "proj_w": np.concatenate([weight for weight, _ in read], axis=1),
        "proj_b": np.concatenate([bias for _, bias in read]),
        "pair": pair,
        "out_w": w[f"{a}.out.weight"],
        "out_b": w[f"{a}.out.bias"],
        "up_w": up,
        "up_b": up_bias,
        "down_w": w[f"{m}.down.weight"],
        "down_b": w[f"{m}.down.bias"],
    }
