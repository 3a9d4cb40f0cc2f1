"""How often the intervals of F1, of differences and of means cover the true value, on data sets of a known population.

`python benchmarks/calibration_f1.py` writes its tables into docs/calibration.md (minutes; fixed seeds). Every cell is
one population, one F1 and one number of gold spans; its data sets are sampled from `f1_populations.Population`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from f1_populations import SETS, WITH_DOCUMENTS, Population, recorded

from metapt.evaluation.bootstrap import micro_f1
from metapt.evaluation.f1_interval import (
    Interval,
    clopper_pearson,
    f1_difference_interval,
    f1_interval,
    mean_interval,
)
from metapt.files import write_atomically

PAGE = Path(__file__).parents[1] / "docs" / "calibration.md"
BEGIN, END = "<!-- f1 intervals: begin -->\n", "<!-- f1 intervals: end -->\n"
DATA_SETS = 2000
F1 = (0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 0.9, 0.99)
GOLD_SPANS = (20, 33, 49, 72, 500)
LOW_PAIRS = ((0.0, 0.02), (0.01, 0.01), (0.01, 0.04), (0.02, 0.1), (0.03, 0.3), (0.04, 0.9))
"""F1 of two systems, of which at least one is below 0.05"""
CLOSE_PAIRS = ((0.1, 0.15), (0.3, 0.3), (0.3, 0.35), (0.5, 0.55), (0.9, 0.93))
MEANS = ((0.0, 0.01, 0.02, 0.04), (0.02, 0.02, 0.02, 0.02), (0.01, 0.1, 0.5, 0.9))
"""F1 on four sets"""
MEAN_SETS = ("en_ewt from en_ewt", "hr_set from en_ewt", "pt_pud from en_ewt", "tl_trg, ceb_gja from en_ewt")
RIVAL = 0.04
"""added to the F1 of MEANS for the second system, where the mean of differences is simulated"""

IntervalOf = Callable[[np.ndarray], Interval]


@dataclass(frozen=True)
class Cell:
    """Intervals of the data sets of one population.

    Attributes:
        rows, column: the place in a table: a heading and a number of gold spans, and the true F1.
        covered: fraction of the intervals that contain the true value.
        below, above: fractions of the intervals that lie below or above the true value.
        width: median width of the intervals, divided by that of the reference, which knows the population's design
            effect.
    """

    rows: str
    gold_spans: int
    column: str
    covered: float
    below: float
    above: float
    width: float


def cell(place: tuple[str, int, str], truth: float, intervals: Sequence[tuple[Interval, Interval]]) -> Cell:
    """Summarise the intervals of a cell.

    Args:
        place: Cell's first three attributes.
        intervals: of each data set, the interval and its reference.
    """
    (low, high), (reference_low, reference_high) = np.asarray(intervals).transpose(1, 2, 0)
    below, above = np.mean(high < truth - 1e-12), np.mean(low > truth + 1e-12)
    width = np.median(high - low) / np.median(reference_high - reference_low)
    return Cell(*place, float(1 - below - above), float(below), float(above), float(width))


def sampled(
    populations: Sequence[Population], gold_spans: int, rng: np.random.Generator, shared: bool = True
) -> list[np.ndarray]:
    """Sample a data set that has a gold span, with the counts of each system on it.

    Args:
        populations: systems on the same units.
        shared: whether the systems decide alike on which units they are good (see Population.data_set).
    """
    number = populations[0].units_for(gold_spans)
    while True:
        units, uniform = rng.integers(0, populations[0].systems.shape[1], number), rng.random(number)
        found = [
            each.data_set(units, uniform if shared or not index else rng.random(number))
            for index, each in enumerate(populations)
        ]
        if found[0][:, 2].any():
            return found


def reference_interval(population: Population, counts: np.ndarray) -> Interval:
    """Compute Clopper and Pearson's interval with the population's design effect instead of an estimated one."""
    correct = int(counts[:, 0].sum())
    spans = int(counts[:, 1:].sum()) - correct
    trials = spans / population.design_effect
    low, high = clopper_pearson(correct / spans * trials, trials)
    return (2 * low / (1 + low), 2 * high / (1 + high))


def reference_difference(
    pair: Sequence[Population], counts: Sequence[np.ndarray], correlation: float
) -> Interval:
    """Combine the two reference intervals by MOVER, with the true correlation."""
    (low, high), (other_low, other_high) = map(reference_interval, pair, counts)
    value, other = (float(micro_f1(each.sum(axis=0))) for each in counts)
    below, above = (
        np.sqrt(max(one**2 + two**2 - 2 * correlation * one * two, 0))
        for one, two in ((value - low, other_high - other), (high - value, other - other_low))
    )
    return (value - other - below, value - other + above)


def true_correlation(pair: Sequence[Population], shared: bool) -> float:
    """Compute the correlation of two systems' F1 over large data sets; 0 if one of them has F1 0."""
    (worse, better), (other_worse, other_better) = (each.residuals for each in pair)
    one, two = (each.fraction for each in pair)
    both = min(one, two) if shared else one * two
    products = (
        both * better * other_better
        + (one - both) * better * other_worse
        + (two - both) * worse * other_better
        + (1 - one - two + both) * worse * other_worse
    )
    scale = np.sqrt(pair[0].moment(pair[0].residuals ** 2) * pair[1].moment(pair[1].residuals ** 2))
    return float(products.mean() / scale) if scale else 0.0


