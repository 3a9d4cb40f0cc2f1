"""Runs of one name that differ in a setting get different names; of runs that differ in nothing the newest is kept.

Runs are named in the tables by scale, variant, tuning and so on. Where two runs with the same name differ in a key of
their configuration, this key and its value are added to the name of all runs of that name: to the variant if it is a key
of pretraining, to the tuning if it is one of fine-tuning. Keys of seeds, such as data.subset_seed, and the model that
pretraining continued may follow the training seed: they count only where runs with the same training seed differ in them. Runs that are still of one name and were
pretrained on different corpora get the corpus as part of their variant.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from .records import ExcludedRun, FinetuneRun, PretrainRun

NAMED = frozenset({"train.seed", "source", "tuning", "checkpoint", "name", "variant"})
"""settings that the tables show anyway"""
WITHOUT_EFFECT = frozenset(
    {"train.checkpoint_every", "train.eval_every", "train.eval_batches", "train.dynamics_every", "ds"}
)
"""settings that leave the trained weights alone, but for rounding"""
FOLLOWING_THE_SEED = ("seed", "init_sha256")
"""ends of the keys that may follow the training seed"""
R = TypeVar("R", bound=PretrainRun | FinetuneRun)


def pretraining_settings(run: PretrainRun | FinetuneRun) -> dict[str, Any]:
    """What decides the weights of the model that was pretrained, beside its seed; empty if it is not known."""
    return deciding(run.result.origin.settings)


def tuning_settings(run: FinetuneRun) -> dict[str, Any]:
    """What decides the outcome of fine-tuning, beside its seed, source and model: the settings and the inputs.

    The weights are an input only if nothing else is known of the model.
    """
    inputs = {
        name: digest[:8]
        for name, digest in run.result.inputs.items()
        if name != "weights" or not run.result.origin.settings
    }
    return deciding(run.result.settings) | inputs


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide trained weights and that the tables do not show anyway."""
    return {key: value for key, value in settings.items() if key not in NAMED | WITHOUT_EFFECT}


def distinguished(
    pretraining: Sequence[PretrainRun], finetuning: Sequence[FinetuneRun]
) -> tuple[list[PretrainRun], list[FinetuneRun]]:
    """Return the runs under names that tell them apart, where they differ in a setting."""
    renamed = _distinguished_models([*pretraining, *finetuning], pretraining_settings)
    renamed = _distinguished_models(renamed, _corpus)
    tuned = [run for run in renamed if isinstance(run, FinetuneRun)]
    additions = varied_settings(
        tuned, _tuned_name, lambda run: (run.seeds, run.corpus, run.setting.step), tuning_settings
    )
    return (
        [run for run in renamed if isinstance(run, PretrainRun)],
        [
            _with_tuning(run, _joined(run.setting.tuning, added))
            for run, added in zip(tuned, additions, strict=True)
        ],
    )


def _distinguished_models(
    runs: Sequence[PretrainRun | FinetuneRun],
    settings: Callable[[PretrainRun | FinetuneRun], Mapping[str, Any]],
) -> list[PretrainRun | FinetuneRun]:
    """Return the runs with what their models differ in as part of the variant."""
    additions = varied_settings(runs, _model_name, lambda run: (run.result.origin.seed, run.corpus), settings)
    return [
        _with_variant(run, _joined(variant_of(run), added))
        for run, added in zip(runs, additions, strict=True)
    ]


def _corpus(run: PretrainRun | FinetuneRun) -> dict[str, str]:
    """The corpus as a setting; its path is none, as corpora move. Empty if it is not known."""
    return {"corpus": run.corpus[:8]} if run.corpus else {}


def variant_of(run: PretrainRun | FinetuneRun) -> str:
    """Return the name of the variant of a run's pretraining."""
    return run.variant if isinstance(run, PretrainRun) else run.setting.variant


def scale_of(run: PretrainRun | FinetuneRun) -> str:
    """Return the scale of a run's model."""
    return run.scale if isinstance(run, PretrainRun) else run.setting.scale


def _model_name(run: PretrainRun | FinetuneRun) -> Hashable:
    return (run.objective, scale_of(run), variant_of(run))


def _tuned_name(run: FinetuneRun) -> Hashable:
    return (_model_name(run), run.setting.tuning, run.setting.source)


def varied_settings(
    runs: Sequence[R],
    name: Callable[[R], Hashable],
    repetition: Callable[[R], Hashable],
    settings: Callable[[R], Mapping[str, Any]],
) -> list[str]:
    """Return for each run the settings in which runs of its name differ, with its values; "" if in none.

    Args:
        repetition: within which a key that may follow the seed has to differ.
    """
    values: dict[Hashable, dict[tuple[Hashable, str], set[str]]] = {}
    shown = [{key: _shown(value) for key, value in settings(run).items()} for run in runs]
    for run, items in zip(runs, shown, strict=True):
        of_name = values.setdefault(name(run), {})
        for key, value in items.items():
            within = repetition(run) if key.endswith(FOLLOWING_THE_SEED) else None
            of_name.setdefault((within, key), set()).add(value)
    varied = {
        label: {key for (_, key), found in of_name.items() if len(found) > 1}
        for label, of_name in values.items()
    }
    return [
        ", ".join(f"{key}={items[key]}" for key in sorted(varied.get(name(run), set()) & set(items)))
        for run, items in zip(runs, shown, strict=True)
    ]


def _shown(value: Any) -> str:
    """Return a value as one would write it on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _joined(name: str, added: str) -> str:
    return ", ".join(filter(None, (name, added)))


def _with_variant(run: R, variant: str) -> R:
    if variant == variant_of(run):
        return run
    if isinstance(run, PretrainRun):
        return msgspec.structs.replace(run, variant=variant)
    return msgspec.structs.replace(run, setting=msgspec.structs.replace(run.setting, variant=variant))


def _with_tuning(run: FinetuneRun, tuning: str) -> FinetuneRun:
    if tuning == run.setting.tuning:
        return run
    return msgspec.structs.replace(run, setting=msgspec.structs.replace(run.setting, tuning=tuning))


def without_duplicates(
    runs: Iterable[R], excluded: list[ExcludedRun], identity: Callable[[R], Hashable] | None = None
) -> list[R]:
    """Return the newest of equal runs, and add the others to `excluded`.

    Args:
        identity: what is equal for equal runs; None: their name and seeds, after `distinguished`.
    """
    identify = identity or _identity
    newest: dict[Hashable, R] = {}
    for run in sorted(runs, key=lambda run: (run.provenance.started, str(run.path))):
        older = newest.pop(identify(run), None)
        if older is not None:
            reason = f"the same settings, seeds and inputs as {run.path}, which is newer"
            excluded.append(ExcludedRun(older.path, "duplicate", reason))
        newest[identify(run)] = run
    return list(newest.values())


def _identity(run: PretrainRun | FinetuneRun) -> Hashable:
    if isinstance(run, PretrainRun):
        return (_model_name(run), run.seed, run.corpus)
    return (run.objective, run.setting, run.seeds, run.corpus)
