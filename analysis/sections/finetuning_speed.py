"""How fast fine-tuning converges under the two arms of a contrast."""

from __future__ import annotations

from ..figures import curves
from ..stats import convergence
from .base import ReportData, Section, needed_pair


def section(data: ReportData) -> Section:
    means = convergence.means_table(data.contrast, data.pairs)
    tables = [
        means,
        convergence.pairs_table(data.contrast, data.pairs),
        convergence.runs_table(data.collection),
    ]
    needed = f"Needed: {needed_pair(data)} and with the loss of every step in metrics.jsonl."
    text = [] if means.rows else [needed]
    return Section(
        "convergence", "Fine-tuning speed", text, curves.finetuning(data.contrast, data.pairs), tables
    )
