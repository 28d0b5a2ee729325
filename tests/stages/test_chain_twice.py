"""The whole chain on a 12-site ring: the same again."""

from nqs_sae_service.datasets import differences
from nqs_sae_service.stages import STAGES


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(directory, tmp_path_factory, compute):
    """Even on one thread."""
    again = compute(tmp_path_factory.mktemp("again"), "engine.threads=1")
    for stage in set(STAGES) - {"transfer", "dynamics", "crosscoder", "completeness", "heads"}:
        assert differences(directory / f"{stage}.nc", again / f"{stage}.nc") == []
    other = compute(tmp_path_factory.mktemp("other"), "seed=2", "ground_state.steps=3", until="samples")
    fewer = compute(tmp_path_factory.mktemp("fewer"), "ground_state.steps=3", until="samples")
    assert {"energy", "parameters"} <= set(differences(fewer / "ground_state.nc", other / "ground_state.nc"))
    assert "configuration" in differences(fewer / "samples.nc", other / "samples.nc")
