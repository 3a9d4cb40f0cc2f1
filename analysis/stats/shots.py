"""k-shot learning: taggers that were trained further on k sentences, or k entities per type, of a target language.

A curve follows the taggers of one setting over k. k = 0 is the tagger before, zero-shot. Only samples count that exist
at every k of the curve, so that all its points average the same taggers and seeds.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..load.collect import Collection, language, tuning_identity
from ..load.distinction import deciding, varied_settings
from ..load.records import FinetuneRun, Setting
from ..run_refs import Runs, runs_of
from .significance import Difference, Estimate, Pairs, Scores, average, average_difference, comparable

UNITS = {"data.max_train_sentences": "sentences", "data.entities_per_type": "entities per type"}
"""the key of the size of a sample to what it counts"""

DEFINITION = (
    "k-shot: a tagger that was tuned on its source is trained further on k sentences (or on sentences with at least k entities of each "
    "type) of the target language, for a number of updates that is fixed in advance. No sentence of a test set is trained on. Samples of one "
    "seed are nested: those of a smaller k are part of those of a larger. k = 0 is the tagger before, which is zero-shot. A curve has "
    "the samples that exist at every k. Scores of several samples of one tagger are averaged before those of several seeds. "
    "All seeds have the same samples, so that intervals and p hold for these samples and do not include their choice. "
    "Area under the curve: the mean F1 over the k above 0, with equal weights; for k at equal ratios (30, 100, 300) this is the area over "
    "log k divided by its width, as a sum of one rectangle for each k. Gain: F1 at k minus F1 of the same taggers at k = 0."
)


class Task(NamedTuple):
    """What taggers are trained further on, how long, and how: equal along a curve.

    settings: those in which runs on the same target, unit and number of updates differ.
    """

    target: str
    unit: str
    updates: int
    settings: str


class Sample(NamedTuple):
    """One run of k-shot learning, with the folder of the tagger that it began with.

    series: the seeds of the sample and of fine-tuning.
    """

    tagger: Path
    task: Task
    k: int
    series: tuple[int, int]
    run: FinetuneRun


@lru_cache(maxsize=1)  # for the curves and the differences of every contrast of a report
def samples(collection: Collection) -> tuple[list[Sample], int]:
    """Return the runs of k-shot learning whose tagger is in the collection, and the number of continued runs that are none."""
    taggers = {tuning_identity(run): run.path for run in collection.finetuning if run.result.settings}
    runs = [run for run in collection.continued if _is_sample(run, taggers)]
    varied = varied_settings(runs, _unnamed_task, lambda run: None, _tuning)
    found = []
    for run, settings in zip(runs, varied, strict=True):
        key, series = _size_key(run), (run.result.settings["data.subset_seed"], run.seeds[1])
        tagger = taggers[tuning_identity(run.result.earlier_tunings[0])]
        task = Task(*_unnamed_task(run), settings)
        found.append(Sample(tagger, task, run.result.settings[key], series, run))
    return found, len(collection.continued) - len(found)


def _size_key(run: FinetuneRun) -> str:
    """The key of the size of the run's sample; "" without one."""
    return next((name for name in UNITS if run.result.settings.get(name) is not None), "")


def _is_sample(run: FinetuneRun, taggers: Container[str]) -> bool:
    """Whether the run trained one of these taggers further, itself and no other, on a sample."""
    earlier = [tuning_identity(tuning) for tuning in run.result.earlier_tunings]
    return bool(_size_key(run)) and len(earlier) == 1 and earlier[0] in taggers


def _unnamed_task(run: FinetuneRun) -> tuple[str, str, int]:
    """The target, unit and updates of a `Task`."""
    return (run.result.source, UNITS[_size_key(run)], run.result.steps or 0)


def _tuning(run: FinetuneRun) -> dict[str, Any]:
    """What decides how a run trained its tagger, beside seeds and the sample."""
    of_sample = {*UNITS, "data.subset_seed"}
    settings = deciding(run.result.settings).items()
    return {"tuning": run.result.tuning} | {key: value for key, value in settings if key not in of_sample}


