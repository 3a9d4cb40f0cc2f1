"""How fast fine-tuning converges: t90, area under the loss curve, initial slope; first arm of a contrast minus second.

The loss of a step is that of one batch, and batches differ: the first single step below a threshold reflects an easy
batch, not a converged model. t90 and the area are therefore computed from a smoothed curve, whose window is 5 % of the
steps. Smoothing leaves a straight line unchanged except within half a window of its ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from statistics import fmean

import numpy as np

from metapt.evaluation.seed_inference import LEVEL, MIN_SEEDS, SeedMean

from ..load.collect import Collection
from ..load.contrasts import Contrast
from ..load.records import FinetuneRun, Setting
from ..run_refs import runs_of
from ..tables import RUNS, Cell, Column, Table
from .comparison import Group, groups, setting_cells
from .significance import Pairs, training_seed

DECREASE = 0.90
WINDOW_FRACTION = 0.05
INITIAL_FRACTION = 0.10
PairsBySetting = Mapping[Setting, Pairs]

DEFINITION = (
    f"Convergence: the loss of every step (nats per word, mean of a batch) is smoothed by a centred moving average over "
    f"{WINDOW_FRACTION:.0%} of the steps, truncated at both ends. t90: the first step at which the smoothed loss has made "
    f"{DECREASE:.0%} of its total decrease, from its first to its last value; undefined if it does not decrease. "
    "Area: the mean over steps of the smoothed loss divided by its first value (1: no progress; smaller: faster). "
    f"Initial slope: least-squares line through the raw losses of the first {INITIAL_FRACTION:.0%} of the steps (at least two), in nats per step. "
    "Early stopping gives the two runs of a pair different lengths, and t90 depends on the end of a curve; so for a "
    "pair both curves are first cut to the length of the shorter one. "
    f"Means: over sources within each training seed, then over seeds; a seed counts if the measure is defined for all of its sources. Intervals: "
    f"{LEVEL:.0%} t-intervals over the seeds, since the measures do not depend on an evaluation set; with fewer than {MIN_SEEDS} seeds there is none."
)


@dataclass(frozen=True)
class Convergence:
    """The three measures of a loss curve; NaN where one is undefined.

    Attributes:
        t90: in steps, counted from 1.
        area: mean of the smoothed loss relative to its first value.
        slope: in nats per step.
    """

    t90: float
    area: float
    slope: float


@dataclass(frozen=True)
class PairDifference:
    """First arm minus second over the first `steps` losses of a pair; all t90 are NaN if one curve has none."""

    steps: float
    t90_first: float
    t90_second: float
    t90: float
    area: float
    slope: float

    @classmethod
    def of(cls, first: FinetuneRun, second: FinetuneRun) -> PairDifference:
        """Measure a pair of runs."""
        steps = min(len(first.losses), len(second.losses))
        one, other = measure_start(first, steps), measure_start(second, steps)
        t90 = one.t90 - other.t90
        t90_of_both = (np.nan, np.nan) if np.isnan(t90) else (one.t90, other.t90)
        return cls(steps, *t90_of_both, t90, one.area - other.area, one.slope - other.slope)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Return the centred moving average of a curve [steps] over 5 % of its steps, over fewer at its ends."""
    low, high = _windows(len(losses))
    sums = np.concatenate([[0.0], np.cumsum(losses, dtype=np.float64)])
    return (sums[high] - sums[low]) / (high - low)


