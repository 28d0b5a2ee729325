"""Seconds of log psi against the number of tokens, for every kind of attention: a table.

    OPENBLAS_NUM_THREADS=1 python benchmarks/attention.py          # 16 ... 1024 tokens; some seconds
    OPENBLAS_NUM_THREADS=1 python benchmarks/attention.py --largest 256
    python benchmarks/attention.py --device gpu

A ring with one spin per token, a transformer of width 32 with 4 heads and one block, float32: one pass of the bricks, and in a
second table one of the fused twins on the CPU. Per configuration, the median of several passes over 8, over 64 by the twins,
whose first block is tabulated where it can be, and over 128 on a GPU; kinds in turns. The exponent is the slope of log time
against log tokens, fitted to the largest four numbers of tokens. A kind crosses softmax attention where the straight lines
between measured points (of logarithms) do.
Results: ``benchmarks/results/attention.md``, ``attention-gpu.md``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from contest import machine

from nqs_sae_service.engine.arrays import to_host
from nqs_sae_service.engine.devices import HOST, Device, choose_device
from nqs_sae_service.engine.threads import configure_threads
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.states import Transformer, Wavefunction

RESULTS = Path(__file__).parent / "results"
KINDS: dict[str, Any] = {
    "full": "full",
    "positional": "positional",
    "kernel": "kernel",
    "delta": "delta",
    "full + 3 kernel": ("full", "kernel", "kernel", "kernel"),
}
WIDTH, HEADS, REPETITIONS = 32, 4, 7
ROWS, FUSED_ROWS, DEVICE_ROWS = 8, 64, 128


def network(kind: str, tokens: int, plain: bool, device: Device = HOST) -> Wavefunction:
    """A network of one block with random parameters, by the ``plain`` bricks or its fused twin."""
    record = Transformer(patch=1, width=WIDTH, heads=HEADS, layers=1, attention=KINDS[kind])
    state = record.build(Chain(kind="chain", length=tokens).build())
    return Wavefunction(state, device.put(state.initial_parameters(1)), plain=plain)


def measure(
    sizes: Sequence[int], plain: bool = True, repetitions: int = REPETITIONS, device: Device = HOST
) -> dict[str, list[float]]:
    """Seconds for a configuration, by kind, one for each number of tokens."""
    rows = DEVICE_ROWS if device.kind == "gpu" else ROWS if plain else FUSED_ROWS
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for tokens in sizes:
        sigma = device.put(np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (rows, tokens)))
        networks = {kind: network(kind, tokens, plain, device) for kind in KINDS}
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(repetitions + 1):  # the first one warms up
            for kind, psi in networks.items():
                start = time.perf_counter()
                to_host(psi.log_psi(sigma))
                if turn:
                    taken[kind].append((time.perf_counter() - start) / rows)
        for kind, seconds in taken.items():
            found[kind].append(statistics.median(seconds))
    return found


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of log time against log size, fitted to the largest four sizes."""
    return float(np.polyfit(np.log(sizes[-4:]), np.log(seconds[-4:]), 1)[0])


def crossing(sizes: Sequence[int], seconds: Sequence[float], other: Sequence[float]) -> float | None:
    """The size from which on ``seconds`` are fewer than ``other``; None if they are not at the largest one."""
    gap = [math.log(a / b) for a, b in zip(seconds, other, strict=True)]
    if gap[-1] >= 0:
        return None
    last = max((i for i, g in enumerate(gap) if g >= 0), default=None)
    if last is None:
        return float(sizes[0])
    share = gap[last] / (gap[last] - gap[last + 1])
    return sizes[last] * (sizes[last + 1] / sizes[last]) ** share


def table(sizes: Sequence[int], found: Mapping[str, Sequence[float]]) -> str:
    """Milliseconds, exponents and crossings as Markdown."""
    lines = [
        f"| attention | {' | '.join(map(str, sizes))} | exponent | faster than full from |",
        "|---" * (len(sizes) + 3) + "|",
    ]
    for kind, seconds in found.items():
        place = crossing(sizes, seconds, found["full"]) if kind != "full" else None
        told = "" if kind == "full" else "not here" if place is None else f"{place:.0f} tokens"
        times = " | ".join(f"{1e3 * s:.3g}" for s in seconds)
        lines.append(f"| {kind} | {times} | {exponent(sizes, seconds):.2f} | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--largest", type=int, default=1024, help="tokens")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    sizes = [n for n in (16, 32, 64, 128, 256, 512, 1024) if n <= options.largest]
    device = choose_device(options.device)
    on_gpu = device.kind == "gpu"
    if not on_gpu:
        configure_threads(1)
    where = device.name if on_gpu else f"{machine()['cpu']}, one core"
    text = (
        f"# What attention costs\n\n{date.today()}; {where}. Written by `benchmarks/attention.py`, which "
        f"says what is held fixed: width {WIDTH}, {HEADS} heads, one block, float32. Milliseconds for log psi of a "
        f"configuration against the number of tokens.\n\nThe plain bricks:\n\n"
        f"{table(sizes, measure(sizes, device=device))}\n"
    )
    if not on_gpu:
        text += f"\nThe fused twins:\n\n{table(sizes, measure(sizes, plain=False))}\n"
    (options.results / f"attention{'-gpu' if on_gpu else ''}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
