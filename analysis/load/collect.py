"""From root folders to the records of finished runs; every other run folder is listed with the reason."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from metapt.errors import UserError
from metapt.launch.grid_dir import GridDir
from metapt.launch.jobs import RUN_KINDS, Plan
from metapt.provenance import COMMIT_FILE

from ..run_refs import distinct
from .cache import read_runs
from .contrasts import REFERENCE, Contrast, declared_contrasts, default_contrasts
from .distinction import distinguished, without_duplicates
from .records import TARGETS, ExcludedRun, FinetuneRun, GoldSet, PretrainRun, Setting, is_target
from .run_reader import MARKER_FILES, fingerprint
from .schema import EarlierTuning

CACHE_FILE = ".runs.msgpack"
MARGIN = 2.0
"""F1 points: the largest difference without practical importance, unless a grid or the command line says otherwise"""
NOT_PLANNED = "superseded, or of another selection of the grid"


@dataclass(frozen=True, eq=False)
class Collection:
    """The finished runs under some root folders, and the folders that are in no table.

    Runs that trained the tagger of another run further (`continued`) are in the section on k-shot learning only: their
    source is the language on which the others are zero-shot.
    """

    roots: Sequence[Path]
    pretraining: Sequence[PretrainRun] = ()
    finetuning: Sequence[FinetuneRun] = ()
    excluded: Sequence[ExcludedRun] = ()
    continued: Sequence[FinetuneRun] = ()
    contrasts: Sequence[Contrast] = ()
    targets: Sequence[str] = TARGETS
    margin: float = MARGIN

    def set_names(self) -> list[str]:
        """Return the evaluation sets, target languages first, then by name."""
        return sorted(self._gold_sets, key=lambda name: (not is_target(name, self.targets), name))

    def target_sets(self) -> list[str]:
        """Return the sets of averages: those in the target languages; without any, those that no run was tuned on."""
        names = self.set_names()
        targets = [name for name in names if is_target(name, self.targets)]
        return targets or [name for name in names if name not in self._sources] or names

    def other_language_sets(self) -> list[str]:
        """Return the sets in languages that are no target and that no run was tuned on, by the prefix of the name."""
        known = {language(name) for name in (*self._sources, *self.target_sets())}
        return [name for name in self.set_names() if language(name) not in known]

    def gold_sets(self, name: str) -> list[GoldSet]:
        """Return the versions of a set that runs were evaluated on: one, unless the data changed in between."""
        return list(self._gold_sets[name])

    @cached_property
    def _gold_sets(self) -> dict[str, dict[GoldSet, None]]:
        versions: dict[str, dict[GoldSet, None]] = {}
        for run in self.finetuning:
            for name, evaluation in run.sets.items():
                versions.setdefault(name, {})[evaluation.gold] = None
        return versions

    @cached_property
    def _sources(self) -> set[str]:
        return {name for run in self.finetuning for name in run.result.sources}

    def run_with(self, gold: GoldSet) -> FinetuneRun:
        """Return a run that was evaluated on this gold set."""
        return next(
            run for run in self.finetuning if any(evaluation.gold is gold for evaluation in run.sets.values())
        )

    def parameters_by_scale(self, variant: str | None = None) -> dict[str, int]:
        """Return the number of parameters of each scale, smallest first; 0 if it is unknown.

        Args:
            variant: count the models of one variant only; variants with another vocabulary differ in size.
        """
        tuned = [run for run in self.finetuning if variant in (None, run.setting.variant)]
        pretrained = [run for run in self.pretraining if variant in (None, run.variant)]
        sizes = {run.setting.scale: run.parameters or 0 for run in tuned}
        sizes |= {run.scale: run.parameters for run in pretrained}
        return dict(sorted(sizes.items(), key=lambda item: (item[1] or float("inf"), item[0])))


def newest_grid(folder: Path) -> Path:
    """Return the grid under `folder` in which a run was written last, or `folder` itself if it is a grid.

    Raises:
        UserError: there is none.
    """
    if any((folder / kind).is_dir() for kind in RUN_KINDS):
        return folder
    roots = [root for root in folder.iterdir() if root.is_dir()] if folder.is_dir() else []
    times = {root: max(_modification_times(root), default=None) for root in roots}
    written = {root: time for root, time in times.items() if time is not None}
    if not written:
        raise UserError(f"no grid in {folder.absolute()}; specify the folder of a grid, such as runs/demo")
    return max(written, key=lambda root: written[root])


def collect(
    roots: Sequence[Path],
    cache_dir: Path | None = None,
    targets: Sequence[str] = (),
    contrasts: Sequence[Contrast] = (),
    margin: float | None = None,
) -> Collection:
    """Read every run under the roots, at any depth; of a grid's folder, the runs of its current plan.

    Args:
        cache_dir: where records are cached; None for no cache.
        targets: languages or sets that averages are about; empty: those of the grids' plans, or else TARGETS.
        margin: the largest difference of F1 without practical importance, in points; None: the smallest of the grids' plans, or
            else MARGIN.
        contrasts: what is compared; empty: what the grids' plans declare, or else `default_contrasts`.
    Raises:
        UserError: a root does not exist or contains no run folder; a grid's plan cannot be read.
    """
    folders = _folders(roots)
    plans = _plans(folders)
    targets = targets or distinct(name for plan in plans.values() for name in plan.targets) or TARGETS
    not_planned = _not_planned(folders, plans)
    planned = {path: real for path, real in folders.items() if path not in not_planned}
    records = read_runs(planned, targets, cache_dir / CACHE_FILE if cache_dir else None)
    excluded = [ExcludedRun(path, "not in the plan", NOT_PLANNED) for path in not_planned]
    excluded += [record for record in records if isinstance(record, ExcludedRun)]
    tuned = [run for run in records if isinstance(run, FinetuneRun)]
    pretraining, finetuning = distinguished(
        [run for run in records if isinstance(run, PretrainRun)],
        [run for run in tuned if not run.is_continued],
    )
    pretraining = without_duplicates(pretraining, excluded)
    finetuning = without_duplicates(finetuning, excluded)
    continued = without_duplicates([run for run in tuned if run.is_continued], excluded, tuning_identity)
    if margin is None:
        margin = min((plan.margin for plan in plans.values()), default=MARGIN)
    contrasts = contrasts or declared_contrasts(plan.comparisons for plan in plans.values())
    contrasts = contrasts or default_contrasts([*pretraining, *finetuning])
    return _sorted(
        Collection(roots, pretraining, finetuning, excluded, continued, contrasts, targets, margin)
    )


def with_setting(run: FinetuneRun, **changes: Any) -> FinetuneRun:
    """Return a copy of the run with changes in its setting."""
    return msgspec.structs.replace(run, setting=msgspec.structs.replace(run.setting, **changes))


def _sorted(collection: Collection) -> Collection:
    """Put the runs in the order of the tables."""
    order = {scale: index for index, scale in enumerate(collection.parameters_by_scale())}
    return replace(
        collection,
        pretraining=sorted(
            collection.pretraining,
            key=lambda run: (order[run.scale], run.variant, run.seed, _objective_order(run.objective)),
        ),
        finetuning=sorted(
            collection.finetuning,
            key=lambda run: (
                _setting_order(run.setting, order),
                _objective_order(run.objective),
                _seeds(run),
            ),
        ),
    )


def _setting_order(setting: Setting, scales: Mapping[str, int]) -> tuple[Any, ...]:
    """Sort by size, then variant, tuning, source and step."""
    return (scales[setting.scale], setting.variant, setting.tuning, setting.source, setting.step or 0)


def _objective_order(objective: str) -> tuple[bool, str]:
    """Put the reference first."""
    return (objective != REFERENCE, objective)


def language(set_name: str) -> str:
    """Return the language of a set: `tl` of `tl_trg`."""
    return set_name.partition("_")[0]


def tuning_identity(run: FinetuneRun | EarlierTuning) -> str:
    """Return what identifies a fine-tuning run: its settings, and the hashes of the model and the data that it read."""
    result = run.result if isinstance(run, FinetuneRun) else run
    return json.dumps([result.settings, result.inputs], sort_keys=True)


def _seeds(run: FinetuneRun) -> tuple[int, int]:
    return (run.seeds[0] or 0, run.seeds[1])


def _folders(roots: Sequence[Path]) -> dict[Path, str]:
    """Return the run folders under the roots, each once, with their real paths."""
    by_real_path: dict[str, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; specify the folder of a grid")
        paths = list(run_folders(root))
        if not paths:
            raise UserError(
                f"{root} contains no run; a grid has folders pretrain/RUN, finetune/RUN or baseline/RUN"
            )
        for path in paths:
            by_real_path.setdefault(os.path.realpath(path), path)
    return {path: real for real, path in by_real_path.items()}


def _plans(folders: Iterable[Path]) -> dict[Path, Plan]:
    """Return the plans of the grids that these run folders belong to, by the grid's folder."""
    grids = (GridDir(folder) for folder in distinct(path.absolute().parent.parent for path in folders))
    return {grid.path: grid.read_plan() for grid in grids if grid.plan_file.exists()}


