"""How fast fine-tuning converges under MAML and vanilla."""

from __future__ import annotations

from ..figures import curves
from ..stats import convergence
from .base import ReportData, Section


def section(data: ReportData) -> Section:
    collection = data.collection
    means = convergence.means_table(collection)
    tables = [means, convergence.pairs_table(collection), convergence.runs_table(collection)]
    needed = "Needed: a MAML and a vanilla run with identical fine-tuning and with the loss of every step in metrics.jsonl."
    text = [] if means.rows else [needed]
    return Section("convergence", "Fine-tuning speed", text, curves.finetuning(collection), tables)
