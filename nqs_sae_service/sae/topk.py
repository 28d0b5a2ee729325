"""TopK dictionaries with an auxiliary loss for dead features (Gao et al. 2024, arXiv:2406.04093, sections 2.3 and A.2).

    f = ReLU(topk(z)),   L = <|x - x_hat|^2> + alpha <|e - e_hat|^2> / Var(e)

on centred inputs scaled to E|x|^2 = d. <.> is the mean over inputs and components; the error e = x - x_hat is held fixed
(detached) in the second term, and e_hat is its reconstruction, without bias, by the k_aux best dead features of each input.
It uses the raw z, so that a feature that is negative everywhere can come back. Decoder rows have unit length: their gradient
is projected onto the sphere, and they are renormalised after each Adam step. The encoder starts as the decoder times one
factor, the least-squares best on the first batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field

from ..engine.arrays import namespace
from ..engine.ranks import ALONE, Ranks
from ..spec.section import Finding, Section
from .dictionary import Dictionary, kernels_for
from .distributed import best_over_ranks
from .record import CountedSection
from .training import Adam, Parameters, unit_rows

if TYPE_CHECKING:
    from .kernels import Sorted, Term

# Of ``encode``, which gives the best positive features of every input, k, the number of this rank's features and the ranks:
# values and indices of the active ones, as ``kernels.encode_topk`` returns them.
Choice: TypeAlias = Callable[
    [Callable[[int], tuple[np.ndarray, np.ndarray]], int, int, Ranks], tuple[np.ndarray, np.ndarray]
]


class SparseSection(CountedSection):
    """Fields of those that learn by the sparse step: an auxiliary loss for dead features."""

    k_aux: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="dead features per input in the auxiliary loss (default: half the width)",
    )
    aux_coefficient: float = Field(1 / 32, ge=0, le=10, description="weight alpha of the auxiliary loss")

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        """Not more dead features than there are features."""
        yield from super().findings(sections)
        if self.k_aux is not None and self.k_aux > self.features:
            yield Finding(
                "k_aux", f"{self.k_aux} features of {self.features}: k_aux must not exceed features"
            )


class TopK(SparseSection):
    """``[sae] kind = "topk"``: exactly (at most) k active features for every input."""

    kind: Literal["topk"] = Field(description="k largest pre-activations, auxiliary loss for dead features")

    def learner(
        self, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> TopKLearner:
        """A tied, unit-norm dictionary whose encoder length fits the first batch ``sample`` (n, d)."""
        return TopKLearner(self, generator, sample, ranks)


class TopKLearner:
    """A TopK dictionary in training.

    ``choose`` selects the active features, ``sizes`` are those of the nested dictionaries whose losses are averaged.
    """

    def __init__(
        self,
        record: SparseSection,
        generator: np.random.Generator,
        sample: np.ndarray,
        ranks: Ranks = ALONE,
        choose: Choice | None = None,
        sizes: Sequence[int] = (),
    ) -> None:
        self.k, self.ranks, width, xp = record.k, ranks, sample.shape[1], namespace(sample)
        own = ranks.share(record.features)
        decoder = xp.asarray(unit_rows(generator, own.stop, width, own.start))
        self.parameters = Parameters(
            decoder * best_length(decoder, record.k, sample, ranks),
            decoder,
            xp.zeros(len(decoder), np.float32),
            xp.zeros(width, np.float32),
        )
        k_aux = record.k_aux or max(1, round(width / 2))
        groups = groups_of(sizes or (record.features,), own)
        self.sparse_step = _step_for(sample)(
            self.parameters, record.k, k_aux, record.aux_coefficient, ranks, choose or best_of_row, groups
        )

    def step(
        self, x: np.ndarray, progress: float, dead: np.ndarray, adam: Adam, learning_rate: float
    ) -> tuple[float, np.ndarray]:
        """See ``training.Learner``."""
        return self.sparse_step(x, progress, dead, adam, learning_rate)

    def finished(self, batches: Iterable[np.ndarray] = ()) -> Parameters:
        """See ``training.Learner``."""
        return self.parameters


def groups_of(sizes: Sequence[int], own: slice) -> list[slice]:
    """What each dictionary of ``sizes``, ascending, adds to the one before, as places among a rank's ``own`` features."""
    edges = [min(max(edge - own.start, 0), own.stop - own.start) for edge in (0, *sizes)]
    return [slice(*pair) for pair in pairwise(edges)]