def single_cells(data_sets: int, interval_of: IntervalOf = f1_interval) -> Iterator[Cell]:
    """Yield the cells of one system on one set: sentences of all SETS, then documents of WITH_DOCUMENTS."""
    places = [(name, recorded(name)) for name in SETS]
    places += [(f"{name}, documents", recorded(name, by_document=True)) for name in WITH_DOCUMENTS]
    for place, systems in places:
        for target in F1:
            for gold_spans in GOLD_SPANS:
                yield single_cell(place, systems, target, gold_spans, data_sets, interval_of)


def single_cell(
    place: str,
    systems: np.ndarray,
    target: float,
    gold_spans: int,
    data_sets: int,
    interval_of: IntervalOf = f1_interval,
) -> Cell:
    """Simulate one system of F1 `target` on a set with the recorded `systems`."""
    population, rng = Population.of(systems, target), _generator("single", place, target, gold_spans)
    found = [sampled([population], gold_spans, rng)[0] for _ in range(data_sets)]
    intervals = [(interval_of(counts), reference_interval(population, counts)) for counts in found]
    return cell((place, gold_spans, f"{target:g}"), target, intervals)


def difference_cells(data_sets: int, f1_pairs: Sequence[tuple[float, float]]) -> Iterator[Cell]:
    """Yield the cells of the difference of two systems on the same sentences, with the F1 of `f1_pairs`."""
    for name in SETS:
        for shared, how in ((True, "same sentences"), (False, "independent")):
            for targets in f1_pairs:
                if shared and targets[0] == targets[1]:  # the same predictions
                    continue
                pair = [Population.of(recorded(name), target) for target in targets]
                correlation = true_correlation(pair, shared)
                for gold_spans in GOLD_SPANS:
                    rng = _generator("difference", name, how, targets, gold_spans)
                    found = [sampled(pair, gold_spans, rng, shared) for _ in range(data_sets)]
                    intervals = [
                        (
                            f1_difference_interval(both[0], both[1]),
                            reference_difference(pair, both, correlation),
                        )
                        for both in found
                    ]
                    place = (f"{name}, {how}", gold_spans, f"{targets[0]:g} - {targets[1]:g}")
                    yield cell(place, targets[0] - targets[1], intervals)


def mean_cells(data_sets: int) -> Iterator[Cell]:
    """Yield the cells of means over four sets: of F1, and of differences of two systems."""
    for targets in MEANS:
        pairs = [
            [Population.of(recorded(name), f1) for f1 in (target, target + RIVAL)]
            for name, target in zip(MEAN_SETS, targets, strict=True)
        ]
        column = ", ".join(f"{target:g}" for target in targets)
        for gold_spans in GOLD_SPANS:
            rng = _generator("mean", targets, gold_spans)
            f1_intervals, difference_intervals = [], []
            for _ in range(data_sets):
                found = [sampled(pair, gold_spans, rng) for pair in pairs]
                f1_intervals.append(_mean_of_f1(pairs, found))
                difference_intervals.append(_mean_of_differences(pairs, found))
            yield cell(("mean F1", gold_spans, column), float(np.mean(targets)), f1_intervals)
            yield cell(("mean difference", gold_spans, column), -RIVAL, difference_intervals)


