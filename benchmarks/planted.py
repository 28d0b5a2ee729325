"""Which dictionaries find planted features: ``python benchmarks/planted.py [STEPS]``; minutes on one core.

Every kind gets the same data (``sae.planted``), twice as many features as there are true ones and, as its k, the rounded true
number of active ones. A kind with a penalty instead is trained with two of them; nothing else is tuned. Scores are
those of inputs that training never saw. Results: ``benchmarks/results/planted.md``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nqs_sae_service.engine.threads import configure_threads
from nqs_sae_service.sae import KINDS
from nqs_sae_service.sae.inputs import Held
from nqs_sae_service.sae.metrics import explained_variance, l0
from nqs_sae_service.sae.planted import REGIMES, Planted, Regime, planted, score

RESULT = Path(__file__).resolve().parent / "results" / "planted.md"
TRAINING, TEST, STEPS, BATCH = 16384, 4096, 800, 512
PENALTIES = {
    "relu-l1": [{"l1": 3.0}, {"l1": 5.0}],
    "gated": [{"l1": 4.0}, {"l1": 8.0}],
    "jumprelu": [{"l0": 2.0}, {"l0": 4.0}],
}
HEAD = "| kind | set | MCC | F1 | explained variance | active |\n|---|---|---|---|---|---|\n"


def rows(kind: str, regime: Regime, steps: int) -> Iterator[str]:
    """The lines of a kind in the table of a regime."""
    data = planted(regime, TRAINING + TEST, 0)
    truth, test = data.part(slice(0, TRAINING)), data.part(slice(TRAINING, None))
    for fields in PENALTIES.get(kind, [{"k": max(1, round(active(truth)))}]):
        record = KINDS[kind](
            kind=kind, features=2 * regime.features, steps=steps, batch=BATCH, dead_after=20 * BATCH, **fields
        )
        dictionary, _ = record.train(truth.x, 1, lambda done, total, message: None)
        mcc, f1 = score(dictionary, test)
        variance = explained_variance(Held(test.x), dictionary.reconstruct)
        [what] = (f"{name} = {value:g}" for name, value in fields.items())
        yield f"| {kind} | {what} | {mcc:.3f} | {f1:.3f} | {variance:.3f} | {l0(dictionary, Held(test.x)):.2f} |"


def active(truth: Planted) -> float:
    """True features per input."""
    return float((truth.features > 0).sum(axis=1).mean())


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
        head = f"\n## {name}: {active(planted(regime, TRAINING, 0)):.2f} true features active\n\n{HEAD}"
        print(head, end="", flush=True)
        text += head
        for kind in KINDS:
            for line in rows(kind, regime, steps):
                print(line, flush=True)
                text += line + "\n"
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
