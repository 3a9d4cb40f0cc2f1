"""How fast fine-tuning converges, and the difference between the two arms of each contrast."""

from __future__ import annotations

from ..figures import curves
from ..stats import convergence
from ..tables import enumerated
from .base import ReportData, Section, Views, needed_pair

NAME, TITLE = "convergence", "Fine-tuning speed"


def section(views: Views) -> Section:
    """The speed of every system, and the differences of all contrasts, at each matched budget that compares other runs."""
    means = convergence.means_table(
        (data.contrast, enumerated(data.budgets), data.pairs)
        for groups in views.by_contrast
        for data in groups
    )
    needed = f"Needed: {needed_pair(views.first)} and with the loss of every step in metrics.jsonl."
    tables = [means, convergence.runs_table(views.first.collection)]
    return Section(NAME, TITLE, [] if means.rows else [needed], tables=tables)


def pairs_section(data: ReportData) -> Section:
    """The loss curves of the two arms of a contrast, and the differences by source."""
    figures = curves.finetuning(data.contrast, data.pairs)
    return Section(NAME, TITLE, figures=figures, tables=[convergence.pairs_table(data.contrast, data.pairs)])
