"""The tables of README, docs/results/episodes.md and docs/results/study2.md, computed again from the published predictions."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path

import pack_runs
import pytest
from conftest import REPO, extra_set

from analysis import report

RESULTS = REPO / "docs" / "results"
ARMS = ("multitask", "both", "maml", "twin")
CONTRASTS = (
    *(("maml", "multitask"), ("maml", "twin")),
    *(("multitask", "vanilla"), ("maml", "vanilla"), ("twin", "vanilla")),
)
"""of the second study, primary ones first"""
Rows = list[dict[str, str]]
Tables = Callable[[str], Rows]

pytestmark = [pytest.mark.nightly, pytest.mark.real_data]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """A function that reads a table of the report on the published runs of grid=episodes."""
    return tables_of(RESULTS / "episodes", tmp_path_factory.mktemp("episodes"))


@pytest.fixture(scope="module")
def second_study(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The same of grid=study2."""
    return tables_of(RESULTS / "study2" / "study2", tmp_path_factory.mktemp("study2"))


def tables_of(packed: Path, root: Path) -> Tables:
    """Unpack runs into a folder and write their report; returns a function that reads one of its tables."""
    if "METAPT_UNER_DIR" not in os.environ:
        pytest.skip("METAPT_UNER_DIR is not set")
    extra_set("id_news2k")
    pack_runs.unpack(packed, root)
    report.main([str(root), "--no-sentences"])

    def read(name: str) -> Rows:
        with (root / "report" / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    return read


def of_comparison(rows: Rows, arm: str, base: str = "vanilla", **cells: str) -> Rows:
    """The rows of a comparison with these cells, whatever variant and tuning its name has."""
    named = re.compile(rf"{arm}(/base)? minus {base}(/base)?( \([a-z_]+\))?")
    return [row for row in rows if named.fullmatch(row["comparison"]) and cells.items() <= row.items()]


def the(rows: Rows) -> dict[str, str]:
    """The only row."""
    [row] = rows
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


def test_readme_has_the_numbers_of_the_report(table: Tables) -> None:
    readme, pretraining = page(REPO / "README.md"), table("pretraining_means")
    claims = [row for row in table("claims") if row["group"] == "target sets"]
    lines = readme.splitlines()
    for arm in ("multitask", "both", "maml"):
        claim = the(of_comparison(claims, arm))
        numbers = f"| {points(claim['first'])} | {difference(claim)} | {ratio(the(of_comparison(pretraining, arm)))} |"
        [line] = [line for line in lines if line.startswith(f"| `{arm}`: ")]
        assert line.endswith(numbers)
    assert f"| vanilla | {points(claims[0]['second'])} | | |" in lines
    inner_loop = difference(the(of_comparison(claims, "maml", "twin")))
    assert f"Ten steps of its inner loop change the F1 of `maml` by {inner_loop} points." in readme


def test_page_has_the_differences_of_the_report(table: Tables) -> None:
    lines, pretraining = page(RESULTS / "episodes.md").splitlines(), table("pretraining_means")
    rows = table("claims")
    claims = [the(of_comparison(rows, arm, group="target sets")) for arm in ARMS]
    f1 = [points(claims[0]["second"]), *(points(claim["first"]) for claim in claims)]
    assert f"| mean F1 of five sets | {' | '.join(f1)} |" in lines
    cells = [
        difference(claim) + (f", p {float(claim['corrected p']):.1g}" if claim["corrected p"] else "")
        for claim in claims
    ]
    assert f"| difference to vanilla | | {' | '.join(cells)} |" in lines
    ratios = " | ".join(ratio(the(of_comparison(pretraining, arm))) for arm in ARMS)
    assert f"| ratio to vanilla's | | {ratios} |" in lines


def test_page_has_the_differences_of_each_set(table: Tables) -> None:
    lines, rows = page(RESULTS / "episodes.md").splitlines(), table("claims_by_set")
    names = dict.fromkeys(row["set"] for row in rows)
    assert len(names) == 8
    for name in names:
        of_set = [the(of_comparison(rows, arm, set=name)) for arm in ARMS]
        head = f"{'Indonesian news' if name == 'id_news2k' else name} ({int(of_set[0]['gold spans']):,})"
        cells = [head, points(of_set[0]["second"]), *map(difference, of_set)]
        assert f"| {' | '.join(cells)} |" in lines


def interval_of(row: dict[str, str], name: str, digits: int) -> str:
    """A value that is no F1, with its interval."""
    names = (next(key for key in row if key.startswith(name)), f"95 % CI {name} low", f"95 % CI {name} high")
    value, low, high = (f"{float(row[key]):+.{digits}f}".replace("-", "−") for key in names)
    return f"{value} [{low}, {high}]"


def primary_rows(tables: Tables) -> list[str]:
    claims = tables("claims")
    rows = [
        the(of_comparison(claims, *arms, group="target sets", tuning="head_only")) for arms in CONTRASTS[:2]
    ]
    return [
        f"| `{first}` − `{second}` | {points(row['first'])} | {points(row['second'])} | {difference(row)} | "
        f"{float(row['corrected p']):.2g} | {points(row['MDE'])} | {row['verdict']} |"
        for (first, second), row in zip(CONTRASTS, rows, strict=False)
    ]


def contrast_rows(tables: Tables) -> list[str]:
    """Every contrast: frozen, at equal FLOPs too, and full tuning; k-shot area, perplexity, t90 and area of the loss."""
    shown = {"group": "target sets", "tuning": "head_only"}
    found = []
    for arms in CONTRASTS:
        cells = [difference(the(of_comparison(tables("claims"), *arms, **shown)))]
        others = of_comparison(tables("claims_by_budget"), *arms, **shown)
        flops = [difference(row) for row in others if "FLOPs" in row["matched budget"]]
        cells += flops or ["the same"]
        full = of_comparison(tables("claims"), *arms, **(shown | {"tuning": "full"}))
        cells.append(difference(the(full)))
        cells.append(difference(the(of_comparison(tables("k_shot_means"), *arms, k="area"))))
        cells.append(ratio(the(of_comparison(tables("pretraining_means"), *arms))))
        speed = of_comparison(tables("convergence_means"), *arms, tuning="head_only")[0]
        cells += [interval_of(speed, "Δ t90", 1), interval_of(speed, "Δ area", 3)]
        found.append(f"| `{arms[0]}` − `{arms[1]}` | {' | '.join(cells)} |")
    return found


def set_rows(tables: Tables) -> list[str]:
    rows = [row for row in tables("claims_by_set") if row["tuning"] == "head_only"]
    found = []
    for name in dict.fromkeys(row["set"] for row in rows):
        of_set = [the(of_comparison(rows, *arms, set=name)) for arms in CONTRASTS[:4]]
        head = f"{'Indonesian news' if name == 'id_news2k' else name} ({int(of_set[0]['gold spans']):,})"
        means = [of_set[2]["second"], of_set[2]["first"], of_set[3]["first"], of_set[1]["second"]]
        found.append(f"| {' | '.join([head, *map(points, means), *map(difference, of_set)])} |")
    return found


@pytest.mark.parametrize("rows", [primary_rows, contrast_rows, set_rows])
def test_the_second_study_has_the_numbers_of_the_report(
    second_study: Tables, rows: Callable[[Tables], list[str]]
) -> None:
    lines = page(RESULTS / "study2.md").splitlines()
    assert [row for row in rows(second_study) if row not in lines] == []


def test_readme_begins_with_the_result_of_the_second_study(second_study: Tables) -> None:
    first_screen = page(REPO / "README.md").partition("## Install")[0]
    shown = {"group": "target sets", "tuning": "head_only"}
    gain, episodes, loop = (
        difference(the(of_comparison(second_study("claims"), *arms, **shown)))
        for arms in (("multitask", "vanilla"), ("maml", "multitask"), ("maml", "twin"))
    )
    assert f"by {gain.replace('+', '', 1).replace(' ', ' points ', 1)}" in first_screen
    assert episodes.replace("−", "", 1).replace(" ", " points less ", 1) in first_screen
    assert f"changes F1 by {loop}: no effect of practical size" in first_screen
