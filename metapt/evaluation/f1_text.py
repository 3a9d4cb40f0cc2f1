"""F1 with its interval as commands print it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan
from typing import Any

from metapt.evaluation.bootstrap import LEVEL

CI = f"{100 * LEVEL:g} % CI"


def f1_text(scores: Mapping[str, Any]) -> str:
    """F1 with its interval, such as `F1 0.667, 95 % CI [0.312, 0.901]`; without a gold span, why there is none.

    Args:
        scores: the entry of a set in result.json.
    """
    low, high = scores["f1_interval"]
    if low is None or isnan(low):
        return f"F1 {scores['f1']:.3f}, no CI: there is no gold span"
    return f"F1 {scores['f1']:.3f}, {CI} [{low:.3f}, {high:.3f}]"


def set_lines(
    sets: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, Mapping[str, float]] | None = None
) -> Iterator[str]:
    """One line for each set: its name, F1 with interval, the number of gold spans, and the best baseline if there are any.

    Args:
        sets: the entry `sets` of result.json.
        baselines: F1 by set and baseline.
    """
    for name, scores in sets.items():
        best = ""
        if baselines and scores["gold_spans"]:
            baseline, f1 = max(baselines[name].items(), key=lambda item: item[1])
            best = f"; best baseline: {baseline} {f1:.3f}"
        yield f"{name}: {f1_text(scores)}, {scores['gold_spans']:,} gold spans{best}"