def _mean_of_f1(
    pairs: Sequence[Sequence[Population]], found: Sequence[Sequence[np.ndarray]]
) -> tuple[Interval, Interval]:
    values = [float(micro_f1(first.sum(axis=0))) for first, _ in found]
    references = [reference_interval(pair[0], first) for pair, (first, _) in zip(pairs, found, strict=True)]
    return mean_interval(values, [f1_interval(first) for first, _ in found]), mean_interval(
        values, references
    )


def _mean_of_differences(
    pairs: Sequence[Sequence[Population]], found: Sequence[Sequence[np.ndarray]]
) -> tuple[Interval, Interval]:
    values = [float(micro_f1(first.sum(axis=0)) - micro_f1(second.sum(axis=0))) for first, second in found]
    references = [
        reference_difference(pair, both, true_correlation(pair, shared=True))
        for pair, both in zip(pairs, found, strict=True)
    ]
    intervals = [f1_difference_interval(first, second) for first, second in found]
    return mean_interval(values, intervals), mean_interval(values, references)


def _generator(*key: object) -> np.random.Generator:
    return np.random.default_rng(list(repr(key).encode()))


def entry(found: Cell) -> str:
    """Write coverage in percent and relative width."""
    return f"{100 * found.covered:.1f} / {found.width:.2f}"


def table(cells: Sequence[Cell]) -> str:
    """Write the entries of one heading as a table: gold spans down, F1 across."""
    columns, rows = (
        list(dict.fromkeys(each.column for each in cells)),
        sorted({each.gold_spans for each in cells}),
    )
    found = {(each.gold_spans, each.column): entry(each) for each in cells}
    lines = ["| gold spans | " + " | ".join(columns) + " |", "|---:" * (len(columns) + 1) + "|"]
    lines += [f"| {row} | " + " | ".join(found[row, column] for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def summary(name: str, cells: Sequence[Cell]) -> str:
    """Write a row of the summary table."""
    covered, width = np.array([each.covered for each in cells]), np.array([each.width for each in cells])
    return (
        f"| {name} | {len(cells)} | {covered.min():.1%} | {covered.mean():.1%} | {np.count_nonzero(covered < 0.93)} "
        f"| {np.median(width):.2f} | {width.max():.2f} |"
    )


def section(groups: dict[str, list[Cell]]) -> str:
    """Write the section of the page: a summary, then a table for each population."""
    parts = [
        "| cells | number | lowest coverage | mean coverage | cells below 93 % | median relative width | largest |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(summary(name, cells) for name, cells in groups.items()),
    ]
    for name, cells in groups.items():
        for heading in dict.fromkeys(each.rows for each in cells):
            parts += [
                "",
                f"**{name}: {heading}**",
                "",
                table([each for each in cells if each.rows == heading]).rstrip(),
            ]
    return "\n".join(parts) + "\n"


def groups_of(data_sets: int = DATA_SETS) -> dict[str, list[Cell]]:
    """Simulate all cells, in the groups of the page."""
    single = list(single_cells(data_sets))
    return {
        "one system, sentences": [each for each in single if not each.rows.endswith("documents")],
        "one system, documents": [each for each in single if each.rows.endswith("documents")],
        "two systems, one below 0.05": list(difference_cells(data_sets, LOW_PAIRS)),
        "two systems, close": list(difference_cells(data_sets, CLOSE_PAIRS)),
        "four sets": list(mean_cells(data_sets)),
    }


def main() -> None:
    """Simulate all cells, and replace the tables of the page."""
    text = section(groups_of())
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    write_atomically(PAGE, before + BEGIN + "\n" + text + "\n" + END + after)


if __name__ == "__main__":
    main()
