"""The learning rate of each way of tuning that scores best on the development sets of the sources, for all arms together.

    python benchmarks/chosen_rates.py GRID

GRID is the folder of a grid with grid.finetune_axes={ner.lr: [...]}, such as grid=study2_rates. The rate with the highest mean dev F1 over
objectives, sources and seeds is chosen; of equal ones the lowest. No test set is read. Rates with unequal numbers of runs are refused.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from metapt.runs import Run


def dev_scores(grid: Path) -> dict[str, dict[float, list[float]]]:
    """Dev F1 of every finished run, by tuning and rate, in points."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(grid.glob("finetune/*/result.json")):
        result = Run(file.parent).result()
        found[result["tuning"]][result["settings"]["ner.lr"]].append(100 * result["dev_f1"])
    return {tuning: dict(sorted(rates.items())) for tuning, rates in sorted(found.items())}


def chosen(rates: dict[float, list[float]]) -> float:
    """The rate with the highest mean, of equal ones the lowest.

    Raises:
        ValueError: some rates have more runs than others.
    """
    if len({len(scores) for scores in rates.values()}) > 1:
        counts = ", ".join(f"{rate:g} has {len(scores)}" for rate, scores in rates.items())
        raise ValueError(f"unequal numbers of finished runs: {counts}")
    return min(rates, key=lambda rate: (-mean(rates[rate]), rate))


def table(grid: Path) -> str:
    """Mean dev F1 by tuning and rate, the chosen rates in bold, as Markdown."""
    lines = ["| tuning | rate | runs | mean dev F1 |", "|---|---:|---:|---:|"]
    for tuning, rates in dev_scores(grid).items():
        best = chosen(rates)
        for rate, scores in rates.items():
            shown = f"**{mean(scores):.2f}**" if rate == best else f"{mean(scores):.2f}"
            lines.append(f"| {tuning} | {rate:g} | {len(scores)} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
