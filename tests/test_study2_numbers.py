"""The numbers of docs/results/study2.md and of README's first screen, computed again from the published predictions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from statistics import fmean

import pytest
from conftest import REPO
from published import (
    RESULTS,
    Rows,
    Tables,
    difference,
    interval_of,
    of_comparison,
    page,
    points,
    ratio,
    tables_of,
    the,
)

ARMS = ("vanilla", "multitask", "maml", "twin")
CONTRASTS = (
    *(("maml", "multitask"), ("maml", "twin")),
    *(("multitask", "vanilla"), ("maml", "vanilla"), ("twin", "vanilla")),
)
"""primary ones first"""

pytestmark = [pytest.mark.nightly, pytest.mark.real_data]


@pytest.fixture(scope="module")
def second_study(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """A function that reads a table of the report on all published runs of the second study."""
    grids = sorted(path for path in (RESULTS / "study2").iterdir() if path.is_dir())
    return tables_of(grids, tmp_path_factory.mktemp("study2"))


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


def f1_rows(tables: Tables, arm: str) -> Rows:
    """The F1 of an arm of row 1 with a frozen decoder, after all its updates; a row for each source."""
    cells = {"objective": arm, "variant": "base", "tuning": "head_only", "step": "1200"}
    return [row for row in tables("f1") if cells.items() <= row.items()]


def on_the_source(row: dict[str, str]) -> float:
    """F1 on the test set of the language that was learned."""
    return float(next(value for name, value in row.items() if name.startswith(f"{row['source']} (")))


def mean_rows(tables: Tables) -> list[str]:
    """Means of the four arms."""

    def means(name: str, column: str = "", **cells: str) -> list[str]:
        rows = [the(of_comparison(tables(name), arm, **cells)) for arm in ARMS[1:]]
        values = [rows[0][f"{column}second"], *(row[f"{column}first"] for row in rows)]
        return [points(value) for value in values]

    runs = [
        [row for row in tables("runs_pretraining") if (row["objective"], row["variant"]) == (arm, "base")]
        for arm in ARMS
    ]
    flops = [float(of_arm[0]["FLOPs"]) for of_arm in runs]
    ranks = json.loads((RESULTS / "study2" / "state_ranks.json").read_text(encoding="utf-8"))
    sets = {"group": "target sets"}
    rows = {
        "F1 of five sets, frozen decoder": means("claims", tuning="head_only", **sets),
        "F1 of five sets, full fine-tuning": means("claims", tuning="full", **sets),
        "area under the k-shot curve": means("k_shot_means", k="area"),
        "F1 on the test set of the source, frozen decoder": [
            f"{100 * fmean(map(on_the_source, f1_rows(tables, arm))):.1f}" for arm in ARMS
        ],
        "held-out perplexity": [
            f"{fmean(float(row['held-out perplexity']) for row in of_arm):.1f}" for of_arm in runs
        ],
        "accuracy on held-out words (chance 6.2)": means("pretraining_means", "held-out words, "),
        "effective rank of the last hidden states": [
            f"{fmean(ranks[f'{arm}/base'].values()):.3f}" for arm in ARMS
        ],
        "FLOPs, ratio to vanilla's": ["1", *(f"{count / flops[0]:.2f}" for count in flops[1:])],
    }
    return [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]


def set_rows(tables: Tables) -> list[str]:
    rows = [row for row in tables("claims_by_set") if row["tuning"] == "head_only"]
    found = []
    for name in dict.fromkeys(row["set"] for row in rows):
        of_set = [the(of_comparison(rows, *arms, set=name)) for arms in CONTRASTS[:4]]
        head = f"{'Indonesian news' if name == 'id_news2k' else name} ({int(of_set[0]['gold spans']):,})"
        means = [of_set[2]["second"], of_set[2]["first"], of_set[3]["first"], of_set[1]["second"]]
        found.append(f"| {' | '.join([head, *map(points, means), *map(difference, of_set)])} |")
    return found


LATER_ROWS = (
    (
        ("multitask/shuffled", "multitask", "`multitask`, shuffled − `multitask`"),
        ("maml/shuffled", "maml", "`maml`, shuffled − `maml`"),
        ("multitask/shuffled", "vanilla", "`multitask`, shuffled − `vanilla`"),
        ("vanilla/class_features", "vanilla", "classes as features − `vanilla`"),
        ("multitask", "vanilla/class_features", "`multitask` − classes as features"),
    ),
    (
        ("maml_paper/short", "vanilla/short", "as published − `vanilla`"),
        ("maml_paper/zero", "vanilla/short", "zero classifier, added − `vanilla`"),
        ("maml_paper/zero", "maml_paper/short", "zero classifier, added − as published"),
    ),
)
"""the contrasts of rows 2 and 3, and their names on the page"""


def later_rows(tables: Tables) -> list[str]:
    """F1 on the five sets; and, of arms that were pretrained anew, perplexity and, if both have it, accuracy on held-out words."""
    found = []
    for contrasts in LATER_ROWS:
        rows = {name: contrast_cells(tables, first, second) for first, second, name in contrasts}
        width = max(map(len, rows.values()))
        for name, cells in rows.items():
            padded = [*cells, *[""] * (width - len(cells))]
            found.append(f"| {name} |" + "".join(f" {cell} |" if cell else " |" for cell in padded))
    return found


def contrast_cells(tables: Tables, first: str, second: str) -> list[str]:
    """The number of seeds, and what the contrast has of the values of `later_rows`."""
    row = the(of_comparison(tables("claims"), first, second, group="target sets"))
    seeds = len(set(re.findall(r"-s(\d+)-", row["runs"])))
    cells = [str(seeds), points(row["first"]), points(row["second"]), difference(row)]
    for pretraining in of_comparison(tables("pretraining_means"), first, second):
        cells.append(ratio(pretraining))
        if pretraining["Δ"]:
            names = ("Δ", "95 % CI Δ low", "95 % CI Δ high")
            cells.append(interval_of({key: str(100 * float(pretraining[key])) for key in names}, "Δ", 1))
    return cells


def feature_rows(tables: Tables) -> list[str]:
    """F1 by set without and with classes as features, and of `multitask`."""
    rows = tables("claims_by_set")
    found = []
    for name in dict.fromkeys(row["set"] for row in rows):
        features = the(of_comparison(rows, "vanilla/class_features", set=name))
        multitask = the(of_comparison(rows, "multitask", "vanilla/class_features", set=name))
        cells = [points(features["second"]), points(features["first"]), difference(features)]
        cells += [points(multitask["first"]), difference(multitask)]
        found.append(" | ".join(cells))
    return found


@pytest.mark.parametrize("rows", [primary_rows, mean_rows, contrast_rows, set_rows, later_rows])
def test_the_second_study_has_the_numbers_of_the_report(
    second_study: Tables, rows: Callable[[Tables], list[str]]
) -> None:
    lines = page(RESULTS / "study2.md").splitlines()
    assert [row for row in rows(second_study) if row not in lines] == []


def test_the_second_study_has_the_f1_of_classes_as_features(second_study: Tables) -> None:
    """By set; the first column is not of the report."""
    lines = page(RESULTS / "study2.md").splitlines()
    for row in feature_rows(second_study):
        assert [line for line in lines if line.endswith(f"| {row} |")] != [], row


def test_the_second_study_has_the_f1_of_each_source(second_study: Tables) -> None:
    text = " ".join(page(RESULTS / "study2.md").split())
    column = "target sets, 5 sets"
    by_source = {
        arm: {row["source"]: points(row[column]) for row in f1_rows(second_study, arm)} for arm in ARMS
    }
    best, vanilla = (
        [of[name] for name in ("en_ewt", "sk_snk", "hr_set")]
        for of in (by_source["multitask"], by_source["vanilla"])
    )
    assert f"{best[0]} from `en_ewt`, {best[1]} from `sk_snk` and {best[2]} from `hr_set`" in text
    assert f"`vanilla` {vanilla[0]}, {vanilla[1]} and {vanilla[2]}." in text
    baselines = {
        (row["scale"], row["source"]): float(row[column])
        for row in second_study("f1")
        if row["objective"] == "baseline"
    }
    crf = [baselines["crf", name] for name in ("en_ewt", "sk_snk", "hr_set")]
    shown = [f"{100 * value:.1f}" for value in (fmean(crf), *crf)]
    assert "{} on the five sets ({}, {} and {} by source)".format(*shown) in text
    assert f"reaches {100 * baselines['capitals', '']:.1f}." in text
    with_classes = fmean(baselines["crf_classes", name] for name in ("en_ewt", "sk_snk", "hr_set"))
    assert f"{100 * with_classes:.1f} instead of {shown[0]} on the five sets" in text


def test_the_second_study_has_the_gain_with_each_number_of_sentences(second_study: Tables) -> None:
    rows = second_study("k_shot_means")
    gains = [
        f"{100 * float(the(of_comparison(rows, 'multitask', k=k))['difference']):+.1f}"
        for k in ("30", "100", "300")
    ]
    text = " ".join(page(RESULTS / "study2.md").split())
    assert "is {}, {} and {} points with 30, 100 and 300 sentences".format(*gains) in text


def test_the_second_study_says_whether_the_papers_episodes_are_learned(second_study: Tables) -> None:
    text = " ".join(page(RESULTS / "study2.md").split())
    shown = {"measure": "probe accuracy"}
    published, repaired = (
        points(the(of_comparison(second_study("dynamics_means"), arm, "vanilla/short", **shown))["first"])
        for arm in ("maml_paper/short", "maml_paper/zero")
    )
    assert f"Accuracy on held-out episodes is {published} %, which is chance." in text
    assert f"accuracy on held-out episodes is {repaired} %." in text
    claim = the(
        of_comparison(second_study("claims"), "maml_paper/zero", "vanilla/short", group="target sets")
    )
    assert f"three seeds would detect {points(claim['MDE'])} points" in text
    runs = [
        row
        for row in second_study("runs_pretraining")
        if (row["scale"], row["variant"]) == ("laptop", "short")
    ]
    of_paper, of_vanilla = (
        sorted(float(row["held-out perplexity"]) for row in runs if row["objective"] == arm)
        for arm in ("maml_paper", "vanilla")
    )
    spans = (f"{values[0]:.0f} to {values[-1]:.0f}" for values in (of_paper, of_vanilla))
    assert "is {}, `vanilla`'s {}.".format(*spans) in text


def test_readme_begins_with_the_result_of_the_second_study(second_study: Tables) -> None:
    first_screen = page(REPO / "README.md").partition("## Install")[0]
    shown = {"group": "target sets", "tuning": "head_only"}
    gain, shuffled, episodes, loop = (
        difference(the(of_comparison(second_study("claims"), *arms, **shown)))
        for arms in (("multitask", "vanilla"), ("multitask/shuffled", "multitask"), *CONTRASTS[:2])
    )
    assert f"by {gain.replace('+', '', 1).replace(' ', ' points ', 1)}" in first_screen
    for loss in (shuffled, episodes):
        assert loss.replace("−", "", 1).replace(" ", " points less ", 1) in first_screen
    assert f"changes F1 by {loop}: no effect of practical size" in first_screen
