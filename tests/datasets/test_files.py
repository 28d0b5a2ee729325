"""Files appear whole or not at all; locks exclude and let go."""

import subprocess
import sys

import pytest

from nqs_sae_service.datasets import files


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "status.json"
    files.write_text(path, "old")

    def half(temporary):
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.replace_atomically(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_write_leaves_a_temporary_file_that_is_swept(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from nqs_sae_service.datasets.files import replace_atomically\n"
        "replace_atomically(Path(sys.argv[1]), lambda t: (t.write_text('half'), os.kill(os.getpid(), 9)))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.nc")], check=False)
    assert not (tmp_path / "a.nc").exists()
    assert len(list(tmp_path.iterdir())) == 1
    files.sweep_temporaries(tmp_path, "b*")
    assert len(list(tmp_path.iterdir())) == 1
    files.sweep_temporaries(tmp_path, "a*")
    assert not list(tmp_path.iterdir())


def test_a_link_is_replaced_and_the_linked_file_is_not_written_to(tmp_path):
    first, second, shown = tmp_path / "first", tmp_path / "second", tmp_path / "shown"
    first.write_text("1")
    second.write_text("2")
    for source in (first, first, second):
        files.link_or_copy(source, shown)
        assert shown.samefile(source)
    assert first.read_text() == "1"
    assert sorted(tmp_path.iterdir()) == [first, second, shown]


def test_copies_where_links_fail(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("links are not supported")

    monkeypatch.setattr(files.os, "link", refuse)
    source, shown = tmp_path / "source", tmp_path / "shown"
    source.write_bytes(b"bits")
    files.link_or_copy(source, shown)
    assert shown.read_bytes() == b"bits"
    assert not shown.samefile(source)
    assert shown.stat().st_mode & 0o777 == 0o444


def test_a_lock_excludes_until_it_is_released(tmp_path):
    path = tmp_path / "lock"
    with files.locked(path), pytest.raises(BlockingIOError), files.locked(path):
        pass
    with files.locked(path):
        assert path.exists()
    assert not path.exists()


def test_waiting_for_a_lock_ends_when_its_owner_is_killed(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from nqs_sae_service.datasets.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    path = tmp_path / "lock"
    owner = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    waited = []

    def wait():
        waited.append(1)
        owner.kill()
        owner.wait()

    with files.locked(path, wait):
        assert len(waited) == 1


def test_waiting_can_be_given_up(tmp_path):
    class Enough(Exception):
        pass

    def wait():
        raise Enough

    path = tmp_path / "lock"
    with files.locked(path):
        with pytest.raises(Enough), files.locked(path, wait):
            pass
        assert path.exists()
