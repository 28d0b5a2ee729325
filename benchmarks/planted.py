"""Which dictionaries find planted features: ``python benchmarks/planted.py [STEPS]``; minutes on one core.

Every kind gets the same data (``sae.planted``), twice as many features as there are true ones and, as its k, the rounded true
number of active ones. A kind with a penalty instead is trained with each of three, and the one counts whose number of active
features on the training data is nearest to the true one; nothing else is tuned. Scores are those of inputs that
training never saw. Results: ``benchmarks/results/planted.md``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nqs_sae_service.engine.threads import configure_threads
from nqs_sae_service.sae import KINDS
from nqs_sae_service.sae.dictionary import Dictionary
from nqs_sae_service.sae.inputs import Held
from nqs_sae_service.sae.metrics import explained_variance, l0
from nqs_sae_service.sae.planted import REGIMES, Planted, Regime, planted, score

RESULT = Path(__file__).resolve().parent / "results" / "planted.md"
TRAINING, TEST, STEPS, BATCH = 16384, 4096, 800, 512
PENALTIES = {
    "relu-l1": [{"l1": l1} for l1 in (4.0, 6.0, 8.0)],
    "gated": [{"l1": l1} for l1 in (2.0, 4.0, 8.0)],
    "jumprelu": [{"l0": l0} for l0 in (0.5, 1.0, 2.0)],
}
HEAD = "| kind | MCC | F1 | explained variance | active | |\n|---|---|---|---|---|---|\n"


def candidates(kind: str, regime: Regime, truth: Planted, steps: int) -> Iterator[tuple[Dictionary, str]]:
    """A dictionary for every penalty of a kind, or the only one, and what was set."""
    k = max(1, round(float((truth.features > 0).sum(axis=1).mean())))
    choices = PENALTIES.get(kind, [{"k": k}])
    for choice in choices:
        record = KINDS[kind](
            kind=kind, features=2 * regime.features, steps=steps, batch=BATCH, dead_after=20 * BATCH, **choice
        )
        dictionary, _ = record.train(truth.x, 1, lambda done, total, message: None)
        yield dictionary, ", ".join(f"{name} = {value:g}" for name, value in choice.items())


def row(kind: str, regime: Regime, steps: int) -> str:
    """A line of the table of a regime."""
    data = planted(regime, TRAINING + TEST, 0)
    truth, test = data.part(slice(0, TRAINING)), data.part(slice(TRAINING, None))
    wanted = float((truth.features > 0).sum(axis=1).mean())
    found = [(d, l0(d, Held(truth.x)), what) for d, what in candidates(kind, regime, truth, steps)]
    dictionary, _, what = min(found, key=lambda one: abs(np.log(max(one[1], 1e-9) / wanted)))
    mcc, f1 = score(dictionary, test)
    variance = explained_variance(Held(test.x), dictionary.reconstruct)
    active = l0(dictionary, Held(test.x))
    return f"| {kind} | {mcc:.3f} | {f1:.3f} | {variance:.3f} | {active:.2f} | {what} |"


def main() -> None:
    """Print the tables and write them."""
    configure_threads(1)
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    usual = Regime()
    text = (
        "# Planted features\n\n"
        f"{time.strftime('%Y-%m-%d')}; `python benchmarks/planted.py {steps}`, one core. {usual.features} true features in "
        f"width {usual.width}, dictionaries of {2 * usual.features}, {steps} steps of {BATCH} out of {TRAINING} inputs, one "
        "seed. MCC: mean cosine of the true\ndirections with their matched decoder rows; F1: of firing, mean over the true "
        "features; on inputs that training never saw.\n"
    )
    for name, regime in REGIMES.items():
        truth = planted(regime, TEST, 0)
        head = f"\n## {name}: {(truth.features > 0).sum(axis=1).mean():.2f} true features active\n\n{HEAD}"
        print(head, end="", flush=True)
        text += head
        for kind in KINDS:
            line = row(kind, regime, steps)
            print(line, flush=True)
            text += line + "\n"
    RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
