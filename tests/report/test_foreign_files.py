"""Stage files that another program, or somebody hostile, has written: shown as far as they make sense, or refused plainly."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from nqs_sae_service.cli import app
from nqs_sae_service.report import write_report

HOSTILE = "<script>alert(1)</script>\x1b[2J$\\frac{x$&\u202e"


def without_a_variable(dataset: xr.Dataset, rng: random.Random) -> xr.Dataset:
    return dataset.drop_vars(rng.choice(sorted(map(str, dataset.variables))))


def other_dimensions(dataset: xr.Dataset, rng: random.Random) -> xr.Dataset:
    name = rng.choice(sorted(map(str, dataset.data_vars)))
    return dataset.drop_vars(name).assign({name: (("a", "b"), np.zeros((2, 3)))})


def other_type(dataset: xr.Dataset, rng: random.Random) -> xr.Dataset:
    name = rng.choice(sorted(map(str, dataset.variables)))
    return dataset.assign({name: (dataset[name].dims, np.full(dataset[name].shape, HOSTILE, object))})


def other_values(dataset: xr.Dataset, rng: random.Random) -> xr.Dataset:
    name = rng.choice(sorted(map(str, dataset.data_vars)))
    if dataset[name].dtype.kind not in "if":
        return dataset
    value = rng.choice([np.inf, -np.inf, np.nan, 1e300, -5.0])
    return dataset.assign({name: (dataset[name].dims, np.full(dataset[name].shape, value))})


def nothing_along_a_dimension(dataset: xr.Dataset, rng: random.Random) -> xr.Dataset:
    return dataset.isel({rng.choice(sorted(map(str, dataset.sizes))): slice(0, 0)})


def one_less(dataset: xr.Dataset, rng: random.Random) -> xr.Dataset:
    return dataset.isel({rng.choice(sorted(map(str, dataset.sizes))): slice(1, None)})


def other_attribute(dataset: xr.Dataset, rng: random.Random) -> xr.Dataset:
    name = rng.choice([*sorted(map(str, dataset.attrs)), "volatile", "key", "host", "sections"])
    value = rng.choice([HOSTILE, "", 7, -1.5, [1.0, 2.0], ["a", "b"], "x" * 100_000, float("nan")])
    return dataset.assign_attrs({name: value})


MUTATIONS = [
    without_a_variable,
    other_dimensions,
    other_type,
    other_values,
    nothing_along_a_dimension,
    one_less,
    other_attribute,
]


def look_at(directory: Path, page: bool) -> str:
    """What ``nqs-sae show`` prints, or the page that ``nqs-sae report`` writes; the one line of an error."""
    result = CliRunner().invoke(app, ["report" if page else "show", str(directory)])
    if result.exit_code == 0:
        return (directory / "report.html").read_text(encoding="utf-8") if page else result.output
    assert result.exit_code == 2, result.exc_info
    (line,) = result.output.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("make_run", 20),
        ("make_quenched", 8),
        pytest.param("make_run", 200, marks=pytest.mark.slow),
        pytest.param("make_quenched", 100, marks=pytest.mark.slow),
    ],
)
def test_a_changed_file_is_shown_or_refused(kind: str, changes: int, request: pytest.FixtureRequest) -> None:
    rng = random.Random(5)
    directory = request.getfixturevalue(kind)()
    files = sorted(directory.glob("*.nc"))
    for number in range(changes):
        path = rng.choice(files)
        with xr.open_dataset(path) as stored:
            original = stored.load()
        changed = original
        for _ in range(rng.choice([1, 1, 2])):
            try:
                changed = rng.choice(MUTATIONS)(changed, rng)
            except (ValueError, KeyError, IndexError):  # two changes may exclude each other
                continue
        write(changed, path)
        shown = look_at(directory, page=number % 20 == 0)
        assert "\x1b[2J" not in shown
        assert "<script>" not in shown or "<html" not in shown
        write(original, path)
    assert "residual_1" in look_at(directory, page=False)


def write(dataset: xr.Dataset, path: Path) -> None:
    path.unlink()
    dataset.to_netcdf(path, encoding={name: {} for name in dataset.variables})


def test_texts_of_files_are_text_on_the_page(make_run: Callable[..., Path]) -> None:
    directory = make_run()
    for path in directory.glob("*.nc"):
        with xr.open_dataset(path) as stored:
            dataset = stored.load()
        write(dataset.assign_attrs(host=HOSTILE, sections=json.dumps({"x": HOSTILE})), path)
    (directory / "status.json").write_text(json.dumps({"state": HOSTILE, "message": HOSTILE, "run": HOSTILE}))
    (directory / "spec.toml").write_text(HOSTILE, encoding="utf-8")
    page = write_report(directory).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
