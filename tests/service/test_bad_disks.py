"""Disks that are full, read-only or forgetful, and files that were damaged: a clear state, and the same bits in the end."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy
from loguru import logger

from nqs_sae_service import open_run
from nqs_sae_service.datasets import Store, files, same_data, store
from nqs_sae_service.datasets.files import sha256_of
from nqs_sae_service.service.checkpoint import load_checkpoint, save_checkpoint
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec

BLOCK = 4096


def run(
    spec: Path, results: Path, *options: str, limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    """The toy chain in a process of its own; ``limit`` is the largest file that the system lets it write."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, toy.__file__, str(spec), str(results), *options]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, timeout=120)


def run_here(spec: Path, results: Path) -> tuple[int, str]:
    """The toy chain in this process, which is quicker; the exit code and what was said."""
    lines: list[str] = []
    sink = logger.add(lines.append, level="INFO", format="{message}")
    try:
        return run_plans(make_plan(load_spec(spec), toy.STAGES, results)).code, "".join(lines)
    finally:
        logger.remove(sink)


def status(results: Path) -> dict:
    return json.loads((results / "toy" / "status.json").read_text())


def assert_failed_plainly(result, results: Path, cause: str) -> None:
    """One line that names a file and the cause, code 1, no traceback, no half-written line in the log."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert cause in said[0]
    assert f"{results}/" in said[0]
    if (results / "toy" / "status.json").exists():
        assert status(results)["state"] == "failed"
        assert cause in status(results)["error"]
    log = results / "toy" / "run.jsonl"
    assert all(json.loads(line) for line in (log.read_text() if log.exists() else "").splitlines())


@pytest.fixture
def spec(tmp_path):
    return toy.write_spec(tmp_path)


def assert_ends_well(spec: Path, results: Path, undisturbed: Path) -> str:
    code, said = run_here(spec, results)
    assert code == 0, said
    assert status(results)["state"] == "done"
    assert set(open_run(results / "toy").children) == set(toy.STAGES)
    for stage in toy.STAGES:
        assert same_data(results / "toy" / f"{stage}.nc", undisturbed / f"{stage}.nc")
    assert not list(results.rglob(".tmp~*"))
    return said


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk(options)`` mounts a file system in memory, of 2 MB and 200 files if nothing else is said."""
    mounted = []

    def mount(options: str = "size=2m,nr_inodes=200") -> Path:
        place = tmp_path / "disk"
        place.mkdir()
        tried = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, text=True
        )
        if tried.returncode:
            pytest.skip(f"a file system cannot be mounted here: {tried.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, blocks_left: int) -> Path:
    """A file that leaves so many blocks of 4096 bytes."""
    ballast = disk / "ballast"
    left = os.statvfs(disk)
    ballast.write_bytes(bytes((left.f_bavail - blocks_left) * left.f_frsize))
    return ballast


@pytest.mark.parametrize("blocks", [0, 1, 2, 40, 72])
def test_a_full_disk_at_any_moment(spec, small_disk, undisturbed, blocks):
    """0 to 2 blocks: status and spec do not fit; 3 to 66: the first stage; then later ones."""
    disk = small_disk()
    results, ballast = disk / "results", fill(disk, blocks)
    assert_failed_plainly(run(spec, results), results, "No space left on device")
    ballast.unlink()
    assert_ends_well(spec, results, undisturbed)


@pytest.mark.parametrize("inodes", [3, 6])
def test_no_more_files_can_be_made(spec, small_disk, undisturbed, inodes):
    disk = small_disk(f"size=2m,nr_inodes={inodes + 1}")
    results = disk / "results"
    result = run(spec, results)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "No space left on device" in result.stderr
    subprocess.run(["mount", "-o", "remount,size=2m,nr_inodes=100", disk], check=True)
    assert_ends_well(spec, results, undisturbed)


@pytest.mark.parametrize("limit", [700, 2300, 12000])
def test_the_system_refuses_in_the_middle_of_a_file(spec, tmp_path, undisturbed, limit):
    """The same as a quota that is used up, for whoever may not mount; HDF5 meets it while writing and while closing."""
    results = tmp_path / "results"
    assert_failed_plainly(run(spec, results, limit=limit), results, "File too large")
    assert_ends_well(spec, results, undisturbed)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_errors_of_the_disk(spec, tmp_path, undisturbed, monkeypatch, capsys, call, number):
    """Also those that show at the last step, such as a write error that a network file system reports late."""
    results, true = tmp_path / "results", getattr(os, call)
    refused = []

    def refuse(first, *rest):
        name = os.readlink(f"/proc/self/fd/{first}") if call == "fsync" else str(first)
        if name.endswith(".nc"):
            refused.append(name)
            raise OSError(number, os.strerror(number))
        return true(first, *rest)

    monkeypatch.setattr(files.os, call, refuse)
    code, _ = run_here(spec, results)
    monkeypatch.undo()
    assert refused
    if call == "link":  # a copy does as well
        assert code == 0
    else:
        assert code == 1
        assert os.strerror(number) in status(results)["error"]
        assert not list((results / ".store").glob("*.sha256"))
    assert_ends_well(spec, results, undisturbed)


def test_a_read_only_results_directory(spec, small_disk, undisturbed):
    disk = small_disk()
    results = disk / "results"
    assert run(spec, results, "--until", "ground_state").returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    result = run(spec, results)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: toy: {results}/toy")
    assert line.endswith("Read-only file system")
    assert status(results)["state"] == "done"  # of the run before: nothing was begun
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert_ends_well(spec, results, undisturbed)


def stored(results: Path, stage: str) -> Path:
    (path,) = (results / ".store").glob(f"{stage}-*.nc")
    return path


def flip_a_bit(path: Path, at: int) -> None:
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("stage", ["ground_state", "steering"])
def test_a_flipped_bit_is_found_said_and_computed_again(spec, tmp_path, undisturbed, stage, share):
    results = tmp_path / "results"
    assert run_here(spec, results)[0] == 0
    path = stored(results, stage)
    flip_a_bit(path, int(share * path.stat().st_size))
    said = assert_ends_well(spec, results, undisturbed)
    assert f"{path}: damaged (its checksum differs); computing it again" in said
    assert f"{stage} done" in said
    assert said.count(" done in ") == 1  # what was computed from the sound file stands


@pytest.mark.parametrize("sum_", [b"", b"\xff\xfe\x00", b"0" * 64 + b"  x\n", None])
def test_a_checksum_that_is_lost_or_garbage(spec, tmp_path, undisturbed, sum_):
    results = tmp_path / "results"
    assert run_here(spec, results)[0] == 0
    path = Path(f"{stored(results, 'samples')}.sha256")
    path.unlink() if sum_ is None else path.write_bytes(sum_)
    assert "samples done" in assert_ends_well(spec, results, undisturbed)


def test_a_deleted_entry_or_the_whole_store(spec, tmp_path, undisturbed):
    results = tmp_path / "results"
    assert run(spec, results).returncode == 0
    stored(results, "samples").unlink()
    assert "missing or damaged in the store" in run(spec, results, "--dry-run").stdout
    assert run(spec, results).stderr.count(" done in ") == 1
    subprocess.run(["rm", "-r", results / ".store"], check=True)
    assert {path.stem for path in (results / "toy").glob("*.nc")} == set(
        toy.STAGES
    )  # the run keeps its links
    assert assert_ends_well(spec, results, undisturbed).count(" done in ") == 3


def test_entries_that_are_links_or_pipes_do_not_count(spec, tmp_path, undisturbed):
    """Nothing outside the results is written to, and a pipe is not waited for."""
    results, outside = tmp_path / "results", tmp_path / "outside"
    assert run_here(spec, results)[0] == 0
    outside.write_bytes(b"precious")
    before = outside.stat()
    entry = stored(results, "samples")
    for place in (
        entry,
        results / "toy" / "run.jsonl",
        results / "toy" / "spec.toml",
        results / "toy" / "steering.nc",
    ):
        place.unlink()
        place.symlink_to(outside)
    (results / "toy" / "run.jsonl").unlink()  # a log that is a link is refused, as follows below
    for pipe in (
        results / "toy" / "status.json",
        results / ".store" / entry.name.replace(".nc", ".checkpoint.npz"),
    ):
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
    assert "samples done" in assert_ends_well(spec, results, undisturbed)
    (results / "toy" / "run.jsonl").unlink()
    (results / "toy" / "run.jsonl").symlink_to(outside)
    assert run_here(spec, results)[0] == 1
    assert outside.read_bytes() == b"precious"
    assert outside.stat().st_mode == before.st_mode


def test_a_pipe_for_a_log_is_refused(spec, tmp_path):
    (tmp_path / "results" / "toy").mkdir(parents=True)
    os.mkfifo(tmp_path / "results" / "toy" / "run.jsonl")
    code, said = run_here(spec, tmp_path / "results")
    assert code == 1
    assert said.count("\n") == 1
    assert "run.jsonl" in said


class Trap:
    """What would create a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_is_never_unpickled(tmp_path):
    trap = tmp_path / "sprung"
    np.savez(tmp_path / "c.npz", x=np.array([Trap(trap)], dtype=object))
    assert load_checkpoint(tmp_path / "c.npz") is None
    np.save(tmp_path / "plain.npy", np.array([Trap(trap)], dtype=object))
    os.replace(tmp_path / "plain.npy", tmp_path / "c.npz")
    assert load_checkpoint(tmp_path / "c.npz") is None
    assert not trap.exists()
    with pytest.raises(TypeError, match="Python objects"):
        save_checkpoint(tmp_path / "d.npz", {"x": np.array([None])})


def test_nothing_in_the_package_unpickles_or_evaluates():
    package = Path(sys.modules["nqs_sae_service"].__file__).parent
    forbidden = (
        "pickle",
        "marshal",
        "shelve",
        "yaml",
        "eval(",
        "exec(",
        "allow_pickle=True",
        "joblib",
        "__import__",
    )
    for source in package.rglob("*.py"):
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
            code = line.split("#")[0].replace("allow_pickle=False", "")
            code = re.sub(r"\bmarshall", "", code)  # the sign rule, not the module
            found = [word for word in forbidden if word in code and f".{word}" not in code]
            found = [word for word in found if not (word == "pickle" and '"""' in code)]
            assert not found, f"{source}:{number}: {found}"


def test_a_damaged_run_is_read_with_one_plain_error(spec, tmp_path):
    results = tmp_path / "results"
    assert run_here(spec, results)[0] == 0
    path = results / "toy" / "samples.nc"
    whole = path.read_bytes()
    path.unlink()
    script = "import sys, nqs_sae_service as n\ntry: n.open_run(sys.argv[1])\nexcept n.errors.UserError as e: print(e)"
    for content in (
        b"plain text",
        whole[: len(whole) // 2],
        whole[:-1],
    ):  # elsewhere: HDF5 may not survive it
        path.write_bytes(content)
        command = [sys.executable, "-c", script, str(results / "toy")]
        read = subprocess.run(command, capture_output=True, text=True)
        assert read.stdout.startswith(f"{path}: not a readable NetCDF file"), read.stderr
    path.unlink()
    os.mkfifo(path)
    assert "samples" not in open_run(results / "toy").children


def stop_and_continue(spec: Path, results: Path, seconds: float, undisturbed: Path) -> None:
    """A stopped process keeps its locks: nobody takes over, and in the end all is there once."""
    log = results.with_suffix(".log")
    environment = os.environ | {"TOY_SLEEP": "0.02", "TOY_LOG": str(log)}
    command = [sys.executable, toy.__file__, str(spec), str(results)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": environment}
    first = subprocess.Popen(command, **quiet)
    other = None
    try:
        while not log.exists():
            assert first.poll() is None
            time.sleep(0.005)
        first.send_signal(signal.SIGSTOP)
        same = run(spec, results)
        assert same.returncode == 75
        assert "locked by another process" in same.stderr
        other = subprocess.Popen([*command, "--set", 'name="other"'], **quiet)  # wants the same stages
        time.sleep(seconds)
        assert other.poll() is None
        first.send_signal(signal.SIGCONT)
        assert (first.wait(60), other.wait(60)) == (0, 0)
    finally:
        for process in filter(None, (first, other)):
            process.kill()
            process.communicate()
    assert sorted(log.read_text().splitlines()) == sorted(toy.STAGES)
    assert_ends_well(spec, results, undisturbed)


def test_a_stopped_process_is_waited_for(spec, tmp_path, undisturbed):
    stop_and_continue(spec, tmp_path / "results", 3.0, undisturbed)


@pytest.mark.slow
def test_a_process_that_is_stopped_for_a_minute_is_waited_for(spec, tmp_path, undisturbed):
    stop_and_continue(spec, tmp_path / "results", 60.0, undisturbed)


def test_space_is_asked_for_before_a_large_file_is_begun(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        files.require_space(tmp_path, 10**18)
    files.require_space(tmp_path, BLOCK)


def test_a_store_does_not_take_a_link_for_an_entry(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "real").write_bytes(b"x")
    store.path("samples", "k").symlink_to(tmp_path / "real")
    Path(f"{store.path('samples', 'k')}.sha256").write_text(files.sha256_of(tmp_path / "real"))
    assert not store.has("samples", "k")


def test_a_checkpoint_that_does_not_fit_is_named_with_the_remedy(spec, tmp_path, undisturbed):
    results = tmp_path / "results"
    (plan,) = make_plan(load_spec(spec), toy.STAGES, results)
    checkpoint = plan.store.checkpoint("ground_state", plan.steps[0].key)
    checkpoint.parent.mkdir(parents=True)
    save_checkpoint(checkpoint, {"step": np.asarray(3), "history": np.zeros(2)})
    code, errors = run_here(spec, results)
    assert code == 1
    assert f"failed after it continued from {checkpoint}; if it does so again, delete that file" in errors
    checkpoint.unlink()
    assert_ends_well(spec, results, undisturbed)


def test_a_run_directory_that_leads_elsewhere_is_refused(spec, tmp_path):
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    results.mkdir()
    elsewhere.mkdir()
    (elsewhere / "spec.toml").write_text("mine")
    (results / "toy").symlink_to(elsewhere)
    code, errors = run_here(spec, results)
    assert code == 1
    assert f"{results / 'toy'} is a link out of {results}: remove it, or choose another --results" in errors
    assert [path.name for path in elsewhere.iterdir()] == ["spec.toml"]
    assert (elsewhere / "spec.toml").read_text() == "mine"


def test_a_large_file_is_read_once_by_a_process(spec, tmp_path, monkeypatch):
    """The points of a sweep share stages; what has been verified is not read again unless it has changed."""
    results = tmp_path / "results"
    run_here(spec, results)
    read = []
    monkeypatch.setattr(store, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    run_here(spec, results)
    assert len(read) == 3
    run_here(spec, results)
    assert len(read) == 3
    flip_a_bit(stored(results, "samples"), 2000)
    run_here(spec, results)
    assert [path.name.partition("-")[0] for path in read[3:]] == ["samples"] * 2  # found; its new sum
