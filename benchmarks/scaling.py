"""How the cost of this project grows with sites, samples, width, dictionary size and threads: a table and a figure.

    python benchmarks/scaling.py

Every point is the median of several steps after a warm-up, in one process. One quantity varies at a time around a 24-site
critical TFIM ring (transformer of width 32, 4 heads, 2 layers, positional attention; 512 chains and samples) and a TopK
dictionary with d 64, F 4096, k 16 on batches of 4096. The exponent is the slope of log time against log size between the two
largest points. Results: ``benchmarks/results/scaling.json``, ``scaling.md`` and ``scaling.png``.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from contest import OURS, RESULTS, Turnstile, machine, spread, take_turns, write_results
from peers.protocol import Contender

Json = dict[str, Any]

_NETWORK = {
    "kind": "transformer",
    "patch": 4,
    "width": 32,
    "heads": 4,
    "layers": 2,
    "attention": "positional",
    "amplitude": "complex",
}
_VMC = {
    "kind": "vmc",
    "lattice": {"kind": "chain", "length": 24},
    "hamiltonian": {"kind": "tfim", "h": 1.0},
    "sampling": {"chains": 512, "burn_in": 1, "global_flip": 0, "stretch_flip": 0},
    "samples": 512,
    "seed": 1,
    "network": _NETWORK,
    "ground_state": {"learning_rate": 0.01},
}
_SAE = {"kind": "sae", "seed": 1, "batch": 4096, "width": 64, "features": 4096, "k": 16}
_REPETITIONS = 3


@dataclass(frozen=True)
class Series:
    """One quantity that varies: its values, the work at a value, and what is timed."""

    title: str
    label: str
    values: tuple[int, ...]
    work: Callable[[int], Json]
    do: tuple[str, ...] = ("step", "sampling", "local_energy")


def _threads() -> tuple[int, ...]:
    """1, 2, 4, ... up to all cores."""
    cores = len(os.sched_getaffinity(0))
    return tuple(sorted({2**p for p in range(cores.bit_length()) if 2**p <= cores} | {cores}))


SERIES = (
    Series(
        "VMC step against sites",
        "sites N",
        (16, 32, 64, 128),
        lambda n: {**_VMC, "lattice": {**_VMC["lattice"], "length": n}},
    ),
    Series(
        "VMC step against samples",
        "samples, one per chain",
        (256, 512, 1024, 2048),
        lambda n: {**_VMC, "sampling": {**_VMC["sampling"], "chains": n}, "samples": n},
    ),
    Series(
        "VMC step against width",
        "width d",
        (16, 32, 64, 128),
        lambda d: {**_VMC, "network": {**_NETWORK, "width": d}},
    ),
    Series("VMC step against threads", "threads", _threads(), lambda _: _VMC),
    Series(
        "SAE step against features",
        "features F",
        (1024, 4096, 16384, 65536),
        lambda f: {**_SAE, "features": f},
        ("step",),
    ),
    Series("SAE step against width", "width d", (16, 64, 256), lambda d: {**_SAE, "width": d}, ("step",)),
    Series("SAE step against threads", "threads", _threads(), lambda _: _SAE, ("step",)),
)


def measure(series: Series, turnstile: Turnstile) -> Json:
    """Medians of every point of a series: {what: [seconds at each value]}."""
    seconds: dict[str, list[float]] = {what: [] for what in series.do}
    for value in series.values:
        with _contender(series, value) as ours:
            calls = {what: lambda what=what: ours.seconds(what) for what in series.do}
            take_turns(calls, 1, turnstile)
            for what, times in take_turns(calls, _REPETITIONS, turnstile).items():
                seconds[what].append(spread(times)["median"])
    return {"title": series.title, "label": series.label, "values": list(series.values), "seconds": seconds}


@contextmanager
def _contender(series: Series, value: int) -> Iterator[Contender]:
    """A process with the work of one point built."""
    with OURS.start() as ours:
        ours.ask("build", work=series.work(value), threads=value if series.label == "threads" else 0)
        yield ours


def exponent(values: list[int], seconds: list[float]) -> float:
    """Slope of log seconds against log value between the two largest values; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return math.log(seconds[-1] / seconds[-2]) / math.log(values[-1] / values[-2])


def markdown(results: Json) -> str:
    """The series as tables."""
    computer = results["machine"]
    lines = [
        "# How the cost grows",
        "",
        f"{computer['cpu']}, {computer['threads']} threads, Python {computer['python']}, {results['date']}. "
        "Written by `benchmarks/scaling.py`, which says what is held fixed. Milliseconds.",
    ]
    for s in results["series"]:
        lines += ["", f"**{s['title']}**", ""]
        lines.append(f"| {s['label']} | {' | '.join(map(str, s['values']))} | exponent |")
        lines.append("|---" * (len(s["values"]) + 2) + "|")
        for what, seconds in s["seconds"].items():
            cells = " | ".join(f"{1e3 * t:.3g}" if t < 1 else f"{1e3 * t:.0f}" for t in seconds)
            lines.append(f"| {what.replace('_', ' ')} | {cells} | {exponent(s['values'], seconds):.2f} |")
    return "\n".join(lines) + "\n"


def draw(results: Json, path: Path) -> None:
    """The series as log-log curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 4
    rows = -(-len(results["series"]) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    for axis in axes.flat[len(results["series"]) :]:
        axis.remove()
    for axis, s in zip(axes.flat, results["series"], strict=False):
        for what, seconds in s["seconds"].items():
            axis.plot(s["values"], seconds, "o-", markersize=4, label=what.replace("_", " "))
        axis.set(xscale="log", yscale="log", xlabel=s["label"], ylabel="seconds", title=s["title"])
        axis.title.set_fontsize(9)
        times = [t for seconds in s["seconds"].values() for t in seconds]
        axis.set_ylim(10 ** math.floor(math.log10(min(times))), 10 ** math.ceil(math.log10(max(times))))
        axis.set_xticks(s["values"], [str(v) for v in s["values"]])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--lock", type=Path, help="lock this file while measuring (machines shared by several)"
    )
    turnstile = Turnstile(parser.parse_args().lock)
    results: Json = {"machine": machine(), "date": date.today().isoformat(), "series": []}
    for series in SERIES:
        results["series"].append(measure(series, turnstile))
        print(f"{series.title}: done", flush=True)
    turnstile.release()
    write_results(RESULTS / "scaling.json", results)
    (RESULTS / "scaling.md").write_text(markdown(results))
    draw(results, RESULTS / "scaling.png")


if __name__ == "__main__":
    main()
