"""Ten thousand broken specs: each gives points or plain errors, soon, and nothing else. Whatever is valid can be planned."""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mutants import KEYS, SPECS, Mutator

from nqs_sae_service.cli import app
from nqs_sae_service.errors import UserError
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.spec import SpecError, load_spec
from nqs_sae_service.stages import STAGES

HEADS = 'name = "a"\nlattice = {kind = "chain", length = 16}\nhamiltonian = {kind = "tfim", h = 1.0}\n'
LONGEST = 20.0  # seconds of one mutant, on a busy machine


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory with everything that ``extends`` of a mutant may name."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for spec in SPECS.glob("*.toml"):
        shutil.copy(spec, folder)
    (folder / "loop-a.toml").write_text('extends = "loop-b.toml"')
    (folder / "loop-b.toml").write_text('extends = "loop-a.toml"')
    (folder / "self.toml").symlink_to("mutant.toml")
    (folder / "fan.toml").write_text('extends = ["quickstart.toml", "quickstart.toml"]')
    for i in range(40):
        (folder / f"chain-{i}.toml").write_text(f'extends = "chain-{i + 1}.toml"')
    for name, target in {"zero": "/dev/zero", "passwd": "/etc/passwd", "dangling": "/nowhere/at/all"}.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        yield folder


def attempt(content: bytes, sets=()) -> str:
    """Load and plan; "valid" or "refused"."""
    Path("mutant.toml").unlink(missing_ok=True)
    Path("mutant.toml").write_bytes(content)
    began = time.process_time()
    try:
        points = load_spec("mutant.toml", sets)
        assert all(point.toml() for point in points[:3])
        plans = _planned(points[:1])
        costs = [step.cost for plan in plans for step in plan.steps]
        assert all(cost.seconds >= 0 and cost.disk >= 0 and cost.memory >= 0 for cost in costs)
        outcome = "valid"
    except SpecError as error:
        check_lines(error)
        outcome = "refused"
    assert time.process_time() - began < LONGEST
    return outcome


def _planned(points):
    """The plan; none for a point that starts from what is not there, which is said in one line."""
    try:
        return make_plan(points, STAGES, Path("results"))
    except UserError as error:
        refusal = str(error)
    assert refusal.isprintable()
    assert re.search(r"(ground_state\.start_from|state\.load|transfer\.teacher|state\.ranking): ", refusal)
    return []


def check_lines(error: SpecError) -> None:
    lines = str(error).split("\n")
    assert len(lines) == len(error.problems) <= 101
    assert all(line.isprintable() for line in lines)


def mutate(seed: int, count: int) -> None:
    mutator = Mutator(seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = []
    for number in range(count):
        content, sets = mutator.mutant(), [mutator.setting()] if number % 7 == 0 else []
        try:
            outcomes.append(attempt(content, sets))
        except BaseException:
            print(f"mutant {number} of seed {seed}, --set {sets}:\n{content[:3000]!r}")
            raise
    assert outcomes.count("valid") > count / 20  # or the mutants are so broken that nothing is learned
    assert outcomes.count("refused") > count / 2
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 500, f"{grown:.0f} MB"


@pytest.mark.parametrize("seed", range(3))
def test_mutants(folder, seed):
    mutate(seed, 600)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(3, 10), *range(100, 113)])
def test_more_mutants(folder, seed):
    mutate(seed, 10_000)


def test_settings_of_the_command_line(folder):
    mutator = Mutator(1)
    refused = 0
    for _ in range(700):
        setting = mutator.setting()
        try:
            load_spec("quickstart.toml", [setting])
        except SpecError as error:
            refused += 1
            check_lines(error)
    assert 0 < refused < 700


@pytest.mark.parametrize(
    "base", ["fifo", "zero", "socket", "self.toml", "loop-a.toml", "chain-0.toml", "folder"]
)
def test_a_base_that_is_no_file_is_refused_at_once(folder, base):
    (folder / "folder").mkdir()
    Path("mutant.toml").write_text(f'extends = "{base}"\n{HEADS}')
    with pytest.raises(SpecError) as error:
        load_spec("mutant.toml")
    assert error.value.problems[0].key == "extends"


def test_a_base_of_proc_that_waits_is_not_waited_for(folder):
    up = "../" * len(folder.parts)
    attempt(f'extends = "{up}proc/kmsg"\n{HEADS}'.encode())


