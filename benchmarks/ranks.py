"""A step of VMC by 1, 2, ... processes of one core each: time by phases, and what goes through the network, counted.

    python benchmarks/ranks.py                           # 1 and 2 processes on two cores
    python benchmarks/ranks.py --ranks 1,2,4 --samples 4096

TFIM ring of 40 sites, transformer of width 32 (4 heads, 2 layers, positional attention, complex), float32. The numbers of
processes take turns; each time they start anew, warm up, and repeat every phase. A phase begins when all ranks are there and
ends when the slowest is done; medians over all repetitions. Bytes are those that a rank receives from others in the operations
of ``engine.ranks.Ranks``, the largest over the ranks, beside what the formulas of ``expected_bytes`` say. Results:
``benchmarks/results/ranks.json`` and ``ranks.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
PHASES = ("sampling", "local energies", "derivatives", "T", "solve", "update")


def counting(ranks: Any) -> Any:
    """The ranks, with ``received``: bytes that this rank got from others."""
    if ranks.size == 1:
        return ranks

    class Counting(type(ranks)):
        received = 0.0

        def _count(self, array: Any, share: float = 1.0) -> Any:
            type(self).received += share * array.nbytes
            return array

        def gather(self, rows: Any) -> Any:
            whole = super().gather(rows)
            self._count(rows, -1.0)
            return self._count(whole)

        def exchange(self, parts: Any) -> Any:
            got = super().exchange(parts)
            for rank, part in enumerate(got):
                self._count(part, float(rank != self.rank))
            return got

        def spread(self, array: Any, source: int) -> Any:
            return self._count(super().spread(array, source), float(source != self.rank))

    return Counting()


def expected_bytes(shape: dict[str, float], ranks: int) -> dict[str, float]:
    """Bytes that a rank receives in the phases of a step, by formula.

    n samples, m rows of T (2n with a phase), p parameters, c columns of O in T (fewer than p where inputs span few dimensions),
    a sum of s bytes being passed around in 2 s (1 - 1/P).
    """
    n, m, p, c = (shape[name] for name in ("samples", "rows", "parameters", "columns"))
    others = 1 - 1 / ranks
    return {
        "sampling": 0.0,
        "local energies": 16 * n * others,
        "derivatives": 0.0,  # but for the sums of the narrow columns
        "T": (4 * m * c / ranks + 4 * m**2 + 16 * c * m / n) * others,
        "solve": (4 * m**2 + 16 * m) * others,
        "update": (16 * p + 24 * m + 16 * n) * others,
    }


def measure(sites: int, samples: int, repetitions: int) -> dict[str, Any]:
    """Seconds of every phase, repetition by repetition, and the bytes of each; run by every rank."""
    from nqs_sae_service.engine.panels import Panels
    from nqs_sae_service.engine.ranks import ALONE, MpiRanks
    from nqs_sae_service.engine.threads import configure_threads, cores
    from nqs_sae_service.physics.hamiltonians.tfim import Tfim
    from nqs_sae_service.physics.lattices import Chain
    from nqs_sae_service.spec.sampling import Sampling
    from nqs_sae_service.spec.sections import GroundState
    from nqs_sae_service.states import Transformer
    from nqs_sae_service.vmc.estimators import local_values
    from nqs_sae_service.vmc.jacobian import COLUMNS, TapeJacobian
    from nqs_sae_service.vmc.reconfiguration import solve_shifted
    from nqs_sae_service.vmc.training import Trainer

    ranks = counting(MpiRanks() if "PMI_SIZE" in os.environ else ALONE)
    os.sched_setaffinity(0, {sorted(cores())[ranks.rank]})
    configure_threads(1)
    lattice = Chain(kind="chain", length=sites).build()
    network = Transformer(patch=4, width=32, heads=4, layers=2, attention="positional", amplitude="complex")
    options = GroundState(steps=1000, samples=samples, learning_rate=0.01)
    trainer = Trainer(
        network.build(lattice),
        lattice,
        Tfim(kind="tfim", h=1.0).build(lattice),
        Sampling(chains=samples, burn_in=1),
        options,
        ranks=ranks,
    )
    training = trainer.start()
    trainer.advance(training)
    psi = trainer.state.bind(training.parameters)
    chains = trainer.process.start(psi, training.sigma, training.sweeps, trainer.share.start)
    made: dict[str, Any] = {}

    def local_energies() -> None:
        (values,) = local_values(psi, [trainer.hamiltonian], chains.sigma, chains.log_psi)
        made["energies"] = ranks.gather(values)

    def derivatives() -> None:
        made["jacobian"] = TapeJacobian(psi, chains.sigma, ranks)

    def matrix() -> None:
        jacobian = made["jacobian"]
        made["panels"] = panels = Panels(ranks, 2 * samples)
        if ranks.size == 1:
            made["T"], _ = jacobian.gram_and_product(training.previous)
        else:
            made["T"] = jacobian.gram_panels(panels)

    def solve() -> None:
        right = ranks.gather(np.ones(2 * len(chains.sigma)))
        if ranks.size == 1:
            made["y"] = solve_shifted(made["T"], 0.1, right)
        else:
            made["y"] = made["panels"].solve(made["T"], 0.1, right)

    def update() -> None:
        jacobian = made["jacobian"]
        ranks.gather(jacobian.product(training.previous))
        jacobian.transposed_product(np.ones(2 * len(chains.sigma)))
        ranks.gather(made["energies"][: len(chains.sigma)])
        ranks.gather(np.ones(2 * len(chains.sigma)))

    phases: dict[str, Callable[[], None]] = {
        "sampling": lambda: trainer.process.sweep(psi, chains),
        "local energies": local_energies,
        "derivatives": derivatives,
        "T": matrix,
        "solve": solve,
        "update": update,
        "whole step": lambda: trainer.advance(training),
    }
    seconds: dict[str, list[float]] = {name: [] for name in phases}
    received: dict[str, float] = {}
    for repetition in range(repetitions + 1):
        for name, work in phases.items():
            ranks.collect(None)
            before, began = getattr(ranks, "received", 0.0), time.perf_counter()
            work()
            received[name] = max(ranks.collect(getattr(ranks, "received", 0.0) - before))
            longest = max(ranks.collect(time.perf_counter() - began))
            if repetition:  # the first one warms up
                seconds[name].append(longest)
    blocks = made["jacobian"]._blocks(COLUMNS)
    shape = {
        "samples": samples,
        "rows": 2 * samples,
        "parameters": trainer.state.n_parameters,
        "columns": sum(width for _, width in blocks),
    }
    return {"rank": ranks.rank, "seconds": seconds, "received": received, "shape": shape}


def processes(count: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``count`` processes measure."""
    command = [sys.executable, __file__, "--measure", "--sites", str(arguments.sites)]
    command += ["--samples", str(arguments.samples), "--repetitions", str(arguments.repetitions)]
    if count > 1:
        beside = Path(sys.executable).parent / "mpiexec"
        program = str(beside) if beside.exists() else shutil.which("mpiexec")
        if program is None:
            sys.exit("there is no mpiexec: install this package's extra test, or an MPI library with mpi4py")
        command = [program, "-n", str(count), *command]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of all numbers of processes, which take turns."""
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in arguments.ranks}
    for _ in range(arguments.rounds):
        for count in arguments.ranks:
            found[count].append(processes(count, arguments))
    rows = {}
    for count, measured in found.items():
        everything = {
            name: [s for one in measured for s in one["seconds"][name]] for name in measured[0]["seconds"]
        }
        rows[count] = {
            "seconds": {name: statistics.median(values) for name, values in everything.items()},
            "fastest": {name: min(values) for name, values in everything.items()},
            "received": measured[0]["received"],
            "expected": expected_bytes(measured[0]["shape"], count),
        }
    return {"date": date.today().isoformat(), "shape": measured[0]["shape"], "ranks": rows}


def table(results: dict[str, Any]) -> str:
    """Markdown: medians by phase, speed-ups over one process, bytes counted and by formula."""
    one, shape = results["ranks"][min(results["ranks"])], results["shape"]
    lines = [
        f"{results['date']}; {shape['samples']} samples, {shape['rows']} rows, {shape['parameters']} parameters, "
        f"{shape['columns']} columns; medians (fastest) in ms, one core each; MB received by a rank",
        "",
        "| ranks | phase | ms | speed-up | MB | MB by formula |",
        "|---|---|---|---|---|---|",
    ]
    for count, row in results["ranks"].items():
        both = {"sampling + local energies": ("sampling", "local energies")}
        for name, parts in {**{name: (name,) for name in row["seconds"]}, **both}.items():
            median, fastest = (sum(row[kind][part] for part in parts) for kind in ("seconds", "fastest"))
            before = sum(one["seconds"][part] for part in parts)
            counted = sum(row["received"][part] for part in parts) / 1e6
            formula = sum(row["expected"].get(part, math.nan) for part in parts) / 1e6
            if name == "whole step":
                formula = sum(row["expected"].values()) / 1e6
            lines.append(
                f"| {count} | {name} | {1e3 * median:.1f} ({1e3 * fastest:.1f}) | {before / median:.2f} "
                f"| {counted:.2f} | {formula:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2])
    parser.add_argument("--sites", type=int, default=40)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measured = measure(arguments.sites, arguments.samples, arguments.repetitions)
        if measured["rank"] == 0:
            print(json.dumps(measured))
        return
    results = compare(arguments)
    text = table(results)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "ranks.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "ranks.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
