"""Kernels call single-threaded products inside their own parallel loops: set the threads as a run would."""

import pytest

from nqs_sae_service.engine.threads import configure_threads


@pytest.fixture(scope="session", autouse=True)
def _threads():
    configure_threads()
