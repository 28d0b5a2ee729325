"""``nqs-sae doctor``: what is wrong is said with its remedy, and only errors end with code 1."""

import os
import subprocess
import sys

import pytest

from nqs_sae_service.service import doctor


def findings(results):
    return list(doctor.examine(results))


def test_this_machine_can_run(tmp_path):
    found = findings(tmp_path / "results")
    assert [f for f in found if f.level == "error"] == []
    text = "\n".join(map(str, found))
    for expected in (
        "Python 3",
        "numba",
        "processor",
        "kernel threads",
        "openblas",
        "kernel cache",
        "hard links",
    ):
        assert expected in text
    assert not (tmp_path / "results").exists()
    assert all(f.remedy for f in found if f.level != "ok" and "could not be examined" not in f.text)


def test_every_blas_has_one_thread(tmp_path):
    lines = [f.text for f in findings(tmp_path) if "openblas" in f.text]
    assert lines
    assert all("1 thread " in line for line in lines)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    assert any(f.level == "error" and "--results" in f.remedy for f in findings(tmp_path))


def test_results_below_a_file_are_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert any(f.level == "error" and "--results" in f.remedy for f in findings(tmp_path / "file"))


def test_without_hard_links_runs_are_still_possible(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links")

    monkeypatch.setattr(doctor.os, "link", refuse)
    (line,) = [f for f in findings(tmp_path) if "hard links" in f.text]
    assert line.level == "warning"


def test_an_examination_that_fails_does_not_hide_the_others(tmp_path, monkeypatch):
    def broken():
        raise ZeroDivisionError("a bug")
        yield

    monkeypatch.setattr(doctor, "_memory", broken)
    found = findings(tmp_path)
    assert any("a bug" in f.text and f.level == "warning" for f in found)
    assert "MPI" in found[-1].text


def test_the_command_sets_numba_up_before_it_looks_at_it(tmp_path):
    command = [sys.executable, "-m", "nqs_sae_service", "doctor", "--results", str(tmp_path)]
    environment = {**os.environ, "NQS_SAE_CACHE": str(tmp_path / "cache")}
    environment.pop("NUMBA_CACHE_DIR", None)
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{tmp_path / 'cache'}" in result.stdout
    assert "nqs-sae warmup" in result.stdout
