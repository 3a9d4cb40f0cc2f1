"""Where the p of the randomisation test and the interval of a difference seem to say different things: a remark for the same row."""

from __future__ import annotations

import math

from metapt.evaluation.bootstrap import LEVEL

ALPHA = round(1 - LEVEL, 6)


def remark(interval: tuple[float, float], p: float) -> str:
    """Return why the p of the randomisation test and the interval of a difference disagree, or an empty string if they agree; significance.DEFINITION explains it.

    Args:
        interval: at LEVEL; (NaN, NaN) if there is none, which disagrees with nothing.
    """
    low, high = interval
    if math.isnan(low) or math.isnan(p):
        return ""
    excludes_zero, is_small = low > 0 or high < 0, p < ALPHA
    if is_small and not excludes_zero:
        return f"last p below {ALPHA:.2f}, but the CI includes 0"
    if excludes_zero and not is_small:
        return f"last p not below {ALPHA:.2f}, but the CI excludes 0"
    return ""
