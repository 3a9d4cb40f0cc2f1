"""How often the intervals and verdicts of differences between two pretrained models are right, on simulated data sets.

`python benchmarks/calibration_differences.py` writes its tables into docs/calibration.md (minutes; fixed seeds). A data
set has eight models with ten training seeds each, scored on the same sentences: vanilla and three variants of another
objective, under two tunings. Its sentences are sampled from a population with real predictions; the spread over seeds is
added to F1. The first three, five or all ten seeds are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from f1_populations import Population, recorded
from metapt.analysis.stats.significance import LEAST_SPANS  # type: ignore[import-not-found]
from metapt.analysis.stats.verdicts import EFFECT, verdict  # type: ignore[import-not-found]
from scipy.special import stdtrit

from metapt.evaluation.bootstrap import f1_samples, holm, micro_f1, unit_weights
from metapt.evaluation.seed_inference import LEVEL, SeedMean, Z, bootstrap_variance
from metapt.files import write_atomically

PAGE = Path(__file__).parents[1] / "docs" / "calibration.md"
BEGIN, END = "<!-- differences: begin -->\n", "<!-- differences: end -->\n"
DATA_SETS = 2000
RESAMPLES = 400
POPULATION, F1 = "pt_pud from en_ewt", 0.3
GOLD_SPANS = (72, 4000)
SEEDS = (3, 5, 10)
FRACTIONS = (0.0, 0.5, 0.9, 1.0)
"""of the variance of a difference that is due to the seeds"""
NORMAL, SKEWED, ONE_SKEWED = "normal", "skewness 1", "skewness 1, one model"
SHAPES = (NORMAL, SKEWED, ONE_SKEWED)
"""distribution of the seeds of a model; under ONE_SKEWED vanilla does not vary, so that differences have skewness 1"""
VARIANTS, TUNINGS = 3, 2
COMPARISONS = VARIANTS * TUNINGS
MODELS = COMPARISONS + TUNINGS
VANILLA = np.arange(COMPARISONS) // VARIANTS + COMPARISONS
"""the index of the vanilla model of each comparison; the first models are the variants"""
MARGIN = 0.02
TRUE_EFFECT, ARM_DEVIATION = 0.10, 0.02
"""of the power, in F1"""


@dataclass(frozen=True)
class Sentences:
    """What the sentences of the data sets contribute.

    Attributes:
        f1: of each model, less the true F1: [data sets, MODELS].
        variance: of each comparison: [data sets, COMPARISONS].
        plain: the same, as the variance of the bootstrap samples alone.
    """

    f1: np.ndarray
    variance: np.ndarray
    plain: np.ndarray


@cache
def sentences(gold_spans: int, data_sets: int) -> Sentences:
    """Sample data sets with the predictions of models of equal F1; all seeds of a model have the same predictions.

    That is the hardest case: where seeds err on different sentences, the spread over seeds shows part of the variance
    over sentences, which is then counted twice.
    """
    population = Population.of(recorded(POPULATION), F1)
    units = population.units_for(gold_spans)
    weights = unit_weights(units, "calibration", RESAMPLES)
    f1 = np.empty((data_sets, MODELS))
    variance, plain = np.empty((2, data_sets, COMPARISONS))
    for index in range(data_sets):
        rng = _generator("sentences", gold_spans, index)
        chosen = rng.integers(0, population.systems.shape[1], units)
        counts = population.data_set(np.broadcast_to(chosen, (MODELS, units)), rng.random((MODELS, units)))
        f1[index] = micro_f1(counts.sum(axis=1)) - F1
        samples = f1_samples(counts, "calibration", RESAMPLES, weights=weights)
        gaps = samples[:COMPARISONS] - samples[VANILLA]
        with_spans = int(np.count_nonzero(counts[0, :, 2]))
        least = LEAST_SPANS * (2 / counts[..., 1:].sum(axis=(1, 2)).mean()) ** 2
        variance[index] = [max(bootstrap_variance(gap, with_spans), least) for gap in gaps]
        plain[index] = gaps.var(axis=1, dtype=np.float64)
    return Sentences(f1, variance, plain)


@cache
def seed_effects(shape: str, data_sets: int, correlation: float = 0.0) -> np.ndarray:
    """Sample the deviations of seeds from their model's F1, so that differences of independent models have variance 1.

    Args:
        correlation: of the normal effects of the same seed in a variant and in vanilla.
    Returns: [data sets, MODELS, seeds].
    """
    rng, size = _generator("seeds", shape), (data_sets, MODELS, max(SEEDS))
    effects = rng.normal(size=size) if shape == NORMAL else (rng.gamma(4, size=size) - 4) / 2
    if shape == ONE_SKEWED:
        effects[:, COMPARISONS:] = 0
        return effects
    own, vanilla = effects[:, :COMPARISONS], effects[:, VANILLA]
    effects[:, :COMPARISONS] = correlation * vanilla + np.sqrt(1 - correlation**2) * own
    return effects / np.sqrt(2)


@dataclass(frozen=True)
class Simulated:
    """The comparisons of a cell, whose true differences are 0.

    Attributes:
        sides: F1 of the two sides less its true value: [2, data sets, COMPARISONS, seeds].
        variance: over sentences, and `plain`, as in Sentences: [data sets, COMPARISONS].
    """

    sides: np.ndarray
    variance: np.ndarray
    plain: np.ndarray

    @property
    def differences(self) -> np.ndarray:
        return self.sides[0] - self.sides[1]


def simulated(
    gold_spans: int, seeds: int, fraction: float, shape: str, data_sets: int, correlation: float = 0.0
) -> Simulated:
    """Return the comparisons of a cell; with fraction 1 the sentences are the whole population."""
    base, effects = sentences(gold_spans, data_sets), seed_effects(shape, data_sets, correlation)[..., :seeds]
    if fraction == 1:
        nothing = np.zeros_like(base.variance)
        return Simulated(np.stack([effects[:, :COMPARISONS], effects[:, VANILLA]]) / 50, nothing, nothing)
    of_sentences = float(np.var(base.f1[:, :COMPARISONS] - base.f1[:, VANILLA]))
    spread = np.sqrt(seeds * of_sentences * fraction / (1 - fraction))
    f1 = base.f1[..., None] + spread * effects
    return Simulated(np.stack([f1[:, :COMPARISONS], f1[:, VANILLA]]), base.variance, base.plain)


@dataclass(frozen=True)
class Cell:
    """Simulated intervals and verdicts.

    Attributes:
        covered: fraction of the intervals of a comparison that contain the true difference.
        false_effects: fraction of the families of COMPARISONS with an effect, where there is none.
        width: mean width of the intervals, divided by that of the formula with the plain bootstrap variance.
    """

    gold_spans: int
    seeds: int
    fraction: float
    shape: str
    covered: float
    false_effects: float
    width: float


def cell(gold_spans: int, seeds: int, fraction: float, shape: str, data_sets: int = DATA_SETS) -> Cell:
    """Apply the inference of the report to the data sets of a cell."""
    data = simulated(gold_spans, seeds, fraction, shape, data_sets)
    families = [
        [SeedMean(values, v, v) for values, v in zip(*family, strict=True)]
        for family in zip(data.differences, data.variance, strict=True)
    ]
    intervals = np.array([family[0].interval for family in families])
    covered = np.mean((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0))
    false = np.mean([any(said == EFFECT for said in verdicts(family)) for family in families])
    width = np.mean(intervals[:, 1] - intervals[:, 0]) / np.mean(2 * documented(data)[:, 0])
    return Cell(gold_spans, seeds, fraction, shape, float(covered), float(false), float(width))


def cells(data_sets: int = DATA_SETS, shapes: Sequence[str] = SHAPES) -> list[Cell]:
    """Simulate all cells."""
    return [cell(*place, data_sets) for place in places(shapes)]


def verdicts(family: Sequence[SeedMean]) -> list[str]:
    """Return the verdicts of a family of comparisons."""
    corrected = holm([found.p for found in family])
    return [verdict(found, p, MARGIN) for found, p in zip(family, corrected, strict=True)]


def power(seeds: int, comparisons: int, data_sets: int = DATA_SETS) -> float:
    """Return how often a true effect is found, if the other comparisons of its family have none.

    The models' seeds are normal with standard deviation ARM_DEVIATION, and the set has the larger number of gold spans.
    """
    base = sentences(max(GOLD_SPANS), data_sets)
    effects = seed_effects(NORMAL, data_sets)[..., :seeds] * np.sqrt(2) * ARM_DEVIATION
    f1 = base.f1[..., None] + effects
    gaps = f1[:, :COMPARISONS] - f1[:, VANILLA]
    gaps[:, 0] += TRUE_EFFECT
    found = []
    for values, variances in zip(gaps[:, :comparisons], base.variance[:, :comparisons], strict=True):
        family = [SeedMean(each, v, v) for each, v in zip(values, variances, strict=True)]
        found.append(verdicts(family)[0] == EFFECT)
    return float(np.mean(found))


LARGE = 1e9  # degrees of freedom


def _t(degrees_of_freedom: np.ndarray | float) -> np.ndarray:
    return stdtrit(degrees_of_freedom, (1 + LEVEL) / 2)


def documented(data: Simulated) -> np.ndarray:
    """Half-widths of sqrt(t^2 s^2 / n + z^2 V), with the plain bootstrap variance."""
    n = data.sides.shape[-1]
    return np.sqrt(_t(n - 1) ** 2 * data.differences.var(axis=2, ddof=1) / n + Z**2 * data.plain)


def normal(data: Simulated) -> np.ndarray:
    """Half-widths of 1.96 standard errors."""
    n = data.sides.shape[-1]
    return Z * np.sqrt(data.differences.var(axis=2, ddof=1) / n + data.plain)


def satterthwaite(data: Simulated) -> np.ndarray:
    """Half-widths of one t interval for the summed variance, with the degrees of freedom of Welch and Satterthwaite."""
    n = data.sides.shape[-1]
    of_seeds = data.differences.var(axis=2, ddof=1) / n
    total = of_seeds + data.plain
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.minimum(np.nan_to_num((n - 1) * (total / of_seeds) ** 2, nan=LARGE), LARGE)
    return _t(freedom) * np.sqrt(total)


def unpaired(data: Simulated) -> np.ndarray:
    """Half-widths with Welch's t interval for the seeds of two independent models."""
    n = data.sides.shape[-1]
    first, second = data.sides.var(axis=3, ddof=1) / n
    total = first + second
    with np.errstate(invalid="ignore"):
        freedom = np.nan_to_num((n - 1) * total**2 / (first**2 + second**2), nan=LARGE)
    return np.sqrt(_t(freedom) ** 2 * total + Z**2 * data.plain)


