"""Whatever a file or a command line holds: points, or a SpecError with one plain line per problem. Never anything else."""

import tomli
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nqs_sae_service.spec import SpecError, load_spec, starter
from nqs_sae_service.spec.root import SECTIONS, records_of

TEXT = starter("ring") + '[sweep.grid]\n"hamiltonian.h" = [0.5, 1]\n[sweep.zip]\nseed = [1, 2]\n'
LINES = TEXT.split("\n")
DOCUMENT = tomli.loads(TEXT)
KEYS = sorted(
    {name for section in SECTIONS for record in records_of(section) for name in record.model_fields}
)

quiet = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
fragments = st.sampled_from(
    [
        *"[]{}=,.\"'#\n\t\\",
        '"""',
        "'''",
        "[[",
        "]]",
        "nan",
        "1e400",
        "-1",
        "9" * 30,
        "true",
        "[lattice]",
        "\0",
        "é",
        "\x1b",
    ]
)
scalars = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(
        [10**400, -1, 0, 2**31, 2**63, "topk", "relu-l1", "sigma_x", "residual_1", "correlation_0_99"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=5,
)
paths = st.one_of(
    st.tuples(st.sampled_from([*SECTIONS, "name", "seed", "extends", "sweep", "sampling_"])),
    st.tuples(st.sampled_from([*SECTIONS, "sweep"]), st.sampled_from([*KEYS, "grid", "zip", "knd"])),
    st.tuples(
        st.just("sweep"),
        st.sampled_from(["grid", "zip"]),
        st.tuples(st.sampled_from([*SECTIONS, "x"]), st.sampled_from([*KEYS, "y"])).map(".".join),
    ),
)


def load(content, sets=()):
    """Load, and check the form of what went wrong, if anything."""
    with open("spec.toml", "wb") as stream:
        stream.write(content if isinstance(content, bytes) else content.encode())
    lines = []
    try:
        points = load_spec("spec.toml", sets)
    except SpecError as problems:
        lines = str(problems).split("\n")
        count = len(problems.problems)
    if not lines:
        assert points
        assert all(point.toml() for point in points)
        return
    assert len(lines) == len(set(lines)) == count
    assert all(line.isprintable() and line.startswith(("spec.toml:", "--set ")) for line in lines)


@quiet
@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 12), fragments), min_size=1, max_size=4))
def test_broken_text(folder, cuts):
    text = TEXT
    for start, length, insertion in cuts:
        text = text[:start] + insertion + text[start + length :]
    load(text)


@quiet
@given(st.permutations(range(len(LINES))), st.integers(0, len(LINES)))
def test_shuffled_lines(folder, order, keep):
    load("\n".join(LINES[i].removeprefix("# ") for i in order[:keep]))


@quiet
@given(st.lists(st.tuples(paths, values), min_size=1, max_size=4))
def test_any_value_anywhere(folder, changes):
    document = tomli.loads(TEXT)
    for path, value in changes:
        table = document
        for part in path[:-1]:
            if not isinstance(table.get(part), dict):
                table[part] = {}
            table = table[part]
        table[path[-1]] = value
    load(tomli_w.dumps(document))


@quiet
@given(st.binary(max_size=60))
def test_any_bytes(folder, content):
    load(content)
    load(TEXT.encode()[:-40] + content)


@quiet
@given(
    paths.map(".".join),
    st.one_of(values.map(lambda v: tomli_w.dumps({"v": v})[4:]), st.text(max_size=10), fragments),
)
def test_any_setting(folder, key, value):
    load(TEXT, [f"{key}={value}"])
    load(TEXT, [f"{key}{value}"])
