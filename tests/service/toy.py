"""A chain of three tiny stages, and the command line for them: ``toy.py work --drain``; ``toy.py SPEC RESULTS`` runs a spec.

``ground_state`` iterates a chaotic map (a lost or repeated step would show in every bit after it), ``samples`` and
``steering`` follow from it. ``TOY_SLEEP`` is the time of one step in seconds, ``TOY_LOG`` a file that counts what ran.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import xarray as xr

from nqs_sae_service.datasets import same_data
from nqs_sae_service.errors import NumericalError
from nqs_sae_service.stages.stage import Context, Cost, Stage


def note(line: str) -> None:
    if "TOY_LOG" in os.environ:
        with open(os.environ["TOY_LOG"], "a", encoding="utf-8") as log:
            log.write(line + "\n")


def iterate(context: Context, x: np.ndarray, steps: int) -> xr.Dataset:
    history = np.full(steps, np.nan)
    saved = context.restore()
    first = 0
    if saved is not None:
        first, x, history = int(saved["step"]), saved["x"], saved["history"]
        note(f"continued from {first}")
    for step in range(first, steps):
        context.tick(
            step, steps, f"x = {x[0]:.3f}", lambda n=step, x=x: {"step": n, "x": x, "history": history}
        )
        x = 3.99 * x * (1 - x)
        history[step] = x.mean()
        time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
    return xr.Dataset({"energy": ("step", history), "parameters": ("parameter", x)})


def ground_state(context: Context) -> xr.Dataset:
    note("ground_state")
    spec = context.spec
    if spec.hamiltonian.h == 13.0:
        raise NumericalError("the energy is not finite; use a smaller ground_state.learning_rate")
    if spec.hamiltonian.h == 17.0:
        raise ZeroDivisionError("a bug")
    x = np.random.default_rng(spec.ground_state.seed).random(7)
    return iterate(context, x * spec.hamiltonian.h / 4, spec.ground_state.steps)


def samples(context: Context) -> xr.Dataset:
    note("samples")
    parameters = context.upstream["ground_state"]["parameters"].values
    sigma = np.where(np.outer(parameters, np.arange(1, 9)) % 1 > 0.5, 1, -1).astype(np.int8)
    real = np.log(parameters)
    return xr.Dataset(
        {
            "configuration": (("chain", "spin"), sigma),
            "log_psi_re": ("chain", real),
            "log_psi_im": ("chain", 0 * real),
        },
        attrs={"count": context.spec.samples.count},
    )


def steering(context: Context) -> xr.Dataset:
    note("steering")
    scales = np.array(context.spec.steering.scales)
    assert context.upstream["samples"]["log_psi"].dtype == complex
    mean = float(context.upstream["samples"]["configuration"].mean())
    return xr.Dataset(
        {"observable_mean": (("scale", "observable"), mean * np.outer(scales, [1.0, 2.0]))},
        coords={"scale": scales, "observable": ["magnetization", "sigma_x"]},
    )


def estimate(spec) -> Cost:
    return Cost(seconds=90.0, disk=2e6, memory=3e9)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("ground_state", ("lattice", "hamiltonian", "ground_state"), (), 1, ground_state, estimate),
        Stage("samples", ("samples",), ("ground_state",), 1, samples, estimate),
        Stage("steering", ("steering",), ("samples",), 1, steering, estimate),
    )
}

SPEC = """
name = "toy"
[lattice]
kind = "chain"
length = 8
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
patch = 2
width = 8
heads = 2
[ground_state]
steps = 40
[engine]
checkpoint_seconds = 0.0
[output]
report = false
figures = false
"""


def write_spec(directory: Path, text: str = SPEC) -> Path:
    path = directory / "toy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def assert_same(one: Path, other: Path) -> None:
    """Two run directories hold the same bits."""
    for stage in STAGES:
        assert same_data(one / f"{stage}.nc", other / f"{stage}.nc")


if __name__ == "__main__":
    import nqs_sae_service.stages
    from nqs_sae_service.cli import app

    nqs_sae_service.stages.STAGES = STAGES
    command = sys.argv[1:]
    if command[0].endswith(".toml"):
        spec_path, results, *rest = command
        command = ["run", spec_path, "--results", results, *rest]
    app(command)
