"""Matched budgets: the checkpoints of MAML and vanilla that spent equal updates, tokens, FLOPs or seconds.

An episode and a language-model update differ in cost, so that equal updates are not equal tokens, FLOPs or seconds. The
report therefore repeats every comparison for each budget, with the checkpoints that are chosen here. Without a fitting
pair of checkpoints there is no comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..load.collect import Collection, pretraining_key, with_setting
from ..load.records import FinetuneRun, PretrainRun
from ..run_refs import OBJECTIVE_NAMES, counted, runs_of
from ..tables import RUNS, Cell, Column, Table
from .budgets import UPDATES, spent_after_updates

TOLERANCE = 0.05
MAX_LISTED = 3

DEFINITION = (
    "Matched budgets: the metrics of a pretraining run record what it had spent after each update (tokens, FLOPs, and seconds of training, which "
    "are comparable on equal machines only). For each model and seed, the last fine-tuned checkpoint of the objective that spent less is compared with the "
    f"other objective's fine-tuned checkpoint that is nearest in budget, if the budgets differ by at most {TOLERANCE:.0%}; otherwise the checkpoint before it is tried, and so on. "
    "Both must have been fine-tuned on the same source with the same tuning and seed. At matched updates, checkpoints of the same number of updates are "
    "compared. A pair at matched updates never represents another budget, and no comparison includes the loss of episodes."
)


@dataclass(frozen=True)
class ObjectiveRuns:
    """One objective of a model: its pretraining run, if it is known, and the runs tuned from each of its checkpoints."""

    pretraining: PretrainRun | None = None
    tuned: dict[int, list[FinetuneRun]] = field(default_factory=dict)

    def spent_by_step(self, budget: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (steps, what had been spent after each), both [updates]; empty if unknown."""
        if self.pretraining is not None:
            spent = spent_after_updates(self.pretraining)
            return spent[UPDATES], spent[budget]
        steps = np.array(sorted(self.tuned) if budget == UPDATES else [], dtype=np.float64)
        return steps, steps

    def spent_at_tuned(self, budget: str) -> dict[int, float]:
        """Return what had been spent at each tuned checkpoint, in order, without untrained checkpoints."""
        steps, spent = self.spent_by_step(budget)
        known = dict(zip(steps.tolist(), spent.tolist(), strict=True))
        return {step: known[step] for step in sorted(self.tuned) if known.get(step, 0) > 0}


@dataclass(frozen=True)
class Match:
    """The matched checkpoints of one model and seed.

    Attributes:
        steps: by objective; empty if there is no pair.
        spent: by objective, in the unit of the budget.
        runs: the runs tuned from the checkpoints.
        needed: the checkpoints to fine-tune for a pair at the largest budget that both objectives reached; empty if it exists.
    """

    budget: str
    scale: str
    variant: str
    seed: int | None
    steps: Mapping[str, int]
    spent: Mapping[str, float]
    runs: Sequence[FinetuneRun]
    pretraining: Sequence[PretrainRun]
    needed: str


def matches(collection: Collection, budget: str) -> list[Match]:
    """Match the checkpoints of every model and pretraining seed that has runs of both objectives."""
    models: dict[tuple[Any, ...], dict[str, ObjectiveRuns]] = {}
    key: tuple[Any, ...]
    for pretrained in collection.pretraining:
        key = pretraining_key(pretrained)
        models.setdefault(key, {})[pretrained.objective] = ObjectiveRuns(pretrained)
    for run in collection.finetuning:
        if run.setting.step is not None and run.objective in OBJECTIVE_NAMES:
            key = (run.setting.scale, run.setting.variant, run.seeds[0], run.corpus)
            runs = models.setdefault(key, {}).setdefault(run.objective, ObjectiveRuns())
            runs.tuned.setdefault(run.setting.step, []).append(run)
    return [
        _match(budget, key, by_objective)
        for key, by_objective in models.items()
        if set(OBJECTIVE_NAMES) <= set(by_objective)
    ]


def matched(collection: Collection, items: Sequence[Match]) -> Collection:
    """Return the matched runs only, without their steps, so that the runs of a pair differ in the objective alone."""
    runs = [with_setting(run, step=None) for match in items for run in match.runs]
    return replace(collection, finetuning=runs)


def near(one: float, other: float, budget: str) -> bool:
    """Whether two amounts count as equal."""
    return abs(one - other) <= (0 if budget == UPDATES else TOLERANCE) * max(one, other)


def _match(budget: str, key: tuple[Any, ...], by_objective: Mapping[str, ObjectiveRuns]) -> Match:
    scale, variant, seed, _ = key
    pretraining = [runs.pretraining for runs in by_objective.values() if runs.pretraining is not None]
    steps = _matched_steps(budget, by_objective)
    spent = {
        objective: by_objective[objective].spent_at_tuned(budget)[step] for objective, step in steps.items()
    }
    runs = _runs_in_common(by_objective, steps) if steps else []
    needed = _needed(budget, by_objective, spent)
    return Match(budget, scale, variant, seed, steps, spent, runs, pretraining, needed)


