"""From root folders to typed records of finished runs; every other run is listed with what is the matter.

A run that is broken in any part (unreadable result, missing predictions, predictions that give another F1 than the
result says) is left out as a whole and named, so that no table mixes numbers that can be trusted with others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from metapt.data.iob2 import spans
from metapt.errors import UserError
from metapt.launch.root import Root
from metapt.ner.resampling import micro_f1
from metapt.ner.scoring import Span, conlleval_spans, count, span_figures
from metapt.runs import Run, read_jsonl

TARGET_LANGUAGES = ("tl", "ceb")
F1_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Setting:
    """What the two runs of a pair share, seeds and data aside."""

    scale: str
    label: str
    step: int | None
    regime: str
    source: str


@dataclass(frozen=True, eq=False)
class GoldSet:
    """The labelled sentences of an evaluation set. Runs that saw the same ones share one object."""

    name: str
    ids: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    spans: tuple[tuple[Span, ...], ...]

    @property
    def gold_spans(self) -> int:
        return sum(len(found) for found in self.spans)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one run predicted on one set. `counts` is [sentences, (correct, predicted, gold)]."""

    gold: GoldSet
    predicted: tuple[tuple[Span, ...], ...]
    counts: np.ndarray
    conlleval_f1: float
    per_type: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class PretrainRun:
    path: Path
    scale: str
    label: str
    objective: str
    seed: int
    parameters: int
    corpus: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]

    def lines(self, kind: str) -> list[Mapping[str, Any]]:
        """The metrics of one kind, by step."""
        return [line for line in self.metrics if line["kind"] == kind]


@dataclass(frozen=True, eq=False)
class FinetuneRun:
    """A tuned model, or a baseline. `losses` is [steps], nats per word; `seeds` is (pretraining, fine-tuning)."""

    path: Path
    objective: str
    setting: Setting
    seeds: tuple[int | None, int]
    parameters: int | None
    corpus: str
    provenance: Mapping[str, Any]
    result: Mapping[str, Any]
    losses: np.ndarray
    sets: Mapping[str, Evaluation]

    @property
    def is_baseline(self) -> bool:
        """Whether a baseline made it: its scale is then the baseline's name, and it may have no source."""
        return self.objective == "baseline"


@dataclass(frozen=True)
class LeftOut:
    """A run folder that is in no table, and why."""

    path: Path
    state: str
    reason: str


def _source_sets(run: FinetuneRun) -> Sequence[str]:
    return run.result.get("source_sets", run.setting.source.split("+"))


@dataclass
class Collection:
    roots: Sequence[Path]
    pretraining: list[PretrainRun] = field(default_factory=list)
    finetuning: list[FinetuneRun] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def generated(self) -> bool:
        """Whether any run was trained or tuned on generated text."""
        results = [run.result for run in self.pretraining] + [run.result for run in self.finetuning]
        return any(result.get("generated_data") for result in results)

    def set_names(self) -> list[str]:
        """The evaluation sets, target languages first, then by name."""
        names = {name for run in self.finetuning for name in run.sets}
        return sorted(names, key=lambda name: (not is_target(name), name))

    def target_sets(self) -> list[str]:
        """The sets that averages run over: those in the target languages; without any, those never tuned on."""
        names = self.set_names()
        sources = {name for run in self.finetuning for name in _source_sets(run)}
        targets = [name for name in names if is_target(name)]
        return targets or [name for name in names if name not in sources] or names

    def gold_sets(self, name: str) -> list[GoldSet]:
        """The different versions of a set that runs were evaluated on: one, unless the data changed in between."""
        return list(
            {
                id(run.sets[name].gold): run.sets[name].gold for run in self.finetuning if name in run.sets
            }.values()
        )

    def sizes(self, label: str | None = None) -> dict[str, int]:
        """Parameters by scale, where known, smallest first; of one variant (a vocabulary changes them), or of any."""
        tuned = [run for run in self.finetuning if label in (None, run.setting.label)]
        pretrained = [run for run in self.pretraining if label in (None, run.label)]
        found = {run.setting.scale: run.parameters or 0 for run in tuned}
        found |= {run.scale: run.parameters for run in pretrained}
        return dict(sorted(found.items(), key=lambda item: (item[1] or float("inf"), item[0])))


