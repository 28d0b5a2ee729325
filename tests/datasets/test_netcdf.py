"""Stage files: what the schema promises is what a plain reader finds."""

import json
import subprocess
import sys

import netCDF4
import numpy as np
import pytest
import xarray as xr

from nqs_sae_service.datasets import Origin, differences, labelled, read_stage, same_data, write_stage
from nqs_sae_service.datasets.netcdf import Streamed
from nqs_sae_service.datasets.schema import COORDINATES, SCHEMA, UNLABELLED
from nqs_sae_service.errors import UserError

ORIGIN = Origin(
    stage="samples",
    key="0123456789abcdef0123",
    version=2,
    sections=json.dumps({"samples": {"count": 6}}),
    seed=5,
    threads=2,
    start="2026-01-01T00:00:00+00:00",
    end="2026-01-01T00:01:00+00:00",
)


def born_samples(seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    return labelled(
        "samples",
        {
            "configuration": rng.choice(np.array([-1, 1], np.int8), (3, 2, 8)),
            "log_psi": rng.normal(size=(3, 2)) + 1j * rng.normal(size=(3, 2)),
        },
        coords={"split": ("chain", ["train", "select", "test"])},
        attributes={"translation_invariant": True, "r_hat": np.float64(1.01), "unknown": None},
    )


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "samples.nc"
    write_stage(born_samples(), path, ORIGIN)
    return path


def test_plain_xarray_reads_everything_with_names_units_and_labels(written):
    with xr.open_dataset(written) as dataset:
        assert set(dataset.data_vars) == {"configuration", "log_psi_re", "log_psi_im"}
        for variable in dataset.variables.values():
            assert variable.attrs["long_name"]
            assert variable.attrs["units"]
        assert set(dataset.indexes) == {"chain", "draw", "spin"}
        assert dataset.configuration.dtype == np.int8
        assert dataset.configuration.encoding["zlib"]
        assert not dataset.log_psi_re.encoding["zlib"]
        assert list(dataset.split.values) == ["train", "select", "test"]
        np.testing.assert_array_equal(dataset.configuration, born_samples().configuration)


def test_our_reader_joins_complex_variables(written):
    log_psi = read_stage(written)["log_psi"]
    assert log_psi.dtype == np.complex128
    np.testing.assert_array_equal(log_psi, born_samples()["log_psi_re"] + 1j * born_samples()["log_psi_im"])
    assert log_psi.attrs["long_name"] == "log of the unnormalised wave function"


def test_root_attributes_say_where_it_comes_from(written):
    attributes = read_stage(written).attrs
    assert attributes["stage"] == "samples"
    assert attributes["key"] == ORIGIN.key
    assert json.loads(attributes["sections"]) == {"samples": {"count": 6}}
    assert attributes["seed"] == 5
    assert attributes["ranks"] == 1
    assert attributes["schema_version"] >= 1
    assert attributes["translation_invariant"] == 1
    assert attributes["r_hat"] == 1.01
    assert "unknown" not in attributes
    assert json.loads(attributes["versions"])["numpy"] == np.__version__
    assert {"host", "device", "threads", "package_version", "start", "end"} <= set(attributes)
    assert {"host", "start", "end"} <= set(attributes["volatile"].split())


def test_files_are_read_only_and_alone(written):
    assert written.stat().st_mode & 0o777 == 0o444
    assert list(written.parent.iterdir()) == [written]


def test_same_data_sees_one_bit_and_overlooks_what_is_volatile(tmp_path, written):
    later = ORIGIN.__class__(**{**ORIGIN.__dict__, "start": "2027-01-01T00:00:00+00:00", "threads": 64})
    write_stage(born_samples(), tmp_path / "again.nc", later)
    assert same_data(written, tmp_path / "again.nc")
    changed = born_samples()
    changed["log_psi_re"][1, 1] = np.nextafter(float(changed["log_psi_re"][1, 1]), np.inf)
    write_stage(changed, tmp_path / "changed.nc", later)
    assert differences(written, tmp_path / "changed.nc") == ["log_psi"]
    assert not same_data(born_samples(), born_samples().assign_attrs(r_hat=1.02))
    assert not same_data(born_samples(), born_samples().drop_vars("split"))


def test_same_data_compares_nan_and_signed_zeros_by_their_bits():
    def dataset(*values, dtype=np.float64):
        return xr.Dataset({"energy": ("step", np.array(values, dtype))})

    assert same_data(dataset(np.nan), dataset(np.nan))
    assert not same_data(dataset(0.0), dataset(-0.0))
    assert not same_data(dataset(1.0), dataset(1.0, dtype=np.float32))


def test_timings_are_volatile(tmp_path):
    paths = []
    for seconds in (0.1, 0.2):
        dataset = labelled("ground_state", {"energy": np.zeros(2), "step_seconds": np.full(2, seconds)})
        paths.append(tmp_path / f"{seconds}.nc")
        write_stage(dataset, paths[-1], ORIGIN.__class__(**{**ORIGIN.__dict__, "stage": "ground_state"}))
    assert same_data(*paths)


def test_undeclared_variables_are_refused():
    with pytest.raises(KeyError, match="energie"):
        labelled("ground_state", {"energie": np.zeros(3)})


def test_every_declared_dimension_is_explained():
    dims = {dim for table in SCHEMA.values() for variable in table.values() for dim in variable.dims}
    assert dims <= set(COORDINATES) | set(UNLABELLED)


def test_text_tables_survive(tmp_path):
    dataset = labelled(
        "features",
        {"verdict": np.array([["abs_magnetization is |m|", ""]])},
        coords={"layer": ["residual_1"], "observable": ["abs_magnetization", "sigma_x"]},
    )
    write_stage(
        dataset, tmp_path / "features.nc", ORIGIN.__class__(**{**ORIGIN.__dict__, "stage": "features"})
    )
    back = read_stage(tmp_path / "features.nc")
    assert back["verdict"].sel(observable="abs_magnetization").item() == "abs_magnetization is |m|"
    assert back["verdict"].sel(observable="sigma_x").item() == ""


@pytest.mark.parametrize("content", [None, b"", b"not a NetCDF file at all" * 100])
def test_unreadable_files_are_said_plainly(tmp_path, content):
    path = tmp_path / "samples.nc"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"samples\.nc"):
        read_stage(path)


