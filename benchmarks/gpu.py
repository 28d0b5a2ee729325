"""What a GPU does with this package: first that it computes right, then how fast, then how far from what the device can do.

    python benchmarks/gpu.py [--results DIR]

Needs the package with the extra cuda12 or cuda13 and a CUDA device; without one it says so and ends with code 2. Writes
``gpu-<device>.json`` and ``.md``. Correctness comes first: every kernel and a VMC step against double precision on the CPU,
and if anything departs too far, no time is measured (code 1). Times are medians of five after a warm-up, each closed by
waiting for the device. The fraction of a ceiling is that of the larger of the two floors, arithmetic / sgemm and bytes /
copy bandwidth, both measured in the same run. Where NetKet is installed in this environment it runs the same VMC steps on
the same device.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nqs_sae_service.engine.devices import HOST, Device, choose_device
from nqs_sae_service.engine.random import Stream
from nqs_sae_service.errors import UserError
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.sae import TopK
from nqs_sae_service.sae.dictionary import kernels_for
from nqs_sae_service.sae.reference import topk_gradients
from nqs_sae_service.sae.topk_gpu import DeviceStep, sparse_gradients
from nqs_sae_service.sae.training import Adam, Parameters
from nqs_sae_service.sampling import Metropolis, Moves
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.states import Transformer
from nqs_sae_service.states.primitives import Attention, Dense, Mix
from nqs_sae_service.states.state import State
from nqs_sae_service.vmc.estimators import local_values
from nqs_sae_service.vmc.jacobian_gpu import DeviceJacobian
from nqs_sae_service.vmc.reconfiguration import natural_step, solve_shifted
from nqs_sae_service.vmc.training import Trainer

USAGE = 2
REPEATS = 5


@dataclass(frozen=True)
class Network:
    """A VMC step: the transverse-field ring at h = J, one sample per chain."""

    width: int
    heads: int
    layers: int
    attention: str = "positional"
    sites: int = 40
    patch: int = 4
    chains: int = 1024

    @property
    def name(self) -> str:
        """As in the tables."""
        return f"TFIM-{self.sites}, d = {self.width}, {self.layers} layers, {self.attention}, {self.chains} chains"

    def record(self) -> Transformer:
        """The section ``[state]``."""
        return Transformer(
            patch=self.patch, width=self.width, heads=self.heads, layers=self.layers, attention=self.attention,
            amplitude="complex"
        )  # fmt: skip

    def options(self) -> GroundState:
        """The section ``[ground_state]``."""
        return GroundState(seed=1, samples=self.chains, final_samples=self.chains, learning_rate=0.02)

    def trainer(self, device: Device) -> Trainer:
        """A training on a device."""
        lattice = Chain(kind="chain", length=self.sites).build()
        sampling = Sampling(chains=self.chains, burn_in=2)
        hamiltonian = Tfim(kind="tfim", h=1.0).build(lattice)
        return Trainer(
            self.record().build(lattice), lattice, hamiltonian, sampling, self.options(), device=device
        )

    def work(self) -> dict[str, Any]:
        """The same training as the peers are told of it."""
        options = self.options().model_dump()
        return {
            "lattice": {"kind": "chain", "length": self.sites}, "hamiltonian": {"kind": "tfim", "h": 1.0},
            "sampling": {"chains": self.chains}, "samples": self.chains, "seed": 1,
            "network": self.record().model_dump(), "ground_state": options,
        }  # fmt: skip


NETWORKS = (Network(32, 4, 2), Network(32, 4, 2, "full"), Network(72, 12, 4))
DICTIONARIES = ((32, 2048, 8), (72, 4608, 32), (256, 16384, 32))


@dataclass(frozen=True)
class Check:
    """One comparison with the CPU in double precision: the largest departure, and what rounding explains."""

    what: str
    departure: float
    allowed: float

    @property
    def passed(self) -> bool:
        """NaN fails."""
        return self.departure <= self.allowed


@dataclass(frozen=True)
class Timing:
    """Seconds of a piece of work, its least operations and bytes, and the share of the ceilings it reaches."""

    work: str
    phase: str
    seconds: tuple[float, ...]
    flops: float
    bytes: float
    fraction: float

    @property
    def median(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Ceilings:
    """What the device can do, measured: bytes/s of a copy (read + write), FLOP/s of matrix products, seconds of a launch."""

    copy: float
    sgemm: float
    dgemm: float
    launch: float

    def floor(self, flops: float, bytes_: float) -> float:
        """Seconds below which no float32 work of this size can be done."""
        return max(flops / self.sgemm, bytes_ / self.copy)


def repeated(work: Callable[[], Any], device: Device, repeats: int = REPEATS) -> tuple[float, ...]:
    """Seconds of every repeat, after one warm-up (which compiles)."""
    seconds = []
    for _ in range(repeats + 1):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return tuple(seconds[1:])


def _wait(device: Device) -> None:
    if device.kind == "gpu":
        device.xp.cuda.Stream.null.synchronize()


def measure_ceilings(device: Device, side: int = 8192, elements: int = 2**28) -> Ceilings:
    """Copy of ``elements`` float32 numbers, products of (side, side) matrices, and the smallest launch there is."""
    xp = device.xp
    source, target = xp.ones(elements, dtype=xp.float32), xp.empty(elements, dtype=xp.float32)

    def copy() -> None:
        target[...] = source

    def product(dtype: Any) -> Callable[[], Any]:
        a = xp.ones((side, side), dtype=dtype)
        return lambda: a @ a

    one = xp.zeros(1, dtype=xp.float32)

    def launches() -> None:
        for _ in range(100):
            one[...] = 1

    def best(work: Callable[[], Any]) -> float:
        return min(repeated(work, device))

    flops = 2.0 * side**3
    return Ceilings(
        8.0 * elements / best(copy),
        flops / best(product(xp.float32)),
        flops / best(product(xp.float64)),
        best(launches) / 100,
    )


# ---- correctness ---------------------------------------------------------------------------------------------------


def checks(device: Device, network: Network, rows: int = 256) -> Iterator[Check]:
    """Kernels and a natural-gradient step of one network against double precision on the CPU."""
    trainer = network.trainer(device)
    state = trainer.state
    noise = 0.05 * np.random.default_rng(0).normal(size=state.n_parameters)
    parameters = (state.initial_parameters(1) + noise).astype(np.float32)
    sigma = np.random.default_rng(1).choice([-1, 1], size=(rows, state.n_sites)).astype(np.int8)
    psi, reference = state.bind(device.put(parameters)), state.bind(parameters).reference
    there, expected = device.put(sigma), reference.log_psi(sigma)
    yield Check(f"{network.name}: psi", _relative_psi(_host(psi.log_psi(there)), expected), 2e-3)
    layer = state.fused_layers[-1]
    stream = _host(psi.stream_at(there, layer)) - reference.stream_at(sigma, layer)
    yield Check(f"{network.name}: {layer}", float(np.abs(stream).max()), 1e-3)
    yield _walk_check(device, network, psi, there)
    few = sigma[: min(rows, 64)]
    moved, log_few = device.put(few), device.put(expected[: len(few)])
    (local,) = local_values(psi, [trainer.hamiltonian], moved, log_few)
    (exact,) = local_values(reference, [trainer.hamiltonian], few, expected[: len(few)])
    yield Check(
        f"{network.name}: local energies", float(np.abs(_host(local) - exact).max() / abs(exact).max()), 2e-3
    )
    previous = np.zeros(state.n_parameters)
    wanted = natural_step(reference, few, exact, previous, 1e-2, 0.0, 1.0).direction
    found = natural_step(psi, moved, device.put(exact), device.put(previous), 1e-2, 0.0, 1.0).direction
    error = np.linalg.norm(_host(found) - wanted) / np.linalg.norm(wanted)
    yield Check(f"{network.name}: natural step", float(error), 1e-2)


def _walk_check(device: Device, network: Network, psi: Any, start: Any) -> Check:
    """After a sweep the cached log psi must be that of the configurations, and chains must have moved."""
    metropolis = Metropolis(network.sites, Moves(0.05, 0.2), 1, Stream.SAMPLES)
    chains = metropolis.start(psi, start)
    metropolis.sweep(psi, chains)
    moved = 0 < chains.accepted < chains.proposed
    fresh = psi.reference.log_psi(chains.sigma)
    departure = _relative_psi(_host(chains.log_psi), _host(fresh)) if moved else float("nan")
    return Check(f"{network.name}: a sweep", departure, 2e-3)


def dictionary_checks(device: Device, shape: tuple[int, int, int], rows: int = 256) -> Iterator[Check]:
    """Selection and gradients of a TopK step against the dense formula in double precision on the CPU."""
    width, features, k = shape
    parameters, x = _dictionary(width, features, rows)
    dead = np.arange(features) < features // 8
    wide = Parameters(*(array.astype(np.float64) for array in vars(parameters).values()))
    loss, gradients, _ = topk_gradients(wide, x.astype(np.float64), k, dead, width // 2, 1 / 32)
    there = Parameters(*(device.put(array) for array in vars(parameters).values()))
    found, of_device, _ = sparse_gradients(there, device.put(x), k, device.put(dead), width // 2, 1 / 32)
    name = f"TopK {shape}"
    yield Check(f"{name}: loss", abs(found - loss) / loss, 1e-5)
    for which, expected in vars(gradients).items():
        error = np.abs(_host(getattr(of_device, which)) - expected).max() / np.abs(expected).max()
        # A near-tie may be broken the other way in float32: one entry among rows k.
        yield Check(f"{name}: gradient by {which}", float(error), 2e-2)


def _dictionary(width: int, features: int, rows: int) -> tuple[Parameters, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, width)).astype(np.float32)
    learner: Any = TopK(kind="topk", features=features, k=min(8, features)).learner(rng, x)
    return learner.parameters, x


def _relative_psi(log_psi: np.ndarray, expected: np.ndarray) -> float:
    """Largest |psi / psi_expected - 1|: compares the phase too, wherever its branch."""
    return float(np.abs(np.expm1(log_psi - expected)).max())


def _host(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.get()


# ---- times -----------------------------------------------------------------------------------------------------------


def network_flops(state: State) -> float:
    """Operations of one log psi: the products alone."""
    tokens, total = state.n_tokens, 0.0
    for brick in state.bricks:
        if isinstance(brick, Dense):
            total += 2.0 * brick.fan_in * brick.fan_out * (1 if brick.name.startswith("head.") else tokens)
        elif isinstance(brick, Mix):
            total += 2.0 * tokens**2 * state.width
        elif isinstance(brick, Attention):
            total += 4.0 * tokens**2 * state.width
    return total


def vmc_times(
    device: Device, network: Network, ceilings: Ceilings, repeats: int = REPEATS
) -> Iterator[Timing]:
    """Phases of a step, each on its own, then whole steps."""
    trainer = network.trainer(device)
    state, training = trainer.state, trainer.start()
    psi = state.bind(training.parameters)
    chains = trainer.process.start(psi, training.sigma)
    forwards = network.chains * network.sites * network_flops(state)
    rows, p = 2.0 * network.chains, state.n_parameters
    derivatives = 3 * network.chains * network_flops(state) + 8.0 * network.chains * p
    # The symmetric half, in the faster of both precisions.
    gram = rows**2 * p * ceilings.sgemm / max(ceilings.sgemm, ceilings.dgemm)
    xp = device.xp
    (energies,) = local_values(psi, [trainer.hamiltonian], chains.sigma, chains.log_psi)
    jacobian = DeviceJacobian(psi, chains.sigma)
    matrix, _ = jacobian.gram_and_product(training.previous)
    right = xp.ones(len(matrix))

    def step() -> None:
        natural_step(psi, chains.sigma, energies, training.previous, 1e-2, 0.8, 0.3)

    phases: list[tuple[str, Callable[[], Any], float, float]] = [
        ("sampling, one sweep", lambda: trainer.process.sweep(psi, chains), forwards, 0.0),
        ("local energies", lambda: local_values(psi, [trainer.hamiltonian], chains.sigma, chains.log_psi), forwards, 0.0),
        ("derivatives", lambda: DeviceJacobian(psi, chains.sigma), derivatives, 0.0),
        ("Gram matrix", lambda: jacobian.gram_and_product(training.previous), gram, 4.0 * rows * p),
        ("solve", lambda: solve_shifted(matrix, 1e-2, right), rows**3 / 3 * ceilings.sgemm / ceilings.dgemm, 0.0),
        ("natural step", step, derivatives + gram, 4.0 * rows * p),
        ("whole step", lambda: trainer.advance(training), 2 * forwards + derivatives + gram, 4.0 * rows * p),
    ]  # fmt: skip
    for phase, work, flops, bytes_ in phases:
        yield _timing(network.name, phase, repeated(work, device, repeats), flops, bytes_, ceilings)


def sae_times(
    device: Device, shape: tuple[int, int, int], ceilings: Ceilings, batch: int = 4096, repeats: int = REPEATS
) -> Iterator[Timing]:
    """Phases of a TopK training step, then the whole step."""
    width, features, k = shape
    parameters, x = _dictionary(width, features, batch)
    p, x = Parameters(*(device.put(array) for array in vars(parameters).values())), device.put(x)
    learn, adam, alive = DeviceStep(p, k, width // 2, 1 / 32), Adam(p), device.xp.zeros(features, bool)
    kernels = kernels_for(x)
    values, indices = kernels.encode_topk(x, p.encoder, p.encoder_bias, p.decoder_bias, k)
    error, _ = kernels.decode_error(x, p.decoder, p.decoder_bias, values, indices)

    def step() -> None:
        learn(x, 1.0, alive, adam, 1e-4)

    encode, decode, back = 2.0 * batch * features * width, 2.0 * batch * k * width, 6.0 * batch * k * width
    weights, rows = 4.0 * features * width, 4.0 * batch * width
    decoder = (p.decoder, p.decoder_bias, values, indices)
    phases: list[tuple[str, Callable[[], Any], float, float]] = [
        ("encode and select", lambda: kernels.encode_topk(x, p.encoder, p.encoder_bias, p.decoder_bias, k), encode, rows +
        weights), ("decode", lambda: kernels.decode_error(x, *decoder), decode, 2 * rows), ("backward", lambda:
        kernels.backward(x, error, 1e-3, *decoder), back, 2 * rows + 3 * weights), ("whole step", step, encode + decode +
        back, 4 * rows + 18 * weights),
    ]  # fmt: skip
    for phase, work, flops, bytes_ in phases:
        yield _timing(
            f"TopK {shape}, batch {batch}", phase, repeated(work, device, repeats), flops, bytes_, ceilings
        )


def _timing(
    work: str, phase: str, seconds: tuple[float, ...], flops: float, bytes_: float, ceilings: Ceilings
) -> Timing:
    fraction = ceilings.floor(flops, bytes_) / statistics.median(seconds)
    return Timing(work, phase, seconds, flops, bytes_, fraction)


def netket_times(networks: Sequence[Network], repeats: int = REPEATS) -> Iterator[Timing]:
    """VMC_SR of NetKet (minSR, both of its ways) with the same architecture, chains and samples; nothing where it is not
    installed. In float32 like this package: left alone JAX rounds the factors of products to ten bits (TF32)."""
    sys.path.insert(0, str(Path(__file__).parent / "peers"))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax
        from netket_server import Vmc
    except ImportError:
        return
    jax.config.update("jax_default_matmul_precision", "highest")
    where = f"NetKet on {jax.devices()[0].device_kind}"
    for network in networks:
        vmc = Vmc(network.work())
        phases: list[tuple[str, Callable[[], Any]]] = [
            ("sampling, one sweep", vmc.sampling),
            ("local energies", partial(vmc.local_energy, "dense")),
            *((f"whole step, {method}", partial(vmc.step, method)) for method in ("dense", "on_the_fly")),
        ]
        for phase, work in phases:
            yield Timing(
                network.name, f"{where}: {phase}", repeated(work, HOST, repeats), 0.0, 0.0, float("nan")
            )


# ---- the report ------------------------------------------------------------------------------------------------------


def as_markdown(
    name: str, found: Sequence[Check], ceilings: Ceilings | None, timings: Sequence[Timing]
) -> str:
    """The tables of a run."""
    lines = [
        f"# {name}",
        "",
        "| compared with double precision on the CPU | departure | allowed | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {c.what} | {c.departure:.1e} | {c.allowed:.0e} | {'passed' if c.passed else 'FAILED'} |"
        for c in found
    ]
    if ceilings is not None:
        lines += [
            "",
            f"Ceilings, measured: copy {ceilings.copy / 1e9:.0f} GB/s, sgemm {ceilings.sgemm / 1e12:.1f} TFLOP/s, "
            f"dgemm {ceilings.dgemm / 1e12:.1f} TFLOP/s, a launch {ceilings.launch * 1e6:.1f} us.",
        ]
    if timings:
        lines += ["", "| work | phase | median, ms | share of the ceiling |", "|---|---|---|---|"]
        lines += [
            f"| {t.work} | {t.phase} | {1e3 * t.median:.3g} | {'' if np.isnan(t.fraction) else f'{t.fraction:.0%}'} |"
            for t in timings
        ]
    return "\n".join(lines) + "\n"


def write(
    folder: Path, name: str, found: Sequence[Check], ceilings: Ceilings | None, timings: Sequence[Timing]
) -> Path:
    """Both files of a run; the path of the tables."""
    stem = folder / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}"
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "device": name,
        "checks": [asdict(c) | {"passed": c.passed} for c in found],
        "ceilings": None if ceilings is None else asdict(ceilings),
        "timings": [asdict(t) | {"median": t.median} for t in timings],
    }
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    tables = stem.with_suffix(".md")
    tables.write_text(as_markdown(name, found, ceilings, timings), encoding="utf-8")
    return tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 the device computes something else than the CPU, 2 no device."""
    parser = argparse.ArgumentParser(description="Correctness and speed on a GPU.")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    try:
        device = choose_device("gpu")
    except UserError as problem:
        print(f"{parser.prog}: {problem}", file=sys.stderr)
        return USAGE
    found: list[Check] = []
    for part in (
        *(checks(device, n) for n in NETWORKS),
        *(dictionary_checks(device, s) for s in DICTIONARIES),
    ):
        for check in part:
            found.append(check)
            print(f"{'ok    ' if check.passed else 'FAILED'} {check.what}: {check.departure:.1e}", flush=True)
    if not all(check.passed for check in found):
        print(write(options.results, device.name, found, None, ()))
        return 1
    ceilings, timings = measure_ceilings(device), []
    works = (
        *(vmc_times(device, n, ceilings) for n in NETWORKS),
        *(sae_times(device, s, ceilings) for s in DICTIONARIES),
    )
    for part in (*works, netket_times(NETWORKS)):
        for timing in part:
            timings.append(timing)
            print(f"{timing.work}, {timing.phase}: {1e3 * timing.median:.3g} ms", flush=True)
        tables = write(
            options.results, device.name, found, ceilings, timings
        )  # what was measured stays, whatever comes next
    print(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
