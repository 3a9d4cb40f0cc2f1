"""Where the p of the randomisation test and the interval of a difference seem to say different things: a remark for the same row."""

from __future__ import annotations

import math

from metapt.evaluation.bootstrap import LEVEL

ALPHA = round(1 - LEVEL, 6)


def remark(interval: tuple[float, float], p: float) -> str:
    """Return why the p of the randomisation test and the interval of a difference disagree, or an empty string if they agree.

    Args:
        interval: at LEVEL; (NaN, NaN) if there is none, which disagrees with nothing.
    """
    low, high = interval
    if math.isnan(low) or math.isnan(p):
        return ""
    excludes_zero, is_small = low > 0 or high < 0, p < ALPHA
    if is_small and not excludes_zero:
        return (
            f"the last p is below {ALPHA:.2f} but the CI includes 0: that p takes these trained models as given; the CI also covers other "
            "sentences and seeds"
        )
    if excludes_zero and not is_small:
        return (
            f"the last p is at least {ALPHA:.2f} but the CI excludes 0: swapping the two outputs gives such a difference too often; treat "
            "it as inconclusive"
        )
    return ""
