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
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from ..engine.arrays import namespace
from ..engine.ranks import ALONE, Ranks
from ..spec.section import Finding, Section
from .dictionary import Dictionary, kernels_for
from .distributed import best_over_ranks
from .record import SaeSection
from .training import Adam, Parameters, unit_rows

if TYPE_CHECKING:
    from .kernels import Sorted, Term


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

    def learner(
        self, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> TopKLearner:
        """A tied, unit-norm dictionary whose encoder length fits the first batch ``sample`` (n, d)."""
        return TopKLearner(self, generator, sample, ranks)


class TopKLearner:
    """A TopK dictionary in training."""

    unit_decoder = True

    def __init__(
        self, record: TopK, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> None:
        width = sample.shape[1]
        self.k, self.aux_coefficient = record.k, record.aux_coefficient
        self.k_aux = record.k_aux or max(1, round(width / 2))
        xp = namespace(sample)
        own = ranks.share(record.features)
        decoder = xp.asarray(unit_rows(generator, own.stop, width, own.start))
        self.parameters = Parameters(
            decoder * best_length(decoder, self.k, sample, ranks),
            decoder,
            xp.zeros(len(decoder), np.float32),
            xp.zeros(width, np.float32),
        )
        self.step = _step_for(sample)(self.parameters, self.k, self.k_aux, self.aux_coefficient, ranks)

    def finished(self) -> Parameters:
        """See ``training.Learner``."""
        return self.parameters


def _step_for(x: np.ndarray) -> Any:
    if isinstance(x, np.ndarray):
        return SparseStep
    from .topk_gpu import DeviceStep

    return DeviceStep


def best_length(decoder: np.ndarray, k: int, x: np.ndarray, ranks: Ranks = ALONE) -> np.float32:
    """The factor a that minimises |x - a x_hat|^2 when the encoder is the ``decoder`` (F, d): <x, x_hat> / <x_hat, x_hat>.

    Each of the ``ranks`` has its share of the rows of the decoder.
    """
    n_features, width = decoder.shape
    xp = namespace(x)
    tied = Dictionary(
        "topk", k, decoder, decoder, xp.zeros(n_features, np.float32), xp.zeros(width, np.float32)
    )
    values, indices = best_over_ranks(*tied.encode_sparse(x), k, ranks)
    minus_x_hat, _ = kernels_for(x).decode_error(
        xp.zeros_like(x), decoder, tied.decoder_bias, values, indices
    )
    x_hat = -ranks.sum(minus_x_hat).astype(np.float64)
    square = float((x_hat**2).sum())
    return np.float32(float((x * x_hat).sum()) / square if square > 0 else 1.0)


class SparseStep:
    """One optimisation step by the sparse float32 kernels: the gradients of ``reference.topk_gradients``, then Adam.

    The auxiliary loss is the same kernels on the dead features alone, with the error as target and no bias; it costs nothing
    while no feature is dead. It needs no memory that grows with the number of dead features.
    """

    def __init__(
        self, parameters: Parameters, k: int, k_aux: int, aux_coefficient: float, ranks: Ranks = ALONE
    ) -> None:
        from .encode import Scratch

        self.parameters, self.k, self.k_aux = parameters, k, k_aux
        self.aux_coefficient, self.ranks, self.scratch = aux_coefficient, ranks, Scratch()

    def __call__(
        self, x: np.ndarray, progress: float, dead: np.ndarray, adam: Adam, learning_rate: float
    ) -> tuple[float, np.ndarray]:
        """See ``training.Learner``."""
        from .kernels import Term, learn

        p = self.parameters
        active, error, squared, total = self._reconstruct(x, self.k)
        loss = float(squared.sum()) / max(error.size, 1)
        terms = [Term(error, -2 / max(error.size, 1), active), Term(error, 0.0, self._nothing())]
        variance = loss - float(np.mean((total / max(len(x), 1)) ** 2))
        n_dead = int(self.ranks.sum(np.asarray([np.count_nonzero(dead)]))[0])
        if n_dead and variance > 0 and self.aux_coefficient > 0:
            auxiliary, terms[1] = self._auxiliary(x, error, dead, n_dead, self.aux_coefficient / variance)
            loss += auxiliary
        counts = np.diff(active.start)
        if np.isfinite(loss):
            arrays, moments = list(vars(p).values()), list(adam.moments.values())
            bias_gradient, constants = terms[0].weight * total, adam.next(learning_rate)
            learn(x, terms, bias_gradient, arrays, moments, constants, unit=True, ranks=self.ranks)
        return loss, counts

    def _reconstruct(self, x: np.ndarray, k: int) -> tuple[Sorted, np.ndarray, np.ndarray, np.ndarray]:
        """Active entries by feature, the error, its squares and the sum of its rows."""
        from .kernels import encode_topk, sort_by_feature

        p, scratch = self.parameters, self.scratch
        values, indices = encode_topk(
            x, p.encoder, p.encoder_bias, p.decoder_bias, min(k, len(p.encoder)), scratch=scratch
        )
        values, indices = best_over_ranks(values, indices, k, self.ranks)
        error = self._rest(x, p.decoder_bias, values, indices, "error")
        return sort_by_feature(values, indices, len(p.encoder), scratch), *error

    def _rest(
        self, target: np.ndarray, bias: np.ndarray, values: np.ndarray, indices: np.ndarray, name: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the active features of all ranks leave of ``target`` - ``bias`` (n, d), its squares and the sum of its rows."""
        from .kernels import decode_error_and_sum

        p, ranks, nothing = self.parameters, self.ranks, np.zeros_like
        if ranks.rank > 0:  # the others add their part to what rank 0 has
            target, bias = nothing(target), nothing(bias)
        result = decode_error_and_sum(target, p.decoder, bias, values, indices, self.scratch, name)
        if ranks.size == 1:
            return result
        total, none = ranks.sum(result[0]), (values[:, :0], indices[:, :0])
        return decode_error_and_sum(total, p.decoder, nothing(bias), *none, self.scratch, name)

    def _auxiliary(
        self, x: np.ndarray, error: np.ndarray, dead: np.ndarray, n_dead: int, weight: float
    ) -> tuple[float, Term]:
        """The second term of the loss, its best dead features for every input being positive or not."""
        from .kernels import Term, encode_topk, sort_by_feature

        p, scratch, chosen = self.parameters, self.scratch, np.flatnonzero(dead)
        k = min(self.k_aux, n_dead)
        values, indices = encode_topk(
            *(x, p.encoder, p.encoder_bias, p.decoder_bias, min(k, len(chosen))),
            positive=False,
            chosen=chosen,
            scratch=scratch,
        )
        values, indices = best_over_ranks(values, indices, k, self.ranks)
        residual, squared, _ = self._rest(error, np.zeros_like(p.decoder_bias), values, indices, "residual")
        active = sort_by_feature(values, indices, len(p.encoder), scratch, "auxiliary")
        loss = weight * float(squared.sum()) / error.size
        return loss, Term(residual, -2 * weight / error.size, active)

    def _nothing(self) -> Sorted:
        from .kernels import Sorted

        start = np.zeros(len(self.parameters.encoder) + 1, np.int32)
        return Sorted(start, np.empty(0, np.int32), np.empty(0, np.float32))