def _matched_steps(budget: str, by_objective: Mapping[str, ObjectiveRuns]) -> dict[str, int]:
    """Return the steps of the matched checkpoints by objective (see DEFINITION); empty if there are none."""
    spent = {objective: by_objective[objective].spent_at_tuned(budget) for objective in OBJECTIVE_NAMES}
    if not all(spent.values()):
        return {}
    less, more = sorted(OBJECTIVE_NAMES, key=lambda objective: max(spent[objective].values()))
    for step, amount in reversed(spent[less].items()):
        for other in sorted(spent[more], key=lambda other: abs(spent[more][other] - amount)):
            steps = {less: step, more: other}
            if near(amount, spent[more][other], budget) and _runs_in_common(by_objective, steps):
                return {objective: steps[objective] for objective in OBJECTIVE_NAMES}
    return {}


def _runs_in_common(by_objective: Mapping[str, ObjectiveRuns], steps: Mapping[str, int]) -> list[FinetuneRun]:
    """Return the runs of these checkpoints whose fine-tuning exists for both objectives."""
    tuned = [by_objective[objective].tuned[step] for objective, step in steps.items()]
    common = set.intersection(*({_design(run) for run in runs} for runs in tuned))
    return [run for runs in tuned for run in runs if _design(run) in common]


def _design(run: FinetuneRun) -> tuple[str, str, tuple[int | None, int]]:
    return (run.setting.tuning, run.setting.source, run.seeds)


def _needed(budget: str, by_objective: Mapping[str, ObjectiveRuns], spent: Mapping[str, float]) -> str:
    """Return what to fine-tune for a pair at the largest budget that both objectives reached; empty if it exists."""
    curves = {objective: by_objective[objective].spent_by_step(budget) for objective in OBJECTIVE_NAMES}
    unknown = [OBJECTIVE_NAMES[objective] for objective, (steps, _) in curves.items() if not len(steps)]
    if unknown:
        return f"the pretraining run of {' and of '.join(unknown)}, whose metrics record the {budget}"
    reached = min(float(amounts[-1]) for _, amounts in curves.values())
    if spent and near(min(spent.values()), reached, budget):
        return ""
    absent = [
        objective
        for objective in OBJECTIVE_NAMES
        if not any(
            near(amount, reached, budget)
            for amount in by_objective[objective].spent_at_tuned(budget).values()
        )
    ]
    checkpoints = [
        _checkpoint(budget, objective, *curves[objective], reached) for objective in absent or OBJECTIVE_NAMES
    ]
    return " and ".join(checkpoints) + ("" if absent else ", with the same fine-tuning")


def _checkpoint(budget: str, objective: str, steps: np.ndarray, spent: np.ndarray, amount: float) -> str:
    """Return, for example, "vanilla at update 188 (any of 179 to 197)"."""
    best = int(steps[np.argmin(np.abs(spent - amount))])
    fitting = [int(step) for step, total in zip(steps, spent, strict=True) if near(total, amount, budget)]
    span = f" (any of {fitting[0]:,} to {fitting[-1]:,})" if len(fitting) > 1 else ""
    return f"{OBJECTIVE_NAMES[objective]} at update {best:,}{span}"


def needed_checkpoints(items: Sequence[Match]) -> str:
    """Return the checkpoints that are missing for matched pairs, as a clause; empty if none."""
    needs = [f"{_model(match)}: {match.needed}" for match in items if match.needed]
    more = len(needs) - MAX_LISTED
    rest = f"; {counted(more, 'more model')}, see Matched budgets" if more > 0 else ""
    return "; ".join(needs[:MAX_LISTED]) + rest


def _model(match: Match) -> str:
    parts = (match.scale, match.variant, "" if match.seed is None else f"seed {match.seed}")
    return ", ".join(part for part in parts if part)


def matches_table(items: Sequence[Match]) -> Table:
    """Show the checkpoints that are compared at each budget."""
    columns = [*map(Column, ("matched budget", "scale", "variant", "seed"))]
    for name in OBJECTIVE_NAMES.values():
        columns += [Column(f"{name} update"), Column(f"{name} spent", 4, significant=True)]
    columns += [
        Column("excess of MAML", 1, signed=True, percent=True),
        Column("pairs"),
        Column("needed"),
        RUNS,
    ]
    rows: list[list[Cell]] = []
    for match in items:
        cells: list[Cell] = [match.budget, match.scale, match.variant, match.seed]
        for objective in OBJECTIVE_NAMES:
            cells += [match.steps.get(objective), match.spent.get(objective)]
        excess = match.spent["maml"] / match.spent["vanilla"] - 1 if match.spent else None
        cells += [excess, len(match.runs) // 2, match.needed]
        rows.append([*cells, runs_of(match.pretraining, match.runs)])
    title = "Checkpoints that are compared, by budget"
    note = (
        "Spent: in the unit of the budget. Needed: what to fine-tune for a pair at the largest budget that both objectives "
        f"reached, within {TOLERANCE:.0%}."
    )
    return Table("matched_budgets", title, columns, rows, note).without_constant("variant", "seed")
