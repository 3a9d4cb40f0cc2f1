"""The summary at the top of the page: the main comparison in sentences, and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..load.collect import Collection
from ..run_refs import counted, runs_of
from ..stats import matched_budget
from ..stats.budgets import UPDATES
from ..stats.comparison import Comparison, averages, balanced
from ..stats.significance import Difference, average_difference
from .base import ReportData


def run_counts(collection: Collection) -> str:
    """How many finished runs the report includes, and how many runs it excludes."""
    finetuning = sum(not run.is_baseline for run in collection.finetuning)
    text = (
        f"This report is based on {counted(len(collection.pretraining), 'pretraining run')} and "
        f"{counted(finetuning, 'fine-tuning run')}."
    )
    if continued := len(collection.continued):
        text += f" {counted(continued, 'fine-tuning run')} continued from another one (k-shot learning)."
    if excluded := len(collection.excluded):
        text += f" Excluded: {counted(excluded, 'run')}, listed at the end."
    return text


def summary(data: ReportData) -> list[str]:
    """MAML against vanilla on the target sets at the last pretraining step that both have, one paragraph a string."""
    comparisons = data.final_comparisons
    if not comparisons:
        return [missing_pairs(data)]
    return [
        _main_result(data),
        _single_comparisons(comparisons),
        *_by_scale(comparisons),
        _limits(comparisons),
    ]


def missing_pairs(data: ReportData) -> str:
    """Why nothing can be compared at this budget, and which runs are needed."""
    if data.budget == UPDATES:
        return "MAML and vanilla cannot be compared: no MAML and vanilla run are otherwise identical."
    needed = (
        matched_budget.needed_checkpoints(data.matches[data.budget])
        or "a MAML and a vanilla pretraining run of the same scale, and fine-tuning runs of both"
    )
    return (
        f"MAML and vanilla cannot be compared at matched {data.budget}: no two fine-tuned checkpoints have the same "
        f"budget. Needed: {needed}."
    )


def _main_result(data: ReportData) -> str:
    """The answer in one sentence."""
    comparisons = data.final_comparisons
    names = sorted({item.set_name for item in comparisons})
    difference = average_difference(item.difference for item in comparisons)
    return (
        f"At matched {data.budget}, the mean difference in micro-F1 (MAML minus vanilla) on {', '.join(names)} is "
        f"{_estimate(difference)}: {_verdict(difference)}."
    )


def _single_comparisons(comparisons: Sequence[Comparison]) -> str:
    """How many runs are compared, and how many of the single comparisons point where."""
    pairs = len(runs_of(*(item.runs for item in comparisons))) // 2
    above = sum(item.difference.summary.interval[0] > 0 for item in comparisons)
    below = sum(item.difference.summary.interval[1] < 0 for item in comparisons)
    return (
        f"{counted(pairs, 'pair')} of runs {'is' if pairs == 1 else 'are'} compared. "
        f"The CI excludes 0 in {above + below} of {counted(len(comparisons), 'single comparison')} (one setting on one set): "
        f"{above} in favour of MAML, {below} in favour of vanilla. Without any true difference, about "
        f"{0.05 * len(comparisons):.1f} would be expected."
    )


def _verdict(difference: Difference) -> str:
    low, high = difference.summary.interval
    if low > 0:
        return "MAML is better on these sets and seeds"
    if high < 0:
        return "MAML is worse on these sets and seeds"
    return "the CI includes 0, so the result is inconclusive"


def _by_scale(comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence on the difference at each scale, if there are several scales."""
    means = averages(balanced(comparisons, "scale"), lambda setting: (setting.scale,))
    if len(means) < 2:
        return []
    clauses = [
        f"{item.key[0]} {_estimate(item.difference)}{'' if item.difference.summary.excludes_zero else ' (inconclusive)'}"
        for item in means
    ]
    return [f"By scale: {'; '.join(clauses)}."]


def _limits(comparisons: Sequence[Comparison]) -> str:
    """How small the sets are and how few the seeds."""
    spans = {item.set_name: item.gold_spans for item in comparisons}
    sizes = ", ".join(f"{name}: {count}" for name, count in spans.items())
    text = (
        f"Gold spans: {sizes}; one span changes recall by about {100 / median(spans.values()):.1f} points. "
    )
    low, high = (extreme(item.seeds for item in comparisons) for extreme in (min, max))
    if high == 1:
        return text + "Every comparison has one seed, so its CI does not include the variation over seeds."
    if low == high:
        return text + f"Every comparison has {high} seeds."
    return text + f"The comparisons have {low} to {high} seeds."


def _estimate(difference: Difference) -> str:
    low, high = difference.summary.interval
    return f"{_points(difference.summary.value)} points, 95\u00a0%\u00a0CI [{_points(low)},\u00a0{_points(high)}]"


def _points(f1: float) -> str:
    return f"{round(100 * f1, 1) + 0.0:+.1f}".replace("-", "−")  # + 0.0: no negative zero
