"""What editors and beginners get is made from the records, complete, and true."""

import json
import re
import subprocess
import sys

import pytest

from nqs_sae_service.spec import SpecError, json_schema, starter
from nqs_sae_service.spec.root import REGISTRIES, SECTIONS, records_of


def tables():
    """Every record of a section, and of a table inside one, by the dotted name of the table."""
    for section in SECTIONS:
        for record in records_of(section):
            yield section, record
            yield from ((f"{section}.{name}", inner) for name, inner in record.tables().items())


def fields():
    for table, record in tables():
        for name, field in record.model_fields.items():
            yield table, record.__name__, name, field


def test_every_field_says_what_it_means():
    assert [
        (record, name) for _, record, name, field in fields() if name != "kind" and not field.description
    ] == []
    assert all(record.__doc__ for _, record in tables())


def test_the_schema_knows_every_key():
    schema = json.loads(json.dumps(json_schema()))
    assert list(schema["properties"]) == ["extends", "name", "seed", *SECTIONS, "sweep"]
    assert schema["additionalProperties"] is False
    for _, record, name, field in fields():
        entry = schema["$defs"][record]["properties"][name]
        assert entry.get("description") == field.description
        assert entry.keys() & {"type", "const", "enum", "anyOf", "$ref"}
    for section, registry in REGISTRIES.items():
        text = json.dumps(schema["properties"][section])
        assert all(f'"#/$defs/{record.__name__}"' in text for record in registry.values())


def test_every_reference_in_the_schema_resolves():
    schema = json_schema()
    references = re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(schema))
    assert references
    assert set(references) <= schema["$defs"].keys()
    assert '"null"' not in json.dumps(schema)


def test_the_starter_is_a_spec(folder):
    text = starter("first")
    (point,) = folder.load(text)
    assert point.spec.name == "first"
    assert max(map(len, text.split("\n"))) <= 110
    assert all(f"\n[{table}]\n" in text for table in {*SECTIONS, "engine.slurm"})


def test_the_commented_keys_of_the_starter_are_its_defaults(folder):
    text = starter("first")
    uncommented = re.sub(r"^# (\w+ = (?!\.\.\.))", r"\1", text, flags=re.MULTILINE)
    assert uncommented.count("\n# ") < text.count("\n# ") - 30
    assert folder.load(uncommented)[0].spec == folder.load(text)[0].spec
    swept = re.sub(r'^# (\[sweep|")', r"\1", text, flags=re.MULTILINE)
    assert len(folder.load(swept)) == 3


@pytest.mark.parametrize("name", ["../x", "", ".x", "a b"])
def test_the_starter_refuses_a_bad_name(name):
    with pytest.raises(SpecError, match="a name is made of"):
        starter(name)


def test_reading_a_spec_needs_no_numerics(folder):
    folder.write(folder.minimal)
    code = (
        "import sys; from nqs_sae_service.spec import load_spec; load_spec('spec.toml');"
        "print(*({'numba', 'xarray', 'matplotlib', 'netCDF4'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