def is_target(set_name: str) -> bool:
    """Whether a set is in Tagalog or Cebuano, the languages that no corpus and no source has."""
    return not set(TARGET_LANGUAGES).isdisjoint(set_name.split("_"))


def newest_grid(folder: Path) -> Path:
    """The grid under `folder` in which a run wrote last.

    Raises:
        UserError: there is none.
    """
    candidates = [folder, *folder.iterdir()] if folder.is_dir() else []
    times = {root: max(_times(root), default=None) for root in candidates if root.is_dir()}
    written = {root: time for root, time in times.items() if time is not None}
    if not written:
        raise UserError(f"{folder.absolute()} holds no grid; give the folder of one, such as runs/demo")
    return max(written, key=lambda root: written[root])


def collect(roots: Sequence[Path]) -> Collection:
    """Reads every run under the roots; of a grid's folder, those that its present plan has.

    Raises:
        UserError: a root does not exist, or holds no run folder.
    """
    collection = Collection(roots)
    shared: dict[Any, GoldSet] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; give the folder of a grid")
        if not list(_run_folders(root)):
            raise UserError(
                f"{root} holds no run; a grid has folders pretrain/RUN, finetune/RUN or baseline/RUN"
            )
        others = _not_planned(root)
        reason = "superseded, or of another selection of the grid"
        collection.left_out += [LeftOut(path, "not of the present plan", reason) for path in others]
        for path in _run_folders(root, "pretrain"):
            if path not in others:
                _add(collection.pretraining, collection.left_out, path, _read_pretraining)
        for path in _run_folders(root, "finetune", "baseline"):
            if path not in others:
                _add(
                    collection.finetuning,
                    collection.left_out,
                    path,
                    lambda run: _read_finetuning(run, shared),
                )
    order = {scale: index for index, scale in enumerate(collection.sizes())}
    collection.pretraining = _unique(collection.pretraining, collection.left_out, pretraining_key)
    collection.finetuning = _unique(collection.finetuning, collection.left_out, finetuning_key)
    collection.pretraining.sort(
        key=lambda run: (order[run.scale], run.label, run.seed, run.objective != "vanilla")
    )
    collection.finetuning.sort(
        key=lambda run: (setting_order(run.setting, order), run.objective != "vanilla", _seeds(run))
    )
    return collection


def setting_order(setting: Setting, scales: Mapping[str, int]) -> tuple[Any, ...]:
    """Sort key: scale by size, then variant, regime, source, step."""
    return (scales[setting.scale], setting.label, setting.regime, setting.source, setting.step or 0)


def pretraining_key(run: PretrainRun) -> tuple[Any, ...]:
    """Equal for two runs that only differ in the objective."""
    return (run.scale, run.label, run.seed, run.corpus)


def finetuning_key(run: FinetuneRun) -> tuple[Any, ...]:
    """Equal for two runs that only differ in the objective of their pretraining."""
    return (run.setting, run.seeds, run.corpus)


def _seeds(run: FinetuneRun) -> tuple[int, int]:
    return (run.seeds[0] or 0, run.seeds[1])


def _run_folders(root: Path, *kinds: str) -> Iterator[Path]:
    for kind in kinds or ("pretrain", "finetune", "baseline"):
        if (root / kind).is_dir():
            yield from sorted(
                path for path in (root / kind).iterdir() if path.is_dir() and path.name[0] != "."
            )


def _not_planned(root: Path) -> list[Path]:
    """The run folders that the plan of a grid's folder does not have; none where there is no plan."""
    grid = Root(root)
    if not grid.plan_file.exists():
        return []
    return [root / name for name in grid.other_runs(grid.read_plan())]


def _times(root: Path) -> Iterator[float]:
    for path in _run_folders(root):
        run = Run(path)
        yield from (
            file.stat().st_mtime
            for file in (run.config_file, run.metrics_file, run.result_file)
            if file.exists()
        )


