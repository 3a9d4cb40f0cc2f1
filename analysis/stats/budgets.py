"""What pretraining had spent after each update, and losses by what was spent."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from ..load.collect import Collection
from ..load.contrasts import Contrast
from ..load.records import Columns, PretrainRun
from .pairing import counterparts, model_of, models

FIELDS = {"updates": "step", "tokens": "tokens_total", "FLOPs": "flops_total", "seconds": "seconds_total"}
"""name of a budget to its field in metrics.jsonl"""
UPDATES = "updates"
NEXT_TOKEN = "next-token tokens"
"""the budget of tokens that next-token prediction was trained on, without those of windows of episodes"""
BUDGETS = ("updates", NEXT_TOKEN, "tokens", "FLOPs", "seconds")
EDGE_FRACTION = 0.10


def spent_after_updates(run: PretrainRun) -> dict[str, np.ndarray]:
    """Return what had been spent after each update, by budget: [1 + updates], where the first entry is 0."""
    spent = {budget: run.updates[field] for budget, field in FIELDS.items()}
    spent[NEXT_TOKEN] = np.cumsum(run.updates["next_token_tokens"])
    return {budget: np.concatenate([[0.0], spent[budget]]) for budget in BUDGETS}


def per_update(runs: Sequence[PretrainRun]) -> dict[str, float]:
    """The budgets of which every update of all runs spends the same amount, and this amount.

    Curves over them differ from curves over updates in the unit of the axis only.
    """
    spent = [spent_after_updates(run) for run in runs]
    constant = {}
    for budget in BUDGETS:
        amounts = np.concatenate([amounts[budget][1:] / amounts[UPDATES][1:] for amounts in spent])
        if len(amounts) and amounts[0] > 0 and np.allclose(amounts, amounts[0], rtol=1e-9, atol=0):
            constant[budget] = float(amounts[0])
    return constant


def spent_at(run: PretrainRun, lines: Columns) -> dict[str, np.ndarray]:
    """Return what had been spent, by budget, after the updates of some lines of metrics.jsonl: [lines]."""
    spent = spent_after_updates(run)
    index = np.searchsorted(spent[UPDATES], lines["step"])
    return {budget: values[index] for budget, values in spent.items()}


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
    return spent_at(run, run.lm), run.lm["lm_loss_nats"]


def pretraining_contrasts(collection: Collection) -> list[Contrast]:
    """The contrasts that compare other arms, without what they say of fine-tuning."""
    found: dict[tuple[str, str], Contrast] = {}
    for contrast in collection.contrasts:
        found.setdefault((contrast.first, contrast.second), msgspec.structs.replace(contrast, tunings=()))
    return list(found.values())


def pretraining_pairs(collection: Collection, contrast: Contrast) -> list[tuple[PretrainRun, PretrainRun]]:
    """Return the pairs (first, second) of the pretraining runs of a contrast."""
    paired, _ = counterparts(models(collection), contrast)
    runs = {model_of(run): run for run in collection.pretraining}
    return [
        (runs[first], runs[second]) for first, second in paired.items() if first in runs and second in runs
    ]


def start_and_end(count: int) -> dict[str, slice]:
    """Return the first and the last tenth of `count` lines, at least one line each."""
    size = max(1, int(EDGE_FRACTION * count))
    return {"start": slice(0, size), "end": slice(count - size, count)}
