"""Portraits of the best features: sentences and tables say what the file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from nqs_sae_service.report.portraits import portraits_section
from nqs_sae_service.report.reading import read
from nqs_sae_service.report.records import Section


@pytest.fixture(scope="module")
def dataset(whole_run: Path) -> xr.Dataset:
    return read(whole_run).stages["features"]


@pytest.fixture(scope="module")
def section(dataset: xr.Dataset) -> Section:
    found = portraits_section(dataset)
    assert found is not None
    return found


def test_seeds_are_judged_by_chance(section: Section) -> None:
    first, second = (v.text for v in section.verdicts if "seeds" in v.text)
    assert first.startswith("residual_1: the 3 leading features")
    assert "19° apart" in first
    assert "55°: closer than chance (p = 0.020)" in first
    assert "no closer than chance (p = 0.60)" in second


def test_symmetries_are_counted_by_feature(section: Section, dataset: xr.Dataset) -> None:
    sentence = next(v.text for v in section.verdicts if "translation" in v.text)
    assert "under translation 1 invariant, 1 with a partner, 1 neither" in sentence
    twice = dataset.assign(best_feature=xr.zeros_like(dataset["best_feature"]))
    again = portraits_section(twice)
    assert again is not None
    assert any("under translation 1 invariant;" in v.text for v in again.verdicts)


def test_tables_hold_angles_neighbours_and_behaviour(section: Section, dataset: xr.Dataset) -> None:
    seeds, best = section.tables
    assert seeds.rows[0] == ("residual_1", "2", "5°, 20°, 31°", "0.0050", "39°, 64°, 89°", "30°, 55°, 80°")
    assert len(seeds.rows) == 4
    row = best.rows[0]
    near = dataset.sel(layer="residual_1", feature=3, neighbour=0)
    assert row[:3] == ("residual_1", "abs_magnetization", "3")
    assert row[3].startswith(f"{int(near.nearest_feature)} ({float(near.nearest_cosine):.2f}, ")
    median = np.nanmedian(dataset["top_percentile"].values[0, 0])
    assert float(row[4]) == pytest.approx(median, rel=0.01)
    assert row[5] == "invariant +0.99"
    assert best.rows[1][5] == "partner -0.40 (21: 0.97)"
    assert best.rows[2][7] == "neither +0.30 (21: 0.60)"


def test_files_without_portraits_have_no_section(dataset: xr.Dataset) -> None:
    known = ("subspace", "nearest", "symmetry", "top", "site")
    bare = dataset.drop_vars([name for name in dataset.data_vars if str(name).startswith(known)])
    assert portraits_section(bare) is None
    assert portraits_section(xr.Dataset()) is None
    partly = portraits_section(
        dataset.drop_vars(["symmetry_behaviour", "symmetry_pearson", "symmetry_partner"])
    )
    assert partly is not None