def test_a_file_written_in_pieces_is_the_file_written_whole(tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 3, 2, 5)).astype(np.float32)
    labels = {"layer": ["residual_1"], "chain": np.arange(4), "draw": np.arange(3), "token": np.arange(2)}
    origin = ORIGIN.__class__(**{**ORIGIN.__dict__, "stage": "activations"})
    ratio = {"participation_ratio": [2.5]}
    write_stage(labelled("activations", {"residual_1": x, **ratio}, labels), tmp_path / "whole.nc", origin)

    def pieces():
        for chain in range(4):
            yield "residual_1", (slice(chain, chain + 1), slice(None)), x[chain : chain + 1]
        yield "participation_ratio", (slice(None),), np.array([2.5])

    small = labelled("activations", {"participation_ratio": [np.nan]}, labels)
    large = {"residual_1": (x.shape, np.float32)}
    write_stage(Streamed(small, large, pieces()), tmp_path / "pieces.nc", origin)
    assert not differences(tmp_path / "whole.nc", tmp_path / "pieces.nc")
    with xr.open_dataset(tmp_path / "pieces.nc") as dataset:
        assert dataset.residual_1.attrs["long_name"] == "activations of layer residual_1"
        assert list(dataset.residual_1.coords) == ["chain", "draw", "token"]


def test_pieces_that_stop_leave_no_file(tmp_path):
    def pieces():
        yield "residual_1", (slice(0, 1),), np.zeros((1, 3, 2, 5), np.float32)
        raise KeyboardInterrupt

    origin = ORIGIN.__class__(**{**ORIGIN.__dict__, "stage": "activations"})
    small = labelled("activations", {"participation_ratio": [np.nan]}, {"layer": ["residual_1"]})
    with pytest.raises(KeyboardInterrupt):
        write_stage(
            Streamed(small, {"residual_1": ((4, 3, 2, 5), np.float32)}, pieces()), tmp_path / "x.nc", origin
        )
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_open_can_be_opened_again_and_again(written):
    """In a process of its own: where texts are strings of variable length, HDF5 2.2 ends it here."""
    program = (
        "import sys, xarray as xr\n"
        "kept = [xr.open_dataset(sys.argv[1]) for _ in range(2)]\n"
        "texts = [dataset[name].values for dataset in kept for name in dataset.variables]\n"
        "for _ in range(30): xr.open_dataset(sys.argv[1]).close()\n"
        "print(kept[0].observable.values, kept[0].verdict.values)\n"
    )
    dataset = xr.Dataset(
        {"value": ("observable", np.ones(2)), "verdict": ("observable", ["found", "ψ"])},
        coords={"observable": ["sigma_x", "|m|"]},
    )
    path = written.with_name("texts.nc")
    write_stage(dataset, path, ORIGIN)
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "['sigma_x' '|m|'] ['found' 'ψ']\n")
    with netCDF4.Dataset(path) as file:
        assert not any(variable.dtype is str for variable in file.variables.values())
