"""Batches: every row once an epoch, the same order from memory and from disk, dictionaries that do not notice each other."""

import subprocess
import sys

import numpy as np
import pytest

from nqs_sae_service.sae import ReluL1, TopK
from nqs_sae_service.sae import inputs as inputs_module
from nqs_sae_service.sae.inputs import Batches, Held
from nqs_sae_service.sae.training import Training

ARRAYS = ("encoder", "decoder", "encoder_bias", "decoder_bias")
RECORDS = {
    "topk": TopK(kind="topk", features=40, k=3, steps=17, batch=50, dead_after=200),
    "relu-l1": ReluL1(kind="relu-l1", features=40, l1=1.0, steps=17, batch=50),
}


class Remote:
    """Rows that lie elsewhere and are copied at every reading."""

    def __init__(self, rows, block_rows):
        self.rows, self.block_rows = rows, block_rows
        self.n_rows, self.width = rows.shape

    def read(self, block):
        assert block * self.block_rows < self.n_rows
        return self.rows[block * self.block_rows : (block + 1) * self.block_rows].copy()


@pytest.fixture
def small_buffer(monkeypatch):
    """So that an epoch takes many buffers."""
    monkeypatch.setattr(inputs_module, "BUFFER_ELEMENTS", 600)


def rows(n=700, width=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def trained(record, inputs, seeds):
    training = Training(record, inputs, seeds)
    while training.step < record.steps:
        training.advance()
    return training


def same(first, second):
    for (dictionary, history), (other, other_history) in zip(
        first.finished(), second.finished(), strict=True
    ):
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(dictionary, name), getattr(other, name))
        np.testing.assert_array_equal(history.loss, other_history.loss)


@pytest.mark.parametrize(("n", "block", "size"), [(700, 64, 50), (701, 100, 701), (30, 7, 4), (5, 10, 1)])
@pytest.mark.usefixtures("small_buffer")
def test_an_epoch_takes_every_row_at_most_once(n, block, size):
    x = np.arange(n, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    batches = Batches(Held(x, block), np.zeros(3), 1.0, size)
    epochs = [[batches.batch(e * (n // size) + i).copy() for i in range(n // size)] for e in range(3)]
    orders = [np.concatenate(epoch)[:, 0] for epoch in epochs]
    for order in orders:
        assert len(np.unique(order)) == len(order) == n // size * size
    assert n < 20 or not np.array_equal(orders[0], orders[1])
    again = Batches(Held(x, block), np.zeros(3), 1.0, size)
    np.testing.assert_array_equal(again.batch(2 * (n // size)), epochs[2][0])


@pytest.mark.usefixtures("small_buffer")
def test_rows_from_all_blocks_meet():
    x = np.repeat(np.arange(20, dtype=np.float32), 10)[:, None]
    batch = Batches(Held(x, 10), np.zeros(1), 1.0, 100).batch(0)
    assert len(np.unique(batch)) > 5
    assert not np.array_equal(np.sort(batch, axis=0), batch)


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.usefixtures("small_buffer")
def test_in_memory_and_streamed_training_give_the_same_bits(kind):
    x = rows()
    same(trained(RECORDS[kind], Held(x, 64), [1]), trained(RECORDS[kind], Remote(x, 64), [1]))


@pytest.mark.parametrize("kind", RECORDS)
def test_a_dictionary_does_not_notice_its_neighbours(kind):
    record, inputs = RECORDS[kind], Held(rows())
    together = trained(record, inputs, [5, 1, 9]).finished()
    for place, seed in enumerate((5, 1, 9)):
        [(alone, history)] = trained(record, inputs, [seed]).finished()
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(together[place][0], name), getattr(alone, name))
        np.testing.assert_array_equal(together[place][1].dead_fraction, history.dead_fraction)
    assert not np.array_equal(together[0][0].encoder, together[1][0].encoder)


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.usefixtures("small_buffer")
def test_a_training_continues_with_the_same_bits(kind):
    record, inputs = RECORDS[kind], Remote(rows(), 64)
    first = Training(record, inputs, [1, 2])
    for _ in range(9):
        first.advance()
    state = {name: array.copy() for name, array in first.state().items()}
    second = Training(record, inputs, [1, 2])
    second.restore(state)
    for training in (first, second):
        while training.step < record.steps:
            training.advance()
    same(first, second)


MEASURE = """
import sys
from pathlib import Path
import numpy as np
import xarray as xr
from nqs_sae_service.engine.threads import configure_threads
from nqs_sae_service.datasets.netcdf import Origin, Streamed, read_stage, write_stage
from nqs_sae_service.datasets.schema import labelled
from nqs_sae_service.sae import TopK
from nqs_sae_service.sae.inputs import Held
from nqs_sae_service.sae.training import Training
from nqs_sae_service.stages.inputs import Rows, recorded

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

configure_threads()
record = TopK(kind="topk", features=128, k=4, steps=40, batch=4096, dead_after=20000)
width, tokens, draws, chains = 32, 10, 320, 1024  # 400 MiB
training = Training(record, Held(np.random.default_rng(0).standard_normal((9000, width)).astype(np.float32)), [1, 2])
training.advance()
training.advance()
del training
def pieces():
    for chain in range(0, chains, 64):
        x = np.random.default_rng(chain).standard_normal((64, draws, tokens, width), dtype=np.float32)
        yield "residual_1", (slice(chain, chain + 64), slice(None)), x
small = labelled("activations", {"participation_ratio": [1.0]}, {"layer": ["residual_1"], "token": np.arange(tokens)})
path = Path(sys.argv[1]) / "activations.nc"
baseline = status("VmRSS")
write_stage(Streamed(small, {"residual_1": ((chains, draws, tokens, width), np.float32)}, pieces()), path,
            Origin("activations", "k", 1, "{}", 1, 1, "", ""))
assert path.stat().st_size > 400 * 2**20
rows = Rows(recorded(read_stage(path)["residual_1"], np.arange(chains)), (chains * draws, tokens, width), False)
training = Training(record, rows, [1, 2])
while training.step < record.steps:
    training.advance()
assert len(training.finished()) == 2
print(status("VmHWM") - baseline)
"""


def test_activations_larger_than_the_memory_are_written_and_learned_from(tmp_path):
    """400 MiB pass through a file and a training that together never hold 250 MiB."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 250


MILLION = """
import numpy as np
from nqs_sae_service.engine.threads import configure_threads
from nqs_sae_service.sae import TopK
from nqs_sae_service.sae.inputs import Held
from nqs_sae_service.sae.training import Training

configure_threads()
record = TopK(kind="topk", features=2**20, k=32, steps=3, batch=96, dead_after=96)
training = Training(record, Held(np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)), [1])
while training.step < record.steps:
    training.advance()
[(dictionary, history)] = training.finished()
assert history.dead_fraction[1] > 0.99  # the last step has a million dead features to choose from
assert dictionary.decoder.shape == (2**20, 64)
assert np.abs(np.linalg.norm(dictionary.decoder[:1000], axis=1) - 1).max() < 1e-5
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024)
"""


def test_a_million_features():
    """Parameters and moments are 6 x 256 MiB; whatever else is held, for dead features too, is small beside them."""
    run = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 6 * 256 + 600