def within(indices: np.ndarray, group: slice, n_features: int) -> np.ndarray:
    """``indices`` with empty places (-1) for all that are not in the ``group`` of ``n_features`` features."""
    if group == slice(0, n_features):
        return indices
    inside = (indices >= group.start) & (indices < group.stop)
    return namespace(indices).where(inside, indices, np.int32(-1))


def best_of_row(
    encode: Callable[[int], tuple[np.ndarray, np.ndarray]], k: int, n_features: int, ranks: Ranks
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of every input: ``encode(k)`` has those of this rank's ``n_features``."""
    return best_over_ranks(*encode(min(k, n_features)), k, ranks)


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

    With several ``groups`` of features the first term is the mean over the nested dictionaries that end with each. They are
    decoded one after the other, each from the error of the one before: a group learns from the sum of the errors from its own
    on, and all of them together cost what one does, apart from n d numbers a group (``matryoshka.py``).
    """

    def __init__(
        self,
        parameters: Parameters,
        k: int,
        k_aux: int,
        aux_coefficient: float,
        ranks: Ranks = ALONE,
        choose: Choice = best_of_row,
        groups: Sequence[slice] | None = None,
    ) -> None:
        from .encode import Scratch

        self.parameters, self.k, self.k_aux = parameters, k, k_aux
        self.aux_coefficient, self.ranks, self.scratch = aux_coefficient, ranks, Scratch()
        self.choose, self.groups = choose, groups or [slice(0, len(parameters.encoder))]

    def __call__(
        self, x: np.ndarray, progress: float, dead: np.ndarray, adam: Adam, learning_rate: float
    ) -> tuple[float, np.ndarray]:
        """See ``training.Learner``."""
        from .kernels import Term, learn, sort_by_feature

        p, ranks, n_features = self.parameters, self.ranks, len(self.parameters.encoder)
        values, indices = self.choose(lambda k: self._encode(x, k), self.k, n_features, ranks)
        active = sort_by_feature(values, indices, n_features, self.scratch)
        counts = np.diff(active.start)
        errors, total, losses = self._errors(x, values, indices)
        error, size = errors[-1], max(x.size, 1)
        loss, auxiliary = sum(losses) / len(losses), Term(error, 0.0, self._nothing())
        variance = losses[-1] - float(np.mean((total[-1] / max(len(x), 1)) ** 2))
        n_dead = int(ranks.sum(np.asarray([np.count_nonzero(dead)]))[0])
        if n_dead and variance > 0 and self.aux_coefficient > 0:
            extra, auxiliary = self._auxiliary(x, error, dead, n_dead, self.aux_coefficient / variance)
            loss += extra
        if np.isfinite(loss):
            weight = -2 / size / len(losses)
            for later, earlier in pairwise(errors[::-1]):
                earlier += later
            groups = [
                (group, [Term(target, weight, active), auxiliary])
                for group, target in zip(self.groups, errors, strict=True)
            ]
            arrays, moments = list(vars(p).values()), list(adam.moments.values())
            constants = adam.next(learning_rate)
            learn(x, groups, weight * sum(total), arrays, moments, constants, unit=True, ranks=ranks)
        return loss, counts

    def _encode(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best positive pre-activations of every input."""
        from .kernels import encode_topk

        p = self.parameters
        return encode_topk(x, p.encoder, p.encoder_bias, p.decoder_bias, k, scratch=self.scratch)

    def _errors(
        self, x: np.ndarray, values: np.ndarray, indices: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
        """For every nested dictionary: its error (n, d), the sum of the rows of that, and the loss per component."""
        errors: list[np.ndarray] = []
        totals, losses, target, bias = [], [], x, self.parameters.decoder_bias
        for group in self.groups:
            inside, name = within(indices, group, len(self.parameters.encoder)), f"error {len(errors)}"
            target, squared, total = self._rest(target, bias, values, inside, name)
            errors, bias = [*errors, target], np.zeros_like(bias)
            totals.append(total)
            losses.append(float(squared.sum()) / max(x.size, 1))
        return errors, totals, losses

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
