"""The scripts for Slurm: every line that sbatch reads, in bash that parses, whatever the spec and the paths are called."""

import json
import stat
import subprocess
import sys

import pytest
import toy

from nqs_sae_service.engine.threads import available_threads
from nqs_sae_service.errors import UserError
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.sbatch import render, render_waves
from nqs_sae_service.service.slurm import cancel_slurm, slurm_jobs
from nqs_sae_service.service.submission import frozen_text, submit_slurm
from nqs_sae_service.service.waves import waves
from nqs_sae_service.spec import SpecError, load_spec
from nqs_sae_service.spec.slurm import seconds_of

SWEEP = "[sweep.grid]\n'samples.seed' = [1, 2]\n"
ALL = """
[engine.slurm]
partition = "gpu,long"
account = "physics"
qos = "low"
time = "1-12:00:00"
ntasks = 4
cpus = 8
gpus = 1
memory = "64G"
at_most = 20
setup = ["module load cuda", "export X='{y}'"]
extra = ["--constraint=a100|h100", "--exclusive"]
"""


@pytest.fixture
def scripts(tmp_path):
    """``scripts(text)``: the scripts of a spec, by name; each one parses."""

    def rendered(text, results=tmp_path / "results"):
        points = load_spec(toy.write_spec(tmp_path, text))
        arrays = render_waves(waves(make_plan(points, toy.STAGES, results)), points)
        texts = {array.script: render(array, results / ".slurm" / "toy-1") for array in arrays}
        for script in texts.values():
            subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        return texts

    return rendered


def options(script):
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


def test_a_spec_that_says_nothing_of_slurm(scripts, tmp_path):
    (script,) = scripts(toy.SPEC).values()
    assert options(script) == [
        "--job-name=toy-1-wave-1",
        f"--chdir={tmp_path}/results/.slurm/toy-1",
        "--output=wave-1-task-%a.log",
        "--open-mode=append",
        "--array=0-0",
        "--requeue",
        "--signal=B:USR1@120",
        "--ntasks=1",
        "--cpus-per-task=1",
    ]
    assert f"program=({sys.executable} -m nqs_sae_service)" in script
    assert '    0) set -- run points/0000.toml --results "$results" ;; # toy\n' in script
    assert "srun" not in script


def test_every_key_of_the_section_has_its_line(scripts):
    texts = scripts(toy.SPEC + ALL + SWEEP)
    assert list(texts) == ["wave-1", "wave-2"]
    assert options(texts["wave-2"])[4:] == [
        "--array=0-1%20",
        "--requeue",
        "--signal=B:USR1@120",
        "--partition=gpu,long",
        "--account=physics",
        "--qos=low",
        "--time=1-12:00:00",
        "--ntasks=4",
        "--cpus-per-task=8",
        "--gpus-per-task=1",
        "--mem=64G",
        "--constraint=a100|h100",
        "--exclusive",
    ]
    assert "\nmodule load cuda\nexport X='{y}'\n" in texts["wave-2"]
    assert "\nsrun " in texts["wave-2"]
    assert '--results "$results" --until ground_state ;;' in texts["wave-1"]


def test_cores_follow_the_threads(scripts):
    (script,) = scripts(toy.SPEC.replace("[engine]", "[engine]\nthreads = 3")).values()
    assert "--cpus-per-task=3" in options(script)


