"""What the numbers say in plain sentences, and how little."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..load.collect import Collection
from ..stats import matched_budget
from ..stats.comparison import Comparison, averages, balanced
from ..stats.matched_budget import UPDATES
from ..stats.run_refs import counted, runs_of
from ..stats.significance import average_difference
from .base import Study


def finished_runs(collection: Collection) -> str:
    """How many runs the report is from."""
    tuned = sum(not run.is_baseline for run in collection.finetuning)
    text = f"{len(collection.pretraining)} pretraining and {tuned} fine-tuning runs are finished"
    left = len(collection.left_out)
    return f"{text}; {left} more are in no table and listed at the end." if left else f"{text}."


def summary(study: Study) -> list[str]:
    """MAML against vanilla on the target sets under a term, at the last pretraining steps that both have."""
    last = study.last
    if not last:
        return [nothing(study)]
    gap = average_difference(item.both for item in last).told
    low, high = gap.interval
    if low > 0 or high < 0:
        verdict = f"MAML is {'better' if low > 0 else 'worse'} than vanilla there, as far as these sentences and seeds tell."
    else:
        verdict = "The interval holds 0: no difference can be claimed."
    above = sum(item.difference.interval[0] > 0 for item in last)
    below = sum(item.difference.interval[1] < 0 for item in last)
    names = sorted({item.set_name for item in last})
    pairs = len(runs_of(*(item.runs for item in last))) // 2
    seeds = {item.seeds for item in last}
    spans = {item.set_name: item.gold_spans for item in last}
    text = (
        f"MAML and vanilla can be compared in {counted(pairs, 'pair')} of runs at equal {study.term}. On {', '.join(names)} the mean difference in micro-F1, MAML "
        f"minus vanilla, is {_points(gap.value)} points, with a 95 % interval from {_points(low)} to {_points(high)} over "
        f"sentences. Of {len(last)} single comparisons (a setting on one of these sets), {above + below} intervals leave "
        f"out 0: {above} in favour of MAML, {below} in favour of vanilla; if there were no difference at all, about {0.05 * len(last):.1f} would be expected to."
    )
    caution = (
        f"These sets hold {', '.join(f'{count} ({name})' for name, count in spans.items())} gold spans, so one span more or less "
        f"moves recall by about {100 / median(spans.values()):.1f} points. "
    )
    if max(seeds) == 1:
        caution += "Every comparison rests on one seed: its interval tells nothing about what another seed would give."
    else:
        caution += (
            f"Comparisons rest on {min(seeds)} to {max(seeds)} seeds."
            if len(seeds) > 1
            else f"Every comparison rests on {max(seeds)} seeds."
        )
    return [f"{text} {verdict}", *_by_scale(last), caution]


def nothing(study: Study) -> str:
    """Why nothing can be compared under a term, and what would be needed."""
    if study.term == UPDATES:
        return "There is no pair of a MAML run and a vanilla run that are otherwise identical, so no difference can be given."
    needed = (
        matched_budget.told(study.matches[study.term])
        or "a MAML and a vanilla pretraining run of one scale, and fine-tuning runs of both"
    )
    return f"At equal {study.term} nothing can be compared: there is no pair of tuned checkpoints of the same budget. Needed: {needed}."


def _by_scale(last: Sequence[Comparison]) -> list[str]:
    """Where there are several scales, a clause for each: does the difference change with size?"""
    means = averages(balanced(last, "scale"), lambda setting: (setting.scale,))
    if len(means) < 2:
        return []
    clauses = []
    for item in means:
        gap = item.both.told
        low, high = gap.interval
        claim = "" if gap.excludes_zero else "; no difference can be claimed"
        clauses.append(
            f"{item.key[0]} {_points(gap.value)} points ({_points(low)} to {_points(high)}{claim})"
        )
    return [f"By scale: {', '.join(clauses)}."]


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", "−")  # + 0.0: no negative zero