FORMULAS = {
    "sqrt(t² s² / n + z² V), seeds paired": documented,
    "the same, seeds unpaired (Welch)": unpaired,
    "one t, Welch-Satterthwaite on s² / n + V": satterthwaite,
    "z only": normal,
}


def places(shapes: Sequence[str] = SHAPES) -> Iterator[tuple[int, int, float, str]]:
    """The arguments of the cells."""
    return product(GOLD_SPANS, SEEDS, FRACTIONS, shapes)


def formula_rows(data_sets: int = DATA_SETS) -> list[str]:
    """Compare candidate formulas over all cells, and where the seeds of a pair are correlated."""
    cases = {0.0: list(places()), -0.5: list(places([NORMAL])), 0.5: list(places([NORMAL]))}
    rows = {name: f"| {name} |" for name in FORMULAS}
    for correlation, chosen in cases.items():
        found = [simulated(*place, data_sets, correlation) for place in chosen]
        for name, half_width in FORMULAS.items():
            halves = [half_width(data) for data in found]
            covered = [
                np.mean(np.abs(data.differences.mean(axis=2)) <= half + 1e-15)
                for data, half in zip(found, halves, strict=True)
            ]
            widths = [half.mean() / documented(data).mean() for data, half in zip(found, halves, strict=True)]
            rows[name] += (
                f" {100 * min(covered):.1f} / {100 * np.mean(covered):.1f} / {np.mean(widths):.2f} |"
            )
    return list(rows.values())


