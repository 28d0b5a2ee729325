"""Everything wrong with a spec is said at once, each on one line with its place."""

import re

import pytest

LINE = re.compile(r"[^:]+:\d+:\d+: [^:]+: .+")


def test_all_problems_come_at_once_in_the_order_of_the_text(folder):
    lines = folder.problems("""\
name = "two words"
sead = 1
[lattice]
kind = "chian"
[hamiltonian]
kind = "tfim"
h = nan
[state]
pach = 4
width = "32"
attention = "positionl"
[sampling]
chains = -8
[observables]
names = ["magnetization", 3]
[engine]
threads = -1
[engin]
""")
    assert all(LINE.fullmatch(line) for line in lines)
    places = [line.split(": ")[0] for line in lines]
    assert places == [
        f"spec.toml:{place}"
        for place in (["1:1", "2:1", "4:1", "7:1", "9:1", "10:1", "11:1", "13:1", "15:27", "17:1", "18:2"])
    ]
    expected = [
        "name: a name is made of letters",
        'sead: unknown key (did you mean "seed"?)',
        'lattice.kind: unknown kind "chian"; known: "chain" or "square" or "rectangular" or "triangular" or "honeycomb" or '
        '"kagome" or "graph" (did you mean "chain"?)',
        "hamiltonian.h: must be a finite number, got nan",
        'state.pach: unknown key (did you mean "patch"?)',
        'state.width: must be an integer, got "32"',
        "state.attention: must be 'full', 'positional', 'kernel' or 'delta' or 'ranked', 'random', 'fixed' or 'layers' or a "
        'path or an array, got "positionl" (did you mean "positional"?)',
        "sampling.chains: must be at least 1, got -8",
        "observables.names[1]: must be a string, got 3",
        "engine.threads: must be at least 0, got -1",
        'engin: unknown section (did you mean "engine"?)',
    ]
    for line, what in zip(lines, expected, strict=True):
        assert what in line


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("[state]\npatch = 5", "spec.toml:9:1: state.patch: "),
        ("[state]\npatch = [2, 0]", "spec.toml:9:13: state.patch[1]: must be at least 1, got 0"),
        (
            "[state]\nattention = ['full', 'delta', 'full']",
            "state.attention: 3 kinds; give one for each of the 4 heads, or 2 x 4 = 8 of them, layer by layer",
        ),
        (
            "[state]\nattention = ['full', 'kernl']",
            "spec.toml:9:22: state.attention[1]: must be 'full', 'positional', 'kernel' or 'delta', got \"kernl\" "
            '(did you mean "kernel"?)',
        ),
        ("[state]\npatch = 'a'", 'state.patch: must be an integer or an array, got "a"'),
        ("[sampling]\nmagnetization = 1.5", "sampling.magnetization: must be an integer or 'free', got 1.5"),
        ("[sampling]\nmagnetization = 'fre'", 'got "fre" (did you mean "free"?)'),
        ("[state]\nheads = 5", "spec.toml:9:1: state.heads: "),
        ("[state]\npatch = -4", "spec.toml:9:1: state.patch: must be at least 1, got -4"),
        ("[sae]\nfeatures = 4\nk = 8", "sae.k: "),
        ('[engine]\ndevice = "tpu"', "engine.device: "),
        ('[observables]\nnames = ["log_abs_psi"]', "steering.targets: none of observables.names has a mean"),
        (
            '[observables]\nnames = ["log_abs_psi", "sigma_x"]\n[steering]\ntargets = ["log_abs_psi"]',
            "steering.targets[0]: log_abs_psi has no meaning as a mean",
        ),
        ("[sae]\nfeatures = 1_000_000_000_000", "spec.toml:9:1: sae.features: must be at most "),
        (
            "[sae]\nkind = 'topk'\nl1 = 3.0",
            'sae.l1: unknown key here; it belongs to kind "relu-l1" or "gated"',
        ),
        ("[sae]\nkind = 3", 'sae.kind: must be a string, "topk" or "relu-l1" or "batchtopk" or '),
        ("[sae]\nseeds = [1, 2, 2.5]", "spec.toml:9:16: sae.seeds[2]: must be an integer, got 2.5"),
        (
            "[samples]\ncount = 1_000_000_000_000_000",
            "spec.toml:9:1: samples.count: must be at most 100000000",
        ),
        (
            "[samples]\ncount = 1000",
            "samples.count: 1000 must be a multiple of sampling.chains = 1024: use 1024",
        ),
        ("[samples]\nsplit = [0.5, 0.5]", "samples.split: must have at least 3 elements, got [0.5, 0.5]"),
        (
            "[samples]\nsplit = [0.5, 0.25, 0.3]",
            "samples.split: the shares (train, select, test) must sum to 1",
        ),
        ("[samples]\nsplit = [1.0, 0.5, -0.5]", "samples.split: all three shares"),
        ("[samples]\nsplit = [0.998, 0.001, 0.001]", "samples.split: each part needs at least 2 chains"),
        ("[ground_state]\nsamples = 1000", "use 1024, or change sampling.chains"),
        ("[observables]\nnames = ['magnetisation']", "spec.toml:9:10: observables.names[0]: "),
        ("[observables]\nnames = ['magnetisation']", '(did you mean "magnetization"?)'),
        ("[observables]\nnames = []", "observables.names: must have at least 1 elements, got []"),
        ("[observables]\nnames = ['sigma_x', 'sigma_x']", 'observables.names[1]: "sigma_x" is listed twice'),
        (
            "[activations]\nlayers = ['residual_3']",
            'activations.layers[0]: the state has no layer "residual_3"',
        ),
        (
            "[steering]\nlayers = ['embedding']",
            'steering.layers[0]: "embedding" is not listed in activations.',
        ),
        ("[steering]\ntargets = ['domain_walls']", "steering.targets[0]: "),
        (
            "[steering]\ndirections = ['feature', 'jastrow_dail']",
            'spec.toml:9:26: steering.directions[1]: there is no direction "jastrow_dail"',
        ),
        ("[steering]\ndirections = ['jastrow_dail']", 'did you mean "jastrow_dial"'),
        ("[steering]\ndirections = ['jastrow_dial']", 'steering.directions: "feature" is missing'),
        ("[steering]\ndirections = ['feature', 'feature']", 'directions[1]: "feature" is listed twice'),
        ("[steering]\nheld = ['magnetization']", "steering.held: nothing is held: add natural_gradient_held"),
        (
            "[steering]\ndirections = ['feature', 'natural_gradient_held']\nheld = ['domain_walls']",
            'steering.held[0]: "domain_walls" is not listed in observables.names',
        ),
        (
            "[steering]\nscales = [1.0, inf]",
            "spec.toml:9:16: steering.scales[1]: must be a finite number, got inf",
        ),
        ("[steering]\nscales = 2.0", "steering.scales: must be an array, got 2.0"),
        (
            "[sampling]\nglobal_flip = 2024-01-01",
            "sampling.global_flip: dates and times have no place in a spec",
        ),
        ("[sampling]\nchains = true", "sampling.chains: must be an integer, got true"),
        (
            "[sampling]\nchains = 99999999999999999999999",
            "sampling.chains: is an integer of more than 64 bits",
        ),
        ("[sampling]\nsteps = 3", '(did you mean "sweeps" or "ground_state.steps"'),
        ("[[engine]]", "spec.toml:8:3: engine: must be one table, [engine], got"),
        ("[sampling.deep]", "spec.toml:8:11: sampling.deep: unknown key"),
        ("[lattice]\n", "spec.toml:8:9: not valid TOML: the table [lattice] appears twice"),
        ("x = [" + "[" * 100, "not valid TOML"),
        ("x = [" * 50 + "]" * 50, "not valid TOML"),
        ("x = " + "[" * 50 + "]" * 50, "spec.toml:8:36: nested deeper than 32 levels"),
        ("x = " + "[" * 5000 + "]" * 5000, "nested deeper than any spec can be"),
        ("x = " + "1" * 5000, "not valid TOML"),
        ("x = 0x" + "f" * 6000, "hamiltonian.x: is an integer of more than 64 bits"),
        ('state = "\x1b"', "not valid TOML"),
        ("'\\u001b[31m' = 1", "\\u001b"),
    ],
)
def test_bad_values(folder, addition, expected):
    lines = folder.problems(folder.minimal + addition)
    assert any(expected in line for line in lines), lines
    assert all(line.startswith("spec.toml:") and line.isprintable() for line in lines)


