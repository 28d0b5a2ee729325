"""This project against NetKet, PyTorch and three dictionary libraries on the same cores, side by side in one run.

    make bench-peers                                     # once: the peers, in environments of their own
    python benchmarks/cpu.py                             # all rows
    python benchmarks/cpu.py --rows vit32,rbm4 --repetitions 7
    python benchmarks/cpu.py --time-to-accuracy          # minutes: time until the energy is right

Each contender is a process that stays alive; they take turns, repetition by repetition. A row is the median after a warm-up,
with the same network, parameters, samples, chains, evaluated proposals, precision, learning rate and shift on both sides. Short
steps are repeated for a fifth of a second, as a training repeats them. Where a peer has several methods the fastest is taken.
The phases of a step are measured by themselves; stochastic reconfiguration is the rest. Results:
``benchmarks/results/cpu.json`` and ``cpu.md``; rows measured before on the same machine are kept.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from contest import (
    NETKET,
    OURS,
    RESULTS,
    ROOT,
    TORCH,
    Side,
    Turnstile,
    fastest,
    machine,
    read_results,
    spread,
    take_turns,
    write_results,
)
from peers.protocol import Contender

Json = dict[str, Any]

_MIN_SR = ("dense", "on_the_fly")  # NetKet's ways to minSR
_DICTIONARIES = ("torch", "torch, fused Adam", "dictionary_learning", "sparsify", "SAELens")
_WARM_STEPS = 3
_SHORTEST = 0.2  # seconds of one repetition
_STEADY = {  # the same constant settings on both sides: what is timed does not depend on them
    "learning_rate": 0.01,
    "final_learning_rate": 1.0,
    "momentum": 0.0,
    "shift": 1e-2,
    "shift_start": 1e-2,
}


@dataclass(frozen=True)
class Row:
    """One comparison: the work both sides do, the peer, the methods it may use, the ratio aimed at, and whether the allocator
    of both sides keeps freed memory."""

    title: str
    work: Json
    peer: Side
    methods: tuple[str, ...]
    target: float | None = None
    keep_memory: bool = True


def _ring(network: Json, samples: int = 1024) -> Json:
    """The critical transverse-field Ising ring."""
    return {
        "kind": "vmc",
        "lattice": {"kind": "chain", "length": 40},
        "hamiltonian": {"kind": "tfim", "h": 1.0},
        "sampling": {"chains": 1024, "burn_in": 1, "global_flip": 0, "stretch_flip": 0},
        "samples": samples,
        "seed": 1,
        "network": network,
        "ground_state": _STEADY,
    }


def _square(network: Json, **hamiltonian: Any) -> Json:
    """A Heisenberg magnet on the 6 x 6 torus, without magnetization; exchanges between sites up to two edges apart.

    Of the 72 proposals of two sweeps about half are of equal spins and are not evaluated; NetKet draws 36 of unequal ones.
    """
    return {
        **_ring(network),
        "lattice": {"kind": "square", "length": 6},
        "hamiltonian": {"kind": "heisenberg", **hamiltonian},
        "sampling": {
            "chains": 1024,
            "burn_in": 1,
            "sweeps": 2,
            "magnetization": 0,
            "global_flip": 0,
            "exchange_shells": 3,
        },
    }


def _transformer(**changes: Any) -> Json:
    return {
        "kind": "transformer",
        "patch": 4,
        "width": 32,
        "heads": 4,
        "layers": 2,
        "attention": "positional",
        "amplitude": "complex",
        "translation_invariant": False,
        "precision": "float32",
        **changes,
    }


def _either_operator(methods: Sequence[str]) -> tuple[str, ...]:
    """Each of NetKet's ways to a step with both of its types of operator."""
    return (*methods, *(f"{method}, Numba operator" for method in methods))


def _dictionary(width: int, features: int, k: int) -> Json:
    return {"kind": "sae", "seed": 1, "batch": 4096, "width": width, "features": features, "k": k}