def entry(found: Cell) -> str:
    """Write coverage and false effects in percent, and relative width."""
    return f"{100 * found.covered:.1f} / {100 * found.false_effects:.1f} / {found.width:.2f}"


def cell_table(found: Sequence[Cell], gold_spans: int, shape: str) -> list[str]:
    """Write coverage, false effects and relative width: seeds down, the seeds' fraction of the variance across."""
    lines = ["| seeds | " + " | ".join(f"{fraction:g}" for fraction in FRACTIONS) + " |"]
    lines += ["|---:" * (len(FRACTIONS) + 1) + "|"]
    by_place = {
        (each.seeds, each.fraction): each
        for each in found
        if (each.gold_spans, each.shape) == (gold_spans, shape)
    }
    for seeds in SEEDS:
        entries = [by_place[seeds, fraction] for fraction in FRACTIONS]
        texts = [entry(each) for each in entries]
        lines.append(f"| {seeds} | " + " | ".join(texts) + " |")
    return lines


def section(data_sets: int = DATA_SETS) -> str:
    """Write the tables of the page."""
    found = cells(data_sets)
    lines = [
        "| seeds | cells | lowest coverage | mean coverage | most families with a false effect | largest relative width |"
    ]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for shape in SHAPES:
        of_shape = [each for each in found if each.shape == shape]
        covered = [100 * each.covered for each in of_shape]
        false = max(100 * each.false_effects for each in of_shape)
        texts = [
            f"{min(covered):.1f} %",
            f"{np.mean(covered):.1f} %",
            f"{false:.1f} %",
            f"{max(each.width for each in of_shape):.2f}",
        ]
        lines.append(f"| {shape} | {len(of_shape)} | " + " | ".join(texts) + " |")
    for gold_spans in GOLD_SPANS:
        for shape in SHAPES:
            lines += [
                "",
                f"**{gold_spans:,} gold spans, seeds: {shape}**",
                "",
                *cell_table(found, gold_spans, shape),
            ]
    lines += [
        "",
        "**Power**, true difference 10 points",
        "",
        "| seeds | primary comparisons | effect found |",
        "|---:|---:|---:|",
    ]
    for seeds, comparisons in ((3, 1), (3, COMPARISONS), (5, 1), (5, COMPARISONS)):
        lines.append(f"| {seeds} | {comparisons} | {100 * power(seeds, comparisons, data_sets):.1f} % |")
    lines += ["", "**Candidate formulas** over the same cells", ""]
    lines += ["| formula | seeds independent | correlation -0.5 | correlation 0.5 |", "|---|---:|---:|---:|"]
    lines += formula_rows(data_sets)
    return "\n".join(lines) + "\n"


def _generator(*key: object) -> np.random.Generator:
    return np.random.default_rng(list(repr(key).encode()))


def main() -> None:
    """Simulate all cells, and replace the tables of the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    write_atomically(PAGE, before + BEGIN + "\n" + section() + "\n" + END + after)


if __name__ == "__main__":
    main()
