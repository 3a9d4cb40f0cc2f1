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


def set_lines(sets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One line for each set: its name, F1 with interval, and the number of gold spans.

    Args:
        sets: the entry `sets` of result.json.
    """
    for name, scores in sets.items():
        yield f"{name}: {f1_text(scores)}, {scores['gold_spans']:,} gold spans"