_RBM = {"kind": "rbm", "alpha": 4}
_RBM_METHODS = (*_MIN_SR, "cg")
_J1J2 = {"J2": 0.5, "marshall": False}
_J1 = {"marshall": True}
ROWS = {
    "vit32": Row("VMC step, transformer d 32", _ring(_transformer()), NETKET, _MIN_SR, 4),
    "vit32-full": Row(
        "VMC step, transformer d 32, full attention",
        _ring(_transformer(attention="full")),
        NETKET,
        _MIN_SR,
        4,
    ),
    "vit32-positive": Row(
        "VMC step, transformer d 32, positive amplitude",
        _ring(_transformer(amplitude="positive")),
        NETKET,
        _MIN_SR,
        5,
    ),
    "vit72": Row(
        "VMC step, transformer d 72, 12 heads, 4 layers",
        _ring(_transformer(width=72, heads=12, layers=4)),
        NETKET,
        _MIN_SR,
        3,
    ),
    "rbm4": Row("VMC step, complex RBM alpha 4", _ring(_RBM), NETKET, _RBM_METHODS, 8),
    "rbm4-4096": Row(
        "VMC step, complex RBM alpha 4, 4096 samples", _ring(_RBM, 4096), NETKET, _RBM_METHODS, 6
    ),
    "vit32-j1j2": Row(
        "VMC step, 6x6 J1-J2, transformer d 32, 2x2 patches",
        _square(_transformer(patch=2), **_J1J2),
        NETKET,
        _either_operator(_MIN_SR),
        6,
    ),
    "vit32-heisenberg": Row(
        "VMC step, 6x6 Heisenberg, transformer d 32, 2x2 patches",
        _square(_transformer(patch=2), **_J1),
        NETKET,
        _either_operator(_MIN_SR),
    ),
    "rbm2-j1j2": Row(
        "VMC step, 6x6 J1-J2, complex RBM alpha 2",
        _square({**_RBM, "alpha": 2}, **_J1J2),
        NETKET,
        _either_operator(_RBM_METHODS),
        8,
    ),
    "rbm2-heisenberg": Row(
        "VMC step, 6x6 Heisenberg, complex RBM alpha 2",
        _square({**_RBM, "alpha": 2}, **_J1),
        NETKET,
        _either_operator(_RBM_METHODS),
        8,
    ),
    "sae32": Row("SAE step, d 32, F 2048, k 8", _dictionary(32, 2048, 8), TORCH, _DICTIONARIES, 4),
    "sae72": Row("SAE step, d 72, F 4608, k 32", _dictionary(72, 4608, 32), TORCH, _DICTIONARIES, 4),
    "sae256": Row("SAE step, d 256, F 16384, k 32", _dictionary(256, 16384, 32), TORCH, _DICTIONARIES, 2.5),
}
ROWS |= {
    f"{name}-installed": replace(ROWS[name], title=f"{ROWS[name].title}, as installed", keep_memory=False)
    for name in ("sae32", "sae72", "sae256")
}
# Time to an energy: a positive amplitude and attention that depends on distances, which is all this Hamiltonian needs; with the
# momentum of SPRING and the same schedules on both sides.
ACCURACY_ROW = Row(
    "40 sites to a relative error of 1e-4",
    _ring(_transformer(translation_invariant=True, amplitude="positive")),
    NETKET,
    _MIN_SR,
    5,
)
_ACCURACY = 1e-4
_ACCURACY_METHOD = "dense"  # NetKet's faster one for this network
_TRAINING = {
    "steps": 150,
    "learning_rate": 0.15,
    "final_learning_rate": 0.05,
    "momentum": 0.8,
    "shift": 1e-3,
    "shift_start": 0.1,
    "shift_steps": 50,
}
_EXACT = -2 / math.sin(math.pi / 80)  # ground-state energy of the critical ring of 40 sites
_BETWEEN = 10  # steps between looks at the energy
_PROMISING = 3 * _ACCURACY  # a batch this close to the exact energy is worth fresh samples
_FRESH = 16  # fresh samples per chain

_EFFICIENCY = {
    "sampling": ROWS["vit32"].work,
    "local_energy": ROWS["vit32"].work,
    "SAE step": ROWS["sae32"].work,
}


