"""From root folders to the records of finished runs; every other run is listed with what is the matter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from metapt.errors import UserError
from metapt.launch.grid_dir import Root
from metapt.launch.jobs import RUN_KINDS
from metapt.provenance import COMMIT_FILE

from .cache import Cache
from .records import FinetuneRun, GoldSet, LeftOut, PretrainRun, Setting, is_target
from .run_reader import MARKS, stamp

CACHE_FILE = ".runs.sqlite"
NOT_PLANNED = "superseded, or of another selection of the grid"


@dataclass(frozen=True, eq=False)
class Collection:
    roots: Sequence[Path]
    pretraining: Sequence[PretrainRun] = ()
    finetuning: Sequence[FinetuneRun] = ()
    left_out: Sequence[LeftOut] = ()

    @property
    def generated(self) -> bool:
        """Whether any run was trained or tuned on generated text."""
        runs: list[PretrainRun | FinetuneRun] = [*self.pretraining, *self.finetuning]
        return any(run.result.generated_data for run in runs)

    def set_names(self) -> list[str]:
        """The evaluation sets, target languages first, then by name."""
        return sorted(self._gold_sets, key=lambda name: (not is_target(name), name))

    def target_sets(self) -> list[str]:
        """The sets that averages run over: those in the target languages; without any, those never tuned on."""
        names = self.set_names()
        targets = [name for name in names if is_target(name)]
        return targets or [name for name in names if name not in self._sources] or names

    def other_sets(self) -> list[str]:
        """The sets in languages that are no target and that no run was tuned on (a set's name begins with its language)."""
        known = {language(name) for name in (*self._sources, *self.target_sets())}
        return [name for name in self.set_names() if language(name) not in known]

    def gold_sets(self, name: str) -> list[GoldSet]:
        """The different versions of a set that runs were evaluated on: one, unless the data changed in between."""
        return list(self._gold_sets[name])

    @cached_property
    def _gold_sets(self) -> dict[str, dict[GoldSet, None]]:
        found: dict[str, dict[GoldSet, None]] = {}
        for run in self.finetuning:
            for name, evaluation in run.sets.items():
                found.setdefault(name, {})[evaluation.gold] = None
        return found

    @cached_property
    def _sources(self) -> set[str]:
        return {name for run in self.finetuning for name in run.result.sources}

    def holder(self, gold: GoldSet) -> FinetuneRun:
        """A run whose predictions hold these sentences."""
        return next(run for run in self.finetuning if any(found.gold is gold for found in run.sets.values()))

    def sizes(self, label: str | None = None) -> dict[str, int]:
        """Parameters by scale, where known, smallest first; of one variant (a vocabulary changes them), or of any."""
        tuned = [run for run in self.finetuning if label in (None, run.setting.variant)]
        pretrained = [run for run in self.pretraining if label in (None, run.variant)]
        found = {run.setting.scale: run.parameters or 0 for run in tuned}
        found |= {run.scale: run.parameters for run in pretrained}
        return dict(sorted(found.items(), key=lambda item: (item[1] or float("inf"), item[0])))


def newest_grid(folder: Path) -> Path:
    """The grid under `folder` in which a run wrote last; `folder` itself, if it is one.

    Raises:
        UserError: there is none.
    """
    if any((folder / kind).is_dir() for kind in RUN_KINDS):
        return folder
    roots = [root for root in folder.iterdir() if root.is_dir()] if folder.is_dir() else []
    times = {root: max(_times(root), default=None) for root in roots}
    written = {root: time for root, time in times.items() if time is not None}
    if not written:
        raise UserError(f"{folder.absolute()} holds no grid; give the folder of one, such as runs/demo")
    return max(written, key=lambda root: written[root])


def collect(roots: Sequence[Path], cache_dir: Path | None = None) -> Collection:
    """Reads every run under the roots, at any depth; of a grid's folder, those that its present plan has.

    Args:
        cache_dir: where the records are kept for the next time; absent: nowhere.
    Raises:
        UserError: a root does not exist, or holds no run folder; a grid's plan cannot be read.
    """
    folders = _folders(roots)
    others = _not_planned(folders)
    left_out = [LeftOut(path, "not of the present plan", NOT_PLANNED) for path in others]
    records = Cache(cache_dir / CACHE_FILE if cache_dir else None).records({path: real for path, real in folders.items() if path not in others})  # fmt: skip
    left_out += [record for record in records if isinstance(record, LeftOut)]
    pretraining = _unique((run for run in records if isinstance(run, PretrainRun)), left_out, pretraining_key)
    finetuning = _unique((run for run in records if isinstance(run, FinetuneRun)), left_out, finetuning_key)
    return _sorted(Collection(roots, pretraining, finetuning, left_out))


def with_reference(collection: Collection) -> Collection:
    """Vanilla stands under each variant of its scale and corpus that has none of its own, if it is of one variant itself.

    A grid runs vanilla once for variants that differ in the episodes alone.
    """
    pretraining, finetuning = list(collection.pretraining), list(collection.finetuning)
    labels: dict[tuple[str, str], dict[str, set[str]]] = {}
    for scale, corpus, label, objective in [
        *((run.scale, run.corpus, run.variant, run.objective) for run in pretraining),
        *((run.setting.scale, run.corpus, run.setting.variant, run.objective) for run in finetuning),
    ]:
        labels.setdefault((scale, corpus), {"vanilla": set()}).setdefault(objective, set()).add(label)
    for (scale, corpus), found in labels.items():
        shared, which = found.get("maml", set()) - found["vanilla"], ("vanilla", scale, corpus)
        for label in shared if len(found["vanilla"]) == 1 else ():
            pretraining += [replace(run, variant=label) for run in collection.pretraining if (run.objective, run.scale, run.corpus) == which]  # fmt: skip
            finetuning += [replace(run, setting=replace(run.setting, variant=label)) for run in collection.finetuning if (run.objective, run.setting.scale, run.corpus) == which]  # fmt: skip
    return _sorted(replace(collection, pretraining=pretraining, finetuning=finetuning))


def _sorted(collection: Collection) -> Collection:
    """In the order of the tables."""
    order = {scale: index for index, scale in enumerate(collection.sizes())}
    return replace(
        collection,
        pretraining=sorted(
            collection.pretraining,
            key=lambda run: (order[run.scale], run.variant, run.seed, run.objective != "vanilla"),
        ),
        finetuning=sorted(
            collection.finetuning,
            key=lambda run: (setting_order(run.setting, order), run.objective != "vanilla", _seeds(run)),
        ),
    )


def setting_order(setting: Setting, scales: Mapping[str, int]) -> tuple[Any, ...]:
    """Sort key: scale by size, then variant, tuning, source, step."""
    return (scales[setting.scale], setting.variant, setting.tuning, setting.source, setting.step or 0)


def language(set_name: str) -> str:
    """`tl` of `tl_trg`."""
    return set_name.partition("_")[0]


def pretraining_key(run: PretrainRun) -> tuple[Any, ...]:
    """Equal for two runs that only differ in the objective."""
    return (run.scale, run.variant, run.seed, run.corpus)


def finetuning_key(run: FinetuneRun) -> tuple[Any, ...]:
    """Equal for two runs that only differ in the objective of their pretraining."""
    return (run.setting, run.seeds, run.corpus)


def _seeds(run: FinetuneRun) -> tuple[int, int]:
    return (run.seeds[0] or 0, run.seeds[1])


def _folders(roots: Sequence[Path]) -> dict[Path, str]:
    """The run folders under the roots, each once, and where each truly is."""
    found: dict[str, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; give the folder of a grid")
        under = list(run_folders(root))
        if not under:
            raise UserError(
                f"{root} holds no run; a grid has folders pretrain/RUN, finetune/RUN or baseline/RUN"
            )
        for path in under:
            found.setdefault(os.path.realpath(path), path)
    return {path: real for real, path in found.items()}


def _not_planned(folders: Iterable[Path]) -> dict[Path, None]:
    """Those of the run folders that the plan of their grid's folder does not have; none where there is no plan."""
    by_grid: dict[Path, list[Path]] = {}
    for path in folders:
        by_grid.setdefault(path.absolute().parent.parent, []).append(path)
    found: dict[Path, None] = {}  # in the order of the folders
    for folder, paths in by_grid.items():
        grid = Root(folder)
        if grid.plan_file.exists():
            others = {folder / name for name in grid.other_runs(grid.read_plan())}
            found |= dict.fromkeys(path for path in paths if path.absolute() in others)
    return found


def run_folders(root: Path) -> Iterator[Path]:
    """The folders under `root` that hold a file of a run, and whatever else stands where runs do; none within another.

    Symbolic links are followed, each folder is visited once; copies of the source that jobs run are not looked into.
    """
    seen = set()
    for name, folders, files in os.walk(root, followlinks=True):
        path = Path(name)
        status = path.stat()
        if (status.st_dev, status.st_ino) in seen or COMMIT_FILE in files:
            folders.clear()
        elif path.parent.name in RUN_KINDS or not MARKS.isdisjoint(files):
            folders.clear()
            yield path
        else:
            folders[:] = sorted(folder for folder in folders if folder[0] != ".")
        seen.add((status.st_dev, status.st_ino))


def _times(root: Path) -> Iterator[float]:
    """When each file of each run under a root was written last."""
    yield from (file[2] for path in run_folders(root) for file in stamp(path))


def _unique(runs: Iterable[Any], left_out: list[LeftOut], key: Callable[[Any], Any]) -> list[Any]:
    """The first run of every setting and objective; later ones are duplicates, which an average must not mix in."""
    first: dict[Any, Any] = {}
    for run in runs:
        same = first.setdefault((run.objective, key(run)), run)
        if same is not run:
            left_out.append(LeftOut(run.path, "duplicate", f"same setting and seed as {same.path}"))
    return list(first.values())
