"""Points of a sweep with one Hamiltonian: states of a ring and their mirror image, as stage files with real networks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from nqs_sae_service.datasets import Origin, labelled, write_stage
from nqs_sae_service.physics.exact import FullSummation, all_configurations
from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import LATTICES
from nqs_sae_service.physics.observables import make_observable
from nqs_sae_service.report import comparison as gathering
from nqs_sae_service.report import read, show, write_report
from nqs_sae_service.report.figures import draw
from nqs_sae_service.states import STATES

SITES, CHAINS, DRAWS, FEATURES = 6, 16, 32, 6
NAMES = ["magnetization", "abs_magnetization"]
SECTIONS: dict[str, dict[str, Any]] = {
    "lattice": {"kind": "chain", "length": SITES},
    "hamiltonian": {"kind": "tfim", "h": 0.5},
    "state": {
        "kind": "transformer",
        "patch": 2,
        "width": 4,
        "heads": 2,
        "layers": 1,
        "attention": "positional",
        "precision": "float64",
    },
    "sampling": {"method": "exact", "chains": CHAINS},
}
LATTICE = LATTICES["chain"](**SECTIONS["lattice"]).build()
STATE = STATES["transformer"](**SECTIONS["state"]).build(LATTICE)
EVERYTHING = all_configurations(SITES)


def parameters(side: int) -> np.ndarray:
    """Of a state that prefers one sector; its mirror image has the spins turned as they enter."""
    vector = 8.0 * STATE.initial_parameters(4).astype(np.float64)
    place, _ = STATE.layout["embedding.weight"]
    vector[place] *= side
    return vector


def write(
    directory: Path, stage: str, dataset: xr.Dataset, key: str, sections: Mapping[str, Any] = SECTIONS
) -> None:
    write_stage(dataset, directory / f"{stage}.nc", Origin(stage, key, 1, json.dumps(sections), 1, 1, "", ""))


def write_point(
    sweep: Path, coordinates: Mapping[str, Any], side: int, energy: float = -6.0, h: float = 0.5
) -> Path:
    """A point as the stages would have left it, and dictionaries that read off the channels of the layer."""
    directory = sweep / ",".join(f"{name}={value}" for name, value in coordinates.items())
    directory.mkdir(parents=True)
    (directory / "spec.toml").write_text("")
    (directory / "status.json").write_text(json.dumps({"coordinates": dict(coordinates), "state": "done"}))
    sections = SECTIONS | {"hamiltonian": SECTIONS["hamiltonian"] | {"h": h}}
    vector = parameters(side)
    log_psi = STATE.bind(vector).log_psi(EVERYTHING)
    p = np.exp(2 * (log_psi - log_psi.max()))
    places = np.random.default_rng(list(directory.name.encode())).choice(
        len(p), (CHAINS, DRAWS), p=p / p.sum()
    )
    sigma = EVERYTHING[places]
    value = np.stack(
        [make_observable(name, LATTICE, None).values(EVERYTHING)[places] for name in NAMES], axis=-1
    )
    final = {"final_energy": energy, "final_energy_error": 0.01, "v_score": 1e-4}
    write(
        directory,
        "ground_state",
        labelled("ground_state", {"parameters": vector}, {}, final),
        directory.name,
        sections,
    )
    write(
        directory,
        "samples",
        labelled("samples", {"configuration": sigma, "log_psi": log_psi[places]}),
        "s",
        sections,
    )
    observed = {"value": value, "mean": value.mean(axis=(0, 1))}
    write(directory, "observables", labelled("observables", observed, {"observable": NAMES}), "o", sections)
    rows = np.random.default_rng(0).normal(size=(1, 1, FEATURES, STATE.width)).astype(np.float32)
    biases = {
        "encoder_bias": np.zeros((1, 1, FEATURES), np.float32),
        "decoder_bias": np.zeros((1, 1, STATE.width), np.float32),
    }
    sae = labelled(
        "sae",
        {"encoder": rows, "decoder": rows, **biases},
        {"layer": ["residual_1"], "sae_seed": [1]},
        {"kind": "relu-l1", "input": "token"},
    )
    write(directory, "sae", sae, "d", sections)
    return directory


@pytest.fixture(scope="module")
def wrong_phase(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """up and again are one state, down is its mirror image; high has another energy."""
    sweep = tmp_path_factory.mktemp("results") / "wrong-phase"
    write_point(sweep, {"ground_state.seed": "up"}, 1)
    write_point(sweep, {"ground_state.seed": "again"}, 1, energy=-6.001)
    write_point(sweep, {"ground_state.seed": "down"}, -1, energy=-6.002)
    write_point(sweep, {"ground_state.seed": "high"}, 1, energy=-5.0)
    return sweep


def sentences(found: xr.Dataset) -> dict[str, str]:
    pairs = zip(found["first"].values, found["second"].values, found["verdict"].values, strict=True)
    return {" ".join(sorted(str(x).removeprefix("seed=") for x in (a, b))): str(text) for a, b, text in pairs}


def test_states_in_other_sectors_raise_the_alarm_and_equal_ones_agree(wrong_phase: Path) -> None:
    found = read(wrong_phase).comparison
    told = sentences(found)
    assert told["down up"].startswith("alarm: ")
    assert told["again down"].startswith("alarm: ")
    assert told["again up"].startswith("agree: ")
    assert all(told[pair].startswith("not comparable: ") for pair in ("high up", "again high", "down high"))
    assert "magnetization differs" in told["down up"]
    assert "carries it" in told["down up"]
    down = found["pair"].str.contains("down").values
    assert (found["differs"].sel(observable="magnetization").values == down).all()


def test_fidelities_are_those_of_the_full_sum(wrong_phase: Path) -> None:
    found = read(wrong_phase).comparison
    psi = {side: np.exp(STATE.bind(parameters(side)).log_psi(EVERYTHING)) for side in (1, -1)}
    mirrored = float((psi[1] @ psi[-1]) ** 2 / (psi[1] @ psi[1] * (psi[-1] @ psi[-1])))
    np.testing.assert_allclose(psi[1][::-1], psi[-1], rtol=1e-12)
    down = found["pair"].str.contains("down").values
    np.testing.assert_allclose(found["fidelity_exact"].values, np.where(down, mirrored, 1.0), rtol=1e-9)
    assert (abs(found["fidelity"] - found["fidelity_exact"]) <= 4 * found["fidelity_error"] + 1e-9).all()
    assert (found["fidelity_bound"] >= found["fidelity_exact"] - 0.02).all()


def test_the_samples_and_the_training_of_the_points_are_not_suspected(wrong_phase: Path) -> None:
    """The energies of the files are invented; the check samples give that of the network, the same for its mirror image."""
    found = read(wrong_phase).comparison
    assert (abs(found["flip_balance"]) < 5 * found["flip_balance_error"]).all()
    state = FullSummation.from_log_psi(SITES, STATE.bind(parameters(1)).log_psi(EVERYTHING))
    hamiltonian = HAMILTONIANS["tfim"](**SECTIONS["hamiltonian"]).build(LATTICE)
    exact = state.operator_expectation(hamiltonian.to_sparse())
    assert (abs(found["check_energy"] - exact) < 5 * found["check_energy_error"]).all()
    assert (found["check_energy_error"] < 0.2).all()


def test_the_features_of_one_state_match_each_other(wrong_phase: Path) -> None:
    found = read(wrong_phase).comparison
    same = found.sel(
        pair=next(p for p in found["pair"].values if "up" in p and "again" in p), layer="residual_1"
    )
    live = int(same["matched_features"])
    assert live > 0
    np.testing.assert_array_equal(
        same["partner"].values[same["partner"] >= 0], np.flatnonzero(same["partner"] >= 0)
    )
    assert (same["unmatched_features"] == 0).all()
    assert (same["carrier"] == -1).all()


def test_the_file_is_written_once_and_again_when_a_stage_changes(wrong_phase: Path, monkeypatch: Any) -> None:
    found = read(wrong_phase).comparison
    stored = xr.open_dataset(wrong_phase / gathering.FILE)
    assert set(stored.data_vars) == set(found.data_vars)
    assert all({"long_name", "units"} <= set(stored[name].attrs) for name in stored.variables)
    stored.close()
    monkeypatch.setattr("nqs_sae_service.stages.compared.compared", None)  # not called again
    assert read(wrong_phase).comparison.identical(found)
    points = read(wrong_phase).points
    points[0].run.stages["ground_state"].attrs["key"] = "another"
    assert "problem" in gathering.comparison(wrong_phase, points).attrs  # called, to no avail


def test_a_damaged_comparison_is_made_again(wrong_phase: Path) -> None:
    found = read(wrong_phase).comparison
    path = wrong_phase / gathering.FILE
    with xr.open_dataset(path) as stored:
        poorer = stored.load().drop_vars(["verdict", "z"])
    path.unlink()
    poorer.to_netcdf(path)
    assert read(wrong_phase).comparison.equals(found)


def test_page_terminal_and_figure_have_it(wrong_phase: Path) -> None:
    page = write_report(wrong_phase).read_text()
    assert "Do states of nearly the same energy differ in physics?" in page
    assert "<b>Fault.</b>alarm: energies of" in page
    console = Console(width=150, record=True, force_terminal=False)
    show(wrong_phase, console)
    text = console.export_text()
    for title in (
        "States compared",
        "Pairs",
        "Observables of nearly degenerate pairs",
        "Features of the pairs",
    ):
        assert title in text
    assert "not comparable" in text
    figure = draw(read(wrong_phase))["comparison"]
    assert [axes.get_title() for axes in figure.axes][:2] == ["energy [J]", "magnetization"]


def test_points_with_other_hamiltonians_or_one_state_are_not_compared(tmp_path: Path) -> None:
    write_point(tmp_path / "fields", {"hamiltonian.h": 0.5}, 1)
    write_point(tmp_path / "fields", {"hamiltonian.h": 1.0}, 1, h=1.0)
    found = read(tmp_path / "fields")
    assert found.comparison is None
    assert not (tmp_path / "fields" / gathering.FILE).exists()
    console = Console(width=150, record=True)
    show(tmp_path / "fields", console)
    assert "nearly the same energy" not in console.export_text()
    one = write_point(tmp_path / "dictionaries", {"sae.k": 2}, 1)
    two = write_point(tmp_path / "dictionaries", {"sae.k": 4}, 1)
    (two / "ground_state.nc").unlink()
    (two / "ground_state.nc").hardlink_to(one / "ground_state.nc")
    assert read(tmp_path / "dictionaries").comparison is None


def test_damaged_files_are_said_and_the_rest_is_reported(tmp_path: Path) -> None:
    write_point(tmp_path, {"seed": 1}, 1)
    point = write_point(tmp_path, {"seed": 2}, -1)
    (point / "ground_state.nc").unlink()
    sections = SECTIONS | {"state": {"kind": "of another version"}}
    dataset = labelled("ground_state", {"parameters": np.zeros(3)}, {}, {"final_energy": -6.0})
    write(point, "ground_state", dataset, "g", sections)
    console = Console(width=200, record=True)
    show(tmp_path, console)
    assert (
        "The points could not be compared: its network is not known to this version" in console.export_text()
    )
