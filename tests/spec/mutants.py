"""Broken specs by the thousand, the same for the same seed: the shipped ones, changed in their bytes and in their structure."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli
import tomli_w

from nqs_sae_service.spec import starter
from nqs_sae_service.spec.root import SECTIONS, records_of

SPECS = Path(__file__).resolve().parents[2] / "specs"
KEYS = {
    section: sorted({name for record in records_of(section) for name in record.model_fields})
    for section in SECTIONS
}

# Written as TOML where an outsider would write it.
WORDS = [
    *("nan", "inf", "-inf", "1e400", "-1e400", "1e308", "5e-324", "-0.0", "0", "-1", "1", "2", "3", "8"),
    *(
        "9" * 19,
        "-" + "9" * 19,
        "9" * 400,
        "9" * 5000,
        "0x7fffffffffffffff",
        "0b1",
        "0o17",
        "1_000_000",
        "4096",
    ),
    *(
        "true",
        "false",
        "1979-05-27",
        "07:32:00",
        "1979-05-27T07:32:00Z",
        "0000-01-01",
        "[]",
        "{}",
        "[[[[]]]]",
    ),
    *(
        '""',
        "''",
        '"\\u0000"',
        '"\\ud800"',
        '"\\U0010ffff"',
        '"\ufeff"',
        '"\u202egnp.toml"',
        '"e\u0301"',
        '"\x7f"',
    ),
    *(
        '"../x"',
        '"/etc/passwd"',
        '"."',
        '".."',
        '"-x"',
        '".store"',
        '" x "',
        '"x "',
        '"CON"',
        '"a/b"',
        '"x\\n"',
    ),
    *(
        '"topk"',
        '"relu-l1"',
        '"rbm"',
        '"transformer"',
        '"tfim"',
        '"chain"',
        '"square"',
        '"graph"',
        '"kagome"',
        '"heisenberg"',
        "[4, 6]",
        "[true, false]",
        "[[0, 1], [1, 2], [2, 3]]",
        '"residual_1"',
        '"hidden"',
        '"head"',
    ),
    *('"sigma_x"', '"correlation_0_999999999"', '"correlation_r_1"', '"structure_factor_0"', '"log_abs_psi"'),
    *(
        '"__class__"',
        '"{0.__class__}"',
        '"%s%n"',
        '"$(touch x)"',
        '"!!python/object/apply:os.system [x]"',
        '"<script>"',
    ),
    *(
        "[1, 2, 3]",
        "[0.5, 0.25, 0.25]",
        '["a", 1]',
        "[nan]",
        "{a = 1}",
        '{"" = 1}',
        "{a.b.c = 1}",
        "[{a = 1}]",
    ),
]
SNIPPETS = [
    *"[]{}=,.\"'#\n\t\\ \r\0",
    *('"""', "'''", "[[", "]]", "\r\n", "\ufeff", "\u2028", "\x1b[31m", "é", "\U0001f600", "\x85"),
    *("[lattice]\n", "[[lattice]]\n", "[sweep]\n", "[sweep.grid]\n", "[sweep.zip]\n", "lattice.length = 8\n"),
    *(
        '"lattice" = 1\n',
        "[a.b.c.d]\n",
        "a.b.c = 1\n",
        "name = 'twice'\n",
        '"" = 0\n',
        "= 1\n",
        "[]\n",
        "__proto__ = 1\n",
    ),
]
BASES = [
    *(
        "quickstart.toml",
        "tfim40.toml",
        "tfim40-fields.toml",
        "mutant.toml",
        "./mutant.toml",
        "../folder/mutant.toml",
    ),
    *(
        "loop-a.toml",
        "chain-0.toml",
        "fan.toml",
        "missing.toml",
        "folder",
        ".",
        "..",
        "",
        "\0",
        "x" * 300,
        "a/" * 2000,
    ),
    *(
        "fifo",
        "zero",
        "passwd",
        "self.toml",
        "dangling",
        "socket",
        "/etc/passwd",
        "/dev/zero",
        "//dev/zero",
        "~/x",
    ),
    *("../" * 30 + name for name in ("dev/zero", "dev/random", "dev/tty", "etc/passwd", "proc/self/mem")),
    *(
        "../" * 30 + name
        for name in ("proc/kmsg", "proc/self/environ", "proc/self/fd/0", "sys", "dev/stdin", "dev/full")
    ),
]