def test_a_task_uses_no_more_cores_than_slurm_gave_it(monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    cores = available_threads()
    for given, threads in (("1", 1), (str(cores + 5), cores), ("0", cores), ("many", cores)):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
        assert available_threads() == threads


def test_points_that_ask_for_different_things_are_different_arrays(scripts):
    texts = scripts(
        toy.SPEC + "[sweep.grid]\n'engine.threads' = [1, 2, 1]\n'seed' = [1]".replace(", 1]", "]")
    )
    assert list(texts) == ["wave-1", "wave-2-part-1", "wave-2-part-2"]
    assert ["--cpus-per-task=2" in options(text) for text in texts.values()] == [False, False, True]
    assert "--output=wave-2-part-2-task-%a.log" in options(texts["wave-2-part-2"])


def test_very_many_points_are_several_arrays(scripts):
    texts = scripts(toy.SPEC + f"[sweep.grid]\n'steering.draws' = {list(range(1, 1202))}")
    assert [options(text)[4] for text in texts.values()] == ["--array=0-0", "--array=0-999", "--array=0-200"]
    assert "    200) set -- run points/1200.toml" in texts["wave-2-part-2"]


def test_the_sweep_is_drawn_once_after_its_points(scripts):
    drawn = toy.SPEC.replace("figures = false", "figures = true") + SWEEP
    script = scripts(drawn)["report"]
    assert '    0) set -- figures "$results"/toy ;; # toy\n' in script
    assert "report" not in scripts(toy.SPEC + SWEEP)


def test_paths_of_any_kind_stay_paths(scripts, tmp_path):
    strange = tmp_path / 'it\'s 100% "$HOME" \\ `ls` #1'
    (script,) = scripts(toy.SPEC, strange).values()
    line = next(line for line in script.splitlines() if line.startswith("results="))
    told = subprocess.run(
        ["bash", "-c", f'{line}; echo "$results"'], capture_output=True, text=True, check=True
    )
    assert told.stdout == f"{strange}\n"
    with pytest.raises(UserError, match="choose another with --results"):
        scripts(toy.SPEC, tmp_path / "a\nb")


@pytest.mark.parametrize(
    "line",
    [
        'partition = "gpu\\n#SBATCH --wrap=x"',
        'partition = "gpu --wrap=x"',
        'partition = "--wrap"',
        'partition = ""',
        'account = "a\\u2028b"',
        'qos = "x#y"',
        'time = "2h"',
        'time = "00:04:59"',
        'time = "4"',
        "time = 02:00:00",
        'memory = "8 G"',
        'memory = "0"',
        'setup = ["module load cuda\\nrm x"]',
        'setup = ["a\\rb"]',
        'setup = [""]',
        'extra = ["-C a100"]',
        'extra = ["--constraint=a100 --wrap=x"]',
        "extra = ['--comment=\"a b\"']",
        'extra = ["--comment=a\\n#SBATCH --array=0-9"]',
        'extra = ["--array=0-9"]',
        'extra = ["--arr=0-9"]',
        'extra = ["--no-requeue"]',
        'extra = ["--mem=3"]',
        'extra = ["--time=3"]',
        "gpus = -1",
    ],
)
def test_what_could_leave_its_line_is_refused(tmp_path, line):
    with pytest.raises(SpecError) as error:
        load_spec(toy.write_spec(tmp_path, f"{toy.SPEC}[engine.slurm]\n{line}\n"))
    (problem,) = error.value.problems
    assert problem.key.split("[")[0] == f"engine.slurm.{line.split(' ')[0]}"
    assert problem.origin.line == toy.SPEC.count("\n") + 2


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("02:00:00", 7200),
        ("1-0", 86400),
        ("1-2:30", 95400),
        ("2-00:00:07", 172807),
    ],
)
def test_times_as_slurm_writes_them(time, seconds):
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    "sweep",
    [
        "",
        "[sweep.grid]\nseed = [3, 4]\n'hamiltonian.h' = [0.5, 1.0]\n",
        "[sweep.grid]\n'observables.names' = [['sigma_x'], ['magnetization', 'sigma_x']]\n"
        "[sweep.zip]\n'state.attention' = ['full', 'positional']\n'steering.scales' = [[2.0], [0.5, 3.0]]\n",
        "[sweep.grid]\n'sae.kind' = ['topk', 'relu-l1']\n'sae.features' = [64]\n",
    ],
)
def test_a_frozen_point_loads_as_the_same_point(tmp_path, sweep):
    spec = tmp_path / "spec.toml"
    spec.write_text(toy.SPEC + ALL + sweep, encoding="utf-8")
    for point in load_spec(spec):
        frozen = tmp_path / "frozen.toml"
        frozen.write_text(frozen_text(point), encoding="utf-8")
        assert load_spec(frozen) == [point]


