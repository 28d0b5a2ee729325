"""The HTML page is well-formed, stands alone, escapes what it shows, and holds the same numbers as the terminal."""

import base64
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nqs_sae_service.report import write_report
from nqs_sae_service.report.reading import read
from nqs_sae_service.report.summary import summarise

Factory = Callable[..., Path]
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects the text and the resources."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.tags: list[str] = []
        self.resources: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.resources += [
            value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(directory: Path) -> Page:
    path = write_report(directory)
    assert path == directory / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(whole_run: Path) -> Page:
    return parsed(whole_run)


def test_the_page_stands_alone(page: Page) -> None:
    assert len(page.resources) == 8
    assert all(resource.startswith("data:image/svg+xml;base64,") for resource in page.resources)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", page.source)
    assert b"</svg>" in base64.b64decode(page.resources[0].partition(",")[2])


def test_terminal_and_page_show_the_same(page: Page, whole_run: Path) -> None:
    text, summary = page.text, summarise(read(whole_run))
    for table in summary.tables:
        assert table.title in text
        for row in table.rows:
            assert all(cell in text for cell in row[table.group :])
        assert all(meaning in text for meaning in table.definitions.values())
    positions = [text.index(verdict.text) for verdict in summary.verdicts]
    assert positions == sorted(positions)
    assert positions[-1] < text.index("Numbers") < text.index("Figures") < text.index("Provenance")
    assert all(f'class="verdict {verdict.kind}"' in page.source for verdict in summary.verdicts)


def test_values_are_escaped(make_run: Factory) -> None:
    page = parsed(make_run("a<b>&c", ("features",)))
    assert "a<b>&c" in page.text
    assert "<critical> & exact" in page.text
    assert "<feature> 17 & gain" in page.text
    assert "node-<7>" in page.text
    assert '{"lattice": {"length": 40}}' in page.text


@pytest.mark.parametrize("stages", [(), ("ground_state",), ("samples", "features")])
def test_partial_runs_have_a_page_too(make_run: Factory, stages: tuple[str, ...]) -> None:
    text = parsed(make_run(stages=stages, status={"state": "stopped", "stage": "sae", "progress": 0.5})).text
    assert "State of the run: stopped in stage sae (50%)." in text
    assert "steering" in text


def test_a_sweep_has_a_page(sweep: Path) -> None:
    page = parsed(sweep)
    assert len(page.resources) == 2
    assert "Sweep of 3 points: 2 done, 1 failed." in page.text


def test_a_failed_write_leaves_the_old_page(make_run: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_run(stages=("ground_state",))
    before = write_report(directory).read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        write_report(directory)
    assert (directory / "report.html").read_bytes() == before
    assert [path.name for path in directory.iterdir() if "tmp" in path.name] == []
