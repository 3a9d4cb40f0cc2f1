"""How fast fine-tuning converges: t90, area under the loss curve, initial slope; MAML minus vanilla.

The loss of one step is that of one batch, and batches differ: the first single step below a threshold is that of a
lucky batch, not of a converged model. So t90 and the area are read off a smoothed curve, whose window is 5 % of the
steps; a straight line stays what it is except within half a window of its ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from statistics import fmean

import numpy as np

from metapt.evaluation.bootstrap import LEVEL, RESAMPLES, SEED, percentile_interval
from metapt.randomness import generator

from ..load.collect import Collection
from ..load.records import FinetuneRun
from ..tables import RUNS, Cell, Column, Table
from .comparison import Group, groups, pairs, setting_cells
from .run_refs import runs_of

REACHED = 0.90
WINDOW_SHARE = 0.05
INITIAL_SHARE = 0.10
LEAST_SOURCES = 3

DEFINITION = (
    f"Convergence: the loss of every step (nats per word, mean of a batch) is smoothed by a centred moving average over "
    f"{WINDOW_SHARE:.0%} of the steps, cut short at both ends. t90: the first step at which the smoothed loss has made "
    f"{REACHED:.0%} of its total decrease, from its first to its last value; none if it does not decrease. "
    "Area: the mean over steps of the smoothed loss divided by its first value (1: no progress; smaller: faster). "
    f"Initial slope: least-squares line through the raw losses of the first {INITIAL_SHARE:.0%} of the steps (at least two), nats per step. "
    "Early stopping gives the two runs of a pair different lengths, and t90 is relative to a curve's own end; so for a "
    "pair both curves are first cut to the shorter one's length. "
    f"Intervals of means: {LEVEL:.0%} percentile bootstrap, {RESAMPLES:,} resamples, in which the sources are drawn and then the pairs of each; "
    f"with fewer than {LEAST_SOURCES} sources there is none."
)


@dataclass(frozen=True)
class Convergence:
    """`t90` in steps, counted from 1; NaN: not defined for this curve."""

    t90: float
    area: float
    slope: float


@dataclass(frozen=True)
class Gap:
    """MAML minus vanilla on the first `steps` losses of a pair; the t90 of both is NaN where one has none."""

    steps: float
    t90_vanilla: float
    t90_maml: float
    t90: float
    area: float
    slope: float

    @classmethod
    def of(cls, maml: FinetuneRun, vanilla: FinetuneRun) -> Gap:
        steps = min(len(maml.losses), len(vanilla.losses))
        new, old = measured_first(maml, steps), measured_first(vanilla, steps)
        t90 = new.t90 - old.t90
        both = (np.nan, np.nan) if np.isnan(t90) else (old.t90, new.t90)
        return cls(steps, *both, t90, new.area - old.area, new.slope - old.slope)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Centred moving average of a curve [steps], over 5 % of its steps, fewer at its ends."""
    low, high = _windows(len(losses))
    sums = np.concatenate([[0.0], np.cumsum(losses, dtype=np.float64)])
    return (sums[high] - sums[low]) / (high - low)


