"""The page as readers meet it: every link leads somewhere, and nobody is kept out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from analysis_runs import write_baseline, write_grid
from conftest import REPO
from html_page import Page, contrast, themes

from analysis import report as program

GALLERY = sorted((REPO / "docs" / "gallery").glob("*.html"))
STYLE = (program.TEMPLATES / "report.css").read_text()
TEXT, GRAPHICS = 4.5, 3.0  # contrast ratios that WCAG 2.2 requires at level AA
NUMBER_AND_SIGN = re.compile(r"\d[^\d\w%+.,;:)(\]\[−–-]?%")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("links") / "a grid #1"
    write_grid(folder, sources=("en_ewt", "sk_snk"), tunings=("head_only",))
    write_baseline(folder, "particle")
    program.main([str(folder)])
    return folder


@pytest.fixture(scope="module")
def page(root: Path) -> Page:
    return Page((root / "report" / "index.html").read_text(encoding="utf-8"))


def test_every_link_of_a_report_leads_to_a_file_or_a_place_on_the_page(root: Path, page: Page) -> None:
    page.check_that_it_is_self_contained()
    assert {"../finetune/nano-maml-60-en_ewt-head_only-s0", "tables/f1.csv", "tables/f1.tex"} <= page.links
    assert [link for link in page.links if not (root / "report" / link).exists()] == []
    assert {"f1", "definitions"} <= page.targets
    text = (root / "report" / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 10
    assert [link for link in links if not (root / "report" / link).exists()] == []


def test_a_standalone_page_has_no_link_that_is_dead_elsewhere(root: Path, tmp_path: Path) -> None:
    program.main([str(root), "--standalone", "--no-sentences", "--out", str(tmp_path / "report")])
    moved = shutil.copy(tmp_path / "report" / "index.html", tmp_path / "moved.html")
    found = Page(Path(moved).read_text(encoding="utf-8"))
    found.check_that_it_is_self_contained()
    assert found.links == set()
    assert str(root.parent) not in found.source
    assert "nano-maml-60-en_ewt-head_only-s0" in found.text  # the runs are named


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.name)
def test_every_link_of_the_gallery_leads_somewhere(path: Path) -> None:
    found = Page(path.read_text(encoding="utf-8"))
    found.check_that_it_is_self_contained()
    local = [link for link in found.links if not link.startswith(("https://", "http://", "mailto:"))]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_the_gallery_has_a_page() -> None:
    assert GALLERY


def test_the_answer_comes_first(page: Page) -> None:
    """Sentence, figure, table, and only then the contents and the sections."""
    order = [
        'class="answer',
        "<figure>",
        '<div class="table">',
        '<nav aria-label="Contents">',
        '<section id="claims">',
    ]
    places = [page.source.index(text) for text in order]
    assert places == sorted(places)
    assert re.search(r'class="answer compared[^"]*">[^<]*points, 95\u202f%\u00a0CI \[[^<]*</p>', page.source)


def test_readers_with_a_screen_reader_or_a_keyboard_are_not_kept_out(page: Page) -> None:
    assert page.problems == []
    assert page.elements["figure"] > 3
    assert page.elements["th"] > 50


@pytest.mark.parametrize("name", ["light", "dark"])
def test_contrast(name: str) -> None:
    colours = themes(STYLE)[name]
    for background in ("paper", "faint", "tint", "warn"):
        for ink in ("ink", "quiet", "link"):
            assert contrast(colours[ink], colours[background]) >= TEXT, (ink, background)
    for line in ("first", "second", "other", "quiet"):
        assert contrast(colours[line], colours["paper"]) >= GRAPHICS, line


def test_contrast_of_known_colours() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.005)


def test_a_number_and_its_percent_sign_have_a_narrow_space_between_them(page: Page) -> None:
    text = re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", page.source, flags=re.DOTALL)
    found = {match.group()[1:] for match in NUMBER_AND_SIGN.finditer(text)}
    assert found == {"\u202f%"}
