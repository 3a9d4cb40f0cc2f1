"""Groups of runs that differ in the seed only, and differences between the two arms of a contrast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import ClassVar

from ..load.collect import Collection
from ..load.contrasts import Contrast
from ..load.records import FinetuneRun, Setting
from ..run_refs import Runs, counted, runs_of
from ..tables import RUNS, Cell, Column, Table
from .agreement import remark
from .estimates import Seed
from .significance import Difference, Estimate, Pairs, Scores, average_difference, comparable, training_seed

DEFINITION = (
    "Differences: the first arm of a contrast minus the second, averaged over the seeds that both have. "
    "Averages over sets, sources and tunings are unweighted means of F1 over the pairs, on the target sets only (those in the target "
    "languages; if there are none, the sets that no run was tuned on), at the last pretraining step that both arms have with a tuning. "
    "Averages by scale, tuning, source or step include only comparisons that exist for every scale (tuning, at the same step; source, step), and along "
    "tuning, source and step only seeds that all of these have, so that the averages differ in nothing else. Relative gain: mean F1 of the first arm / mean F1 of the second - 1."
)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in the seed only."""

    objective: str
    setting: Setting
    runs: Sequence[FinetuneRun]

    HEADS: ClassVar = ("scale", "variant", "step", "tuning", "source", "objective", "seeds")
    OPTIONAL: ClassVar = ("variant", "step")

    @property
    def is_baseline(self) -> bool:
        return self.runs[0].is_baseline

    @property
    def cells(self) -> list[Cell]:
        """The cells under HEADS."""
        return [*setting_cells(self.setting), self.objective, self.seeds]

    @property
    def seeds(self) -> int:
        """The number of training seeds."""
        return len(self._by_seed)

    @cached_property
    def _by_seed(self) -> dict[int, list[FinetuneRun]]:
        by_seed: dict[int, list[FinetuneRun]] = {}
        for run in self.runs:
            by_seed.setdefault(training_seed([run]), []).append(run)
        return by_seed

    def scored_on(self, *set_names: str) -> Group:
        """The same with the runs only that were scored on all of these sets; there may be none."""
        return replace(self, runs=[run for run in self.runs if {*set_names} <= run.sets.keys()])

    def mean(self, value: Callable[[FinetuneRun], float]) -> float:
        """The mean over seeds of a value; of each seed, the mean over its runs."""
        return fmean(fmean(map(value, runs)) for runs in self._by_seed.values())


def setting_cells(setting: Setting) -> list[Cell]:
    """Return the cells under the first five of `Group.HEADS`."""
    return [setting.scale, setting.variant, setting.step, setting.tuning, setting.source]


def groups(collection: Collection) -> list[Group]:
    """Return the runs by setting and objective in the order of the tables."""
    runs_by_system: dict[tuple[Setting, str], list[FinetuneRun]] = {}
    for run in collection.finetuning:
        runs_by_system.setdefault((run.setting, run.objective), []).append(run)
    return [Group(objective, setting, runs) for (setting, objective), runs in runs_by_system.items()]


class _OfTwoArms:
    """What a difference is made of."""

    contrast: Contrast
    difference: Difference

    @property
    def first(self) -> Estimate:
        return self.difference.first

    @property
    def second(self) -> Estimate:
        return self.difference.second


@dataclass(frozen=True, eq=False)
class Comparison(_OfTwoArms):
    """The two arms of a contrast in one setting on one set, mean over seeds."""

    contrast: Contrast
    setting: Setting
    set_name: str
    gold_spans: int
    pairs: Pairs
    difference: Difference

    @property
    def seeds(self) -> int:
        return self.difference.seeds

    @property
    def runs(self) -> Runs:
        return runs_of(*self.pairs)

    def restricted(self, seeds: frozenset[Seed]) -> Comparison:
        """The same over these seeds."""
        pairs = [pair for pair in self.pairs if training_seed(pair) in seeds]
        return replace(self, pairs=pairs, difference=self.difference.restrict(seeds))


def comparisons(
    contrast: Contrast,
    pairs_by_setting: Mapping[Setting, Pairs],
    set_names: Sequence[str],
    scores: Scores,
) -> list[Comparison]:
    """Compare the first run of each pair with the second, by setting and set.

    Only pairs count that were scored on the same sentences of a set, of which at least one has a span.
    """
    return [
        Comparison(
            contrast,
            setting,
            name,
            pairs[0][0].sets[name].gold.gold_spans,
            pairs,
            scores.difference(pairs, name),
        )
        for setting, name, pairs in comparable_by_set(pairs_by_setting, set_names)
    ]