@dataclass(frozen=True, eq=False)
class Curve:
    """The taggers of one setting and objective over k, scored on one set of the target language.

    Attributes:
        shots: by k above 0, each run with the tagger that it began with.
        left_out: number of samples that do not exist at every k.
    """

    objective: str
    setting: Setting
    task: Task
    set_name: str
    shots: Mapping[int, Pairs]
    left_out: int
    scores: Scores

    @cached_property
    def runs(self) -> dict[int, list[FinetuneRun]]:
        """The runs at each k: at 0 the taggers."""
        taggers = {tagger.path: tagger for pairs in self.shots.values() for _, tagger in pairs}
        return {0: list(taggers.values())} | {k: [run for run, _ in pairs] for k, pairs in self.shots.items()}

    @property
    def gold_spans(self) -> int:
        return self.runs[0][0].sets[self.set_name].gold.gold_spans

    @property
    def all_runs(self) -> Runs:
        return runs_of(*self.runs.values())

    @cached_property
    def points(self) -> dict[int, Estimate]:
        """F1 at each k."""
        return {k: self.scores.mean(runs, self.set_name) for k, runs in self.runs.items()}

    def gain(self, k: int) -> Difference:
        """F1 at a k above 0, minus that of the same taggers at k = 0."""
        return self.scores.difference(self.shots[k], self.set_name)

    @property
    def area(self) -> Estimate:
        """The area under the curve, without k = 0."""
        return average(point for k, point in self.points.items() if k)


def curves(collection: Collection, scores: Scores) -> list[Curve]:
    """Return the curves of all settings in the order of the tables, on sets in the target language with gold spans."""
    by_tagger = _by_tagger(samples(collection)[0])
    groups: dict[tuple[str, Setting, Task], list[FinetuneRun]] = {}
    for tagger in collection.finetuning:
        for task in by_tagger.get(tagger.path, {}):
            groups.setdefault((tagger.objective, tagger.setting, task), []).append(tagger)
    found = []
    for (objective, setting, task), taggers in groups.items():
        kept, left_out = _complete([sample for tagger in taggers for sample in by_tagger[tagger.path][task]])
        by_path = {tagger.path: tagger for tagger in taggers}
        shots: dict[int, list[tuple[FinetuneRun, FinetuneRun]]] = {}
        for sample in sorted(kept, key=lambda sample: sample.k):
            shots.setdefault(sample.k, []).append((sample.run, by_path[sample.tagger]))
        found += [
            Curve(objective, setting, task, name, shots, left_out, scores)
            for name in _scored_sets(
                task, [run for pairs in shots.values() for pair in pairs for run in pair]
            )
            if all(len(comparable(pairs, name)) == len(pairs) for pairs in shots.values())
        ]
    return found


@dataclass(frozen=True, eq=False)
class CurveDifference:
    """The curve of one arm minus that of another, over the same seeds and samples.

    Attributes:
        pairs: by k, the runs of the first arm with those of the second.
    """

    setting: Setting
    task: Task
    set_name: str
    pairs: Mapping[int, Pairs]
    scores: Scores

    @property
    def all_runs(self) -> Runs:
        return runs_of(*(run for pairs in self.pairs.values() for run in pairs))

    @cached_property
    def points(self) -> dict[int, Difference]:
        """The difference in F1 at each k."""
        return {k: self.scores.difference(pairs, self.set_name) for k, pairs in self.pairs.items()}

    @property
    def area(self) -> Difference:
        """The difference of the areas under the two curves."""
        return average_difference(point for k, point in self.points.items() if k)


@dataclass(frozen=True, eq=False)
class MeanCurveDifference:
    """The mean of the differences of curves over sources and sets.

    Attributes:
        curves: one or more with the same k; they differ in the source, the target and the set only.
    """

    curves: Sequence[CurveDifference]

    @property
    def all_runs(self) -> Runs:
        return runs_of(*(curve.all_runs for curve in self.curves))

    @cached_property
    def points(self) -> dict[int, Difference]:
        """The mean difference in F1 at each k."""
        return {
            k: average_difference(curve.points[k] for curve in self.curves) for k in self.curves[0].points
        }

    @property
    def area(self) -> Difference:
        """The mean difference of the areas under the curves."""
        return average_difference(point for k, point in self.points.items() if k)