Document = dict[str, Any]


def sources() -> list[str]:
    """The texts that are changed: the shipped specs, the starter, and a sweep of everything."""
    shipped = [path.read_text(encoding="utf-8") for path in sorted(SPECS.glob("*.toml"))]
    rbm = 'name = "rbm"\n[lattice]\nkind = "chain"\nlength = 8\n[hamiltonian]\nkind = "tfim"\nh = 1.0\n[state]\nkind = "rbm"\n'
    sweep = '[sweep.grid]\n"hamiltonian.h" = [0.5, 1]\n"sae.k" = [1, 2]\n[sweep.zip]\nseed = [1, 2]\n"state.width" = [16, 32]\n'
    planes = [
        f'name = "{kind}"\n[lattice]\nkind = "{kind}"\nlengths = [4, 4]\nperiodic = [true, false]\n'
        '[hamiltonian]\nkind = "heisenberg"\nJ2 = 0.5\n[state]\nkind = "rbm"\n'
        for kind in ("rectangular", "triangular", "honeycomb", "kagome")
    ]
    graph = 'name = "graph"\n[lattice]\nkind = "graph"\nsites = 4\nedges = [[0, 1], [1, 2], [2, 3], [3, 0]]\n'
    graph += '[hamiltonian]\nkind = "tfim"\nh = 1.0\n[state]\nkind = "rbm"\n'
    return [
        *shipped,
        *planes,
        graph,
        starter("ring"),
        rbm,
        starter("swept") + sweep,
        starter("bare").replace("\n# ", "\n"),
    ]


