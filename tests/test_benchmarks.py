"""The benchmarks keep running: our own contender answers, turns are taken in order, tables follow from the numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import attention
import contest
import cpu
import planted
import ranks
import scaling
from peers.protocol import Contender, ContenderFailed

LENGTHS = {"chain": 8, "square": 4}
NARROW = {"transformer": {"width": 8, "heads": 2}, "rbm": {"alpha": 1}}


def tiny(row):
    """The work of a row on few sites, with few chains, by a small network."""
    work = cpu.ROWS[row].work
    return {
        **work,
        "lattice": {**work["lattice"], "length": LENGTHS[work["lattice"]["kind"]]},
        "sampling": {**work["sampling"], "chains": 16},
        "samples": 32,
        "network": {**work["network"], **NARROW[work["network"]["kind"]]},
    }


@pytest.fixture
def ours(tmp_path, monkeypatch):
    monkeypatch.setattr(contest, "RESULTS", tmp_path)  # where a contender's log goes
    with contest.OURS.start() as contender:
        yield contender


@pytest.mark.parametrize(
    (
        "row",
        "bound",
    ),  # |E| is at most this: 16 for 8 sites and bonds, 3/4 of a bond's coupling for 32 J1 and 32 J2
    [("vit32", 16), ("vit32-j1j2", 36), ("rbm2-heisenberg", 24)],
)
def test_our_contender_steps_measures_and_trains(ours, row, bound):
    built = ours.ask("build", work=tiny(row))
    assert built["parameters"] > 0
    for phase in ("step", "sampling", "local_energy"):
        assert ours.seconds(phase, count=2) > 0
    trained = ours.ask("train", steps=2)
    assert -bound < trained["energy"] < bound
    assert ours.ask("measure", draws=4)["error"] > 0


def test_our_contender_trains_a_dictionary(ours):
    ours.ask("build", work={**cpu.ROWS["sae32"].work, "batch": 64, "features": 32})
    assert ours.seconds("step", count=3) > 0


def test_what_goes_wrong_is_said_in_the_contenders_words(ours):
    with pytest.raises(ContenderFailed, match="KeyError"):
        ours.ask("dance")


def test_a_contender_that_ends_is_noticed(tmp_path):
    script = tmp_path / "quitter.py"
    script.write_text("")
    quitter = Contender("quitter", Path(sys.executable), script, {}, tmp_path / "log")
    with quitter, pytest.raises(ContenderFailed, match="quitter ended"):
        quitter.ask("build")


def test_contenders_take_turns(monkeypatch):
    monkeypatch.setattr(contest, "_foreign_seconds", lambda: 0.0)  # on a busy machine rounds go on
    order = []
    calls = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    seconds = contest.take_turns(calls, 3, contest.Turnstile(None))
    assert order == list("ababab")
    assert seconds == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_the_fastest_method_is_taken():
    times = {"dense": iter([9.0, 3.0, 2.0]), "cg": iter([9.0, 2.5, 4.0])}
    method, best = contest.fastest(list(times), lambda m: next(times[m]), contest.Turnstile(None))
    assert (method, best) == ("dense", {"dense": 2.0, "cg": 2.5})


def test_the_table_gives_both_times_and_their_ratio():
    times = {"ours": contest.spread([0.5, 0.4, 9.0]), "peer": contest.spread([2.0, 1.0, 3.0])}
    row = {
        "title": "a step",
        "target": 4,
        "method": "dense",
        "ratio": 4.0,
        "repetitions": 3,
        "date": "2026-01-01",
        "times": times,
        "phases": {phase: {"ours": 0.1, "peer": 0.5} for phase in ("sampling", "local_energy")},
    }
    text = cpu.markdown({"machine": contest.machine(), "versions": {}, "rows": {"vit32": row}})
    assert "| a step | dense | 2.00 s | 500 ms | 4.0 | >= 4 | 3 | 2026-01-01 |" in text
    assert "| a step | 100 ms / 500 ms | 100 ms / 500 ms | 300 ms / 1.00 s | 500 ms / 2.00 s |" in text


def test_the_exponent_of_a_power_law():
    assert scaling.exponent([1, 2, 4], [5.0, 8.0, 64.0]) == pytest.approx(3)


def test_disturbed_repetitions_are_measured_again(monkeypatch):
    company = iter([0.0, 0.9, 0.1, 0.0, 0.0])
    monkeypatch.setattr(contest, "_with_company", lambda call: (next(company), call()))
    seconds = iter([1.0, 5.0, 2.0, 3.0])
    assert contest.take_turns({"a": lambda: next(seconds)}, 3, contest.Turnstile(None)) == {"a": [1, 2, 3]}


def test_the_bytes_of_a_step_over_ranks_are_those_of_the_formulas(mpiexec):
    options = ["--measure", "--sites", "8", "--samples", "512", "--repetitions", "1"]
    command = [*mpiexec(2), ranks.__file__, *options]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout
    measured = json.loads(out)
    expected = ranks.expected_bytes(measured["shape"], 2)
    for phase in ("T", "solve", "update"):
        assert measured["received"][phase] == pytest.approx(expected[phase], rel=0.25)
    assert measured["received"]["sampling"] == 0
    assert measured["received"]["whole step"] == pytest.approx(sum(expected.values()), rel=0.25)


@pytest.mark.parametrize(("kind", "lines"), [("pca", 1), ("jumprelu", 2)])
def test_a_line_of_planted_features_for_every_setting(kind, lines, monkeypatch):
    monkeypatch.setattr(planted, "TRAINING", 600)
    monkeypatch.setattr(planted, "TEST", 100)
    found = list(planted.rows(kind, planted.Regime(features=8, width=6), 2))
    assert len(found) == lines
    for line in found:
        name, _, *numbers = line.strip("| ").split(" | ")
        assert name == kind
        assert all(abs(float(number)) < 20 for number in numbers)


def test_attention_against_tokens():
    """Every kind is timed; exponents and crossings of known times."""
    sizes, squares = (4, 8, 16), (1.0, 4.0, 16.0)
    assert attention.exponent(sizes, squares) == pytest.approx(2)
    assert attention.crossing(sizes, (2.0, 4.0, 8.0), squares) == pytest.approx(8)
    assert attention.crossing(sizes, (2.0, 8.0, 32.0), squares) is None
    text = attention.table(sizes[:2], attention.measure(sizes[:2], repetitions=1))
    assert all(f"| {kind} |" in text for kind in attention.KINDS)
