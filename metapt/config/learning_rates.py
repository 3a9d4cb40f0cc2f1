"""Default learning rates of fine-tuning (`ner.lr=auto`), by width of the model and tuning.

Rates between the widths of the table are interpolated, linearly in the logarithms of both. Beyond the table the nearest width counts.
"""

from __future__ import annotations

from bisect import bisect_left
from math import exp, log

MEASURED: dict[str, dict[int, float]] = {
    "head_only": {96: 3e-2},
    "full": {96: 1e-3},
    "lora": {96: 3e-3},
}
"""The best rates in docs/results/learning_rates.md."""
EXTRAPOLATED: dict[str, dict[int, float]] = {
    "head_only": {
        1536: 2e-3
    },  # inversely proportional to the width, as the change of a logit in a step of AdamW
    "full": {768: 5e-5, 1536: 3e-5},  # Devlin et al. 2019 for BERT; arXiv 2509.02160
    "lora": {768: 4e-4, 1536: 2e-4},  # Hu et al. 2021, tables 9 and 11
}
"""Rates that were not measured here, with their sources."""
RATES = {tuning: MEASURED[tuning] | EXTRAPOLATED[tuning] for tuning in MEASURED}


def auto_lr(tuning: str, width: int) -> float:
    """The learning rate for a model with hidden states of `width` dimensions, rounded to two digits."""
    rates = RATES[tuning]
    widths = sorted(rates)
    width = min(max(width, widths[0]), widths[-1])
    above = max(1, bisect_left(widths, width))
    low, high = widths[above - 1], widths[above]
    position = log(width / low) / log(high / low)
    rate = exp((1 - position) * log(rates[low]) + position * log(rates[high]))
    return float(f"{rate:.2g}")