class Mutator:
    """``Mutator(seed).mutant()`` is the next broken spec, as the bytes of a file; ``.setting()`` a broken ``--set``."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.texts = sources()
        self.documents = [tomli.loads(text) for text in self.texts[:-1]]

    def mutant(self) -> bytes:
        if self.random.random() < 0.5:
            return self.broken_text()
        return self.broken_structure()

    def broken_text(self) -> bytes:
        content = self.random.choice(self.texts).encode()
        for _ in range(self.few()):
            content = self.random.choice(BYTE_CHANGES)(self, content)
        return content

    def broken_structure(self) -> bytes:
        document = tomli.loads(tomli_w.dumps(self.random.choice(self.documents)))
        for _ in range(self.few()):
            self.random.choice(STRUCTURE_CHANGES)(self, document)
        try:
            text = tomli_w.dumps(document)
        except (ValueError, TypeError):  # what TOML has no word for
            return self.broken_text()
        if self.random.random() < 0.2:
            text = text.replace("\n", "\r\n")
        return (b"\xef\xbb\xbf" if self.random.random() < 0.05 else b"") + text.encode(
            "utf-8", "surrogatepass"
        )

    def setting(self) -> str:
        section = self.random.choice(SECTIONS)
        known = [f"{section}.{self.random.choice(KEYS[section])}", section, "name", "seed", "extends"]
        odd = ['""', "a" * 1000, ".".join("a" * 500), f'"{section}"', "\udcff", " ", "x\ny", "sae.x.y", "]["]
        key = self.random.choice([*known, *odd])
        value = self.random.choice(
            [*WORDS, "[" * 2000, "{a=" * 300, "[" * 150 + "]" * 150, "\udcff", "a b", "x = 1"]
        )
        return key + self.random.choice(["=", " = ", "==", "", "=\n"]) + value

    def few(self) -> int:
        return 1 + int(self.random.expovariate(0.7))

    def word(self) -> str:
        return self.random.choice(WORDS)

    def value(self) -> Any:
        """Any value, as tomli reads it."""
        odd: list[Any] = [
            [self.random.random() for _ in range(self.random.choice([0, 1, 3, 3, 30, 1001]))],
            list(range(self.random.choice([0, 1, 3, 3, 30, 1001]))),
            [f"correlation_0_{i}" for i in range(1, self.random.choice([2, 40]))],
            {self.random.choice(["kind", "a", "", "é"]): self.simple()},
            datetime.date(1, 1, 1),
            self.random.choice([10, 10**5]) * "x",
            self.nested(self.random.choice([3, 40, 200])),
            [[1, 2], ["a"], [[]]],
        ]
        return self.random.choice(odd) if self.random.random() < 0.4 else self.simple()

    def simple(self) -> Any:
        while True:
            try:
                return tomli.loads(f"v = {self.word()}")["v"]
            except ValueError:
                continue

    def nested(self, depth: int) -> Any:
        inner: Any = 1
        for _ in range(depth):
            inner = [inner] if self.random.random() < 0.5 else {"a": inner}
        return inner


def flip_bits(m: Mutator, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(m.few()):
        if changed:
            changed[m.random.randrange(len(changed))] ^= 1 << m.random.randrange(8)
    return bytes(changed)


def insert(m: Mutator, content: bytes) -> bytes:
    at = m.random.randrange(len(content) + 1)
    return content[:at] + m.random.choice([*SNIPPETS, *WORDS]).encode() + content[at:]


def cut(m: Mutator, content: bytes) -> bytes:
    first = m.random.randrange(len(content) + 1)
    return content[:first] + content[first + m.random.choice([1, 2, 10, 100, 10**6]) :]


def repeat(m: Mutator, content: bytes) -> bytes:
    lines = content.split(b"\n")
    at = m.random.randrange(len(lines))
    return b"\n".join(lines[:at] + lines[at : at + m.few()] * m.random.choice([2, 2, 50]) + lines[at:])


def shuffle(m: Mutator, content: bytes) -> bytes:
    lines = content.split(b"\n")
    m.random.shuffle(lines)
    return b"\n".join(lines)


def replace_value(m: Mutator, content: bytes) -> bytes:
    """The right side of a line becomes something else."""
    lines = content.split(b"\n")
    places = [i for i, line in enumerate(lines) if b"=" in line]
    if places:
        at = m.random.choice(places)
        lines[at] = lines[at].partition(b"=")[0] + b"= " + m.word().encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def bury(m: Mutator, content: bytes) -> bytes:
    """Something very deep or very long at the end."""
    size = m.random.choice([40, 40, 400, 400, 400, 60_000])
    return content + m.random.choice(
        [
            b"\nx = " + b"[" * size,
            b"\nx = " + b"[" * size + b"]" * size,
            b"\nx = " + b"{a=" * size,
            b"\n" + b"a." * size + b"a = 1",
            b"\n[" + b".".join([b"a"] * size) + b"]\n",
            b"\n" + b"k" * size + b" = 1",
            b"\nx = '" + b"v" * size + b"'",
            b"\nx = [" + b"1," * size + b"]",
            b"\nx = [" + b"'',{}," * (size // 8) + b"]",
            b"\n" + b"[[lattice]]\n" * (size // 12),
            b"\n#" + b"c" * size,
            b"\n" * size,
        ]
    )


def as_other_text(m: Mutator, content: bytes) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(m.random.choice(["utf-16", "utf-32", "utf-8-sig", "latin-1"]), "replace")


def set_any(m: Mutator, document: Document) -> None:
    section = m.random.choice(SECTIONS)
    table = document.setdefault(section, {})
    if isinstance(table, dict):
        table[m.random.choice(KEYS[section])] = m.value()


def set_known(m: Mutator, document: Document) -> None:
    """A number a little or far beside the one there: this is what validates."""
    tables = [table for table in document.values() if isinstance(table, dict)]
    places = [(table, key) for table in tables for key, v in table.items() if type(v) in (int, float)]
    if places:
        table, key = m.random.choice(places)
        factor = m.random.choice([0, 1e-9, 0.5, 2, 3, 16, 1000, 1e6, 1e9, -1])
        with suppress(OverflowError):  # the number is an inf, or has hundreds of digits
            table[key] = type(table[key])(table[key] * factor)


def set_extreme(m: Mutator, document: Document) -> None:
    """A value at a bound of the record, or one beyond."""
    section = m.random.choice(SECTIONS)
    record = m.random.choice(records_of(section))
    bounds = [
        (name, getattr(bound, side))
        for name, field in record.model_fields.items()
        for bound in field.metadata
        for side in ("ge", "gt", "le", "lt")
        if hasattr(bound, side)
    ]
    table = document.setdefault(section, {})
    if bounds and isinstance(table, dict):
        name, bound = m.random.choice(bounds)
        table[name] = bound + m.random.choice([0, 0, 0, 1, -1])


def set_top(m: Mutator, document: Document) -> None:
    document[m.random.choice(["name", "seed", "extends", "sweep", *SECTIONS, "x", "", "\u202e"])] = m.value()


def drop(m: Mutator, document: Document) -> None:
    if document:
        key = m.random.choice(list(document))
        inner = document[key]
        if isinstance(inner, dict) and inner and m.random.random() < 0.7:
            del inner[m.random.choice(list(inner))]
        else:
            del document[key]


def swap(m: Mutator, document: Document) -> None:
    if len(document) > 1:
        first, second = m.random.sample(list(document), 2)
        document[first], document[second] = document[second], document[first]


def rename(m: Mutator, document: Document) -> None:
    tables = [document, *(table for table in document.values() if isinstance(table, dict))]
    table = m.random.choice(tables)
    if table:
        key = m.random.choice(list(table))
        new = m.random.choice(
            [key + "s", key[:-1], key.upper(), key * 20, " " + key, key + ".x", "\x1b" + key]
        )
        table[new] = table.pop(key)


def sweep_anything(m: Mutator, document: Document) -> None:
    section = m.random.choice(SECTIONS)
    key = m.random.choice(
        [f"{section}.{m.random.choice(KEYS[section])}", "seed", "name", section, "extends", "a.b.c"]
    )
    values = [m.value() for _ in range(m.random.choice([1, 2, 3]))]
    _axes(document, m.random.choice(["grid", "zip"]))[key] = values


def sweep_explosion(m: Mutator, document: Document) -> None:
    """Up to 10^18 points."""
    axes = _axes(document, "grid")
    for _ in range(m.random.choice([2, 3, 30])):
        section = m.random.choice(SECTIONS)
        axes[f"{section}.{m.random.choice(KEYS[section])}"] = list(range(m.random.choice([3, 4])))


def extend(m: Mutator, document: Document) -> None:
    document["extends"] = m.random.choice(BASES)


def _axes(document: Document, kind: str) -> Document:
    sweep = document.setdefault("sweep", {})
    axes = sweep.setdefault(kind, {}) if isinstance(sweep, dict) else {}
    return axes if isinstance(axes, dict) else {}


BYTE_CHANGES: list[Callable[[Mutator, bytes], bytes]] = [
    *(
        flip_bits,
        insert,
        insert,
        cut,
        repeat,
        shuffle,
        replace_value,
        replace_value,
        replace_value,
        bury,
        as_other_text,
    ),
]
STRUCTURE_CHANGES: list[Callable[[Mutator, Document], None]] = [
    *(set_any, set_any, set_known, set_known, set_extreme, set_extreme, set_top, drop, swap, rename, extend),
    *(sweep_anything, sweep_explosion),
]