@lru_cache(maxsize=64)
def _windows(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The first step of the window around each, and one past its last."""
    half = int(steps * WINDOW_SHARE) // 2
    index = np.arange(steps)
    return np.maximum(index - half, 0), np.minimum(index + half + 1, steps)


def measure(losses: np.ndarray) -> Convergence:
    """The three measures of a loss curve [steps]; all NaN for fewer than two steps or a loss that is not finite."""
    if len(losses) < 2 or not np.isfinite(losses).all():
        return Convergence(np.nan, np.nan, np.nan)
    curve = smoothed(losses)
    first, last = curve[0], curve[-1]
    t90 = np.nan
    if last < first:
        t90 = float(np.argmax(curve <= first - REACHED * (first - last)) + 1)
    # by the trapezoidal rule
    area = float((curve.sum() - (first + last) / 2) / (len(curve) - 1) / first) if first > 0 else np.nan
    start = max(2, round(INITIAL_SHARE * len(losses)))
    steps = np.arange(start) - (start - 1) / 2
    slope = float(steps @ losses[:start].astype(np.float64) / (steps @ steps))  # least squares
    return Convergence(t90, area, slope)


@cache
def measured_first(run: FinetuneRun, steps: int) -> Convergence:
    """Of the first steps; kept, since a run counts in several tables."""
    return measure(run.losses[:steps])


def runs_table(collection: Collection) -> Table:
    """The measures of every group of runs, each run on its whole curve; mean over seeds."""
    columns = [
        *(Column(head) for head in Group.HEADS),
        Column("steps", digits=0),
        Column("best step", digits=0),
    ]
    columns += [Column("best dev F1"), Column("t90 (steps)", digits=0), *_shape_columns(signed=False), RUNS]
    rows: list[list[Cell]] = []
    for group in groups(collection):
        if group.is_baseline:
            continue
        found = [measured_first(run, len(run.losses)) for run in group.runs]
        cells: list[Cell] = [*group.cells]
        cells += [
            float(np.mean([getattr(run.result, key) for run in group.runs]))
            for key in ("steps", "best_step", "dev_f1")
        ]
        cells += [_mean([getattr(item, part) for item in found]) for part in ("t90", "area", "slope")]
        rows.append([*cells, runs_of(group.runs)])
    note = "Each run on its own whole curve."
    return Table("convergence", "Fine-tuning speed by system", columns, rows, note).without_constant(
        *Group.OPTIONAL
    )


def pairs_table(collection: Collection) -> Table:
    """MAML minus vanilla by setting, on curves cut to a common length; the last row is the mean over settings."""
    heads = [head for head in Group.HEADS if head != "objective"]
    columns = [*(Column(head) for head in heads), Column("common steps", digits=0)]
    columns += [
        Column("t90 vanilla", digits=0),
        Column("t90 MAML", digits=0),
        Column("Δ t90", digits=1, signed=True),
    ]
    columns += _shape_columns(signed=True)
    rows: list[list[Cell]] = []
    by_setting = pairs(collection)
    for setting, both in by_setting.items():
        found = [Gap.of(*pair) for pair in both]
        means = [_mean([getattr(gap, part.name) for gap in found]) for part in fields(Gap)]
        rows.append([*setting_cells(setting), len(both), *means])
    tinted = set()
    if rows:
        tinted.add(len(rows))
        overall = [_mean([row[index] for row in rows]) for index in range(len(heads), len(columns))]  # type: ignore[misc]
        rows.append(["mean", None, None, "", "", None, *overall])
    behind = [runs_of(*both) for both in by_setting.values()]
    rows = [[*row, runs] for row, runs in zip(rows, [*behind, runs_of(*behind)], strict=False)]
    title = "Fine-tuning speed: MAML minus vanilla"
    note = "Both curves of a pair are cut to a common length; t90 of pairs in which both curves have one."
    table = Table("convergence_pairs", title, [*columns, RUNS], rows, note, tinted)
    return table.without_constant(*Group.OPTIONAL)


def means_table(collection: Collection) -> Table:
    """MAML minus vanilla by scale and tuning: mean over sources and seeds, with bootstrap intervals over both."""
    columns = [Column("scale"), Column("variant"), Column("step"), Column("tuning"), Column("sources"), Column("pairs")]  # fmt: skip
    columns += [Column("Δ t90 (steps)", digits=1, signed=True), Column("95 % Δ t90", digits=1, signed=True, interval=True)]  # fmt: skip
    columns += [Column("Δ t90 relative", digits=1, signed=True, percent=True)]
    columns += [Column("Δ area", digits=4, signed=True), Column("95 % Δ area", digits=4, signed=True, interval=True)]  # fmt: skip
    columns += [Column("Δ slope", signed=True, significant=True), Column("95 % Δ slope", signed=True, significant=True, interval=True), RUNS]  # fmt: skip
    groups: dict[tuple[Cell, ...], dict[str, list[tuple[float, ...]]]] = {}
    behind: dict[tuple[Cell, ...], list[FinetuneRun]] = {}
    for setting, both in pairs(collection).items():
        *key, source = setting_cells(setting)
        for pair in both:
            gap = Gap.of(*pair)
            values = (gap.t90, gap.area, gap.slope, gap.t90_vanilla)
            groups.setdefault(tuple(key), {}).setdefault(str(source), []).append(values)
            behind.setdefault(tuple(key), []).extend(pair)
    rows: list[list[Cell]] = []
    for place, by_source in groups.items():
        means = [[_mean(list(part)) for part in zip(*gaps, strict=True)] for gaps in by_source.values()]
        t90, area, slope, old_t90 = (_mean(list(part)) for part in zip(*means, strict=True))
        cells: list[Cell] = [*place, len(by_source), sum(map(len, by_source.values()))]
        relative = t90 / old_t90 if t90 is not None and old_t90 else None
        cells += [t90, _interval(by_source, 0), relative, area, _interval(by_source, 1), slope]
        rows.append([*cells, _interval(by_source, 2), runs_of(behind[place])])
    title = "Fine-tuning speed: MAML minus vanilla, mean over sources"
    note = f"Intervals need at least {LEAST_SOURCES} sources; below that there is none, and no difference can be claimed."
    return Table("convergence_means", title, columns, rows, note).without_constant("variant", "step")


def _interval(by_source: Mapping[str, Sequence[tuple[float, ...]]], index: int) -> tuple[float, float]:
    """Percentile bootstrap of a mean: sources are drawn, then the pairs within each; (NaN, NaN) for too few."""
    found = [np.array([gaps[index] for gaps in pairs]) for pairs in by_source.values()]
    found = [values[~np.isnan(values)] for values in found if not np.isnan(values).all()]
    if len(found) < LEAST_SOURCES:
        return (np.nan, np.nan)
    *drawn, chosen = _draws(tuple(map(len, found)), index)
    means = np.stack([values[places].mean(axis=1) for values, places in zip(found, drawn, strict=True)])
    return percentile_interval(means[chosen, np.arange(RESAMPLES)[:, None]].mean(axis=1))


@lru_cache(maxsize=16)
def _draws(sizes: Sequence[int], index: int) -> list[np.ndarray]:
    """Which of so many pairs of each source are drawn, and at the end which sources: each [resamples, as many]."""
    draw = generator(SEED, "bootstrap/convergence", index)
    return [draw.integers(0, size, (RESAMPLES, size)) for size in (*sizes, len(sizes))]


def _shape_columns(signed: bool) -> list[Column]:
    prefix = "Δ " if signed else ""
    return [
        Column(f"{prefix}area", digits=4, signed=signed),
        Column(f"{prefix}initial slope (nats/step)", digits=3, signed=signed, significant=True),
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are defined."""
    defined = [value for value in values if value is not None and not math.isnan(value)]
    return fmean(defined) if defined else None