def compare(row: Row, repetitions: int, turnstile: Turnstile) -> Json:
    """Time one row: ours and the fastest method of the peer, in turns."""
    threads = len(os.sched_getaffinity(0))
    with row.peer.start(row.keep_memory) as peer, OURS.start(row.keep_memory) as ours:
        built = [side.ask("build", work=row.work, threads=threads) for side in (ours, peer)]
        method, probes = fastest(row.methods, lambda m: peer.seconds("step", method=m), turnstile)
        steps = _in_turns(ours, peer, "step", method, repetitions, turnstile)
        phases = _phases(ours, peer, method, repetitions, turnstile) if row.work["kind"] == "vmc" else {}
    times = {side: spread(seconds) for side, seconds in steps.items()}
    return {
        "title": row.title,
        "target": row.target,
        "method": method,
        "probes": probes,
        "times": times,
        "ratio": times["peer"]["median"] / times["ours"]["median"],
        "phases": phases,
        "parameters": [b.get("parameters") for b in built],
        "versions": {name: v for b in built for name, v in b["versions"].items()},
        "repetitions": repetitions,
        "date": date.today().isoformat(),
    }


def _in_turns(
    ours: Contender, peer: Contender, do: str, method: str, repetitions: int, turnstile: Turnstile
) -> dict[str, list[float]]:
    """Seconds of one request on both sides in turns, after a warm-up; short ones several times in a row."""
    sides = {"ours": ours, "peer": peer}

    def measure(counts: Mapping[str, int], repetitions: int) -> dict[str, list[float]]:
        calls = {
            name: lambda side=side, n=counts[name]: side.seconds(do, method=method, count=n)
            for name, side in sides.items()
        }
        return take_turns(calls, repetitions, turnstile)

    measure({"ours": _WARM_STEPS, "peer": 1}, 1)
    warm = measure({"ours": 1, "peer": 1}, 1)
    return measure({name: max(1, math.ceil(_SHORTEST / s[0])) for name, s in warm.items()}, repetitions)


def _phases(ours: Contender, peer: Contender, method: str, repetitions: int, turnstile: Turnstile) -> Json:
    """Medians of sampling and local energy on both sides."""
    return {
        phase: {
            side: spread(seconds)["median"]
            for side, seconds in _in_turns(ours, peer, phase, method, repetitions, turnstile).items()
        }
        for phase in ("sampling", "local_energy")
    }


def efficiency(repetitions: int, turnstile: Turnstile) -> Json:
    """Time on one thread over twice the time on two, for the parallel parts of our own work."""
    found: Json = {"title": "Parallel efficiency, 1 to 2 threads", "target": 0.85, "parts": {}}
    for part, work in _EFFICIENCY.items():
        do = part if work["kind"] == "vmc" else "step"

        def on(threads: int, ours: Contender, do: str = do) -> float:
            ours.ask("threads", threads=threads)
            ours.ask(do)
            return ours.seconds(do, count=5)

        with OURS.start() as ours:
            ours.ask("build", work=work, threads=2)
            calls = {"1": lambda ours=ours: on(1, ours), "2": lambda ours=ours: on(2, ours)}
            take_turns(calls, _WARM_STEPS, turnstile)
            seconds = {n: spread(s) for n, s in take_turns(calls, repetitions, turnstile).items()}
        found["parts"][part] = {
            "times": seconds,
            "efficiency": seconds["1"]["median"] / (2 * seconds["2"]["median"]),
        }
    return {**found, "date": date.today().isoformat()}