def mean_differences(found: Iterable[CurveDifference]) -> list[MeanCurveDifference]:
    """Average the differences of curves that differ in the source, the target and the set only."""
    groups: dict[Hashable, list[CurveDifference]] = {}
    for curve in found:
        setting, task = curve.setting, curve.task
        model = (setting.scale, setting.variant, setting.step, setting.tuning)
        groups.setdefault((model, task[1:], *curve.pairs), []).append(curve)
    return [MeanCurveDifference(members) for members in groups.values()]


def curve_differences(
    collection: Collection, tagger_pairs: Mapping[Setting, Pairs], scores: Scores
) -> list[CurveDifference]:
    """Compare the curves of paired taggers.

    Args:
        tagger_pairs: pairs of taggers that differ in the arm only, by the setting of the first.
    """
    by_tagger = _by_tagger(samples(collection)[0])
    found = []
    for setting, pairs in tagger_pairs.items():
        by_task: dict[Task, list[tuple[Sample, Sample]]] = {}
        for first, second in pairs:
            for task, of_first in by_tagger.get(first.path, {}).items():
                counterparts = {
                    (sample.k, sample.series): sample
                    for sample in by_tagger.get(second.path, {}).get(task, [])
                }
                by_task.setdefault(task, []).extend(
                    (sample, counterparts[sample.k, sample.series])
                    for sample in of_first
                    if (sample.k, sample.series) in counterparts
                )
        for task, matched in by_task.items():
            found += _differences(setting, task, pairs, matched, scores)
    return found


def _differences(
    setting: Setting, task: Task, taggers: Pairs, matched: Sequence[tuple[Sample, Sample]], scores: Scores
) -> list[CurveDifference]:
    """Compare on every set that all pairs were scored on, with the samples that exist at every k."""
    kept = set(_complete([first for first, _ in matched])[0])
    shots = [pair for pair in matched if pair[0] in kept]
    if not shots:
        return []
    with_samples = {first.tagger for first, _ in shots}
    pairs: dict[int, list[tuple[FinetuneRun, FinetuneRun]]] = {
        0: [pair for pair in taggers if pair[0].path in with_samples]
    }
    for first, second in shots:
        pairs.setdefault(first.k, []).append((first.run, second.run))
    names = _scored_sets(task, [run for of_k in pairs.values() for pair in of_k for run in pair])
    return [
        CurveDifference(setting, task, name, pairs, scores)
        for name in names
        if all(len(comparable(of_k, name)) == len(of_k) for of_k in pairs.values())
    ]


def _by_tagger(found: Iterable[Sample]) -> dict[Path, dict[Task, list[Sample]]]:
    """Return the samples of each tagger by task, in order of k."""
    by_tagger: dict[Path, dict[Task, list[Sample]]] = {}
    for sample in sorted(found, key=lambda sample: sample.k):
        by_tagger.setdefault(sample.tagger, {}).setdefault(sample.task, []).append(sample)
    return by_tagger


def _complete(found: Sequence[Sample]) -> tuple[list[Sample], int]:
    """Return the samples of those (tagger, series) that exist at every k, and the number of the others."""
    sizes = {sample.k for sample in found}
    by_series: dict[tuple[Path, tuple[int, int]], set[int]] = {}
    for sample in found:
        by_series.setdefault((sample.tagger, sample.series), set()).add(sample.k)
    kept = [sample for sample in found if by_series[sample.tagger, sample.series] == sizes]
    return kept, len(found) - len(kept)


def _scored_sets(task: Task, runs: Sequence[FinetuneRun]) -> list[str]:
    """Return the sets in the language of the target that all runs were scored on."""
    names = set.intersection(*({*run.sets} for run in runs)) if runs else set()
    return sorted(name for name in names if language(name) == language(task.target))
