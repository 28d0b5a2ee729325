"""The content store: finished stages by key, verified, linked."""

import os

import pytest
import xarray as xr

from nqs_sae_service.datasets import Origin, Store, read_stage

KEY = "0123456789abcdef0123"


def origin(key: str = KEY) -> Origin:
    return Origin("samples", key, 1, "{}", 1, 1, "", "")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / ".store")
    with store.lock("samples", KEY, lambda: None):
        store.put(xr.Dataset({"log_psi_re": ("chain", [1.0, 2.0])}), origin())
    return store


def damage(path):
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def test_what_is_put_is_there_and_whole(store):
    assert store.has("samples", KEY)
    assert store.intact("samples", KEY)
    assert not store.has("samples", KEY[::-1])
    assert not store.has("steering", KEY)
    assert sorted(path.suffix for path in store.directory.iterdir()) == [".nc", ".sha256"]


def test_one_flipped_bit_is_noticed(store):
    damage(store.path("samples", KEY))
    assert store.has("samples", KEY)
    assert not store.intact("samples", KEY)


def test_a_file_without_its_sum_does_not_count(store):
    store.path("samples", KEY).with_suffix(".nc.sha256").unlink()
    assert not store.has("samples", KEY)


def test_run_directories_link_to_it(store, tmp_path):
    store.link("samples", KEY, tmp_path / "samples.nc")
    assert (tmp_path / "samples.nc").samefile(store.path("samples", KEY))
    store.forget("samples", KEY)
    assert not store.has("samples", KEY)
    assert read_stage(tmp_path / "samples.nc").sizes["chain"] == 2


def test_sums_are_those_of_sha256sum(store):
    text = store.path("samples", KEY).with_suffix(".nc.sha256").read_text()
    digest, name = text.split()
    assert len(digest) == 64
    assert name == store.path("samples", KEY).name