def quickstart(repetitions: int, turnstile: Turnstile) -> Json:
    """Wall time of the whole ``specs/quickstart.toml``, kernels warm."""
    command = [sys.executable, "-m", "nqs_sae_service", "run", str(ROOT / "specs" / "quickstart.toml")]

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            subprocess.run(
                [*command, "--results", folder],
                check=True,
                capture_output=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            return time.perf_counter() - began

    take_turns({"ours": run}, 1, turnstile)  # compiles what is not compiled yet
    seconds = take_turns({"ours": run}, repetitions, turnstile)["ours"]
    return {
        "title": "quickstart.toml, whole chain, warm kernels",
        "seconds": spread(seconds),
        "target_seconds": 40,
        "date": date.today().isoformat(),
    }


def accuracy(turnstile: Turnstile, rates: Mapping[str, float]) -> Json:
    """Seconds until |E - E_exact| + 2 sigma is at most 1e-4 of |E_exact|, from a cold start, compilation included.

    Looks at the energy cost fresh samples; they are not counted on either side.
    """
    found: Json = {
        "title": ACCURACY_ROW.title,
        "target": ACCURACY_ROW.target,
        "date": date.today().isoformat(),
    }
    with (
        tempfile.TemporaryDirectory() as cache
    ):  # ours compiles in its first process only, NetKet in every one
        for name, side in (("ours", OURS), ("ours again", OURS), ("netket", NETKET)):
            rate = {"learning_rate": rates[side.name]}
            work = {**ACCURACY_ROW.work, "ground_state": {**_TRAINING, **rate}}
            with side.start(NQS_SAE_CACHE=cache) as contender:
                found[name] = _train(contender, work, turnstile)
    if all(found[name]["reached"] for name in ("ours", "ours again", "netket")):
        found["ratio"] = found["netket"]["seconds"] / found["ours"]["seconds"]
        found["ratio again"] = found["netket"]["seconds"] / found["ours again"]["seconds"]
    return found


def _train(contender: Contender, work: Json, turnstile: Turnstile) -> Json:
    """Train in short runs, each by itself on the machine, until the energy is right or the steps are used up."""
    with turnstile.alone():
        seconds = contender.seconds("build", work=work, threads=len(os.sched_getaffinity(0)))
    history = []
    for step in range(_BETWEEN, work["ground_state"]["steps"] + 1, _BETWEEN):
        with turnstile.alone():
            answer = contender.ask("train", steps=_BETWEEN, method=_ACCURACY_METHOD)
            seconds += answer["seconds"]
            energy, error = answer["energy"], math.nan
            if math.isnan(energy):
                return {"reached": False, "diverged": True, "seconds": seconds, "steps": step}
            if abs(energy / _EXACT - 1) < _PROMISING:
                fresh = contender.ask("measure", draws=_FRESH)
                energy, error = fresh["energy"], fresh["error"]
        deviation = (abs(energy - _EXACT) + 2 * error) / abs(_EXACT)
        history.append([step, round(seconds, 3), energy, error])
        print(f"  {contender.name} step {step}: {seconds:.1f} s, E = {energy:.4f} ± {error:.4f}", flush=True)
        if deviation <= _ACCURACY:
            return {"reached": True, "seconds": seconds, "steps": step, "history": history}
    return {"reached": False, "seconds": seconds, "steps": step, "history": history}


def markdown(results: Json) -> str:
    """The results as tables."""
    computer = results["machine"]
    rows = results["rows"]
    lines = [
        "# On the CPU, beside its peers",
        "",
        f"{computer['cpu']}, {computer['threads']} threads, Python {computer['python']}, "
        + ", ".join(f"{name} {version}" for name, version in sorted(results["versions"].items()))
        + ". Written by `benchmarks/cpu.py`; both sides warm, in turns, medians.",
        "VMC: critical TFIM ring of 40 sites, 1024 chains, 1024 samples unless said, one sweep = 40 proposals; "
        "transformers in float32 with 4 heads, 2 layers and positional attention unless said. SAE: TopK, batch 4096, float32.",
        "6x6: periodic, J2 = 0.5 where it is J1-J2, magnetization 0, exchanges of spins up to two edges apart; before a sample "
        "NetKet proposes 36 of unequal spins, ours 72 of any, about half of which are of equal spins and are not evaluated.",
        "Both sides keep freed memory (glibc's settings in `contest.py`), which spares PyTorch and NetKet page faults; "
        '"as installed": neither does.',
        "",
        "| work | peer | peer's time | ours | ratio | target | repetitions | measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    compared = [rows[name] for name in ROWS if name in rows]
    for r in compared:
        times = [_time(r["times"][side]["median"]) for side in ("peer", "ours")]
        target = f">= {r['target']:g}" if r["target"] else ""
        lines.append(
            f"| {r['title']} | {r['method']} | {times[0]} | {times[1]} | {r['ratio']:.1f} | {target} "
            f"| {r['repetitions']} | {r['date']} |"
        )
    split = [r for r in compared if r["phases"]]
    if split:
        lines += [
            "",
            "| phase, ours / peer | sampling | local energy | the rest (SR) | whole step |",
            "|---|---|---|---|---|",
        ]
        lines += [_phase_line(r) for r in split]
    lines += ["", *_own_rows(rows)]
    return "\n".join(lines).rstrip() + "\n"


def _phase_line(row: Json) -> str:
    step = {side: row["times"][side]["median"] for side in ("ours", "peer")}
    phases = [row["phases"]["sampling"], row["phases"]["local_energy"]]
    rest = {side: step[side] - sum(phase[side] for phase in phases) for side in step}
    cells = [f"{_time(p['ours'])} / {_time(p['peer'])}" for p in (*phases, rest, step)]
    return f"| {row['title']} | {' | '.join(cells)} |"


def _own_rows(rows: Json) -> list[str]:
    lines = []
    if "accuracy" in rows:
        r = rows["accuracy"]
        ended = [
            f"{side} {_time(r[side]['seconds'])} ({r[side]['steps']} steps{'' if r[side]['reached'] else ', not reached'})"
            for side in ("ours", "ours again", "netket")
        ]
        ratio = f", ratios {r['ratio']:.1f} and {r['ratio again']:.1f}" if "ratio" in r else ""
        lines.append(
            f"- {r['title']}, modulus + 2 sigma, compilation included: {'; '.join(ended)}{ratio} (target >= 5). "
            "Ours compiles once for all processes of a machine, NetKet in each."
        )
    if "efficiency" in rows:
        parts = [f"{name} {p['efficiency']:.0%}" for name, p in rows["efficiency"]["parts"].items()]
        lines.append(f"- Parallel efficiency, 1 to 2 threads: {', '.join(parts)} (target >= 85 %).")
    if "quickstart" in rows:
        lines.append(
            f"- `quickstart.toml`, warm kernels: {_time(rows['quickstart']['seconds']['median'])} (target <= 40 s)."
        )
    return lines


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.995 else f"{1e3 * seconds:.3g} ms"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rows asked for and write the tables."""
    own: Mapping[str, Callable[[argparse.Namespace, Turnstile], Json]] = {
        "efficiency": lambda a, t: efficiency(a.repetitions, t),
        "quickstart": lambda a, t: quickstart(a.repetitions, t),
        "accuracy": lambda a, t: accuracy(t, {"ours": a.rate, "netket": a.netket_rate or a.rate}),
    }
    everything = [name for name in (*ROWS, *own) if name != "accuracy"]
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", default=",".join(everything), help=f"some of {', '.join(everything)}")
    parser.add_argument("--time-to-accuracy", action="store_true", help="measure this alone")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--lock", type=Path, help="lock this file during each measurement (machines shared by several)"
    )
    parser.add_argument(
        "--rate", type=float, default=_TRAINING["learning_rate"], help="learning rate of --time-to-accuracy"
    )
    parser.add_argument("--netket-rate", type=float, help="another one for NetKet, where it diverges at ours")
    options = parser.parse_args(arguments)
    wanted = ["accuracy"] if options.time_to_accuracy else options.rows.split(",")
    unknown = [name for name in wanted if name not in (*ROWS, *own)]
    if unknown:
        parser.error(f"no row {unknown[0]}; there are {', '.join(everything)}")
    turnstile = Turnstile(options.lock)
    path = RESULTS / "cpu.json"
    for name in wanted:
        print(f"{name} ...", flush=True)
        row = (
            compare(ROWS[name], options.repetitions, turnstile)
            if name in ROWS
            else own[name](options, turnstile)
        )
        turnstile.release()
        results = read_results(path) or {"machine": machine(), "versions": {}, "rows": {}}
        results["rows"][name] = row
        results["versions"] |= row.get("versions", {})
        write_results(path, results)
        (RESULTS / "cpu.md").write_text(markdown(results))
        print(_summary(row), flush=True)


def _summary(row: Json) -> str:
    if "times" not in row:
        return f"  {row['title']}: done"
    ours, peer = (_time(row["times"][side]["median"]) for side in ("ours", "peer"))
    probes = ", ".join(f"{method} {_time(s)}" for method, s in row["probes"].items())
    return f"  {row['title']}: ours {ours}, {row['method']} {peer}, ratio {row['ratio']:.2f}" + (
        f" ({probes})" if probes else ""
    )


if __name__ == "__main__":
    main()
