"""What pretraining had spent after each update, and losses by what was spent."""

from __future__ import annotations

import numpy as np

from ..load.collect import Collection, pretraining_key
from ..load.records import PretrainRun

BUDGETS = {"updates": "step", "tokens": "tokens_total", "FLOPs": "flops_total", "seconds": "seconds_total"}
"""name of a budget to its field in metrics.jsonl"""
UPDATES = "updates"
EDGE_FRACTION = 0.10


def spent_after_updates(run: PretrainRun) -> dict[str, np.ndarray]:
    """Return what had been spent after each update, by budget: [1 + updates], where the first entry is 0."""
    kinds = (run.lm, run.episodes, run.skipped)
    steps = np.concatenate([[0.0], *(kind["step"] for kind in kinds)])
    order = np.argsort(steps, kind="stable")
    return {
        budget: np.concatenate([[0.0], *(kind[field] for kind in kinds)])[order]
        for budget, field in BUDGETS.items()
    }


def eval_losses(run: PretrainRun) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return (what had been spent by budget, held-out loss in nats per token), both [measurements]."""
    spent = spent_after_updates(run)
    steps = run.eval["step"]
    index = np.searchsorted(spent[UPDATES], steps)
    known = np.isin(steps, spent[UPDATES])
    return {budget: values[index[known]] for budget, values in spent.items()}, run.eval["eval_loss_nats"][
        known
    ]


def lm_losses(run: PretrainRun) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return (what had been spent by budget, training loss in nats per token), both [language-model updates]."""
    return {budget: run.lm[field] for budget, field in BUDGETS.items()}, run.lm["lm_loss_nats"]


def pretraining_pairs(collection: Collection) -> list[tuple[PretrainRun, PretrainRun]]:
    """Return pairs (MAML, vanilla) of equal scale, variant, seed and corpus."""
    vanilla = {pretraining_key(run): run for run in collection.pretraining if run.objective == "vanilla"}
    maml = (run for run in collection.pretraining if run.objective == "maml")
    return [(run, vanilla[pretraining_key(run)]) for run in maml if pretraining_key(run) in vanilla]


def start_and_end(count: int) -> dict[str, slice]:
    """Return the first and the last tenth of `count` lines, at least one line each."""
    size = max(1, int(EDGE_FRACTION * count))
    return {"start": slice(0, size), "end": slice(count - size, count)}
