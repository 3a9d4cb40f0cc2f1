"""Equal terms: which checkpoints of MAML and vanilla stand against each other at equal updates, tokens, FLOPs or seconds.

An episode and an autoregressive update cost differently, so that equal updates are not equal anything else. Every comparison
of the report is therefore made once a budget, from the checkpoints that are chosen here; where none fit, nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..load.collect import Collection, pretraining_key
from ..load.records import FinetuneRun, PretrainRun
from ..sections.learning_dynamics import BUDGETS, budgets
from ..tables import RUNS, Cell, Column, Table
from .run_refs import NAMES, counted, runs_of

UPDATES, *_ = TERMS = tuple(BUDGETS)
TOLERANCE = 0.05
MOST_TOLD = 3

DEFINITION = (
    f"Equal terms: what each pretraining run had spent after each update is in its metrics (tokens, FLOPs, and seconds of training, which "
    "compare only on equal machines). For each model and seed, the last tuned checkpoint of the objective that spent less stands against the "
    f"other's tuned checkpoint that is nearest in budget, if it is within {TOLERANCE:.0%}; failing that, the checkpoint before, and so on. "
    "Both must have been tuned on the same source under the same tuning and seed. At equal updates, checkpoints of the same number of updates are "
    "compared. A pair at equal updates never stands in for another budget, and no loss of episodes is part of any comparison."
)


@dataclass(frozen=True)
class Side:
    """One objective of a model: its pretraining run, if that is known, and its tuned checkpoints by step."""

    pretraining: PretrainRun | None = None
    tuned: dict[int, list[FinetuneRun]] = field(default_factory=dict)

    def curve(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, budget spent after each), both [updates]; empty where it is not known."""
        if self.pretraining is not None:
            totals = budgets(self.pretraining)
            return totals[UPDATES], totals[term]
        steps = np.array(sorted(self.tuned) if term == UPDATES else [], dtype=np.float64)
        return steps, steps

    def spent(self, term: str) -> dict[int, float]:
        """What the model had spent at each tuned checkpoint, in order; untrained ones have spent nothing and are left out."""
        known = dict(zip(*(part.tolist() for part in self.curve(term)), strict=True))
        return {step: known[step] for step in sorted(self.tuned) if known.get(step, 0) > 0}


@dataclass(frozen=True)
class Match:
    """The checkpoints of a model and seed under a term, by objective; where there is no pair, `steps` is empty.

    `needed` says which checkpoints would have to be tuned for a pair at the largest budget that both objectives reached.
    """

    term: str
    scale: str
    variant: str
    seed: int | None
    steps: Mapping[str, int]
    spent: Mapping[str, float]
    runs: Sequence[FinetuneRun]
    pretraining: Sequence[PretrainRun]
    needed: str


def matches(collection: Collection, term: str) -> list[Match]:
    """One for each model and pretraining seed of which both objectives are there."""
    models: dict[tuple[Any, ...], dict[str, Side]] = {}
    key: tuple[Any, ...]
    for pretrained in collection.pretraining:
        key = pretraining_key(pretrained)
        models.setdefault(key, {})[pretrained.objective] = Side(pretrained)
    for run in collection.finetuning:
        if run.setting.step is not None and run.objective in NAMES:
            key = (run.setting.scale, run.setting.variant, run.seeds[0], run.corpus)
            side = models.setdefault(key, {}).setdefault(run.objective, Side())
            side.tuned.setdefault(run.setting.step, []).append(run)
    return [_match(term, key, sides) for key, sides in models.items() if set(NAMES) <= set(sides)]


def matched(collection: Collection, found: Sequence[Match]) -> Collection:
    """Only the runs that were matched, and of no step, so that the two of a pair differ in nothing but the objective."""
    runs = [replace(run, setting=replace(run.setting, step=None)) for match in found for run in match.runs]
    return replace(collection, finetuning=runs)


def near(one: float, other: float, term: str) -> bool:
    """Whether two budgets count as equal."""
    return abs(one - other) <= (0 if term == UPDATES else TOLERANCE) * max(one, other)


def _match(term: str, key: tuple[Any, ...], sides: Mapping[str, Side]) -> Match:
    scale, label, seed, _ = key
    known = [side.pretraining for side in sides.values() if side.pretraining is not None]
    steps = _steps(term, sides)
    spent = {objective: sides[objective].spent(term)[step] for objective, step in steps.items()}
    runs = _in_common(sides, steps) if steps else []
    return Match(term, scale, label, seed, steps, spent, runs, known, _needed(term, sides, spent))


