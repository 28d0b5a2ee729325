"""The transformer forward pass, fused for the CPU: float32, equal to the bricks of ``transformer.py`` to rounding.

A block of configurations stays in the second-level cache from the embedding to log psi: matrix products go to the BLAS (one
thread per block, blocks in parallel), everything between them is a vectorised loop on the block. Every block has the same
number of rows, the last one padded: the bits depend on a configuration's place in its block (the BLAS treats rows differently),
but neither on its neighbours nor on the number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from ..engine.jit import EXACT, njit, numba, prange
from .primitives import LAYER_NORM_EPSILON, Attention, Mix, circulant
from .state import State

_CACHE_BYTES = 336 * 1024  # share of a core's second-level cache that a block may fill
# Configurations in a block. Blocks are powers of two, so that calls in multiples of 64 always cut at block boundaries.
LARGEST_BLOCK = 64
# Blocks are handed to threads in this many pieces per thread, so that a slow core does not hold up the rest.
_PIECES_PER_THREAD = 16

_f4 = np.float32
_ROUND = _f4(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds a float32 to an integer
_LOG2E = _f4(1.4426950408889634)
_LN2_HIGH = _f4(0.693359375)  # Cody & Waite's splitting of log 2: n * high is exact
_LN2_LOW = _f4(-2.12194440e-4)
_EPSILON = _f4(LAYER_NORM_EPSILON)


@njit(fastmath=EXACT)
def exp_in_place(x, bits):
    """x <- exp(x) for a float32 row, relative error 2e-7, for x in [-87, 88] (clipped); ``bits``: int32 row of the same size.

    exp x = 2^n e^r with n = round(x / log 2), |r| <= log(2) / 2, e^r by its Taylor series, 2^n by writing the exponent bits.
    Two plain loops that vectorise; must not be compiled with reassociation, which would fold the rounding away.
    """
    size = x.size
    for j in range(size):
        v = min(max(x[j], _f4(-87.0)), _f4(88.0))
        n = (v * _LOG2E + _ROUND) - _ROUND
        r = v - n * _LN2_HIGH - n * _LN2_LOW
        p = _f4(1 / 720) + r * _f4(1 / 5040)
        p = _f4(1 / 120) + r * p
        p = _f4(1 / 24) + r * p
        p = _f4(1 / 6) + r * p
        p = _f4(0.5) + r * p
        p = _f4(1) + r * p
        x[j] = _f4(1) + r * p
        bits[j] = (np.int32(n) + np.int32(127)) << np.int32(23)
    power = bits.view(np.float32)
    for j in range(size):
        x[j] *= power[j]


@njit()
def _normalise(x, out):
    """LayerNorm without gain and bias, which are folded into the next dense map."""
    rows, d = x.shape
    for r in range(rows):
        mean = _f4(0)
        for c in range(d):
            mean += x[r, c]
        mean /= _f4(d)
        variance = _f4(0)
        for c in range(d):
            variance += (x[r, c] - mean) * (x[r, c] - mean)
        scale = _f4(1) / math.sqrt(variance / _f4(d) + _EPSILON)
        for c in range(d):
            out[r, c] = (x[r, c] - mean) * scale


@njit()
def _add_bias(x, bias):
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            x[r, c] += bias[c]


@njit()
def _add_to(x, y, bias):
    """x <- x + y + bias."""
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            x[r, c] += y[r, c] + bias[c]


@njit()
def _bias_gelu(u, bias, row, bits):
    """u <- gelu(u + bias), written as v / (1 + exp(-2 sqrt(2/pi) (v + 0.044715 v^3)))."""
    for r in range(u.shape[0]):
        for j in range(u.shape[1]):
            v = u[r, j] + bias[j]
            u[r, j] = v
            row[j] = _f4(-1.5957691216057308) * (v + _f4(0.044715) * v * v * v)
        exp_in_place(row, bits)
        for j in range(u.shape[1]):
            u[r, j] /= _f4(1) + row[j]


@njit()
def _mix(v, weight, out, configurations, tokens):
    """out_i = sum_j weight_ij v_j with the weights spread over channels: weight (token, token, width)."""
    d = v.shape[1]
    for b in range(configurations):
        o = b * tokens
        for i in range(tokens):
            for c in range(d):
                out[o + i, c] = weight[i, 0, c] * v[o, c]
            for j in range(1, tokens):
                for c in range(d):
                    out[o + i, c] += weight[i, j, c] * v[o + j, c]


@njit()
def _attend(qkv, bias, out, configurations, tokens, heads, key_t, row, bits):
    """out = softmax(q k^T / sqrt(d_head) + bias) v in every head; qkv (rows, 3 width) holds q, k, v side by side.

    ``key_t`` (width / heads, tokens) is scratch: keys transposed, so that the scores of a query vectorise over tokens.
    """
    d = out.shape[1]
    dh = d // heads
    scale = _f4(1) / math.sqrt(_f4(dh))
    for b in range(configurations):
        o = b * tokens
        for h in range(heads):
            q0, k0, v0 = h * dh, d + h * dh, 2 * d + h * dh
            for j in range(tokens):
                for c in range(dh):
                    key_t[c, j] = qkv[o + j, k0 + c]
            for i in range(tokens):
                for j in range(tokens):
                    row[j] = bias[h, i, j]
                for c in range(dh):
                    q = qkv[o + i, q0 + c] * scale
                    for j in range(tokens):
                        row[j] += q * key_t[c, j]
                top = row[0]
                for j in range(tokens):
                    top = max(top, row[j])
                for j in range(tokens):
                    row[j] -= top
                exp_in_place(row[:tokens], bits[:tokens])
                total = _f4(0)
                for j in range(tokens):
                    total += row[j]
                for c in range(dh):
                    out[o + i, q0 + c] = _f4(0)
                for j in range(tokens):
                    a = row[j] / total
                    for c in range(dh):
                        out[o + i, q0 + c] += a * qkv[o + j, v0 + c]


@njit()
def _log_cosh_sum(a, b, two_parts, row, bits):
    """Sum over channels of log cosh(a + i b): (real, imaginary) part, the phase modulo 2 pi. One logarithm per row.

    log cosh z = z - log 2 + log(1 + e^(-2z)) for Re z >= 0; the last terms are collected as one product.
    """
    for c in range(a.size):
        row[c] = _f4(-2) * abs(a[c])
    exp_in_place(row, bits)
    real, imaginary = 0.0, 0.0
    product_re, product_im = 1.0, 0.0
    for c in range(a.size):
        real += abs(a[c]) - 0.6931471805599453
        if two_parts:
            phase = -b[c] if a[c] < 0 else b[c]
            imaginary += phase
            t_re = 1.0 + row[c] * math.cos(_f4(2) * phase)
            t_im = -row[c] * math.sin(_f4(2) * phase)
            product_re, product_im = (
                product_re * t_re - product_im * t_im,
                product_re * t_im + product_im * t_re,
            )
        else:
            product_re *= 1.0 + row[c]
        if c % 256 == 255:  # stay inside the range of a double
            size = math.hypot(product_re, product_im)
            real += math.log(size)
            product_re, product_im = product_re / size, product_im / size
    if two_parts:
        return real + math.log(math.hypot(product_re, product_im)), imaginary + math.atan2(
            product_im, product_re
        )
    return real + math.log(product_re), 0.0


@njit(parallel=True)
def forward(
    sigma, stream, real, imaginary, embed, first, last, head, block, pieces, heads,
    patch_w, patch_b, proj_w, proj_b, pair, out_w, out_b, up_w, up_b, down_w, down_b, head_w, head_b, head_gain, head_bias,
):  # fmt: skip
    """Blocks ``first`` .. ``last - 1`` of the transformer on every configuration, in place on its residual stream.

    sigma (n, n_sites) int8 is read when ``embed``; otherwise stream (n, token, width) float32 is, and it is written unless
    ``head``, which turns it into log psi: real, imaginary (n,) float64. LayerNorm gains and biases are folded into the
    weights that follow: proj_w (L, width, width or 3 width), up_w (L, width, hidden), head_w (1 or 2, width, width).
    pair: (L, token, token, width) positional weights spread over channels, or (L, heads, token, token) score biases.

    FLOPs per configuration: tokens (2 patch width + L (4 width^2 + 4 width hidden + 2 tokens width)), with 8 width^2 and twice
    the attention term for full attention. Memory traffic: the int8 configuration in, log psi out.
    """
    n = stream.shape[0] if not embed else sigma.shape[0]
    tokens, d = patch_b.shape
    patch = patch_w.shape[0]
    channels = proj_w.shape[2]
    hidden = up_w.shape[2]
    rows = block * tokens
    positional = channels == d
    blocks = (n + block - 1) // block
    for piece in prange(pieces):
        x = np.zeros((rows, d), np.float32)
        h = np.zeros((rows, d), np.float32)
        a = np.zeros((rows, d), np.float32)
        v = np.zeros((rows, channels), np.float32)
        u = np.zeros((rows, hidden), np.float32)
        spins = np.zeros((rows, patch), np.float32)
        summed = np.zeros((block, d), np.float32)
        unit = np.zeros((block, d), np.float32)
        part = np.zeros((2, block, d), np.float32)
        key_t = np.zeros((d // heads, tokens), np.float32)
        wide = max(hidden, tokens, d)
        row = np.zeros(wide, np.float32)
        bits = np.zeros(wide, np.int32)
        for ib in range(piece * blocks // pieces, (piece + 1) * blocks // pieces):
            start = ib * block
            count = min(block, n - start)
            if embed:
                for b in range(count):
                    for t in range(tokens):
                        for c in range(patch):
                            spins[b * tokens + t, c] = _f4(sigma[start + b, t * patch + c])
                np.dot(spins, patch_w, x)
                for b in range(block):
                    for t in range(tokens):
                        for c in range(d):
                            x[b * tokens + t, c] += patch_b[t, c]
            else:
                for b in range(count):
                    for t in range(tokens):
                        for c in range(d):
                            x[b * tokens + t, c] = stream[start + b, t, c]
            for l in range(first, last):
                _normalise(x, h)
                np.dot(h, proj_w[l], v)
                _add_bias(v, proj_b[l])
                if positional:
                    _mix(v, pair[l], h, block, tokens)
                else:
                    _attend(v, pair[l], h, block, tokens, heads, key_t, row, bits)
                np.dot(h, out_w[l], a)
                _add_to(x, a, out_b[l])
                _normalise(x, h)
                np.dot(h, up_w[l], u)
                _bias_gelu(u, up_b[l], row[:hidden], bits[:hidden])
                np.dot(u, down_w[l], a)
                _add_to(x, a, down_b[l])
            if not head:
                for b in range(count):
                    for t in range(tokens):
                        for c in range(d):
                            stream[start + b, t, c] = x[b * tokens + t, c]
                continue
            for b in range(block):
                for c in range(d):
                    summed[b, c] = _f4(0)
                for t in range(tokens):
                    for c in range(d):
                        summed[b, c] += x[b * tokens + t, c]
            _normalise(summed, unit)
            for p in range(head_w.shape[0]):
                np.dot(unit, head_w[p], summed)
                _add_bias(summed, head_b[p])
                _normalise(summed, part[p])
                for b in range(block):
                    for c in range(d):
                        part[p, b, c] = part[p, b, c] * head_gain[p, c] + head_bias[p, c]
            for b in range(count):
                re, im = _log_cosh_sum(part[0, b], part[1, b], head_w.shape[0] == 2, row[:d], bits[:d])
                real[start + b] = re
                imaginary[start + b] = im


def _folded(gain, bias, weight, weight_bias) -> tuple[np.ndarray, np.ndarray]:
    """Dense(LayerNorm(x)) = unit(x) (gain W) + (bias W + b)."""
    return gain[:, None] * weight, bias @ weight + weight_bias


class FusedTransformer:
    """Parameters of a transformer packed for ``forward``: the fast twin of the bricks for one set of float32 parameters."""

    def __init__(self, state: State, parameters: np.ndarray):
        w = {name: array.astype(np.float64) for name, array in state.unpack(parameters).items()}
        self.state = state
        self.complex = state.complex_amplitude
        self.depth = sum(name.startswith("residual_") for name in state.layers)
        bricks = {brick.name: brick for brick in state.bricks}
        self.heads = next(brick.heads for brick in state.bricks if isinstance(brick, (Attention, Mix)))
        packed = [self._patches(w), self._stack(w, bricks), self._head(w)]
        self.arrays = tuple(np.ascontiguousarray(a, dtype=np.float32) for group in packed for a in group)
        self.block = self._block_size()

    def _patches(self, w):
        code = w.get("position.code", np.zeros((self.state.n_tokens, self.state.width)))
        return w["embedding.weight"], code + w["embedding.bias"]

    def _stack(self, w, bricks):
        layers = [self._layer(w, bricks, i) for i in range(1, self.depth + 1)]
        return tuple(np.stack(group) for group in zip(*layers, strict=True))

    def _layer(self, w, bricks, i):
        a, m = f"attention_{i}", f"mlp_{i}"
        mix = bricks[f"{a}.mix"]
        full = f"{a}.query.weight" in w
        names = ("query", "key", "value") if full else ("value",)
        folded = [
            _folded(w[f"{a}.norm.gain"], w[f"{a}.norm.bias"], w[f"{a}.{n}.weight"], w[f"{a}.{n}.bias"])
            for n in names
        ]
        up, up_bias = _folded(
            w[f"{m}.norm.gain"], w[f"{m}.norm.bias"], w[f"{m}.up.weight"], w[f"{m}.up.bias"]
        )
        stored = w.get(f"{a}.mix.bias" if full else f"{a}.mix.weight")
        tokens = self.state.n_tokens
        if stored is None:
            stored = np.zeros((mix.heads, tokens, tokens))
        elif mix.translation_invariant:
            stored = stored[:, circulant(np, tokens)]
        if not full:
            stored = np.repeat(stored, self.state.width // mix.heads, axis=0).transpose(1, 2, 0)
        return (
            np.concatenate([f[0] for f in folded], axis=1),
            np.concatenate([f[1] for f in folded]),
            stored,
            w[f"{a}.out.weight"],
            w[f"{a}.out.bias"],
            up,
            up_bias,
            w[f"{m}.down.weight"],
            w[f"{m}.down.bias"],
        )

    def _head(self, w):
        parts = ("real", "imaginary") if self.complex else ("real",)
        dense = [
            _folded(w["head.norm.gain"], w["head.norm.bias"], w[f"head.{p}.weight"], w[f"head.{p}.bias"])
            for p in parts
        ]
        norms = [(w[f"head.{p}_norm.gain"], w[f"head.{p}_norm.bias"]) for p in parts]
        return tuple(np.stack(group) for group in (*zip(*dense, strict=True), *zip(*norms, strict=True)))

    def _block_size(self) -> int:
        proj, up = self.arrays[2], self.arrays[7]
        bytes_per_row = 4 * (3 * self.state.width + proj.shape[2] + up.shape[2])
        fitting = max(1, min(LARGEST_BLOCK, _CACHE_BYTES // (bytes_per_row * self.state.n_tokens)))
        return 1 << (fitting.bit_length() - 1)

    def _run(self, sigma, stream, embed: bool, first: int, last: int, head: bool):
        n = len(sigma) if embed else len(stream)
        real, imaginary = np.empty(n if head else 0), np.empty(n if head else 0)
        blocks = -(-n // self.block)
        pieces = max(1, min(blocks, _PIECES_PER_THREAD * numba.get_num_threads()))
        forward(
            sigma, stream, real, imaginary, embed, first, last, head, self.block, pieces, self.heads, *self.arrays
        )  # fmt: skip
        return real + 1j * imaginary if self.complex else real

    def _depth_of(self, layer: str) -> int:
        return 0 if layer == "embedding" else int(layer.removeprefix("residual_"))

    def log_psi(self, sigma: np.ndarray) -> np.ndarray:
        """log psi (n,) of configurations (n, n_sites) int8."""
        no_stream = np.empty((0, self.state.n_tokens, self.state.width), np.float32)
        return self._run(np.ascontiguousarray(sigma), no_stream, True, 0, self.depth, True)

    def stream_at(self, sigma: np.ndarray, layer: str) -> np.ndarray:
        """Residual stream (n, token, width) at ``embedding`` or ``residual_i``."""
        stream = np.empty((len(sigma), self.state.n_tokens, self.state.width), np.float32)
        self._run(np.ascontiguousarray(sigma), stream, True, 0, self._depth_of(layer), False)
        return stream

    def log_psi_from(self, layer: str, stream: np.ndarray) -> np.ndarray:
        """log psi (n,) when the residual stream at ``layer`` is ``stream`` (n, token, width)."""
        no_sigma = np.empty((0, self.state.n_sites), np.int8)
        stream = np.ascontiguousarray(stream, dtype=np.float32)
        return self._run(no_sigma, stream, False, self._depth_of(layer), self.depth, True)
