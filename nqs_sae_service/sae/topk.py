"""TopK dictionaries with an auxiliary loss for dead features (Gao et al. 2024, arXiv:2406.04093, sections 2.3 and A.2).

    f = ReLU(topk(z)),   L = <|x - x_hat|^2> + alpha <|e - e_hat|^2> / Var(e)

on centred inputs scaled to E|x|^2 = d. <.> is the mean over inputs and components; the error e = x - x_hat is held fixed
(detached) in the second term, and e_hat is its reconstruction, without bias, by the k_aux best dead features of each input.
It uses the raw z, so that a feature that is negative everywhere can come back. Decoder rows have unit length: their gradient
is projected onto the sphere, and they are renormalised after each Adam step. The encoder starts as the decoder times one
factor, the least-squares best on the first batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from ..engine.arrays import namespace
from ..spec.section import Finding, Section
from .dictionary import Dictionary
from .record import SaeSection
from .training import Parameters, unit_rows


class TopK(SaeSection):
    """``[sae] kind = "topk"``: exactly (at most) k active features for every input."""

    kind: Literal["topk"] = Field(description="k largest pre-activations, auxiliary loss for dead features")
    k: int = Field(8, ge=1, le=4096, description="active features per input")
    k_aux: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="dead features per input in the auxiliary loss (default: half the width)",
    )
    aux_coefficient: float = Field(1 / 32, ge=0, le=10, description="weight alpha of the auxiliary loss")

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        """Not more active features than there are."""
        yield from super().findings(sections)
        if self.k > self.features:
            yield Finding("k", f"{self.k} active features of {self.features}: k must not exceed features")
        if self.k_aux is not None and self.k_aux > self.features:
            yield Finding(
                "k_aux", f"{self.k_aux} features of {self.features}: k_aux must not exceed features"
            )

    def learner(self, generator: np.random.Generator, sample: np.ndarray) -> TopKLearner:
        """A tied, unit-norm dictionary whose encoder length fits the first batch ``sample`` (n, d)."""
        return TopKLearner(self, generator, sample)


class TopKLearner:
    """A TopK dictionary in training."""

    unit_decoder = True

    def __init__(self, record: TopK, generator: np.random.Generator, sample: np.ndarray) -> None:
        width = sample.shape[1]
        self.k, self.aux_coefficient = record.k, record.aux_coefficient
        self.k_aux = record.k_aux or max(1, round(width / 2))
        xp = namespace(sample)
        decoder = xp.asarray(unit_rows(generator, record.features, width))
        self.parameters = Parameters(
            decoder * best_length(decoder, self.k, sample),
            decoder,
            xp.zeros(record.features, np.float32),
            xp.zeros(width, np.float32),
        )

    def gradients(
        self, x: np.ndarray, progress: float, dead: np.ndarray
    ) -> tuple[float, Parameters, np.ndarray]:
        """See ``training.Learner``."""
        gradients = sparse_gradients
        if namespace(x) is not np:
            from .topk_gpu import sparse_gradients as gradients
        return gradients(self.parameters, x, self.k, dead, self.k_aux, self.aux_coefficient)

    def finished(self) -> Parameters:
        """See ``training.Learner``."""
        return self.parameters


def best_length(decoder: np.ndarray, k: int, x: np.ndarray) -> np.float32:
    """The factor a that minimises |x - a x_hat|^2 when the encoder is the ``decoder`` (F, d): <x, x_hat> / <x_hat, x_hat>."""
    n_features, width = decoder.shape
    xp = namespace(x)
    tied = Dictionary(
        "topk", k, decoder, decoder, xp.zeros(n_features, np.float32), xp.zeros(width, np.float32)
    )
    x_hat = tied.reconstruct(x).astype(np.float64)
    square = float((x_hat**2).sum())
    return np.float32(float((x * x_hat).sum()) / square if square > 0 else 1.0)


def sparse_gradients(
    parameters: Parameters, x: np.ndarray, k: int, dead: np.ndarray, k_aux: int, aux_coefficient: float
) -> tuple[float, Parameters, np.ndarray]:
    """Loss, its gradients and the firing counts (F,), as ``reference.topk_gradients``, by the sparse float32 kernels.

    The auxiliary loss is the same three kernels on the dictionary of the dead features alone, with the error as target and
    no bias; it costs nothing while no feature is dead.
    """
    from .kernels import backward, decode_error, encode_topk

    p = parameters
    values, indices = encode_topk(x, p.encoder, p.encoder_bias, p.decoder_bias, k)
    error, squared = decode_error(x, p.decoder, p.decoder_bias, values, indices)
    loss = float(squared.sum()) / error.size
    d_encoder, d_decoder, d_encoder_bias, counts = backward(
        x, error, -2 / error.size, p.decoder, p.decoder_bias, values, indices
    )
    variance = float(np.mean(error.var(axis=0, dtype=np.float64))) if dead.any() else 0.0
    if variance > 0 and aux_coefficient > 0:
        j = np.flatnonzero(dead)
        encoder, decoder, no_bias = p.encoder[j], p.decoder[j], np.zeros_like(p.decoder_bias)
        values, indices = encode_topk(
            x, encoder, p.encoder_bias[j], p.decoder_bias, min(k_aux, len(j)), positive=False
        )
        residual, squared = decode_error(error, decoder, no_bias, values, indices)
        weight = aux_coefficient / variance
        loss += weight * float(squared.sum()) / error.size
        of_dead = backward(x, residual, -2 * weight / error.size, decoder, p.decoder_bias, values, indices)
        d_encoder[j] += of_dead[0]
        d_decoder[j] += of_dead[1]
        d_encoder_bias[j] += of_dead[2]
    d_decoder_bias = -2 / error.size * error.sum(axis=0, dtype=np.float64) - np.einsum(
        "f,fd->d", d_encoder_bias, p.encoder
    )
    return loss, Parameters(d_encoder, d_decoder, d_encoder_bias, d_decoder_bias.astype(np.float32)), counts
