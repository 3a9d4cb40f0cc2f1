"""What the comparisons of a plan will be able to show, for the dry run: seeds, size of the family, detectable effect."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

from metapt.evaluation.seed_inference import MIN_SEEDS, planned_mde
from metapt.launch.jobs import Job, Plan

REFERENCE = "vanilla"
SEED_DEVIATION = 2.0
"""F1 points: the standard deviation of an arm over seeds in the first study, about"""


def detectable_effects(plan: Plan) -> Iterator[str]:
    """The lines of a dry run about the comparisons of the report; none for a plan that compares nothing."""
    tuned = [job for job in plan.jobs if job.kind == "finetune" and job.size]
    family = _family(plan, tuned)
    if not family:
        return
    seeds = len({job.seed for job in tuned})
    if seeds < MIN_SEEDS:
        yield (
            f"comparisons: {_counted(seeds, 'seed')}: no verdict. Verdicts need at least {MIN_SEEDS} seeds, such as "
            "grid.seeds=[0,1,2,3,4]"
        )
        return
    effect = planned_mde(seeds, sqrt(2) * SEED_DEVIATION, family)
    yield (
        f"comparisons: {seeds} seeds, {_counted(family, 'primary comparison')} per group of sets: a difference of about "
        f"{effect:.1f} F1 points is detected with probability 80 %, if F1 varies by {SEED_DEVIATION:g} points between seeds "
        "and the evaluation sets are large"
    )


def _family(plan: Plan, tuned: list[Job]) -> int:
    """The number of primary comparisons, whose p values are corrected together."""
    arms = {(job.objective, job.variant) for job in tuned}
    contrasts = [entry for entry in plan.comparisons if entry["primary"]]
    if not plan.comparisons and any(objective == REFERENCE for objective, _ in arms):
        objectives = {objective for objective, _ in arms} - {REFERENCE}
        contrasts = [{"first": objective, "second": REFERENCE, "tunings": []} for objective in objectives]
    count = 0
    for contrast in contrasts:
        count += len(
            {
                (job.size, job.variant, job.tuning)
                for job in tuned
                if is_in(job.objective, job.variant, contrast["first"])
                and (not contrast["tunings"] or job.tuning in contrast["tunings"])
            }
        )
    return count


def is_in(objective: str, variant: str, arm: str) -> bool:
    """Whether the runs of a variant of an objective belong to an arm.

    Where the runs of a variant differ in a setting, the report adds it to the variant's name (`base, train.lr=0.01`); all of them
    belong to the arm of the variant.
    """
    arm_objective, _, arm_variant = arm.partition("/")
    return objective == arm_objective and arm_variant in ("", variant, variant.partition(", ")[0])


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
