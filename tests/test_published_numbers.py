"""The tables of README and docs/results/episodes.md, computed again from the predictions in docs/results/episodes."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pack_runs
import pytest
from conftest import REPO, extra_set

from analysis import report

RESULTS = REPO / "docs" / "results"
ARMS = ("multitask", "both", "maml", "twin")
Rows = list[dict[str, str]]

pytestmark = [pytest.mark.nightly, pytest.mark.real_data]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Rows]:
    """A function that reads a table of the report on the published runs."""
    if "METAPT_UNER_DIR" not in os.environ:
        pytest.skip("METAPT_UNER_DIR is not set")
    extra_set("id_news2k")
    root = tmp_path_factory.mktemp("episodes")
    pack_runs.unpack(RESULTS / "episodes", root)
    report.main([str(root), "--no-sentences"])

    def read(name: str) -> Rows:
        with (root / "report" / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    return read


def of_comparison(rows: Rows, arm: str, base: str = "vanilla", **cells: str) -> dict[str, str]:
    """The one row of a comparison with these cells."""
    wanted = {"comparison": f"{arm} minus {base}"} | cells
    [row] = [row for row in rows if wanted.items() <= row.items()]
    return row


def points(value: str) -> str:
    """F1 in points."""
    return f"{100 * float(value):.1f}"


def difference(row: dict[str, str]) -> str:
    """A difference of F1 in points with its interval, as the pages show it."""
    value, low, high = (
        f"{100 * float(row[name]):+.1f}".replace("-", "−")
        for name in ("difference", "95 % CI low", "95 % CI high")
    )
    return f"{value} [{low}, {high}]"


def ratio(row: dict[str, str]) -> str:
    """A ratio of perplexities with its interval, as the pages show it."""
    names = ("perplexity, first / second", "95 % CI ratio low", "95 % CI ratio high")
    value, low, high = (f"{float(row[name]):.2f}" for name in names)
    return f"{value} [{low}, {high}]"


def page(path: Path) -> str:
    """The text of a page without emphasis."""
    return path.read_text(encoding="utf-8").replace("**", "")


def test_readme_has_the_numbers_of_the_report(table: Callable[[str], Rows]) -> None:
    readme, pretraining = page(REPO / "README.md"), table("pretraining_means")
    claims = [row for row in table("claims") if row["group"] == "target sets"]
    lines = readme.splitlines()
    for arm in ("multitask", "both", "maml"):
        claim = of_comparison(claims, arm)
        numbers = (
            f"| {points(claim['first'])} | {difference(claim)} | {ratio(of_comparison(pretraining, arm))} |"
        )
        [line] = [line for line in lines if line.startswith(f"| `{arm}`: ")]
        assert line.endswith(numbers)
    assert f"| vanilla | {points(claims[0]['second'])} | | |" in lines
    inner_loop = difference(of_comparison(claims, "maml", "twin"))
    assert f"Ten steps of its inner loop change the F1 of `maml` by {inner_loop} points." in readme


def test_page_has_the_differences_of_the_report(table: Callable[[str], Rows]) -> None:
    lines, pretraining = page(RESULTS / "episodes.md").splitlines(), table("pretraining_means")
    rows = table("claims")
    claims = [of_comparison(rows, arm, group="target sets") for arm in ARMS]
    f1 = [points(claims[0]["second"]), *(points(claim["first"]) for claim in claims)]
    assert f"| mean F1 of five sets | {' | '.join(f1)} |" in lines
    cells = [
        difference(claim) + (f", p {float(claim['corrected p']):.1g}" if claim["corrected p"] else "")
        for claim in claims
    ]
    assert f"| difference to vanilla | | {' | '.join(cells)} |" in lines
    ratios = " | ".join(ratio(of_comparison(pretraining, arm)) for arm in ARMS)
    assert f"| ratio to vanilla's | | {ratios} |" in lines


def test_page_has_the_differences_of_each_set(table: Callable[[str], Rows]) -> None:
    lines, rows = page(RESULTS / "episodes.md").splitlines(), table("claims_by_set")
    names = dict.fromkeys(row["set"] for row in rows)
    assert len(names) == 8
    for name in names:
        of_set = [of_comparison(rows, arm, set=name) for arm in ARMS]
        head = f"{'Indonesian news' if name == 'id_news2k' else name} ({int(of_set[0]['gold spans']):,})"
        cells = [head, points(of_set[0]["second"]), *map(difference, of_set)]
        assert f"| {' | '.join(cells)} |" in lines
