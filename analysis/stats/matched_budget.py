"""Matched budgets: the checkpoints of two arms that spent equal updates, tokens, FLOPs or seconds.

An update with episodes costs more than one of next-token prediction, so that equal updates are not equal tokens, FLOPs or
seconds. The report therefore compares at each budget, with the checkpoints that are chosen here; budgets that choose the same
ones share a comparison. Without a fitting pair of checkpoints there is none.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..load.collect import Collection, with_setting
from ..load.contrasts import Contrast
from ..load.records import FinetuneRun, PretrainRun, Setting
from ..run_refs import counted, runs_of
from ..tables import RUNS, Cell, Column, Table
from .budgets import BUDGETS, UPDATES, spent_after_updates
from .pairing import (
    Model,
    Pairing,
    counterparts,
    model_of,
    models,
    pairing,
    tuned_counterpart,
    tuned_design,
    tuning_is_compared,
)

TOLERANCE = 0.05
MAX_LISTED = 3

DEFINITION = (
    "Matched budgets: the metrics of a pretraining run record what it had spent after each update (tokens, next-token tokens, FLOPs, and "
    "seconds of training, which are comparable on equal machines only). For each pair of models, the last fine-tuned checkpoint of the arm that "
    "spent less is compared with the other arm's fine-tuned checkpoint that is nearest in budget, if the budgets differ by at most "
    f"{TOLERANCE:.0%}; otherwise the checkpoint before it is tried, and so on. Both must have been fine-tuned on the same source with the same "
    "tuning and seed. At matched updates, checkpoints of the same number of updates are compared. A pair at matched updates never represents "
    "another budget, and no comparison includes the loss of episodes."
)
Pair = tuple[FinetuneRun, FinetuneRun]


@dataclass(frozen=True)
class ModelRuns:
    """A model: its pretraining run, if it is known, and the runs tuned from each of its checkpoints."""

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
    """The matched checkpoints of two models.

    Attributes:
        model: of the first arm.
        steps: of the checkpoints (first, second); empty if there is no pair.
        spent: by them, in the unit of the budget.
        pairs: the runs tuned from them.
        needed: the checkpoints to fine-tune for a pair at the largest budget that both arms reached; empty if it exists.
    """

    contrast: Contrast
    budget: str
    model: Model
    steps: Sequence[int]
    spent: Sequence[float]
    pairs: Sequence[Pair]
    pretraining: Sequence[PretrainRun]
    needed: str


class MatchedRuns:
    """The runs of the two arms of a contrast that are compared at each matched budget."""

    def __init__(self, collection: Collection, contrast: Contrast) -> None:
        self.collection = collection
        self.contrast = contrast

    @cached_property
    def pairing(self) -> Pairing:
        """The runs that are compared at matched updates."""
        return pairing(self.collection, self.contrast)

    @cached_property
    def matches(self) -> Mapping[str, Sequence[Match]]:
        """The matched checkpoints of the models, by budget."""
        return {budget: matches(self.collection, self.contrast, budget) for budget in BUDGETS}

    def pairs(self, budget: str) -> Mapping[Setting, Sequence[Pair]]:
        """The runs that are compared at a budget, (first arm, second arm), by setting."""
        return self.pairing.pairs if budget == UPDATES else matched_pairs(self.matches[budget])

    def groups(self) -> list[list[str]]:
        """Group the budgets that compare the same runs, as updates and tokens often do.

        Budgets without any pair stand alone, since each needs other runs.
        """
        groups: dict[Hashable, list[str]] = {}
        for budget in BUDGETS:
            pairs = [pair for pairs in self.pairs(budget).values() for pair in pairs]
            compared = frozenset((first.path, second.path) for first, second in pairs)
            groups.setdefault(compared or budget, []).append(budget)
        return list(groups.values())


def matches(collection: Collection, contrast: Contrast, budget: str) -> list[Match]:
    """Match the checkpoints of every pair of models of a contrast."""
    known: dict[Model, ModelRuns] = {model_of(run): ModelRuns(run) for run in collection.pretraining}
    for run in collection.finetuning:
        if run.setting.step is not None and tuning_is_compared(run, contrast):
            runs = known.setdefault(model_of(run), ModelRuns())
            runs.tuned.setdefault(run.setting.step, []).append(run)
    paired, _ = counterparts(models(collection), contrast)
    return [
        _match(contrast, budget, first, (known[first], known[second]))
        for first, second in paired.items()
        if first in known and second in known
    ]


def matched_pairs(items: Sequence[Match]) -> dict[Setting, list[Pair]]:
    """Return the pairs of the matched checkpoints by the setting of their first run, without its step."""
    pairs: dict[Setting, list[Pair]] = {}
    for match in items:
        for first, second in match.pairs:
            pairs.setdefault(with_setting(first, step=None).setting, []).append((first, second))
    return pairs


def near(one: float, other: float, budget: str) -> bool:
    """Whether two amounts count as equal."""
    return abs(one - other) <= (0 if budget == UPDATES else TOLERANCE) * max(one, other)


def _match(contrast: Contrast, budget: str, model: Model, arms: tuple[ModelRuns, ModelRuns]) -> Match:
    pretraining = [arm.pretraining for arm in arms if arm.pretraining is not None]
    steps, pairs = _matched_checkpoints(contrast, budget, arms)
    spent = [arm.spent_at_tuned(budget)[step] for arm, step in zip(arms, steps, strict=False)]
    needed = _needed(contrast, budget, arms, spent)
    return Match(contrast, budget, model, steps, spent, pairs, pretraining, needed)


def _matched_checkpoints(
    contrast: Contrast, budget: str, arms: tuple[ModelRuns, ModelRuns]
) -> tuple[tuple[int, ...], list[Pair]]:
    """Return the steps (first, second) of the matched checkpoints and their pairs (see DEFINITION); empty without any."""
    spent = [arm.spent_at_tuned(budget) for arm in arms]
    if not all(spent):
        return (), []
    first_spent_less = max(spent[0].values()) <= max(spent[1].values())
    less, more = spent if first_spent_less else reversed(spent)
    for step, amount in reversed(less.items()):
        for other in sorted(more, key=lambda other: abs(more[other] - amount)):
            steps = (step, other) if first_spent_less else (other, step)
            if near(amount, more[other], budget) and (pairs := _pairs(contrast, arms, steps)):
                return steps, pairs
    return (), []


def _pairs(contrast: Contrast, arms: tuple[ModelRuns, ModelRuns], steps: tuple[int, int]) -> list[Pair]:
    """Return the pairs of runs tuned alike from these checkpoints."""
    first, second = (arm.tuned[step] for arm, step in zip(arms, steps, strict=True))
    pairs = []
    for run in first:
        same = [other for other in second if tuned_design(other) == tuned_design(run)]
        counterpart = tuned_counterpart(run, same, contrast)
        if isinstance(counterpart, FinetuneRun):
            pairs.append((run, counterpart))
    return pairs


def _needed(
    contrast: Contrast, budget: str, arms: tuple[ModelRuns, ModelRuns], spent: Sequence[float]
) -> str:
    """Return what to fine-tune for a pair at the largest budget that both arms reached; empty if it exists."""
    names = (contrast.first, contrast.second)
    curves = [arm.spent_by_step(budget) for arm in arms]
    unknown = [name for name, (steps, _) in zip(names, curves, strict=True) if not len(steps)]
    if unknown:
        return f"the pretraining run of {' and of '.join(unknown)}, whose metrics record the {budget}"
    reached = min(float(amounts[-1]) for _, amounts in curves)
    if spent and near(min(spent), reached, budget):
        return ""
    absent = [
        index
        for index, arm in enumerate(arms)
        if not any(near(amount, reached, budget) for amount in arm.spent_at_tuned(budget).values())
    ]
    checkpoints = [_checkpoint(budget, names[index], *curves[index], reached) for index in absent or (0, 1)]
    return " and ".join(checkpoints) + ("" if absent else ", with the same fine-tuning")


def _checkpoint(budget: str, name: str, steps: np.ndarray, spent: np.ndarray, amount: float) -> str:
    """Return, for example, "vanilla at update 188 (any of 179 to 197)"."""
    best = int(steps[np.argmin(np.abs(spent - amount))])
    fitting = [int(step) for step, total in zip(steps, spent, strict=True) if near(total, amount, budget)]
    span = f" (any of {fitting[0]:,} to {fitting[-1]:,})" if len(fitting) > 1 else ""
    return f"{name} at update {best:,}{span}"


def needed_checkpoints(items: Sequence[Match]) -> str:
    """Return the checkpoints that are missing for matched pairs, as a clause; empty if none."""
    needs = [f"{_model(match)}: {match.needed}" for match in items if match.needed]
    more = len(needs) - MAX_LISTED
    rest = f"; {counted(more, 'more model')}, see Matched budgets" if more > 0 else ""
    return "; ".join(needs[:MAX_LISTED]) + rest


def _model(match: Match) -> str:
    model = match.model
    parts = (model.scale, model.variant, "" if model.seed is None else f"seed {model.seed}")
    return ", ".join(part for part in parts if part)


def matches_table(items: Sequence[Match]) -> Table:
    """Show the checkpoints that are compared at each budget; seeds with the same checkpoints share a row."""
    columns = [*map(Column, ("comparison", "matched budget", "scale", "variant", "seeds"))]
    for name in ("first", "second"):
        columns += [Column(f"update of the {name}"), Column(f"spent by the {name}", 4, significant=True)]
    columns += [
        Column("excess of the first", 1, signed=True, percent=True),
        Column("pairs"),
        Column("needed"),
        RUNS,
    ]
    groups: dict[Hashable, list[Match]] = {}
    for match in items:
        model, amounts = match.model._replace(seed=None), (*match.steps, *match.spent)
        groups.setdefault((str(match.contrast), match.budget, model, amounts, match.needed), []).append(match)
    rows = [_row(group) for group in groups.values()]
    title = "Checkpoints that are compared, by budget"
    note = (
        "First and second: the arms of the comparison. Spent: in the unit of the budget. Needed: what to fine-tune for a pair at the "
        f"largest budget that both arms reached, within {TOLERANCE:.0%}."
    )
    return Table("matched_budgets", title, columns, rows, note).without_constant("variant")


def _row(group: Sequence[Match]) -> list[Cell]:
    """The row of matches that differ in the seed alone."""
    match = group[0]
    known = sorted({one.model.seed for one in group if one.model.seed is not None})
    seeds = ", ".join(map(str, known))
    cells: list[Cell] = [
        str(match.contrast),
        match.budget,
        match.model.scale,
        match.model.variant,
        seeds or None,
    ]
    for index in (0, 1):
        cells += [match.steps[index], match.spent[index]] if match.steps else [None, None]
    cells.append(match.spent[0] / match.spent[1] - 1 if match.steps else None)
    pairs = [pair for one in group for pair in one.pairs]
    pretraining = [run for one in group for run in one.pretraining]
    return [*cells, len(pairs), match.needed, runs_of(pretraining, *pairs)]