# --- a Slurm made of three shell scripts


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Commands of Slurm that note how they were called; what squeue says stands in ``squeue.txt``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    bodies = {
        "sbatch": 'echo "sbatch $*" >> calls; n=$(grep -c ^sbatch calls); [ "$n" -lt "${REFUSED:-99}" ] && echo "$n;local"',
        "squeue": "cat squeue.txt",
        "scancel": 'echo "scancel $*" >> calls',
    }
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/sh\ncd '{tmp_path}'\n{body}\n")
        (folder / name).chmod(stat.S_IRWXU)
    (tmp_path / "squeue.txt").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return tmp_path


def submit(folder, text=toy.SPEC + SWEEP):
    return submit_slurm(load_spec(toy.write_spec(folder, text)), toy.STAGES, folder / "results")


def calls(folder):
    return (folder / "calls").read_text().replace(f"{folder}/results/.slurm/", "").splitlines()


def test_waves_wait_for_one_another(fake):
    lines = submit(fake)
    assert [line.split(";")[0] for line in lines] == [
        "job 1: toy-1, wave 1 of 2: stages that several points need, each computed once",
        "job 2: toy-1, wave 2 of 2: every point",
    ]
    assert calls(fake) == [
        "sbatch --parsable toy-1/wave-1.sbatch",
        "sbatch --parsable --dependency=afterany:1 toy-1/wave-2.sbatch",
    ]
    submit(fake)
    assert calls(fake)[-1].endswith("toy-2/wave-2.sbatch")


def test_a_refused_wave_takes_back_those_before_it(fake, monkeypatch):
    monkeypatch.setenv("REFUSED", "2")
    with pytest.raises(UserError, match="sbatch: exit code 1"):
        submit(fake)
    assert calls(fake)[-1] == "scancel 1"


def test_the_state_of_what_was_submitted(fake):
    submit(fake)
    assert slurm_jobs(fake / "results") == []
    (fake / "squeue.txt").write_text("2_0|RUNNING|None\n2_1|PENDING|Priority\n77_0|RUNNING|None\n")
    first, second = slurm_jobs(fake / "results")
    assert (first.job, first.run, first.state, first.reason) == ("2_0", "toy/samples.seed=1", "RUNNING", "")
    assert (second.job, second.run, second.state, second.reason) == (
        "2_1",
        "toy/samples.seed=2",
        "PENDING",
        "Priority",
    )
    with pytest.raises(UserError, match=r"toy/samples.seed=1 is with Slurm already, as job 2_0 \(RUNNING\)"):
        submit(fake)
    assert cancel_slurm(fake / "results", "toy/samples.seed=2") == [second]
    assert calls(fake)[-1] == "scancel 2_1"
    cancel_slurm(fake / "results", "toy")
    assert calls(fake)[-1] == "scancel 2_0 2_1"
    assert cancel_slurm(fake / "results", "other") == []


def test_without_an_answer_of_squeue_what_is_not_done_is_unknown(fake):
    submit(fake)
    (fake / "squeue.txt").unlink()
    jobs = slurm_jobs(fake / "results")
    assert [job.state for job in jobs] == ["UNKNOWN"] * 3
    assert "squeue" in jobs[0].reason
    done = fake / "results" / "toy" / "samples.seed=1"
    done.mkdir(parents=True)
    (done / "status.json").write_text(json.dumps({"state": "done"}))
    assert [job.run for job in slurm_jobs(fake / "results")] == ["toy/samples.seed=2"]


@pytest.mark.parametrize(
    "record", ["", "[]", "{}", '{"arrays": 3}', '{"arrays": [{"job": "1", "tasks": [{"run": 3}]}]}']
)
def test_a_damaged_record_is_passed_over(fake, record):
    submit(fake)
    (fake / "squeue.txt").write_text("1_0|RUNNING|None\n")
    broken = fake / "results" / ".slurm" / "broken-1"
    broken.mkdir()
    (broken / "jobs.json").write_text(record)
    assert len(slurm_jobs(fake / "results")) == 1


def test_without_slurm_there_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not on the PATH"):
        submit(tmp_path)
    assert not (tmp_path / "results").exists()