@lru_cache(maxsize=64)
def _windows(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first step of the window around each step, and one past its last."""
    half = int(steps * WINDOW_FRACTION) // 2
    index = np.arange(steps)
    return np.maximum(index - half, 0), np.minimum(index + half + 1, steps)


def measure(losses: np.ndarray) -> Convergence:
    """Measure a loss curve [steps]; all NaN for fewer than two steps or a loss that is not finite."""
    if len(losses) < 2 or not np.isfinite(losses).all():
        return Convergence(np.nan, np.nan, np.nan)
    curve = smoothed(losses)
    first, last = curve[0], curve[-1]
    t90 = np.nan
    if last < first:
        t90 = float(np.argmax(curve <= first - DECREASE * (first - last)) + 1)
    trapezoids = curve.sum() - (first + last) / 2
    area = float(trapezoids / (len(curve) - 1) / first) if first > 0 else np.nan
    start = max(2, round(INITIAL_FRACTION * len(losses)))
    steps = np.arange(start) - (start - 1) / 2
    slope = float(steps @ losses[:start].astype(np.float64) / (steps @ steps))  # least squares
    return Convergence(t90, area, slope)


@cache  # a run is in several tables
def measure_start(run: FinetuneRun, steps: int) -> Convergence:
    """Measure the first steps of a run's loss curve."""
    return measure(run.losses[:steps])


def runs_table(collection: Collection) -> Table:
    """Show the measures of every group of runs, each run on its whole curve; mean over seeds."""
    columns = [*map(Column, Group.HEADS), Column("steps", digits=0), Column("best step", digits=0)]
    columns += [Column("best dev F1"), Column("t90 (steps)", digits=0), *_shape_columns(signed=False), RUNS]
    rows: list[list[Cell]] = []
    for group in groups(collection):
        if group.is_baseline:
            continue
        results = [run.result for run in group.runs]
        measures = [measure_start(run, len(run.losses)) for run in group.runs]
        cells: list[Cell] = [*group.cells]
        cells += [
            _mean([getattr(result, name) for result in results]) for name in ("steps", "best_step", "dev_f1")
        ]
        cells += [_mean([getattr(item, name) for item in measures]) for name in ("t90", "area", "slope")]
        rows.append([*cells, runs_of(group.runs)])
    title, note = "Fine-tuning speed by system", "Each run on its own whole curve."
    return Table("convergence", title, columns, rows, note).without_constant(*Group.OPTIONAL)


def pairs_table(contrast: Contrast, by_setting: PairsBySetting) -> Table:
    """Show first arm minus second by setting, on curves cut to a common length; the last row is the mean over settings."""
    heads = [head for head in Group.HEADS if head != "objective"]
    columns = [*map(Column, heads), Column("common steps", digits=0)]
    columns += [Column(f"t90 {arm}", digits=0) for arm in (contrast.first, contrast.second)]
    columns += [Column("Δ t90", digits=1, signed=True), *_shape_columns(signed=True)]
    rows: list[list[Cell]] = []
    for setting, setting_pairs in by_setting.items():
        items = [PairDifference.of(*pair) for pair in setting_pairs]
        means = [_mean([getattr(item, part.name) for item in items]) for part in fields(PairDifference)]
        rows.append([*setting_cells(setting), len(set(map(training_seed, setting_pairs))), *means])
    shaded = set()
    if rows:
        shaded.add(len(rows))
        overall = [_mean([row[index] for row in rows]) for index in range(len(heads), len(columns))]  # type: ignore[misc]
        rows.append(["mean", None, None, "", "", None, *overall])
    runs_of_rows = [runs_of(*setting_pairs) for setting_pairs in by_setting.values()]
    runs_of_rows.append(runs_of(*runs_of_rows))
    rows = [[*row, runs] for row, runs in zip(rows, runs_of_rows, strict=False)]
    title = f"Fine-tuning speed: {contrast}"
    note = (
        "Both curves of a pair are cut to a common length; t90 only for pairs in which both curves have one."
    )
    table = Table("convergence_pairs", title, [*columns, RUNS], rows, note, shaded)
    return table.without_constant(*Group.OPTIONAL)


def means_table(compared: Iterable[tuple[Contrast, str, PairsBySetting]]) -> Table:
    """Show first arm minus second by contrast, scale and tuning: mean over sources, then over seeds, with intervals over seeds.

    Args:
        compared: contrasts with the name of a matched budget and the pairs at it.
    """
    heads = (
        "comparison",
        "matched budget",
        "scale",
        "variant",
        "step",
        "tuning",
        "sources",
        "pairs",
        "seeds",
    )
    columns = [
        *map(Column, heads),
        Column("Δ t90 (steps)", digits=1, signed=True),
        Column("95 % CI Δ t90", digits=1, signed=True, interval=True),
        Column("Δ t90 relative", digits=1, signed=True, percent=True),
        Column("Δ area", digits=4, signed=True),
        Column("95 % CI Δ area", digits=4, signed=True, interval=True),
        Column("Δ slope", signed=True, significant=True),
        Column("95 % CI Δ slope", signed=True, significant=True, interval=True),
        RUNS,
    ]
    settings_by_model: dict[tuple[Cell, ...], list[Pairs]] = {}
    for contrast, budget, by_setting in compared:
        for setting, setting_pairs in by_setting.items():
            *model, _ = setting_cells(
                setting
            )  # all but the source, of which each setting here has another one
            settings_by_model.setdefault((str(contrast), budget, *model), []).append(setting_pairs)
    rows = [_means_row(model, by_source) for model, by_source in settings_by_model.items()]
    title = "Fine-tuning speed: first arm minus second, mean over sources"
    note = f"Intervals need at least {MIN_SEEDS} seeds with all sources. Without an interval there is no verdict."
    table = Table("convergence_means", title, columns, rows, note)
    return table.without_constant("matched budget", "variant", "step")


def _means_row(model: Sequence[Cell], by_source: Sequence[Pairs]) -> list[Cell]:
    """Return a row of `means_table`, from the pairs of each source."""
    items = [
        [(training_seed(pair), PairDifference.of(*pair)) for pair in source_pairs]
        for source_pairs in by_source
    ]

    def mean(name: str) -> SeedMean:
        return mean_over_seeds(
            [[(seed, getattr(item, name)) for seed, item in of_source] for of_source in items]
        )

    t90, old_t90, area, slope = map(mean, ("t90", "t90_second", "area", "slope"))
    relative = t90.value / old_t90.value if old_t90.value else None
    seeds = {seed for of_source in items for seed, _ in of_source}
    cells: list[Cell] = [*model, len(by_source), sum(map(len, by_source)), len(seeds)]
    cells += [t90.value, t90.interval_over_seeds, relative]
    cells += [area.value, area.interval_over_seeds, slope.value, slope.interval_over_seeds]
    return [*cells, runs_of(*(pair for source_pairs in by_source for pair in source_pairs))]


def mean_over_seeds(by_source: Sequence[Sequence[tuple[int, float]]]) -> SeedMean:
    """Average over sources within each seed, over the seeds for which all sources have a value.

    Args:
        by_source: for each source, the training seed and the value of each pair; undefined values are NaN.
    Returns: the mean over seeds; NaN if no seed has all sources.
    """
    values: list[dict[int, float]] = []
    for items in by_source:
        of_seed: dict[int, list[float]] = {}
        for seed, value in items:
            of_seed.setdefault(seed, []).append(value)
        values.append({seed: fmean(found) for seed, found in of_seed.items()})
    means = [fmean(each.get(seed, np.nan) for each in values) for seed in sorted(set().union(*values))]
    defined = [mean for mean in means if not np.isnan(mean)]
    return SeedMean.of_seeds(defined)


def _shape_columns(signed: bool) -> list[Column]:
    prefix = "Δ " if signed else ""
    return [
        Column(f"{prefix}area", digits=4, signed=signed),
        Column(f"{prefix}initial slope (nats/step)", digits=3, signed=signed, significant=True),
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are defined."""
    defined = [value for value in values if value is not None and not math.isnan(value)]
    return fmean(defined) if defined else None
