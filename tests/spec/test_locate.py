"""Every key and array element of a TOML text is found where it stands; tomli is the reference."""

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from nqs_sae_service.spec.locate import TooMuch, locate


def paths(value, path=()):
    """Every key path and array element of a parsed document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key), inner
        yield from paths(inner, (*path, key))


def text_at(text, position):
    line, column = position
    return text.split("\n")[line - 1][column - 1 :]


def starts_with_key(text, key):
    """Whether the text begins with some spelling of the key."""
    if text[0] not in "\"'":
        return text.startswith(key) and not text[len(key) : len(key) + 1].isalnum()
    for end in range(2, len(text) + 1):
        try:
            return tomli.loads(f"{text[:end]} = 0") == {key: 0}
        except tomli.TOMLDecodeError:
            continue
    return False


def check(text):
    positions = locate(text)
    expected = dict(paths(tomli.loads(text)))
    assert set(positions) == set(expected)
    for path, position in positions.items():
        there = text_at(text, position)
        if isinstance(path[-1], str):
            assert starts_with_key(there, path[-1])
        elif isinstance(expected[path], dict):
            assert there[0] == "{" or starts_with_key(
                there, path[-2]
            )  # [[a]]: its place is the name in the header
        else:
            assert there.startswith(first_characters(expected[path]))


def first_characters(value):
    if isinstance(value, str):
        return ("'", '"')
    if isinstance(value, list):
        return "["
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else tuple("0123456789-")


def test_a_document_with_everything_in_it():
    text = '''# comment = 1
name = "a # no comment"   # yes = 1
"quoted key" . 'x y'.bare = """
[not.a.header]
key = "no"
""\\"""" # after

[lattice]   # header
length=40
  [ lattice . "in.ner" ]
when = 1979-05-27 07:32:00
array = [ 1, [2, 3,], # comment, with ] and ,
  "x]", {a = 5, b.c = ['y', 6]},
]
literal = \'\'\'it's [x]
y = 3\'\'\'
[[points]]
h = 0.5
[points.deep]
x = 1
[[points]]
[[points.more]]
y = true'''
    check(text)
    positions = locate(text)
    assert positions["name",] == (2, 1)
    assert positions["quoted key", "x y"] == (3, 16)
    assert positions["lattice", "in.ner"] == (10, 15)
    assert positions["lattice", "in.ner", "array", 1, 1] == (12, 18)
    assert positions["lattice", "in.ner", "array", 3, "b", "c", 1] == (13, 29)
    assert positions["points", 1, "more", 0, "y"] == (23, 1)


bare_keys = st.text("abcXYZ019_-", min_size=1, max_size=6)
keys = st.one_of(
    bare_keys,
    st.text("ab.\"\\ #[]='é\t", max_size=6).map(
        lambda s: '"' + s.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t") + '"'
    ),
    st.text('ab."\\ #[]=é', max_size=6).map(lambda s: f"'{s}'"),
)
blanks = st.sampled_from(["", " ", "\t "])
dotted_keys = st.lists(keys, min_size=1, max_size=3).flatmap(
    lambda parts: st.lists(blanks, min_size=2, max_size=2).map(lambda b: (b[0] + "." + b[1]).join(parts))
)
gaps = st.sampled_from(["", " ", "\n", '\n  # a comment ] } , "\n\t', "\n\n"])
scalars = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.sampled_from(
        [
            "true",
            "1e-3",
            "-inf",
            "1979-05-27T07:32:00Z",
            "1979-05-27 07:32:00",
            "07:32:00",
            '""',
            "''",
            '"a \\" ] # b"',
            "'c \" } , d'",
            '"""x\n[y]\nz = 1 # ""q"" \\""" """',
            '"""two quotes"""""',
            "'''it''s\nk = [1]'''",
        ]
    ),
)


def containers(values):
    arrays = st.lists(st.tuples(gaps, values, gaps), max_size=4).flatmap(
        lambda items: st.sampled_from(["", ","]).map(
            lambda end: "[" + ",".join(a + v + b for a, v, b in items) + (end if items else "") + "\n]"
        )
    )
    tables = st.lists(st.tuples(dotted_keys, blanks, values), max_size=3).map(
        lambda items: "{" + ", ".join(f"{key}{b}={b}{value}" for key, b, value in items) + "}"
    )
    return arrays | tables


values = st.recursive(scalars, containers, max_leaves=6)
statements = st.one_of(
    st.tuples(dotted_keys, blanks, values).map(lambda t: f"{t[0]}{t[1]}={t[1]}{t[2]}"),
    dotted_keys.map(lambda key: f"[{key}]"),
    dotted_keys.map(lambda key: f"[[ {key} ]]"),
    st.sampled_from(["", "# a = 1", "   "]),
)
endings = st.sampled_from(["\n", " # [comment] = 2\n", "\t\n\n"])


@given(st.lists(st.tuples(statements, endings), max_size=12))
def test_positions_agree_with_tomli_on_any_document(parts):
    kept = ""
    for (
        statement,
        ending,
    ) in parts:  # keep the statements that fit, so that few documents are lost to duplicates
        try:
            tomli.loads(kept + statement + ending)
        except tomli.TOMLDecodeError:
            continue
        kept += statement + ending
    check(kept)


def test_nesting_beyond_any_spec_is_refused_where_it_happens():
    with pytest.raises(TooMuch) as error:
        locate("ok = 1\nx = " + "[" * 100 + "]" * 100)
    assert error.value.position[0] == 2
    with pytest.raises(TooMuch):
        locate(".".join("a" * 100) + " = 1")