def test_the_largest_reasonable_sizes_are_allowed(folder):
    (point,) = folder.load(
        folder.minimal
        + "[sae]\nfeatures = 1_048_576\n[samples]\ncount = 100_000_000\n[sampling]\nchains = 1000\n"
        "[ground_state]\nsamples = 2000\nfinal_samples = 10_000\n"
    )
    assert point.spec.sae.features == 2**20


@pytest.mark.parametrize("length", ["1_000_000_000", "0", "-4", "16.0", '"16"', "[16]", "{a = 1}"])
def test_bad_lattice_sizes(folder, length):
    (line,) = folder.problems(folder.minimal.replace("length = 16", f"length = {length}"))
    assert line.startswith("spec.toml:4:1: lattice.length: must be ")


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../a", "/etc/a", "a\\\\b", "a b", "ä", "x" * 101, "a\\nb"]
)
def test_names_that_are_no_directory(folder, name):
    (line,) = folder.problems(folder.minimal.replace('"ring"', f'"{name}"'))
    assert line.startswith("spec.toml:1:1: name: a name ")


def test_what_is_missing_is_said(folder):
    lines = folder.problems("# nothing but a comment\n[lattice]\nkind = 'chain'\n")
    assert lines[0] == (
        "spec.toml:1:1: name: required key is missing"
        " (name of the run and of its directory: letters, digits, '.', '_', '-')"
    )
    assert lines[1].startswith(
        "spec.toml:1:1: hamiltonian: the section [hamiltonian] is required and missing"
    )
    assert lines[2].startswith("spec.toml:2:2: lattice.length: required key is missing (number of sites")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"\x7fELF\x02\x01\x00\x00\xff", "is not a text file in UTF-8"),
        (b"name = 'a'\x00", "is a binary file"),
        (b"name = 'caf\xe9'", "is not a text file in UTF-8 (byte 11)"),
        (b"#" * 1_000_001, "is larger than 1 MB"),
    ],
)
def test_files_that_are_no_spec(folder, content, expected):
    (line,) = folder.problems(content)
    assert line.startswith(f"spec.toml: {expected}")