def test_the_spec_itself_may_be_a_pipe(folder):
    command = f"{sys.executable} -m nqs_sae_service validate /dev/stdin"
    result = subprocess.run(command, shell=True, input=HEADS, capture_output=True, text=True, check=True)
    assert result.stdout == "/dev/stdin: valid, 1 run\n"


GRID = f'[sweep.grid]\n"hamiltonian.h" = {[i / 100 for i in range(100)]}\n"sae.k" = {list(range(1, 101))}\n'


THOUSAND = list(range(1000))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEADS + "observables.names = [" + "1," * 400_000 + "]", "holds more than 50000 keys and values"),
        (HEADS + "observables.names = [" + "1," * 40_000 + "]", "and 39900 more problems"),
        (HEADS + "".join(f"k{i} = 1\n" for i in range(20_000)), "and 19900 more problems"),
        (HEADS + "sae.seeds = [" + "1," * 40_000 + "]\n" + GRID, "at most 200 each"),
        (HEADS + "[sweep.grid]\n" + "".join(f'"a.b{i}" = [1]\n' for i in range(15_000)), "more than 100 keys"),
        (HEADS + "[sweep.grid]\n" + "".join(f'"sae.{k}" = {THOUSAND}\n' for k in KEYS["sae"][:3]), "makes 1000000000 points"),
        ("x" * 900_000 + " = 1\n" + HEADS, "unknown key"),
    ],
)  # fmt: skip
def test_sheer_size_is_refused_soon_and_briefly(folder, text, expected):
    Path("mutant.toml").write_text(text)
    began = time.process_time()
    with pytest.raises(SpecError, match=expected) as error:
        load_spec("mutant.toml")
    assert time.process_time() - began < LONGEST
    assert len(str(error.value)) < 100_000


def test_a_large_sweep_shares_what_does_not_vary(folder):
    scales = f"steering.scales = {[i / 1000 for i in range(1000)]}\n"
    points = load_spec_text(HEADS + scales + f"[sweep.grid]\nseed = {list(range(1500))}\n")
    assert points[0].spec.steering.scales is points[-1].spec.steering.scales


@pytest.mark.parametrize(
    "name",
    [
        *("..", ".", "a/b", "/a", "../a", "a/../b", ".store", ".queue", ".slurm", ".lock", "-x", "--help", "a ", " a"),
        *("a\\n", "a\\u0000b", "", "a\\u2215b", "e\\u0301", "\\u202e", "~", "$HOME", "a:b", "a*", "CON/x", "x" * 101),
    ],
)  # fmt: skip
def test_a_name_is_one_harmless_directory(folder, name):
    with pytest.raises(SpecError, match="name"):
        load_spec_text(HEADS.replace('"a"', f'"{name}"'))


def test_sweep_points_are_directories_inside_the_run(folder):
    text = HEADS + '[sweep.zip]\n"steering.targets" = [["magnetization"], ["sigma_x"]]\n"sae.l1" = [1, 2]\n'
    text = text.replace("[sweep", '[sae]\nkind = "relu-l1"\n[sweep')
    for point in load_spec_text(text):
        name, directory = point.run.split("/")
        assert name == "a"
        assert directory.startswith("steering.targets=")
    with pytest.raises(SpecError, match="two points"):
        load_spec_text(HEADS + '[sweep.grid]\n"hamiltonian.h" = [1, 1.0]\n')


def load_spec_text(text):
    Path("mutant.toml").write_text(text)
    return load_spec("mutant.toml")


def test_through_the_command_line(folder, capsys):
    """Exit code 0 or 2 and no traceback, for validate and for a dry run."""
    mutator = Mutator(2)
    for number in range(60):
        Path("mutant.toml").write_bytes(mutator.mutant())
        command = ["validate", "mutant.toml"] if number % 2 else ["run", "mutant.toml", "--dry-run"]
        if number % 3 == 0 and command[0] == "run":
            command += ["--set", mutator.setting()]
        with pytest.raises(SystemExit) as exit_:
            app(command, prog_name="nqs-sae")
        said = capsys.readouterr()
        code = exit_.value.code or 0
        assert code in (0, 2)
        assert "Traceback" not in said.err
        assert bool(said.err) == (code == 2)
    assert not Path("results").exists()


def test_a_base_is_no_oracle(folder):
    """The message about a file that is no spec does not repeat what is written in it."""
    Path("secret").write_text("password = correct horse\nbattery: staple\n")
    with pytest.raises(UserError) as error:
        load_spec_text(f'extends = "secret"\n{HEADS}')
    assert "horse" not in str(error.value)
    assert "staple" not in str(error.value)
