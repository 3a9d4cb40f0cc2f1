"""The learning rate of each way of tuning that scores best on the development sets of the sources, for all arms together.

    python benchmarks/chosen_rates.py GRID

GRID is the folder of a grid with grid.finetune_axes={ner.lr: [...]}, such as grid=study2_rates. The rate with the highest mean dev F1 over
objectives, sources and seeds is chosen; of equal ones the lowest. No test set is read. Rates of which a run is missing are refused.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from functools import reduce
from operator import or_
from pathlib import Path
from statistics import mean

from metapt.runs import Run

Scores = list[tuple[tuple[str, str, int], float]]
"""of each run the objective, source and seed, and its dev F1 in points"""


def dev_scores(grid: Path) -> dict[str, dict[float, Scores]]:
    """The scores of every finished run, by tuning and rate."""
    found: dict[str, dict[float, Scores]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(grid.glob("finetune/*/result.json")):
        result = Run(file.parent).result()
        run = (result["origin"]["objective"], result["source"], result["seed"])
        found[result["tuning"]][result["settings"]["ner.lr"]].append((run, 100 * result["dev_f1"]))
    return {tuning: dict(sorted(rates.items())) for tuning, rates in sorted(found.items())}


def mean_score(scores: Scores) -> float:
    """The mean dev F1 of some runs."""
    return mean(score for _, score in scores)


def chosen(rates: dict[float, Scores]) -> float:
    """The rate with the highest mean, of equal ones the lowest.

    Raises:
        ValueError: a rate lacks a run of another one.
    """
    runs = {rate: Counter(run for run, _ in scores) for rate, scores in rates.items()}
    every = reduce(or_, runs.values())
    lacking = {rate: ", ".join(map(str, (every - own).elements())) for rate, own in runs.items()}
    if any(lacking.values()):
        missing = "; ".join(f"{rate:g} lacks {names}" for rate, names in lacking.items() if names)
        raise ValueError(f"rates without the runs of the others (objective, source, seed): {missing}")
    return min(rates, key=lambda rate: (-mean_score(rates[rate]), rate))


def table(grid: Path) -> str:
    """Mean dev F1 by tuning and rate, the chosen rates in bold, as Markdown."""
    lines = ["| tuning | rate | runs | mean dev F1 |", "|---|---:|---:|---:|"]
    for tuning, rates in dev_scores(grid).items():
        best = chosen(rates)
        for rate, scores in rates.items():
            value = f"{mean_score(scores):.2f}"
            shown = f"**{value}**" if rate == best else value
            lines.append(f"| {tuning} | {rate:g} | {len(scores)} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
