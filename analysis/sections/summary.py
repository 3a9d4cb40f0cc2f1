"""The summary at the top of the page: the main comparison in sentences, and its limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from metapt.evaluation.seed_inference import MIN_SEEDS

from ..load.collect import Collection
from ..run_refs import counted
from ..stats import matched_budget
from ..stats.budgets import UPDATES
from ..stats.comparison import Comparison, averages, balanced, pair_count
from ..stats.significance import Difference, average_difference
from ..stats.verdicts import NO_VERDICT
from ..tables import enumerated, points
from .base import ReportData
from .claims import DESCRIPTIVE


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


def summary(data: ReportData, verdicts: Sequence[str]) -> list[str]:
    """The contrast on the target sets at the last pretraining step that both arms have, one paragraph a string.

    Args:
        verdicts: on the claims about the contrast.
    """
    comparisons = data.final_comparisons
    if not comparisons:
        return [missing_pairs(data)]
    return [
        _main_result(data, verdicts),
        _single_comparisons(data),
        *_by_scale(comparisons),
        _limits(comparisons),
    ]


def missing_pairs(data: ReportData) -> str:
    """Why nothing can be compared at this budget, and which runs are needed."""
    if any(data.pairs.values()):
        return f"{_arms(data)} cannot be compared: no target set with gold spans was scored by both on the same sentences."
    if UPDATES in data.budgets:
        return (
            f"{_arms(data)} cannot be compared: no run of one is otherwise identical to a run of the other."
        )
    needed = (
        matched_budget.needed_checkpoints(data.matched.matches[data.budgets[0]])
        or f"pretraining runs of {data.contrast.first} and {data.contrast.second} at the same scale, and fine-tuning runs of both"
    )
    return (
        f"{_arms(data)} cannot be compared at matched {enumerated(data.budgets)}: no two fine-tuned checkpoints have the same "
        f"budget. Needed: {needed}."
    )


def _main_result(data: ReportData, verdicts: Sequence[str]) -> str:
    """The answer in one sentence."""
    comparisons = data.final_comparisons
    names = sorted({item.set_name for item in comparisons})
    difference = average_difference(item.difference for item in comparisons)
    return (
        f"At matched {enumerated(data.budgets)}, the mean difference in micro-F1 ({data.contrast}) on {', '.join(names)} is "
        f"{_estimate(difference)}. {_verdicts(data, verdicts)}"
    )


def _verdicts(data: ReportData, verdicts: Sequence[str]) -> str:
    """How many claims have which verdict."""
    counts = Counter(verdicts)
    if set(counts) <= {NO_VERDICT}:
        return f"With fewer than {MIN_SEEDS} seeds there is no verdict."
    if set(counts) == {DESCRIPTIVE}:
        if not data.contrast.primary:
            return "This comparison is descriptive: no grid declares it as primary."
        return "This comparison is descriptive: verdicts are given at the budget that the page shows first."
    parts = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"Verdicts on its {counted(len(verdicts), 'claim')}: {parts}."


def _single_comparisons(data: ReportData) -> str:
    """How many runs are compared, and how many of the single comparisons point where."""
    comparisons = data.final_comparisons
    pairs = pair_count(comparisons)
    apart = [item.difference for item in comparisons if item.difference.excludes_zero]
    above = sum(difference.value > 0 for difference in apart)
    below = len(apart) - above
    text = f"{counted(pairs, 'pair')} of runs {'is' if pairs == 1 else 'are'} compared."
    if all(item.seeds < MIN_SEEDS for item in comparisons):
        return text
    return (
        f"{text} The CI excludes 0 in {len(apart)} of {counted(len(comparisons), 'single comparison')} (one setting on one set): "
        f"{above} in favour of {data.contrast.first}, {below} in favour of {data.contrast.second}. Without any true difference, about "
        f"{0.05 * len(comparisons):.1f} would be expected."
    )


def _arms(data: ReportData) -> str:
    return f"{data.contrast.first} and {data.contrast.second}"


def _by_scale(comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence on the difference at each scale, if there are several scales."""
    means = averages(balanced(comparisons, "scale"), lambda setting: (setting.scale,))
    if len(means) < 2:
        return []
    clauses = [f"{item.key[0]} {_estimate(item.difference)}" for item in means]
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
    low, high = difference.interval
    return f"{points(difference.value)} points, 95\u00a0%\u00a0CI [{points(low)},\u00a0{points(high)}]"
