"""The tables of README and docs/results/episodes.md, computed again from the published predictions."""

from __future__ import annotations

import pytest
from conftest import REPO
from published import RESULTS, Tables, difference, of_comparison, page, points, ratio, tables_of, the

ARMS = ("multitask", "both", "maml", "twin")

pytestmark = [pytest.mark.nightly, pytest.mark.real_data]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """A function that reads a table of the report on the published runs of grid=episodes."""
    return tables_of([RESULTS / "episodes"], tmp_path_factory.mktemp("episodes"))


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
