"""Pairs of runs: one of each arm of a contrast, with all else equal.

Models are paired first: the scale, the seed, the corpus and the model that they continued are equal, and so are all
settings but those that belong to the objective or that the contrast lets differ. Fine-tuning runs of two paired models
are paired if they agree in step, source, seed and settings. A run whose counterpart differs in anything else is in no
comparison, and is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, NamedTuple, TypeVar

from metapt.launch.detectability import is_in

from ..load.collect import Collection
from ..load.contrasts import PRETRAINING_KEYS, Contrast
from ..load.distinction import pretraining_settings, scale_of, tuning_settings, variant_of
from ..load.records import FinetuneRun, PretrainRun, Setting

T = TypeVar("T")

DEFINITION = (
    "Contrasts: a comparison names two arms (an objective, or one variant of it), and is first minus second. Two models are paired if "
    "scale, seed, corpus and the model that they continued, if any, are equal, and all settings of pretraining but those of the objective; two fine-tuning runs if also the "
    "pretraining step, the source, the seed and all settings of fine-tuning are equal. A contrast may let further keys differ, such as a "
    "learning rate that is chosen for each arm by the same rule. A run whose counterpart differs in any other setting is compared with "
    "nothing and is listed under Unmatched runs. Variants that have one counterpart in common share it."
)


class Model(NamedTuple):
    """A pretrained model, of which there may be several fine-tuned checkpoints."""

    objective: str
    variant: str
    scale: str
    seed: int | None
    corpus: str


class Unmatched(NamedTuple):
    """A run that has no counterpart, and why."""

    run: FinetuneRun
    reason: str


@dataclass(frozen=True, eq=False)
class Pairing:
    """The pairs of a contrast: (first, second) by the setting of the first run, one pair for each seed."""

    contrast: Contrast
    pairs: Mapping[Setting, list[tuple[FinetuneRun, FinetuneRun]]]
    unmatched: Sequence[Unmatched]


def model_of(run: PretrainRun | FinetuneRun) -> Model:
    """Return which model a run pretrained, or was tuned from."""
    seed = run.seed if isinstance(run, PretrainRun) else run.seeds[0]
    return Model(run.objective, variant_of(run), scale_of(run), seed, run.corpus)


def models(collection: Collection) -> dict[Model, dict[str, Any]]:
    """Return the models of all runs with the settings of their pretraining (empty if they are not known)."""
    found: dict[Model, dict[str, Any]] = {}
    runs: list[PretrainRun | FinetuneRun] = [*collection.finetuning, *collection.pretraining]
    for run in runs:
        found[model_of(run)] = pretraining_settings(run) or found.get(model_of(run), {})
    return found


def counterparts(
    known: Mapping[Model, Mapping[str, Any]], contrast: Contrast
) -> tuple[dict[Model, Model], dict[Model, str]]:
    """Pair the models of the first arm with those of the second.

    Args:
        known: the settings of every model.
    Returns:
        The counterpart of each model of the first arm that has one; and for the others with a similar model in the second arm
        the reason why it is no counterpart.
    """
    paired: dict[Model, Model] = {}
    reasons: dict[Model, str] = {}
    second = [model for model in known if is_in(model.objective, model.variant, contrast.second)]
    for model, settings in known.items():
        if not is_in(model.objective, model.variant, contrast.first):
            continue
        same = [other for other in second if other[2:] == model[2:] and other != model]
        match = _counterpart(
            same,
            lambda other: known[other],
            settings,
            lambda key: _is_free(key, contrast),
            model.variant,
            lambda other: other.variant,
        )
        if isinstance(match, Model):
            paired[model] = match
        elif match:
            reasons[model] = match
    return paired, reasons


def _is_free(key: str, contrast: Contrast) -> bool:
    """Whether a key of pretraining may differ: those of the objective, and those that the contrast names."""
    of_objective = not any(fnmatch(key, pattern) for pattern in PRETRAINING_KEYS)
    return of_objective or any(fnmatch(key, pattern) for pattern in contrast.may_differ)


def pairing(collection: Collection, contrast: Contrast) -> Pairing:
    """Pair the fine-tuning runs of both arms that agree in all else."""
    known = models(collection)
    partners, model_reasons = counterparts(known, contrast)
    by_design: dict[tuple[Any, ...], list[FinetuneRun]] = {}
    for run in collection.finetuning:
        if is_in(run.objective, run.setting.variant, contrast.second):
            by_design.setdefault(_design(run, model_of(run)), []).append(run)
    pairs: dict[Setting, list[tuple[FinetuneRun, FinetuneRun]]] = {}
    unmatched = []
    for run in collection.finetuning:
        model = model_of(run)
        if not is_in(model.objective, model.variant, contrast.first) or not tuning_is_compared(run, contrast):
            continue
        match: FinetuneRun | str = model_reasons.get(model, "")
        if model in partners:
            match = tuned_counterpart(run, by_design.get(_design(run, partners[model]), ()), contrast)
        if isinstance(match, FinetuneRun):
            pairs.setdefault(run.setting, []).append((run, match))
        elif match:
            unmatched.append(Unmatched(run, match))
    return Pairing(contrast, pairs, unmatched)


def tuning_is_compared(run: FinetuneRun, contrast: Contrast) -> bool:
    """Whether the contrast compares this way of fine-tuning."""
    return not contrast.tunings or run.result.tuning in contrast.tunings


def tuned_counterpart(
    run: FinetuneRun, others: Sequence[FinetuneRun], contrast: Contrast
) -> FinetuneRun | str:
    """Return the one of `others` with the same settings of fine-tuning, or the reason why there is none; "" without others."""
    return _counterpart(
        others,
        tuning_settings,
        tuning_settings(run),
        lambda key: any(fnmatch(key, pattern) for pattern in contrast.may_differ),
        run.setting.tuning,
        lambda other: other.setting.tuning,
    )


def _design(run: FinetuneRun, model: Model) -> tuple[Any, ...]:
    """Return what the two runs of a pair have in common beside settings, for a run of `model`."""
    return (model, run.setting.step, *tuned_design(run))


def tuned_design(run: FinetuneRun) -> tuple[str, str, int]:
    """Return what two fine-tuning runs of different checkpoints have in common, to be paired."""
    return (run.result.tuning, run.setting.source, run.seeds[1])


def _counterpart(
    others: Iterable[T],
    settings_of: Callable[[T], Mapping[str, Any]],
    settings: Mapping[str, Any],
    is_free: Callable[[str], bool],
    name: str,
    name_of: Callable[[T], str],
) -> T | str:
    """Return the one that differs in free keys only, or a reason; of several, the one of the same name."""
    fitting, reasons = [], []
    for other in others:
        values = settings_of(other)
        common = settings.keys() & values.keys()
        differing = sorted(key for key in common if settings[key] != values[key] and not is_free(key))
        if differing:
            reasons.append(", ".join(f"{key} ({settings[key]}, {values[key]})" for key in differing))
        else:
            fitting.append(other)
    if len(fitting) > 1:
        named = [other for other in fitting if name_of(other) == name]
        fitting = named or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        return f"{len(fitting)} counterparts fit equally: {', '.join(map(name_of, fitting))}"
    return f"differs in {min(reasons, key=len)}" if reasons else ""
