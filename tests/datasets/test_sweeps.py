"""Runs as trees, sweeps as trees with the swept parameters as dimensions."""

import json
import warnings

import numpy as np
import pytest
import xarray as xr

from nqs_sae_service import open_run, open_sweep
from nqs_sae_service.datasets import Origin, labelled, write_stage
from nqs_sae_service.errors import UserError


def write_point(sweep, coordinates, **stages: xr.Dataset):
    directory = sweep / ",".join(f"{name}={value}" for name, value in coordinates.items())
    directory.mkdir(parents=True)
    (directory / "spec.toml").write_text("")
    (directory / "status.json").write_text(json.dumps({"coordinates": coordinates}))
    for stage, dataset in stages.items():
        key = str(abs(hash(dataset.to_dict().__repr__())))
        write_stage(dataset, directory / f"{stage}.nc", Origin(stage, key, 1, "{}", 1, 1, "", ""))
    return directory


def energies(*values: float) -> xr.Dataset:
    return labelled("ground_state", {"energy": np.array(values)})


def features(n_features: int, best: int) -> xr.Dataset:
    return labelled(
        "features",
        {
            "pearson": np.full((1, n_features, 1), 0.5),
            "best_feature": np.array([[best]]),
            "verdict": np.array([["yes"]]),
        },
        coords={"layer": ["residual_1"], "observable": ["sigma_x"]},
    )


def test_a_run_is_one_node_per_stage(tmp_path):
    run = write_point(tmp_path, {"a": 1}, ground_state=energies(-1.0, -2.0), features=features(4, 3))
    tree = open_run(run)
    assert set(tree.children) == {"ground_state", "features"}
    assert tree["ground_state"].attrs["stage"] == "ground_state"
    assert float(tree["ground_state"]["energy"].sel(step=1)) == -2.0


def test_a_grid_becomes_dimensions_and_missing_points_are_nan(tmp_path):
    for h in (1.5, 0.5):
        for k in (2, 4):
            stages = {} if (h, k) == (1.5, 4) else {"ground_state": energies(h, k)}
            write_point(tmp_path, {"hamiltonian.h": h, "sae.k": k}, **stages)
    energy = open_sweep(tmp_path)["ground_state"]["energy"]
    assert energy.dims == ("hamiltonian.h", "sae.k", "step")
    assert list(energy["hamiltonian.h"]) == [0.5, 1.5]
    assert energy.sel({"hamiltonian.h": 0.5, "sae.k": 4}).values.tolist() == [0.5, 4.0]
    assert energy.sel({"hamiltonian.h": 1.5, "sae.k": 2}).values.tolist() == [1.5, 2.0]
    assert np.isnan(energy.sel({"hamiltonian.h": 1.5, "sae.k": 4})).all()


def test_a_point_without_any_result_keeps_its_place(tmp_path):
    write_point(tmp_path, {"hamiltonian.h": 0.5}, ground_state=energies(1.0), features=features(2, 1))
    write_point(tmp_path, {"hamiltonian.h": 1.0})
    tree = open_sweep(tmp_path)
    assert tree["ground_state"]["energy"].sel({"hamiltonian.h": 0.5}).values.tolist() == [1.0]
    assert np.isnan(tree["ground_state"]["energy"].sel({"hamiltonian.h": 1.0})).all()


def test_integers_and_text_keep_their_type_on_a_complete_grid(tmp_path):
    for k in (2, 4):
        write_point(tmp_path, {"sae.k": k}, features=features(3, k))
    joined = open_sweep(tmp_path)["features"]
    assert joined["best_feature"].dtype.kind == "i"
    assert joined["best_feature"].sel({"sae.k": 4}).item() == 4
    assert joined["verdict"].sel({"sae.k": 2}).item() == "yes"


def test_what_all_points_share_is_kept_once(tmp_path):
    for k in (2, 4):
        write_point(tmp_path, {"sae.k": k}, ground_state=energies(-1.0), features=features(3, k))
    tree = open_sweep(tmp_path)
    assert tree["ground_state"]["energy"].dims == ("step",)
    assert tree["features"]["pearson"].dims[0] == "sae.k"


def test_parameters_swept_together_share_a_dimension(tmp_path):
    for h, steps in ((0.5, 100), (1.0, 300), (1.5, 200)):
        coordinates = {"hamiltonian.h": h, "ground_state.steps": steps}
        write_point(tmp_path, coordinates, ground_state=energies(h))
    energy = open_sweep(tmp_path)["ground_state"]["energy"]
    assert energy.dims == ("hamiltonian.h", "step")
    assert energy["ground_state.steps"].values.tolist() == [100, 300, 200]


def test_swept_lists_are_labelled_by_their_text(tmp_path):
    for names in (["sigma_x"], ["sigma_x", "magnetization"]):
        write_point(tmp_path, {"observables.names": names}, ground_state=energies(len(names)))
    energy = open_sweep(tmp_path)["ground_state"]["energy"]
    assert energy.sel({"observables.names": '["sigma_x"]'}).item() == 1.0


def test_points_of_different_shape_are_padded_where_labelled_and_it_is_said(tmp_path):
    write_point(tmp_path, {"sae.features": 3}, features=features(3, 2))
    write_point(tmp_path, {"sae.features": 5}, features=features(5, 4))
    with pytest.warns(UserWarning, match="differ in feature"):
        joined = open_sweep(tmp_path)["features"]
    assert joined["pearson"].sel({"sae.features": 3}).notnull().sum() == 3
    assert joined["pearson"].sel({"sae.features": 5}).notnull().sum() == 5
    assert joined["best_feature"].values.ravel().tolist() == [2, 4]


def test_unlabelled_dimensions_of_different_size_are_left_out_and_it_is_said(tmp_path):
    for width in (4, 8):
        dataset = energies(width).assign(parameters=("parameter", np.zeros(width)))
        write_point(tmp_path, {"state.width": width}, ground_state=dataset)
    with pytest.warns(UserWarning, match="left out parameters"):
        joined = open_sweep(tmp_path)["ground_state"]
    assert "parameters" not in joined
    assert joined["energy"].values.ravel().tolist() == [4.0, 8.0]


def test_stages_can_be_chosen(tmp_path):
    for k in (2, 4):
        write_point(tmp_path, {"sae.k": k}, ground_state=energies(k), features=features(k, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(open_sweep(tmp_path, stages=["ground_state"]).children) == {"ground_state"}


def test_what_is_not_a_run_or_a_sweep_is_said(tmp_path):
    run = write_point(tmp_path / "sweep", {"h": 1}, ground_state=energies(1.0))
    with pytest.raises(UserError, match="no sweep"):
        open_sweep(run)
    with pytest.raises(UserError, match=r"a sweep, its runs are inside: h=1"):
        open_run(tmp_path / "sweep")
    with pytest.raises(UserError, match="no such run"):
        open_run(tmp_path / "nothing")
