"""What several tests of the service need: processes that do not outlive their test, and an undisturbed run to compare with."""

import signal
import subprocess
from pathlib import Path

import pytest
import toy

from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec


@pytest.fixture
def spawn():
    """``spawn(command, **options)`` starts a process, its output in pipes; it is killed when the test ends."""
    processes: list[subprocess.Popen[str]] = []

    def begin(command: list[str], **options) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Path:
    """The run directory of the toy chain, computed in peace."""
    directory = tmp_path_factory.mktemp("undisturbed")
    run_plans(make_plan(load_spec(toy.write_spec(directory)), toy.STAGES, directory / "results"))
    return directory / "results" / "toy"
