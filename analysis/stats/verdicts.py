"""What a difference allows to conclude."""

from __future__ import annotations

from metapt.evaluation.seed_inference import MIN_SEEDS, SeedMean

from .estimates import Difference

ALPHA = 0.05
"""the family-wise error rate of effects"""
EFFECT, NEGLIGIBLE, INCONCLUSIVE, NO_VERDICT = (
    "effect",
    "no effect of practical size",
    "inconclusive",
    "no verdict",
)


def definition() -> str:
    """Return what the verdicts mean, for the definitions of the report."""
    return (
        f"Verdicts: {EFFECT}: the p-value, corrected by Holm's method (1979) over the primary comparisons of the family, is below {ALPHA}; then the CI "
        f"excludes 0. {NEGLIGIBLE.capitalize()}: the CI lies within the margin (2 points, unless the grid or --margin sets another). {INCONCLUSIVE.capitalize()}: anything else; the MDE "
        f"says which differences these runs could have shown. {NO_VERDICT.capitalize()}: fewer than {MIN_SEEDS} seeds, which do not show their spread."
    )


def verdict(difference: Difference | SeedMean, corrected_p: float, margin: float) -> str:
    """Conclude from a difference and its p-value.

    Args:
        corrected_p: `difference.p`, corrected over the primary comparisons of its family (`holm`).
        margin: the largest difference without practical importance, in F1 from 0 to 1.
    Returns: EFFECT, NEGLIGIBLE, INCONCLUSIVE or NO_VERDICT.
    """
    if difference.seeds < MIN_SEEDS or corrected_p != corrected_p:
        return NO_VERDICT
    if corrected_p < ALPHA:
        return EFFECT
    low, high = difference.interval
    return NEGLIGIBLE if -margin < low and high < margin else INCONCLUSIVE
