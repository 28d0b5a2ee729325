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
LEVEL = 0.05  # a difference of energies less likely than this by chance, Student's t of the two sets of seeds, is told
RIVALS = ("random", "fixed", "layers")  # what ranked heads are held against
STEPS = {
    "parameters taken over": "infidelity_taken_over",
    "heads matched": "infidelity_matched",
    "infidelity minimised": "final_infidelity",
}
NETWORKS = {
    "full": "share of the heads that are full",
    "energy": "total, in J: mean over seeds; its error from their scatter, not below what sampling alone gives",
    "V-score": "N Var(H) / E^2, mean over seeds; 0 for an eigenstate",
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
    """Ranked heads against every rival, by the difference of mean energies; one seed each decides nothing."""
    from scipy.stats import t

    by_word: Mapping[str, Network] = {network.attention: network for network in found}
    ranked = by_word.get("ranked")
    if ranked is None:
        return
    for rival in (by_word[word] for word in RIVALS if word in by_word):
        (own, own_error), (other, other_error) = ranked.energy, rival.energy
        gap, error = own - other, math.hypot(own_error, other_error)
        freedom = len(ranked.energies) + len(rival.energies) - 2
        clear = freedom > 0 and error > 0 and 2 * t.sf(abs(gap) / error, freedom) < LEVEL
        kind: Kind = "open" if not clear else "good" if gap < 0 else "bad"
        told = "cannot be told from" if not clear else "is lower than" if gap < 0 else "is higher than"
        seeds = min(len(ranked.energies), len(rival.energies))
        text = (
            f"With {ranked.full:.3g} of the heads full, chosen by the ranking, the energy {told} that of {rival.attention} "
            f"({rival.full:.3g} full): difference {with_error(gap, error)} J over {seeds} seed{'s' * (seeds > 1)}."
        )
        yield Verdict(kind, text)


def _table(found: Sequence[Network]) -> Table:
    rows = [
        (
            network.attention,
            f"{network.full:.3g}",
            str(len(network.energies)),
            with_error(*network.energy),
            number(float(np.mean(network.scores)), 2),
            number(network.seconds, 2),
            number(network.infidelity, 2) if math.isfinite(network.infidelity) else NOTHING,
        )
        for network in found
    ]
    columns = ("attention", "full", "seeds", "energy", "V-score", "s/step", "infidelity")
    return Table("Networks by which heads are full", columns, rows, definitions=NETWORKS)