def test_paths_that_are_no_file(folder):
    folder.write("", "here/x")
    assert folder.problems(path="here") == ["here: is a directory; a spec is a .toml file"]
    assert folder.problems(path="nowhere.toml") == ["nowhere.toml: no such file"]
    assert folder.problems(path="nul\0.toml") == ["nul\\x00.toml: cannot be read: embedded null byte"]
    assert folder.problems(path="here/x/y")[0].startswith("here/x/y: cannot be read: ")


def test_syntax_errors_have_a_place(folder):
    assert folder.problems("name = 'a'\nlattice = = 3\n") == ["spec.toml:2:11: not valid TOML: Invalid value"]
    (line,) = folder.problems("name = 'a'\n[lattice\n")
    assert line.startswith("spec.toml:2:9: not valid TOML: ")


def test_byte_order_mark_and_windows_line_ends_are_fine(folder):
    (point,) = folder.load(b"\xef\xbb\xbf" + folder.minimal.replace("\n", "\r\n").encode())
    assert point.spec.name == "ring"
    lines = folder.problems(b"\xef\xbb\xbf" + (folder.minimal + "x = 1").replace("\n", "\r\n").encode())
    assert lines[0].startswith("spec.toml:8:1: hamiltonian.x: ")


RECTANGLE = 'kind = "rectangular"\nlengths = [4, 6]\n'
GRAPH = 'kind = "graph"\nsites = 4\n'


