"""Stage heads on a small trained ring: its numbers from the samples again, one head at a time; interrupted and continued."""

import numpy as np
import pytest
import xarray as xr
from stopping import Context

from nqs_sae_service.datasets.netcdf import read_stage
from nqs_sae_service.errors import Stopped, UserError
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES
from nqs_sae_service.stages.heads import _Programme, disjoint

SPEC = """
name = "heads"
[lattice]
kind = "chain"
length = 8
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
kind = "transformer"
patch = 2
width = 8
heads = 2
layers = 2
precision = "float64"
[sampling]
chains = 32
burn_in = 5
[ground_state]
steps = 30
samples = 64
learning_rate = 0.1
final_samples = 256
[samples]
count = 4096
[observables]
names = ["abs_magnetization", "log_abs_psi", "sigma_x"]
[heads]
samples = 1024
probes = 1
orders = 3
[output]
figures = false
"""
SMALL = (("count = 4096", "count = 1024"), ("samples = 1024", "samples = 128"))
PLACES = [(1, 1), (1, 2), (2, 1), (2, 2)]  # (block, head)


def compute(folder, *changes, until="heads"):
    text = SPEC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "heads.toml"
    path.write_text(text, encoding="utf-8")
    points = load_spec(path)
    outcome = run_plans(make_plan(points, STAGES, folder / "results", [until]))
    assert outcome.code == 0
    files = {
        stage: read_stage(outcome.directories[0] / f"{stage}.nc") for stage in ("ground_state", "samples")
    }
    return outcome.directories[0], points[0].spec, files


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return compute(tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def found(run):
    return read_stage(run[0] / "heads.nc")


@pytest.fixture(scope="module")
def programme(run):
    _, spec, files = run
    return _Programme(Context(spec, files))


def patched(psi, counterfactual, block, head, hold_later):
    """log psi with one head's output exchanged, through the edits of single layers."""
    own = slice(4 * (head - 1), 4 * head)

    def log_psi(sigma):
        other = psi.stream_at(counterfactual.of(sigma), f"heads_{block}")

        def exchange(x):
            x = x.copy()
            x[..., own] = other[..., own]
            return x

        edits = {f"heads_{block}": exchange}
        if hold_later and block == 1:
            clean = psi.stream_at(sigma, "heads_2")
            edits["heads_2"] = lambda x: clean
        return psi.tape(sigma, edits).log_psi

    return log_psi


def energies(log_psi, sigma):
    """Local energies of the ring at h = J, flip by flip."""
    own = log_psi(sigma)
    total = -(sigma * np.roll(sigma, 1, axis=1)).sum(axis=1).astype(float)
    for site in range(8):
        flipped = sigma.copy()
        flipped[:, site] *= -1
        total = total - np.exp(log_psi(flipped) - own)
    return own, total


def test_scores_are_those_of_plain_forwards(found, programme):
    psi = programme.psi
    assert found["readout"].values.tolist() == ["log_psi", "energy", "abs_magnetization", "sigma_x"]
    assert found.attrs["samples"] == 1024
    for kind, name in enumerate(("sector", "region", "distant")):
        ie = {key: [] for key in ("log_psi", "energy")}
        for number in (0, 1):
            f = programme.counterfactual(number, kind, 0)
            sigma = programme.sigma[number].reshape(-1, 8)
            clean, own = energies(psi.log_psi, sigma)

            def all_heads(rows, f=f):
                other = {layer: psi.stream_at(f.of(rows), layer) for layer in ("heads_1", "heads_2")}
                return psi.tape(rows, {layer: lambda _, y=y: y for layer, y in other.items()}).log_psi

            log_all, e_all = energies(all_heads, sigma)
            whole = clean - psi.log_psi(f.of(sigma))
            for total in (True, False):
                states = [patched(psi, f, *place, hold_later=not total) for place in PLACES]
                logs, local = zip(*(energies(state, sigma) for state in states), strict=True)
                ie["log_psi"].append([(whole @ (clean - log)) / (whole @ whole) for log in logs])
                mean = [
                    np.average(e, weights=np.exp(2 * (log - clean)))
                    for log, e in zip(logs, local, strict=True)
                ]
                mean_all = np.average(e_all, weights=np.exp(2 * (log_all - clean)))
                ie["energy"].append([(own.mean() - m) / (own.mean() - mean_all) for m in mean])
        for readout, each in ie.items():
            at = found.sel(counterfactual=name, readout=readout)
            assert float(at["resolved"]) == 1
            each = np.reshape(each, (2, 2, 2, 2))  # set, path, block, head
            np.testing.assert_allclose(at["total"], each[:, 0].mean(axis=0), rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(at["receiver"], each[:, 1].mean(axis=0), rtol=1e-6, atol=1e-8)


def test_ranks_and_sets_follow_from_the_scores(found):
    raw = np.fmax(np.abs(found["receiver"]), np.abs(found["sender"])) * found["kappa"]
    raw = raw.where(found["resolved"] >= 0.5)
    np.testing.assert_allclose(found["raw_score"], raw)
    low, high = raw.min(("block", "head")), raw.max(("block", "head"))
    np.testing.assert_allclose(found["score"], (raw - low) / (high - low))
    mean = found["score"].mean(("counterfactual", "readout"))
    np.testing.assert_allclose(found["mean_score"], mean.transpose("block", "head"))
    order = np.argsort(-found["mean_score"].values.ravel())
    np.testing.assert_array_equal(found["rank"].values.ravel()[order], [1, 2, 3, 4])
    assert (found["sender"].sel(block=2).fillna(0) == 0).all()
    sets = found["set_score"].values.reshape(2, 4).argsort(axis=1).argsort(axis=1)
    assert found.attrs["stability"] == pytest.approx(np.corrcoef(sets)[0, 1])


def test_knock_outs_are_those_of_plain_forwards(found, programme):
    """The first and the last point of the strongest-first order, and what all orders share."""
    psi, sigma = programme.psi, programme.other_chains.reshape(-1, 8)
    mean = {layer: psi.stream_at(sigma, layer).mean(axis=0) for layer in ("heads_1", "heads_2")}
    first = np.argwhere(found["rank"].values == 1)[0]
    own = slice(4 * first[1], 4 * first[1] + 4)

    def without(x):
        x = x.copy()
        x[..., own] = mean[f"heads_{first[0] + 1}"][:, own]
        return x

    def one(rows):
        return psi.tape(rows, {f"heads_{first[0] + 1}": without}).log_psi

    def none(rows):
        return psi.tape(
            rows, {layer: lambda x, m=m: np.broadcast_to(m, x.shape) for layer, m in mean.items()}
        ).log_psi

    clean, e = energies(psi.log_psi, sigma)
    assert found["knocked"].values.tolist() == [0, 1, 2, 3, 4]
    for count, state in ((1, one), (4, none)):
        log, local = energies(state, sigma)
        at = found.sel(knocked=count, order="strongest first")
        ratio = np.exp(log - clean)
        assert float(at["infidelity"]) == pytest.approx(1 - ratio.mean() ** 2 / (ratio**2).mean(), abs=1e-9)
        change = (np.average(local, weights=ratio**2) - e.mean()) / abs(e.mean())
        assert float(at["energy_change"]) == pytest.approx(change, rel=1e-6)
    for name in ("infidelity", "energy_change", "energy_change_error"):
        assert (found[name].sel(knocked=0) == 0).all()
        assert np.ptp(found[name].sel(knocked=4).values) == 0
    assert found["order"].values.tolist() == [
        "strongest first",
        "weakest first",
        "random 1",
        "random 2",
        "random 3",
    ]


def asked(spec, **options):
    """The spec with other options of the section."""
    return spec.model_copy(update={"heads": spec.heads.model_copy(update=options)})


def test_it_continues_after_stops_with_the_same_bits(run, tmp_path):
    _, spec, files = run
    spec, checkpoint = asked(spec, samples=192), tmp_path / "checkpoint.npz"
    whole = Context(spec, files)
    expected = STAGES["heads"].run(whole)
    assert len(whole.ticks) > 20
    for share in (0.1, 0.3, 0.4):
        with pytest.raises(Stopped):
            STAGES["heads"].run(Context(spec, files, checkpoint, int(share * len(whole.ticks))))
    again = Context(spec, files, checkpoint)
    xr.testing.assert_identical(STAGES["heads"].run(again), expected)
    assert len(again.ticks) < 0.6 * len(whole.ticks)


def test_log_psi_and_infidelity_alone_need_no_local_estimators(run):
    _, spec, files = run
    few = STAGES["heads"].run(Context(asked(spec, samples=128, readouts=("infidelity", "log_psi")), files))
    every = STAGES["heads"].run(Context(asked(spec, samples=128), files))
    assert (few["resolved"] == 1).all()
    for name in ("receiver", "sender", "total", "gradient"):
        ours, theirs = (data[name].sel(readout="log_psi") for data in (few, every))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        [
            (
                'precision = "float64"',
                'precision = "float64"\namplitude = "complex"\n[state.symmetry]\ntranslations = true',
            )
        ],
        [
            ('kind = "tfim"\nh = 1.0', 'kind = "heisenberg"\nmarshall = true'),
            ('["abs_magnetization", "log_abs_psi", "sigma_x"]', '["abs_staggered_magnetization"]'),
        ],
        [
            ('kind = "transformer"\npatch = 2', 'kind = "autoregressive"\npatch = 2'),
            ("probes = 1", "probes = 1\nsets = 3"),
        ],
    ],
    ids=["projected", "fixed magnetization", "autoregressive"],
)
def test_other_states(tmp_path, changes):
    directory, spec, _ = compute(tmp_path, *changes, *SMALL)
    found = read_stage(directory / "heads.nc")
    assert sorted(found["rank"].values.ravel()) == [1, 2, 3, 4]
    assert np.isfinite(found["total"].sel(readout=["log_psi", "energy"])).all()
    assert np.isfinite(found["infidelity"]).all()
    assert np.abs(found["total"].sel(readout="log_psi")).max() > 1e-3
    assert found.sizes["sample_set"] == spec.heads.sets
    assert ("projection_copies" in found.attrs) == bool(spec.state.symmetry.wanted)


def test_sets_are_disjoint_and_of_equal_size():
    array = np.arange(5 * 6).reshape(5, 6)
    sets = disjoint(array, 2)
    assert sets.shape == (2, 2, 6)
    np.testing.assert_array_equal(sets.reshape(4, 6), array[:4])
    of_draws = disjoint(array[:1], 4)
    assert of_draws.shape == (4, 1, 1)
    np.testing.assert_array_equal(of_draws.ravel(), array[0, :4])
    with pytest.raises(UserError, match=r"heads\.sets = 7"):
        disjoint(array, 7)


def test_no_samples_no_stage(tmp_path):
    path = tmp_path / "none.toml"
    path.write_text(SPEC.replace("samples = 1024", "samples = 0"), encoding="utf-8")
    (plan,) = make_plan(load_spec(path), STAGES, tmp_path / "results", [])
    assert "heads" not in [step.stage.name for step in plan.steps]