def _not_planned(folders: Iterable[Path], plans: Mapping[Path, Plan]) -> dict[Path, None]:
    """Return the run folders that are not in the plan of their grid, in order; none for a grid without a plan."""
    others = {grid / name for grid, plan in plans.items() for name in GridDir(grid).other_runs(plan)}
    return dict.fromkeys(path for path in folders if path.absolute() in others)


def run_folders(root: Path) -> Iterator[Path]:
    """Yield the folders under `root` that have a file of a run, and every folder where runs are; none within another.

    Symbolic links are followed, and each folder is visited once. Snapshots of the source code are skipped.
    """
    visited = set()
    for name, folders, files in os.walk(root, followlinks=True):
        path = Path(name)
        status = path.stat()
        if (status.st_dev, status.st_ino) in visited or COMMIT_FILE in files:
            folders.clear()
        elif path.parent.name in RUN_KINDS or not MARKER_FILES.isdisjoint(files):
            folders.clear()
            yield path
        else:
            folders[:] = sorted(folder for folder in folders if folder[0] != ".")
        visited.add((status.st_dev, status.st_ino))


def _modification_times(root: Path) -> Iterator[float]:
    """Yield when each file of each run under a root was last written."""
    yield from (file[2] for path in run_folders(root) for file in fingerprint(path))
