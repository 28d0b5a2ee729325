"""The built wheel works outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


def call(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    package = "nqs_sae_service"
    shutil.copytree(CHECKOUT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    built = call("-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", ".", cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """``installed(*arguments)`` calls the command line of the installed wheel, in an empty directory."""
    target, elsewhere = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    install = call("-m", "pip", "install", *options, "--target", str(target), str(wheel), cwd=elsewhere)
    assert install.returncode == 0, install.stderr

    def nqs_sae(*arguments: str) -> str:
        found = call("-m", "nqs_sae_service", *arguments, cwd=elsewhere, PYTHONPATH=str(target))
        assert found.returncode == 0, found.stderr
        return found.stdout

    origin = "import nqs_sae_service; print(nqs_sae_service.__file__)"
    assert str(target) in call("-c", origin, cwd=elsewhere, PYTHONPATH=str(target)).stdout
    return nqs_sae


def test_the_wheel_carries_every_file_of_the_package(wheel):
    package = CHECKOUT / "nqs_sae_service"
    kept = {
        path.relative_to(CHECKOUT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        assert kept <= set(archive.namelist())


def test_the_installed_wheel_writes_checks_and_plans_a_spec(installed):
    assert installed("--version").startswith("nqs-sae ")
    assert installed("init", "first").strip() == "first.toml"
    assert "valid" in installed("validate", "first.toml")
    assert "ground_state" in installed("run", "first.toml", "--dry-run")
