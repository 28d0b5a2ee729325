"""The records of [sae]: what they accept, and that reading a spec needs no compiler."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from nqs_sae_service.sae import KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_defaults_are_valid(kind):
    record = KINDS[kind](kind=kind)
    assert not list(record.findings({}))
    assert record.kind == kind
    for name, field in type(record).model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"k": 9, "features": 8}, "k"),
        ({"k_aux": 300}, "k_aux"),
        ({"seeds": [1, 1]}, "seeds[1]"),
        ({"seeds": [1, -1]}, "seeds[1]"),
    ],
)
def test_findings_name_the_key(fields, key):
    assert [finding.key for finding in KINDS["topk"](kind="topk", **fields).findings({})] == [key]


@pytest.mark.parametrize(
    "fields",
    [
        {"k": 0},
        {"features": 2**21 + 1},
        {"steps": 0},
        {"learning_rate": float("nan")},
        {"seeds": []},
        {"K": 3},
        {"k": 2.0},
    ],
)
def test_nonsense_is_refused(fields):
    with pytest.raises(ValidationError):
        KINDS["topk"](kind="topk", **fields)


def test_records_load_without_a_compiler():
    code = "import sys, nqs_sae_service.sae; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