def comparable_by_set(
    pairs_by_setting: Mapping[Setting, Pairs], set_names: Sequence[str]
) -> Iterator[tuple[Setting, str, Pairs]]:
    """Yield (setting, set, pairs that were scored on the same sentences of it), where there is such a pair."""
    for setting, setting_pairs in pairs_by_setting.items():
        for name in set_names:
            if selected := comparable(setting_pairs, name):
                yield setting, name, selected


def pair_count(items: Iterable[Comparison]) -> int:
    """The number of pairs of runs in comparisons, each counted once."""
    return len({(first.path, second.path) for item in items for first, second in item.pairs})


SYSTEM = ("scale", "variant", "tuning")
"""the parts of a setting of which each value may have other checkpoints"""


def last_steps(items: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons at the last pretraining step of each scale, variant and tuning."""
    last: dict[tuple[Cell, ...], int] = {}
    for item in items:
        system = _setting_part(item, SYSTEM)
        last[system] = max(last.get(system, 0), item.setting.step or 0)
    return [item for item in items if (item.setting.step or 0) == last[_setting_part(item, SYSTEM)]]


AXES = {"scale": ("variant",), **dict.fromkeys(("tuning", "source", "step"), ("scale", "variant"))}
"""the axes along which averages are compared, and what is fixed along each; models of different scales share no seeds"""


def balanced(items: Sequence[Comparison], axis: str) -> list[Comparison]:
    """Return the comparisons that exist for every value of the axis, so that averages along it differ in nothing else.

    Args:
        axis: one of AXES.
    """
    values: dict[tuple[Cell, ...], set[Cell]] = {}
    values_of_design: dict[tuple[Cell, ...], set[Cell]] = {}
    for item in items:
        value = getattr(item.setting, axis)
        values.setdefault(_setting_part(item, AXES[axis]), set()).add(value)
        values_of_design.setdefault(_design(item, axis), set()).add(value)
    kept = [
        item
        for item in items
        if values_of_design[_design(item, axis)] == values[_setting_part(item, AXES[axis])]
    ]
    return kept if axis == "scale" else _over_same_seeds(kept, axis)


def _over_same_seeds(items: Sequence[Comparison], axis: str) -> list[Comparison]:
    """Restrict comparisons to the seeds that all along the axis have, if there are any."""
    common: dict[tuple[Cell, ...], frozenset[Seed]] = {}
    for item in items:
        part, seeds = _setting_part(item, AXES[axis]), frozenset(item.difference.by_seed)
        common[part] = common.get(part, seeds) & seeds
    restricted = []
    for item in items:
        seeds = common[_setting_part(item, AXES[axis])]
        has_others = bool(seeds) and seeds != item.difference.by_seed.keys()
        restricted.append(item.restricted(seeds) if has_others else item)
    return restricted


def unbalanced(items: Sequence[Comparison], axis: str) -> list[str]:
    """Return sentences on the comparisons that `balanced` drops, and on those of which it drops seeds."""
    kept = balanced(items, axis)
    sentences = []
    if dropped := len(items) - len(kept):
        sentences.append(
            f"Averages by {axis} leave out {dropped} of {counted(len(items), 'comparison')}, "
            f"which do not exist for every {axis}."
        )
    if restricted := sum(item not in items for item in kept):
        sentences.append(
            f"Averages by {axis} are over the seeds that every {axis} has; {counted(restricted, 'comparison')} "
            f"{'has' if restricted == 1 else 'have'} more."
        )
    return sentences


def _design(item: Comparison, axis: str) -> tuple[Cell, ...]:
    """Return what a comparison shares with its counterparts along the axis."""
    fixed = [part for part in (*SYSTEM, "source") if part != axis]
    if axis == "tuning":  # each may have another last step
        fixed.append("step")
    return (*_setting_part(item, fixed), item.set_name)


def _setting_part(item: Comparison, fields: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(getattr(item.setting, field) for field in fields)


@dataclass(frozen=True, eq=False)
class Average(_OfTwoArms):
    """Mean over comparisons that agree in `key`."""

    contrast: Contrast
    key: tuple[Cell, ...]
    comparisons: Sequence[Comparison]
    difference: Difference

    @property
    def runs(self) -> Runs:
        return runs_of(*(item.runs for item in self.comparisons))


def averages(items: Sequence[Comparison], key: Callable[[Setting], tuple[Cell, ...]]) -> list[Average]:
    """Return the mean of the comparisons for each value of `key`, in order of first appearance.

    The comparisons are of one contrast.
    """
    by_key: dict[tuple[Cell, ...], list[Comparison]] = {}
    for item in items:
        by_key.setdefault(key(item.setting), []).append(item)
    return [
        Average(members[0].contrast, value, members, average_difference(item.difference for item in members))
        for value, members in by_key.items()
    ]


def by_set(mean: Average) -> list[Average]:
    """Return the parts of a mean over sources and sets: for each set, by name, the mean over sources. Keys end with the set."""
    members: dict[str, list[Comparison]] = {}
    for item in sorted(mean.comparisons, key=lambda item: item.set_name):
        members.setdefault(item.set_name, []).append(item)
    return [
        Average(
            mean.contrast, (*mean.key, name), items, average_difference(item.difference for item in items)
        )
        for name, items in members.items()
    ]


DIFFERENCE_COLUMNS = (
    Column("difference", signed=True),
    Column("95 % CI", signed=True, interval=True),
    Column("p", digits=4),
    Column("MDE"),
    Column("CI excludes 0"),
    Column("p, given these models", digits=4),
    Column("remark", optional=True),
)
"""The columns of `difference_cells`; significance.DEFINITION explains them."""


def difference_cells(difference: Difference) -> list[Cell]:
    """Return the cells under DIFFERENCE_COLUMNS."""
    return [
        difference.value,
        difference.interval,
        difference.p,
        difference.mde,
        difference.excludes_zero if difference.degrees_of_freedom else None,
        difference.p_given_models,
        remark(difference.interval, difference.p_given_models),
    ]


def arms(items: Sequence[Comparison | Average]) -> tuple[str, str]:
    """Return the names of the two arms of comparisons of one contrast."""
    return (items[0].contrast.first, items[0].contrast.second) if items else ("first", "second")


def difference_name(items: Sequence[Comparison | Average]) -> str:
    """Return, for example, "maml minus vanilla"."""
    return " minus ".join(arms(items))


def differences_table(items: Sequence[Comparison]) -> Table:
    """Show every comparison in a row."""
    heads = [head for head in Group.HEADS if head != "objective"]
    columns = [*map(Column, (*heads, "set", "gold spans", *arms(items))), *DIFFERENCE_COLUMNS, RUNS]
    rows: list[list[Cell]] = []
    for item in items:
        cells: list[Cell] = [*setting_cells(item.setting), item.seeds, item.set_name, item.gold_spans]
        cells += [item.first.value, item.second.value, *difference_cells(item.difference)]
        rows.append([*cells, item.runs])
    note = "Shaded rows: the CI excludes 0. MDE: minimum detectable effect on this set."
    title = f"{difference_name(items)}, with 95 % CI"
    table = Table("differences", title, columns, rows, note, _rows_excluding_zero(items))
    return table.without_constant(*Group.OPTIONAL)


def averages_table(name: str, title: str, heads: Sequence[Column], items: Sequence[Average]) -> Table:
    """Show the means of both arms, their difference and the relative gain, with intervals."""
    columns = [*heads, Column("comparisons")]
    for arm in arms(items):
        columns += [Column(arm), Column(f"95 % CI {arm}", interval=True)]
    columns += DIFFERENCE_COLUMNS
    columns += [Column("relative gain", digits=1, signed=True, percent=True), RUNS]
    rows: list[list[Cell]] = []
    for item in items:
        cells: list[Cell] = [*item.key, len(item.comparisons), item.first.value, item.first.interval]
        cells += [item.second.value, item.second.interval, *difference_cells(item.difference)]
        rows.append([*cells, item.difference.relative_gain.value, item.runs])
    note = "Shaded rows: the CI of the difference excludes 0."
    return Table(name, title, columns, rows, note, _rows_excluding_zero(items)).without_constant("variant")


def _rows_excluding_zero(items: Sequence[Comparison | Average]) -> set[int]:
    return {index for index, item in enumerate(items) if item.difference.excludes_zero}
