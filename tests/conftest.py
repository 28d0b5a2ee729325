"""Every test computes with the threads of the engine: parallel kernels, one BLAS thread inside them."""

import pytest

from nqs_sae_service.engine.threads import configure_threads


@pytest.fixture(autouse=True, scope="session")
def _threads():
    configure_threads()
