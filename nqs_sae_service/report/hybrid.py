"""What full attention heads buy: how well a network learned its teacher, and a sweep over which heads are full."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from pydantic import ValidationError

from .numbers import NOTHING, number, with_error
from .records import Kind, Section, Table, Verdict
from .values import attribute, finite

if TYPE_CHECKING:
    from .reading import Point

LEARNED, TITLE = "Learned from a teacher", "What do full heads buy?"
LEVEL = 0.05  # a difference less likely than this by chance, Student's t of the two sets of seeds, is told
RIVALS = ("random", "fixed", "layers")  # what ranked heads are held against
TOLD = {-1: "is lower than", 0: "cannot be told from", 1: "is higher than"}
STEPS = {
    "parameters taken over": "infidelity_taken_over",
    "heads matched": "infidelity_matched",
    "infidelity minimised": "final_infidelity",
}
NETWORKS = {
    "full": "share of the heads that are full",
    "energy": "total, in J: mean over seeds; its error from their scatter, not below what sampling alone gives",
    "V-score": "N Var(H) / E^2, geometric mean over seeds; 0 for an eigenstate",
    "s/step": "median of a step of the training on energy",
    "infidelity": "to the teacher, before the training on energy",
}


@dataclass(frozen=True)
class Network:
    """Points that differ in seeds alone. ``energies``, ``errors`` and ``scores`` (seed,)."""

    attention: str
    full: float
    energies: np.ndarray
    errors: np.ndarray
    scores: np.ndarray
    seconds: float
    infidelity: float

    @property
    def energy(self) -> tuple[float, float]:
        """Mean over seeds and its standard error: from the scatter of the seeds, not below what their sampling alone gives.

        A few seeds can agree by chance better than their own errors allow.
        """
        many = len(self.energies)
        sampling = math.sqrt(np.square(self.errors).sum()) / many
        scatter = float(self.energies.std(ddof=1)) / math.sqrt(many) if many > 1 else 0.0
        return float(self.energies.mean()), max(sampling, scatter)

    @property
    def log_score(self) -> tuple[float, float]:
        """Mean logarithm of the V-scores over seeds and its standard error, infinite with a single seed."""
        logs = np.log(np.where(self.scores > 0, self.scores, math.nan))
        error = logs.std(ddof=1) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
        return float(logs.mean()), float(error)


def learned_section(dataset: xr.Dataset) -> Section | None:
    """What transfer.nc says of a run; None without it."""
    found = {name: attribute(dataset, key) for name, key in STEPS.items()}
    if all(math.isnan(value) for value in found.values()):
        return None
    samples = number(attribute(dataset, "infidelity_samples"))
    told = ", ".join(f"{number(value, 2)} with {name}" for name, value in found.items())
    text = f"Infidelity to the teacher, on {samples} samples of the network: {told}; then it was trained on energy."
    return Section(LEARNED, [Verdict("note", text)], [])


def networks(points: Sequence[Point]) -> list[Network]:
    """The transformers of a sweep by which heads are full; empty unless they differ in that."""
    groups: dict[tuple[str, float], list[tuple[xr.Dataset, xr.Dataset]]] = {}
    for point in points:
        stages = point.run.stages
        ground_state = stages.get("ground_state", xr.Dataset())
        word = point.coordinates.get("state.attention")
        if word is None or math.isnan(attribute(ground_state, "final_energy")):
            continue
        full = _share(ground_state)
        if not math.isnan(full):
            found = (ground_state, stages.get("transfer", xr.Dataset()))
            groups.setdefault((str(word), full), []).append(found)
    if len({word for word, _ in groups}) < 2:
        return []
    return [_network(word, full, found) for (word, full), found in groups.items()]


def _network(word: str, full: float, found: Sequence[tuple[xr.Dataset, xr.Dataset]]) -> Network:
    def of(index: int, name: str) -> np.ndarray:
        return np.asarray([attribute(pair[index], name) for pair in found])

    seconds = np.concatenate([finite(pair[0].get("step_seconds")) for pair in found])
    infidelity = finite(of(1, "final_infidelity"))
    return Network(
        word,
        full,
        of(0, "final_energy"),
        of(0, "final_energy_error"),
        of(0, "v_score"),
        float(np.median(seconds)) if seconds.size else math.nan,
        float(infidelity.mean()) if infidelity.size else math.nan,
    )


def _share(dataset: xr.Dataset) -> float:
    """Share of full heads of the network of a ground state; NaN where it is no transformer, or not said."""
    from ..states import Transformer

    try:
        state: Any = json.loads(dataset.attrs["sections"])["state"]
        record = Transformer.model_validate_json(json.dumps(state))
        kinds = [kind for layer in record.head_kinds() for kind in layer]
    except (KeyError, TypeError, ValueError, ValidationError):
        return math.nan
    return kinds.count("full") / len(kinds)


def hybrid_section(points: Sequence[Point]) -> Section | None:
    """The trade-off of a sweep; None where its points do not differ in their heads."""
    found = networks(points)
    return Section(TITLE, list(_verdicts(found)), [_table(found)], ("hybrid",)) if found else None


def _verdicts(found: Sequence[Network]) -> Iterator[Verdict]:
    """Ranked heads against every rival, by mean energies and V-scores; one seed each decides nothing."""
    by_word: Mapping[str, Network] = {network.attention: network for network in found}
    ranked = by_word.get("ranked")
    if ranked is None:
        return
    for rival in (by_word[word] for word in RIVALS if word in by_word):
        half_width = _half_width(ranked, rival)
        energy, error = _gap(ranked.energy, rival.energy)
        score, spread = _gap(ranked.log_score, rival.log_score)
        by_energy, by_score = _sign(energy, half_width * error), _sign(score, half_width * spread)
        signs = {by_energy, by_score} - {0}
        kind: Kind = "open" if len(signs) != 1 else "good" if signs == {-1} else "bad"
        seeds = min(len(ranked.energies), len(rival.energies))
        reach = half_width * spread
        ratio, low, high = (number(_factor(x), 2) for x in (score, score - reach, score + reach))
        interval = f" [{low}, {high}] (95 %)" if math.isfinite(reach) else ""
        text = (
            f"With {ranked.full:.3g} of the heads full, chosen by the ranking, the energy {TOLD[by_energy]} that of "
            f"{rival.attention} ({rival.full:.3g} full): difference {with_error(energy, error)} J over {seeds} "
            f"seed{'s' * (seeds > 1)}. The V-score {TOLD[by_score]} theirs: {ratio} of it{interval}."
        )
        yield Verdict(kind, text)


def _half_width(one: Network, other: Network) -> float:
    """Half of a 95 % interval in standard errors; infinite with one seed each."""
    from scipy.stats import t

    freedom = len(one.energies) + len(other.energies) - 2
    return float(t.isf(LEVEL / 2, freedom)) if freedom else math.inf


def _gap(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The difference of two values with standard errors, and its own."""
    return one[0] - other[0], math.hypot(one[1], other[1])


def _factor(logarithm: float) -> float:
    """exp of it, within what a float holds."""
    return math.exp(min(logarithm, 700.0))


def _sign(gap: float, half_width: float) -> int:
    """-1 or 1 where the interval leaves zero out, else 0."""
    return int(np.sign(gap)) if 0 < half_width < abs(gap) else 0


def _table(found: Sequence[Network]) -> Table:
    rows = [
        (
            network.attention,
            f"{network.full:.3g}",
            str(len(network.energies)),
            with_error(*network.energy),
            number(_factor(network.log_score[0]), 2),
            number(network.seconds, 2),
            number(network.infidelity, 2) if math.isfinite(network.infidelity) else NOTHING,
        )
        for network in found
    ]
    columns = ("attention", "full", "seeds", "energy", "V-score", "s/step", "infidelity")
    return Table("Networks by which heads are full", columns, rows, definitions=NETWORKS)