def _add(found: list[Any], left_out: list[LeftOut], path: Path, read: Callable[[Run], Any]) -> None:
    """Reads one run folder into `found`, or says in `left_out` why not."""
    run = Run(path)
    try:
        if run.is_done:
            found.append(read(run))
        else:
            left_out.append(_unfinished(run))
    except KeyError as error:
        left_out.append(LeftOut(path, "broken", f"no key {error} where one is expected"))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        left_out.append(LeftOut(path, "broken", _one_line(str(error))))


def _unique(runs: Iterable[Any], left_out: list[LeftOut], key: Callable[[Any], Any]) -> list[Any]:
    """The first run of every setting and objective; later ones are duplicates, which an average must not mix in."""
    first: dict[Any, Any] = {}
    for run in runs:
        same = first.setdefault((run.objective, key(run)), run)
        if same is not run:
            left_out.append(LeftOut(run.path, "duplicate", f"same setting and seed as {same.path}"))
    return list(first.values())


def _unfinished(run: Run) -> LeftOut:
    if run.error_file.exists():
        lines = [
            line
            for line in run.error_file.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.strip()
        ]
        return LeftOut(run.path, "failed", _one_line(lines[-1]) if lines else "error.txt is empty")
    if not run.config_file.exists():
        return LeftOut(run.path, "not begun", "no config.yaml")
    step = max((line["step"] for line in run.metrics()), default=0)
    return LeftOut(run.path, "unfinished", f"at step {step}")


def _read_pretraining(run: Run) -> PretrainRun:
    result, config = run.result(), run.config()
    origin = result["origin"]
    return PretrainRun(
        run.path,
        origin["model"],
        origin["label"],
        origin["objective"],
        origin["seed"],
        origin["parameters"],
        origin["corpus_fingerprint"],
        config,
        run.provenance(),
        result,
        sorted(run.metrics(), key=lambda line: line["step"]),
    )


def _read_finetuning(run: Run, shared: dict[Any, GoldSet]) -> FinetuneRun:
    result = run.result()
    origin = result["origin"]
    setting = Setting(
        origin["model"], origin.get("label", ""), origin.get("step"), result["regime"], result["source"]
    )
    sets = {name: _read_set(run, name, values, shared) for name, values in result["sets"].items()}
    return FinetuneRun(
        run.path,
        origin.get("objective", "other"),
        setting,
        (origin.get("seed"), result["seed"]),
        origin.get("parameters"),
        origin.get("corpus_fingerprint", ""),
        run.provenance(),
        result,
        np.array([line["loss_nats"] for line in run.metrics() if line["kind"] == "train"], dtype=np.float64),
        sets,
    )


def _read_set(run: Run, name: str, values: Mapping[str, Any], shared: dict[Any, GoldSet]) -> Evaluation:
    """The predictions on one set, checked against the F1 of the result."""
    path = run.predictions_dir / f"{name}.jsonl"
    if not path.is_file():
        raise ValueError(f"predictions/{path.name} is missing")
    lines = list(read_jsonl(path))
    for number, line in enumerate(lines, 1):
        if not len(line["words"]) == len(line["gold"]) == len(line["predicted"]):
            raise ValueError(f"predictions/{path.name}, line {number}: not as many tags as words")
    ids = tuple(str(line["id"]) for line in lines)
    words = tuple(tuple(line["words"]) for line in lines)
    gold_spans = tuple(tuple(spans(line["gold"])) for line in lines)
    gold = shared.setdefault((name, ids, words, gold_spans), GoldSet(name, ids, words, gold_spans))
    predicted = tuple(tuple(spans(line["predicted"])) for line in lines)
    counts = count(predicted, gold.spans)
    f1 = float(micro_f1(counts.sum(axis=0)))
    if abs(f1 - values["f1"]) > F1_TOLERANCE:
        raise ValueError(f"predictions/{path.name} give F1 {f1:.4f}, result.json says {values['f1']:.4f}")
    lax = span_figures(
        [line["gold"] for line in lines], [line["predicted"] for line in lines], conlleval_spans
    )
    return Evaluation(gold, predicted, counts, lax["f1"], values["per_type"])


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "no message"
