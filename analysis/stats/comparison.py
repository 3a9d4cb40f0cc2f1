"""Groups of runs that differ in the seed only, and MAML against vanilla on what is otherwise identical."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from ..load.collect import Collection, finetuning_key, setting_order
from ..load.records import FinetuneRun, Setting
from ..tables import RUNS, Cell, Column, Table
from .run_refs import NAMES, Runs, counted, runs_of
from .significance import Difference, Estimate, Pairs, Scores, Told, average_difference, comparable

DEFINITION = (
    "Pairs: a MAML run and a vanilla run of identical scale, variant, pretraining step, corpus, tuning, source and seeds. "
    "Variants of the episodes alone share the vanilla runs of their scale. "
    "A difference is MAML minus vanilla, averaged over the seeds that both have. "
    "Averages over sets, sources and tunings are unweighted means of F1 over the pairs, on the target sets only (those in "
    "Tagalog and Cebuano; where there are none, the sets that no run was tuned on), at the last pretraining step that "
    "both objectives have. Averages by scale, tuning, source or step leave out what not every scale (tuning, source, step) "
    "has the like of, so that they differ in nothing else. Relative gain: mean MAML F1 / mean vanilla F1 - 1."
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
        return [*setting_cells(self.setting), NAMES.get(self.objective, self.objective), len(self.runs)]


def setting_cells(setting: Setting) -> list[Cell]:
    return [setting.scale, setting.variant, setting.step, setting.tuning, setting.source]


def groups(collection: Collection) -> list[Group]:
    """The runs by setting and objective, in the order of the tables: vanilla before MAML."""
    found: dict[tuple[Setting, str], list[FinetuneRun]] = {}
    for run in collection.finetuning:
        found.setdefault((run.setting, run.objective), []).append(run)
    return [Group(objective, setting, runs) for (setting, objective), runs in found.items()]


@cache
def pairs(collection: Collection) -> dict[Setting, list[tuple[FinetuneRun, FinetuneRun]]]:
    """(MAML, vanilla) of each setting, one pair a seed; kept, since most sections ask for them."""
    vanilla = {finetuning_key(run): run for run in collection.finetuning if run.objective == "vanilla"}
    found: dict[Setting, list[tuple[FinetuneRun, FinetuneRun]]] = {}
    for run in collection.finetuning:
        if run.objective == "maml" and finetuning_key(run) in vanilla:
            found.setdefault(run.setting, []).append((run, vanilla[finetuning_key(run)]))
    return found


class Both:
    """The two sides of a difference, by their names."""

    both: Difference

    @property
    def maml(self) -> Estimate:
        return self.both.first

    @property
    def vanilla(self) -> Estimate:
        return self.both.second


@dataclass(frozen=True, eq=False)
class Comparison(Both):
    """MAML against vanilla in one setting on one set, mean over seeds."""

    setting: Setting
    set_name: str
    gold_spans: int
    pairs: Pairs
    both: Difference

    @property
    def seeds(self) -> int:
        return len(self.pairs)

    @property
    def runs(self) -> Runs:
        return runs_of(*self.pairs)

    @property
    def difference(self) -> Told:
        return self.both.told


def comparisons(collection: Collection, scores: Scores) -> list[Comparison]:
    """Every setting and set on which both objectives were scored on the same sentences, of which some hold a span."""
    return compared(pairs(collection), collection.set_names(), scores)


def compared(settings: Mapping[Setting, Pairs], names: Sequence[str], scores: Scores) -> list[Comparison]:
    """The first of each pair against the second, by setting and set, where both were scored on the same sentences."""
    found = list(comparable_by_set(settings, names))
    differences = scores.differences([(same, name) for _, name, same in found])
    return [
        Comparison(setting, name, same[0][0].sets[name].gold.gold_spans, same, both)
        for (setting, name, same), both in zip(found, differences, strict=True)
    ]


def comparable_by_set(settings: Mapping[Setting, Pairs], names: Sequence[str]) -> Iterator[tuple[Setting, str, Pairs]]:  # fmt: skip
    """(setting, set, the pairs of which both runs were scored on the same sentences of it), where there is one."""
    for setting, both in settings.items():
        for name in names:
            if same := comparable(both, name):
                yield setting, name, same


def last_steps(found: Sequence[Comparison]) -> list[Comparison]:
    """Only the last pretraining step of each scale and variant."""
    last: dict[tuple[str, str], int] = {}
    for item in found:
        key = (item.setting.scale, item.setting.variant)
        last[key] = max(last.get(key, 0), item.setting.step or 0)
    return [
        item for item in found if (item.setting.step or 0) == last[item.setting.scale, item.setting.variant]
    ]


AXES = {"scale": ("variant",), **dict.fromkeys(("tuning", "source", "step"), ("scale", "variant"))}
"""along what averages are compared, and within what"""


def balanced(found: Sequence[Comparison], axis: str) -> list[Comparison]:
    """Those that every value of `axis` (of AXES) has the like of, so that averages along it differ in nothing else."""
    values: dict[tuple[Cell, ...], set[Cell]] = {}
    designs: dict[tuple[Cell, ...], set[Cell]] = {}
    for item in found:
        values.setdefault(_part(item, AXES[axis]), set()).add(getattr(item.setting, axis))
        designs.setdefault(_design(item, axis), set()).add(getattr(item.setting, axis))
    return [item for item in found if designs[_design(item, axis)] == values[_part(item, AXES[axis])]]


def unbalanced(found: Sequence[Comparison], axis: str) -> list[str]:
    """A sentence on the comparisons that `balanced` leaves out, if there are any."""
    left = len(found) - len(balanced(found, axis))
    if not left:
        return []
    return [f"{left} of {counted(len(found), 'comparison')} are in no average by {axis}: not every {axis} has the like of them."]  # fmt: skip


def _design(item: Comparison, axis: str) -> tuple[Cell, ...]:
    return (*_part(item, [part for part in ("scale", "variant", "tuning", "source") if part != axis]), item.set_name)  # fmt: skip


def _part(item: Comparison, names: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(getattr(item.setting, name) for name in names)


@dataclass(frozen=True, eq=False)
class Average(Both):
    """Mean over comparisons that agree in `key`."""

    key: tuple[Cell, ...]
    comparisons: Sequence[Comparison]
    both: Difference

    @property
    def runs(self) -> Runs:
        return runs_of(*(item.runs for item in self.comparisons))


def averages(found: Sequence[Comparison], key: Callable[[Setting], tuple[Cell, ...]]) -> list[Average]:
    """The comparisons averaged within each value of `key`, in order of first appearance."""
    parts: dict[tuple[Cell, ...], list[Comparison]] = {}
    for item in found:
        parts.setdefault(key(item.setting), []).append(item)
    return [
        Average(value, items, average_difference(item.both for item in items))
        for value, items in parts.items()
    ]


DIFFERENCE_COLUMNS = (
    Column("difference", signed=True),
    Column("95 % interval", signed=True, interval=True),
    Column("p", digits=4),
    Column("detectable"),
    Column("leaves out 0"),
)
"""The columns of `difference_cells`; significance.DEFINITION says what they are."""


def difference_cells(both: Difference) -> list[Cell]:
    gap = both.told
    return [gap.value, gap.interval, both.p, gap.detectable, gap.excludes_zero]


def differences_table(found: Sequence[Comparison]) -> Table:
    """One row for each setting and set."""
    heads = [head for head in Group.HEADS if head != "objective"]
    columns = [*(Column(head) for head in heads), Column("set"), Column("gold spans")]
    columns += [Column("vanilla"), Column("MAML"), *DIFFERENCE_COLUMNS, RUNS]
    rows: list[list[Cell]] = []
    for item in found:
        cells: list[Cell] = [*setting_cells(item.setting), item.seeds, item.set_name, item.gold_spans]
        cells += [item.vanilla.value, item.maml.value, *difference_cells(item.both)]
        rows.append([*cells, item.runs])
    tinted = {index for index, item in enumerate(found) if item.difference.excludes_zero}
    note = "Tinted rows: the interval leaves out 0. Detectable: the smallest true difference that this set could have shown."
    title = "MAML minus vanilla, with 95 % intervals"
    return Table("differences", title, columns, rows, note, tinted).without_constant(*Group.OPTIONAL)


def averages_table(name: str, title: str, heads: Sequence[Column], found: Sequence[Average]) -> Table:
    """Means of both objectives, their difference and the relative gain, each with its interval."""
    columns = [*heads, Column("comparisons"), Column("vanilla"), Column("95 % vanilla", interval=True)]
    columns += [Column("MAML"), Column("95 % MAML", interval=True), *DIFFERENCE_COLUMNS]
    columns += [Column("relative gain", digits=1, signed=True, percent=True), RUNS]
    rows: list[list[Cell]] = []
    for item in found:
        cells: list[Cell] = [*item.key, len(item.comparisons), item.vanilla.value, item.vanilla.interval]
        cells += [item.maml.value, item.maml.interval, *difference_cells(item.both)]
        rows.append([*cells, item.maml.relative_to(item.vanilla).value, item.runs])
    tinted = {index for index, item in enumerate(found) if item.both.told.excludes_zero}
    note = "Tinted rows: the interval of the difference leaves out 0."
    return Table(name, title, columns, rows, note, tinted).without_constant("variant")


def order_by_size(collection: Collection) -> Callable[[Setting], tuple[object, ...]]:
    """Sort key of settings: scale by size, then variant, tuning, source, step."""
    scales = {scale: index for index, scale in enumerate(collection.sizes())}
    return lambda setting: setting_order(setting, scales)
