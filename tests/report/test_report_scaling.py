"""Points of a sweep that differ in size, steps and learning rate of their dictionaries, as stage files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from nqs_sae_service.datasets import Origin, labelled, write_stage
from nqs_sae_service.report import read, show, write_report
from nqs_sae_service.report import scaling as gathering
from nqs_sae_service.report.figures import draw

WIDTH, SEEDS, LAYERS = 8, (1, 2), ("residual_1", "residual_2")
SIZES, STEPS, RATES = (4, 8, 16, 32, 64), (50, 100, 200, 400, 800), (1e-3, 3e-3, 1e-2)


def write_point(sweep: Path, h: float, size: int, steps: int, rate: float) -> Path:
    """A point whose unexplained variance is size^-0.5 + (steps / 10)^-0.5 at best, at 3e-3."""
    coordinates = {
        "hamiltonian.h": h,
        "sae.features": size,
        "sae.steps": steps,
        "sae.learning_rate": rate,
    }
    directory = sweep / ",".join(f"{name}={value}" for name, value in coordinates.items())
    directory.mkdir(parents=True)
    (directory / "spec.toml").write_text("")
    (directory / "status.json").write_text(json.dumps({"coordinates": coordinates, "state": "done"}))
    rng = np.random.default_rng([size, steps])
    loss = (size**-0.5 + (steps / 10) ** -0.5) / 4 * (1 + 0.2 * np.log(rate / 3e-3) ** 2)
    each = loss * np.exp(0.01 * rng.standard_normal((len(LAYERS), len(SEEDS))))
    shape = (len(LAYERS), len(SEEDS), size)
    variables = {
        "decoder": rng.standard_normal((*shape, WIDTH)).astype(np.float32),
        "loss": np.repeat(each[..., None], steps, axis=-1),
        "dead_fraction": np.zeros((*shape[:2], steps)),
        "feature_density": np.ones(shape),
        "explained_variance": 1 - each,
    }
    labels = {
        "layer": list(LAYERS),
        "sae_seed": list(SEEDS),
        "feature": np.arange(size),
        "step": np.arange(steps),
    }
    record = {"features": size, "steps": steps, "learning_rate": rate, "batch": 100}
    dataset = labelled("sae", variables, labels, {"kind": "topk", "k": 2})
    key = "-".join(map(str, coordinates.values()))
    origin = Origin("sae", key, 1, json.dumps({"sae": record}), 1, 1, "", "")
    write_stage(dataset, directory / "sae.nc", origin)
    return directory


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("results") / "sizes"
    for size in SIZES:
        for steps in STEPS:
            for rate in RATES:
                write_point(directory, 1.0, size, steps, rate)
    for size in SIZES[:2]:
        write_point(directory, 2.0, size, STEPS[0], RATES[0])
    return directory


def test_points_that_differ_in_the_dictionary_alone_belong_together(sweep: Path) -> None:
    groups = gathering.together(read(sweep).points)
    assert {label: len(group) for label, group in groups.items()} == {
        "hamiltonian.h=1.0": 75,
        "hamiltonian.h=2.0": 2,
    }


def test_the_dataset_has_the_grid_the_frontier_and_the_laws(sweep: Path) -> None:
    found = read(sweep).scaling
    assert found["unexplained"].dims == (
        "group",
        "layer",
        "features",
        "steps",
        "learning_rate",
        "sae_seed",
    )
    at = found.sel(group="hamiltonian.h=1.0", layer="residual_2")
    operations = 2 * 16 * WIDTH + 8 * 2 * WIDTH
    assert float(at["compute"].sel(features=16, steps=200)) == operations * 100 * 200
    expected = (16**-0.5 + 20**-0.5) / 4
    got = at["unexplained"].sel(features=16, steps=200, learning_rate=3e-3)
    np.testing.assert_allclose(got, expected, rtol=0.05)
    assert at["optimum_inside"].sum() >= 3
    np.testing.assert_allclose(at["optimal_learning_rate"], 3e-3, rtol=0.1)
    law = at.sel(quantity="loss")
    assert float(law["exponent_low"]) <= float(law["exponent"]) <= float(law["exponent_high"]) < 0
    other = found.sel(group="hamiltonian.h=2.0")
    assert np.isnan(other["budget_compute"]).all()
    shares = at["fate_share"].sel(growth="16 to 32")
    assert float(shares.sel(fate=["lost", "kept", "split"]).sum()) == pytest.approx(1)
    assert (at["parent"].sel(growth="16 to 32").values[32:] == -1).all()


def test_it_is_computed_once(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(sweep).scaling
    monkeypatch.setattr("nqs_sae_service.stages.scaled.scaled", None)
    assert read(sweep).scaling.identical(found)
    with xr.open_dataset(sweep / "scaling.nc") as stored:
        assert all({"long_name", "units"} <= set(stored[name].attrs) for name in stored.variables)


def test_page_terminal_and_figure_have_it(sweep: Path) -> None:
    page = write_report(sweep).read_text()
    assert "How large should the dictionary be?" in page
    assert "are best and leave" in page
    assert "no budget that three sizes reach" in page  # of the group of two points
    assert "scaling" in draw(read(sweep))
    console = Console(width=160, record=True)
    show(sweep, console)
    text = console.export_text()
    assert "Best dictionary of a budget" in text
    assert "16 to 32" in text


def test_damaged_files_are_told(tmp_path: Path) -> None:
    for size in SIZES[:2]:
        directory = write_point(tmp_path / "broken", 1.0, size, STEPS[0], RATES[0])
        with xr.open_dataset(directory / "sae.nc") as stored:
            poorer = stored.load().drop_vars("explained_variance")
        (directory / "sae.nc").unlink()
        poorer.to_netcdf(directory / "sae.nc")
    assert "problem" in read(tmp_path / "broken").scaling.attrs
    assert "could not be compared" in write_report(tmp_path / "broken").read_text()


def test_one_size_is_nothing_to_compare(tmp_path: Path) -> None:
    for steps in STEPS[:2]:
        write_point(tmp_path / "steps", 1.0, 8, steps, RATES[0])
    assert read(tmp_path / "steps").scaling is None
    assert not (tmp_path / "steps" / "scaling.nc").exists()