def _steps(term: str, sides: Mapping[str, Side]) -> dict[str, int]:
    """The last tuned checkpoint of the objective that spent less that has its like, and that, by objective."""
    spent = {objective: sides[objective].spent(term) for objective in NAMES}
    if not all(spent.values()):
        return {}
    less, more = sorted(NAMES, key=lambda objective: max(spent[objective].values()))
    for step, budget in reversed(spent[less].items()):
        others = sorted(spent[more], key=lambda other: abs(spent[more][other] - budget))
        for other in others:
            steps = {less: step, more: other}
            if near(budget, spent[more][other], term) and _in_common(sides, steps):
                return {objective: steps[objective] for objective in NAMES}
    return {}


def _in_common(sides: Mapping[str, Side], steps: Mapping[str, int]) -> list[FinetuneRun]:
    """The runs of these checkpoints that were tuned alike from both."""
    tuned = [sides[objective].tuned[step] for objective, step in steps.items()]
    alike = set.intersection(*({_design(run) for run in runs} for runs in tuned))
    return [run for runs in tuned for run in runs if _design(run) in alike]


def _design(run: FinetuneRun) -> tuple[str, str, tuple[int | None, int]]:
    return (run.setting.tuning, run.setting.source, run.seeds)


def _needed(term: str, sides: Mapping[str, Side], spent: Mapping[str, float]) -> str:
    """What to tune for a pair at the largest budget that both reached; empty if there is one."""
    curves = {objective: sides[objective].curve(term) for objective in NAMES}
    unknown = [NAMES[objective] for objective, (steps, _) in curves.items() if not len(steps)]
    if unknown:
        return f"the pretraining run of {' and of '.join(unknown)}, whose metrics tell the {term}"
    reached = min(float(totals[-1]) for _, totals in curves.values())
    if spent and near(min(spent.values()), reached, term):
        return ""
    absent = [o for o in NAMES if not any(near(s, reached, term) for s in sides[o].spent(term).values())]
    parts = [_checkpoint(term, objective, *curves[objective], reached) for objective in absent or NAMES]
    return " and ".join(parts) + ("" if absent else ", tuned alike")


def _checkpoint(term: str, objective: str, steps: np.ndarray, totals: np.ndarray, budget: float) -> str:
    """ "vanilla at update 188 (179 to 197 will do)"."""
    best = int(steps[np.argmin(np.abs(totals - budget))])
    fitting = [int(step) for step, total in zip(steps, totals, strict=True) if near(total, budget, term)]
    span = f" ({fitting[0]:,} to {fitting[-1]:,} will do)" if len(fitting) > 1 else ""
    return f"{NAMES[objective]} at update {best:,}{span}"


def told(found: Sequence[Match]) -> str:
    """Which checkpoints would have to be tuned, in a clause; empty if none."""
    needs = [f"{_model(match)}: {match.needed}" for match in found if match.needed]
    more = len(needs) - MOST_TOLD
    return "; ".join(needs[:MOST_TOLD]) + (
        f"; {counted(more, 'more model')}, see Equal terms" if more > 0 else ""
    )


def _model(match: Match) -> str:
    parts = (match.scale, match.variant, "" if match.seed is None else f"seed {match.seed}")
    return ", ".join(part for part in parts if part)


def terms_table(found: Sequence[Match]) -> Table:
    """The checkpoints that are compared under each term."""
    columns = [Column("at equal"), Column("scale"), Column("variant"), Column("seed")]
    for name in NAMES.values():
        columns += [Column(f"{name} update"), Column(f"{name} spent", 4, significant=True)]
    columns += [
        Column("MAML spent more", 1, signed=True, percent=True),
        Column("pairs"),
        Column("needed"),
        RUNS,
    ]
    rows: list[list[Cell]] = []
    for match in found:
        cells: list[Cell] = [match.term, match.scale, match.variant, match.seed]
        for objective in NAMES:
            cells += [match.steps.get(objective), match.spent.get(objective)]
        more = match.spent["maml"] / match.spent["vanilla"] - 1 if match.spent else None
        rows.append(
            [*cells, more, len(match.runs) // 2, match.needed, runs_of(match.pretraining, match.runs)]
        )
    title = "Checkpoints that are compared, by budget"
    note = f"Spent: in the unit of the term. Needed: what to tune for a pair at the largest budget that both reached, within {TOLERANCE:.0%}."
    return Table("equal_terms", title, columns, rows, note).without_constant("variant", "seed")