@pytest.mark.parametrize(
    ("lattice", "expected"),
    [
        ('kind = "rectangular"\nlengths = [4]', "3:1: lattice.lengths: must have 2 elements, got [4]"),
        ('kind = "kagome"\nlengths = [4, 5, 6]', "3:1: lattice.lengths: must have at most 2 elements, got [4, 5, 6]"),
        ('kind = "triangular"\nlengths = [4, 1]', "3:15: lattice.lengths[1]: must be at least 2, got 1"),
        ('kind = "honeycomb"\nlengths = [60, 60]', "3:1: lattice.lengths: these are 7200 sites, at most 4096 are possible"),
        ('kind = "square"\nlength = 65', "3:1: lattice.length: must be at most 64, got 65"),
        (
            'kind = "chain"\nlength = 8\nperiodic = [true, false]',
            "4:1: lattice.periodic: must be true or false, got [true, false]",
        ),
        (RECTANGLE + "periodic = 3", "4:1: lattice.periodic: must be true or false or an array, got 3"),
        (RECTANGLE + "periodic = [true]", "4:1: lattice.periodic: must have 2 elements, got [true]"),
        (RECTANGLE + "periodic = [true, 0]", "4:19: lattice.periodic[1]: must be true or false, got 0"),
        (GRAPH + "edges = []", "4:1: lattice.edges: must have at least 1 elements, got []"),
        (GRAPH + "edges = [[0, 1], 1]", "4:18: lattice.edges[1]: must be an array, got 1"),
        (GRAPH + "edges = [[0, 1], [1]]", "4:18: lattice.edges[1]: must have 2 elements, got [1]"),
        (GRAPH + "edges = [[0, 1], [2, 2]]", "4:18: lattice.edges[1]: [2, 2] joins a site with itself"),
        (GRAPH + "edges = [[0, 1], [1, 4]]", "4:18: lattice.edges[1]: [1, 4] is outside 0 ... 3"),
        (GRAPH + "edges = [[0, 1], [1, 2], [1, 0]]", "4:1: lattice.edges: [2] = [1, 0] is the edge of [0] once more"),
    ],
)  # fmt: skip
def test_bad_lattices(folder, lattice, expected):
    text = f'[lattice]\n{lattice}\n[hamiltonian]\nkind = "tfim"\nh = 1\n[state]\nkind = "rbm"\n'
    (line,) = folder.problems(text, sets=["name=bad"])
    assert f"spec.toml:{expected}" in line


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (
            '[{coefficient = 1, string = "ZA", sites = [0, 1]}]',
            "terms[0].string: a Pauli string is made of X, Y and Z, got 'A'",
        ),
        ('[{coefficient = 1, string = "ZZ"}]', "terms[0]: say at which sites ZZ acts (or on which shell)"),
        ('[{coefficient = 1, string = "ZZ", sites = [0, 9]}]', "terms[0].sites: site 9 is outside 0 ... 3"),
        ('[{coefficient = 1, string = "XY", shell = 1}]', "terms[0]: the pairs of a shell have no direction"),
        ('[{string = "X"}]', "terms[0].coefficient: required key is missing (in units of energy)"),
        ('[{coefficient = 1, strin = "X", string = "X"}]', 'terms[0].strin: unknown key (did you mean "string"?)'),
        ("[]", "terms: must have at least 1 elements"),
    ],
)  # fmt: skip
def test_bad_pauli_strings(folder, terms, expected):
    text = f'lattice = {{kind = "chain", length = 4}}\nname = "a"\n[hamiltonian]\nkind = "pauli"\nterms = {terms}\n'
    lines = folder.problems(text + '[state]\nkind = "rbm"\n')
    assert len(lines) == 1
    assert f"hamiltonian.{expected}" in lines[0]
