"""One self-contained page about a run: verdicts on top, then numbers, figures, provenance and the resolved spec.

Figures are inlined, styles too; nothing is fetched and no script runs, so the page can be mailed and archived.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import xarray as xr

from ..datasets.files import write_text
from .figures import Images
from .reading import Run, Sweep, read
from .records import Kind, Section, Table, Verdict
from .summary import summarise
from .values import plain

WORDS: dict[Kind, str] = {
    "good": "Shown.",
    "bad": "Against.",
    "open": "Open.",
    "note": "Note.",
    "fault": "Fault.",
}
LEGEND = (
    "Shown: holds beyond its error bar. Against: the numbers say the opposite. Open: the error bars decide nothing. "
    "Note: to keep in mind. Fault: something is wrong, look before trusting the numbers."
)
CAPTIONS = {
    "energy": "Ground state: energy during training, and its distance to the exact one.",
    "sae": "Dictionaries: loss, active and dead features during training.",
    "correlations": "The best feature beside its controls, chosen on select chains and measured on test chains.",
    "configurations": "Test configurations on which the best feature of each observable is most active, the most active first, "
    "with the value of the observable. Up spins are orange, down spins blue; framed is the token where the feature fires most.",
    "evolution": "Observables after the quench, with standard errors, beside the exactly evolved state where it is known.",
    "drift": "Energy after the quench, the error of the steps, and their length, from one recorded time to the next.",
    "followed": "The followed feature of each observable beside its controls, |r| on test chains with its bootstrap interval. "
    "Open circles or shaded: times held out of training and choice.",
    "later": "The target after the feature was turned, while the steered state evolves on. A column per layer, a colour per "
    "scale of the feature; the scale 1 is the original state.",
    "steering": "Turning the feature, beside controls that disturb the state as much (matched infidelity). The energy "
    "axis is linear inside the shaded budget and logarithmic outside.",
    "atlas": "Every feature: how far it moves an observable for a given disturbance of the state, and how well it follows it.",
    "attribution": "Effects of single features: predicted by gradients, and measured by ablation. Sample by sample root mean "
    "squares are shown, of expectation values the change itself.",
    "completeness": "Share of the products of spins with a feature against how often they have their rarer sign, and their "
    "weight in log|psi|; bins of equal numbers of products, and the sigmoid.",
    "heads": "Attention heads by the physics they carry (1: the largest score by every counterfactual and readout), and what "
    "is lost when heads are knocked out, each replaced by its mean output. Shaded: standard deviation over the random orders.",
    "crosscoder": "Length of the decoder row of every live feature in each view, relative to its longest one: bright in all "
    "views for a shared feature, in one for a specific one. Beside it the explained variance of each view, a mark per seed.",
    "comparison": "Points with one Hamiltonian: energies beside observables, those that differ first; and how far the mean "
    "activation of every feature of the last layer shifts between the two states that differ most.",
    "scaling": "What dictionaries of every size leave unexplained against the operations of their training, at the best "
    "learning rate, mean over seeds; and the best of every budget with its interval.",
    "hybrid": "Energy, V-score and time of a step against the share of full attention heads; bars: standard errors over seeds.",
    "sweep_observables": "Observables against the swept parameter.",
    "sweep_correlations": "The best feature of the last layer and its best control against the swept parameter.",
}


def write_report(run_dir: Path | str, images: Images | None = None) -> Path:
    """Write ``report.html`` into a run or sweep directory and return its path.

    ``images`` of the same directory, if it has been drawn already. Raises ``UserError`` when the directory is neither a run
    nor a sweep, OSError when it cannot be written.
    """
    path = Path(run_dir) / "report.html"
    found = read(run_dir)
    write_text(path, page(found, images or Images(found)))
    return path


def page(found: Run | Sweep, images: Images) -> str:
    """The page as text."""
    summary = summarise(found)
    elsewhere = {kind for section in summary.sections for kind in section.figures}
    others = [name for name in images.figures if _kind(name) not in elsewhere]
    verdicts = "\n".join(_verdict(verdict) for verdict in summary.verdicts) or "<p>None.</p>"
    return Template(_resource("page.html")).substitute(
        title=escape(summary.title),
        style=_resource("style.css"),
        state=escape(_state(found)),
        verdicts=f'{verdicts}\n<p class="legend">{LEGEND}</p>',
        sections="".join(_section(section, images) for section in summary.sections),
        tables="\n".join(_table(table) for table in summary.tables) or "<p>None yet.</p>",
        figures="\n".join(_figure(name, images) for name in others) or "<p>None yet.</p>",
        provenance=_provenance(found),
        spec=_spec(found),
    )


def _state(found: Run | Sweep) -> str:
    if isinstance(found, Sweep):
        return f"A sweep of {len(found.points)} points."
    return f"State: {found.state}." + (
        f" Not there yet: {', '.join(found.missing)}." if found.missing else ""
    )


def _verdict(verdict: Verdict) -> str:
    return f'<p class="verdict {verdict.kind}"><b>{WORDS[verdict.kind]}</b>{escape(verdict.text)}</p>'


def _section(section: Section, images: Images) -> str:
    """Verdicts first, then figures and tables, under a heading."""
    parts = [
        f"<h2>{escape(section.title)}</h2>",
        *map(_verdict, section.verdicts),
        *(_figure(name, images) for name in images.figures if _kind(name) in section.figures),
        *map(_table, section.tables),
    ]
    return "\n".join(parts) + "\n"


def _table(table: Table) -> str:
    """Title, definitions of the quantities, and the rows under their headings."""
    head = "".join(f"<th>{escape(column)}</th>" for column in table.body)
    body = []
    for heading, rows in table.groups():
        if heading:
            body.append(f'<tr><th colspan="{len(table.body)}">{escape(heading)}</th></tr>')
        body += ["<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows]
    rows_text = "\n".join(body)
    return (
        f'<h3>{escape(table.title)}</h3>\n<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows_text}\n</tbody></table></div>\n{_definitions(table.definitions)}"
    )


def _definitions(definitions: Mapping[str, Any]) -> str:
    if not definitions:
        return ""
    lines = "\n".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in definitions.items())
    return f"<dl>\n{lines}\n</dl>"


def _figure(name: str, images: Images) -> str:
    """The figure as an SVG image in the page itself."""
    image = base64.b64encode(images.bytes(name, "svg")).decode("ascii")
    caption = CAPTIONS[_kind(name)]
    return (
        f'<figure><img alt="{escape(plain(name))}" src="data:image/svg+xml;base64,{image}">\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _kind(name: str) -> str:
    """What kind of figure this is; those of steering carry their target and time in their name."""
    return name if name in CAPTIONS else name.partition("_")[0]


def _provenance(found: Run | Sweep) -> str:
    """Root attributes of every stage file; for a sweep, of its points."""
    if isinstance(found, Sweep):
        return "\n".join(_folded(point.run.name, _provenance(point.run)) for point in found.points)
    parts = [_folded(f"{stage}.nc", _definitions(_attributes(data))) for stage, data in found.stages.items()]
    return "\n".join(parts) or "<p>No stage has finished.</p>"


def _attributes(dataset: xr.Dataset) -> dict[str, str]:
    """Root attributes as short texts."""
    return {str(k): str(np.asarray(v).tolist()) if np.ndim(v) else str(v) for k, v in dataset.attrs.items()}


def _spec(found: Run | Sweep) -> str:
    if isinstance(found, Sweep):
        return "\n".join(_folded(point.run.name, _spec(point.run)) for point in found.points)
    return (
        f"<pre>{escape(found.spec_text)}</pre>"
        if found.spec_text
        else "<p>No spec.toml in this directory.</p>"
    )


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
