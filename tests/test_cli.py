"""The command line: exit codes, plain errors, and stdout that carries results only."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "service"))
import toy

import nqs_sae_service.stages
from nqs_sae_service import __version__
from nqs_sae_service.cli import app


@pytest.fixture
def nqs_sae(tmp_path, monkeypatch, capsys):
    """``nqs_sae(*arguments)`` runs a command in an empty directory; exit code, lines of stdout, lines of stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nqs_sae_service.stages, "STAGES", toy.STAGES, raising=False)
    toy.write_spec(tmp_path)

    def call(*arguments: str) -> tuple[int, list[str], list[str]]:
        with pytest.raises(SystemExit) as exit_:
            app(list(arguments), prog_name="nqs-sae")
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(exit_.value.code or 0), captured.out.splitlines(), captured.err.splitlines()

    return call


def test_help_loads_no_numerics():
    script = (
        "import sys\nfrom nqs_sae_service.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'xarray', 'numba', 'pydantic', 'scipy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_version(nqs_sae):
    assert nqs_sae("--version") == (0, [f"nqs-sae {__version__}"], [])


def test_run_prints_the_run_directories_last(nqs_sae):
    code, out, _ = nqs_sae("run", "toy.toml")
    assert (code, out) == (0, ["results/toy"])
    code, out, _ = nqs_sae("run", "toy.toml", "--results", "elsewhere", "--until", "samples")
    assert (code, out) == (0, ["elsewhere/toy"])
    assert not Path("elsewhere/toy/steering.nc").exists()


def test_run_takes_settings(nqs_sae):
    code, out, _ = nqs_sae("run", "toy.toml", "--set", "name=other", "--set", "ground_state.steps=3")
    assert (code, out) == (0, ["results/other"])


def test_a_failed_run_is_code_1_and_one_line(nqs_sae):
    code, out, err = nqs_sae("run", "toy.toml", "--set", "hamiltonian.h=13.0")
    assert (code, out) == (1, [])
    assert err[-1] == "error: toy: the energy is not finite; use a smaller ground_state.learning_rate"


def test_dry_run_shows_the_plan_and_computes_nothing(nqs_sae):
    code, out, err = nqs_sae("run", "toy.toml", "--dry-run")
    assert (code, err) == (0, [])
    text = "\n".join(out)
    for expected in ("results/toy", *toy.STAGES, "not computed yet", "1 min 30 s", "3.0 GB", "2.0 MB"):
        assert expected in text
    assert not Path("results").exists()


def test_dry_run_says_what_was_changed(nqs_sae):
    nqs_sae("run", "toy.toml")
    _, out, _ = nqs_sae("run", "toy.toml", "--dry-run", "--set", "steering.draws=9")
    text = "\n".join(out)
    assert "changed: steering.draws" in text
    assert text.count("cached") == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "missing.toml"), "missing.toml"),
        (("run", "folder"), "folder"),
        (("validate", "binary.toml"), "binary.toml"),
        (("validate", "empty.toml"), "empty.toml"),
        (("run", "toy.toml", "--set", "samples.cuont=5"), "count"),
        (("run", "toy.toml", "--until", "sample"), "did you mean samples?"),
        (("run", "toy.toml", "--force", "samplse"), "did you mean samples?"),
        (("run", "toy.toml", "toy.toml"), "toy"),
        (("run", "toy.toml", "--frce", "samples"), "--frce"),
        (("rnu", "toy.toml"), "rnu"),
        (("run",), "SPEC"),
        (("warmup", "missing.toml"), "missing.toml"),
        (("show", "missing"), "missing"),
        (("show", "folder"), "folder"),
        (("report", "binary.toml"), "binary.toml"),
        (("figures", "folder"), "folder"),
        (("init", "toy"), "toy.toml"),
        (("init", "a/b"), "a/b"),
    ],
)
def test_bad_usage_is_code_2_and_says_what(nqs_sae, arguments, expected):
    Path("folder").mkdir()
    Path("binary.toml").write_bytes(bytes(range(256)))
    Path("empty.toml").write_bytes(b"")
    code, out, err = nqs_sae(*arguments)
    assert (code, out) == (2, [])
    assert expected in err[-1]


def test_all_errors_of_all_specs_are_said_at_once(nqs_sae):
    Path("a.toml").write_text(toy.SPEC.replace("steps = 40", "steps = -1\nsampels = 5"))
    Path("b.toml").write_text(toy.SPEC.replace("h = 1.0", "h = nan"))
    code, out, err = nqs_sae("validate", "a.toml", "b.toml")
    assert (code, out) == (2, [])
    assert [line.split(":")[0] for line in err] == ["a.toml", "a.toml", "b.toml"]


def test_errors_are_never_wrapped_or_styled(nqs_sae):
    name = "[red]" + "x" * 200 + "[/red].toml"
    code, _, err = nqs_sae("validate", name)
    assert code == 2
    assert len(err) == 1
    assert name in err[0]


def test_validate_says_that_all_is_well(nqs_sae):
    code, out, err = nqs_sae("validate", "toy.toml")
    assert (code, out, err) == (0, ["toy.toml: valid, 1 run"], [])


def test_init_writes_a_spec_that_validates_and_never_overwrites(nqs_sae):
    assert nqs_sae("init", "first") == (0, ["first.toml"], [])
    assert nqs_sae("validate", "first.toml")[0] == 0
    before = Path("first.toml").read_text()
    assert nqs_sae("init", "first")[0] == 2
    assert Path("first.toml").read_text() == before


def test_schema_is_json(nqs_sae):
    code, out, _ = nqs_sae("schema")
    assert code == 0
    assert "hamiltonian" in json.loads("\n".join(out))["properties"]


def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -m nqs_sae_service schema | head -c 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("{", "")
