"""The checks of a grid: before its jobs are made, and on their configurations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from math import ceil
from typing import Any

from metapt.config import (
    BASELINE_NAMES,
    TUNINGS,
    ClusterConfig,
    GridConfig,
    PretrainConfig,
    commandline,
)
from metapt.config.composition import group_options
from metapt.config.option_files import is_file, read_option_file
from metapt.errors import UserError
from metapt.launch.job_arguments import PROGRAMS, override_key
from metapt.launch.jobs import Job
from metapt.models.pretrained import HUB_PREFIX

LISTS = (
    *("sizes", "objectives", "seeds", "sources", "tunings", "checkpoints", "baselines", "models"),
    *("shots", "shot_targets", "shot_tunings", "subset_seeds", "finetune_seeds"),
)
PART_OF_A_NAME = re.compile(r"[\w.+]+", re.ASCII)
ALLOWED = "becomes part of a folder's name: only letters, digits, _ . and + are allowed"
SET_BY_THE_GRID = {  # keys that users cannot override, by command
    "pretrain": {"model", "objective", "train.seed", "variant", "data.cache_dir", "run_dir"},
    "finetune": {"checkpoint", "source", "tuning", "train.seed", "run_dir"},
}
NO_FOLDS = (
    "makes several runs of one and is for `metapt finetune folds=5` outside of a grid; jobs of single folds are "
    "grid.finetune_axes={data.fold:[1/5,2/5,3/5,4/5,5/5]}"
)
FOLD = r"'\d+/\d+'"  # as `value_text` quotes it
SET_BY_SHOTS = {"data.max_train_sentences", "data.entities_per_type", "data.subset_seed", "ner.max_steps"}


def grid_errors(grid: GridConfig) -> Iterator[str]:
    """What is wrong with the keys of a grid, before any job is made."""
    for name in LISTS:
        repeated = [str(value) for value, count in Counter(getattr(grid, name)).items() if count > 1]
        if repeated:
            yield f"grid.{name}: duplicate value {', '.join(repeated)}"
    names = yield from _size_names(grid)
    if not (grid.sizes or grid.models):
        yield "grid.sizes is empty: the grid has no runs; give sizes to pretrain, or models in grid.models"
    folders = Counter(map(model_name, set(grid.models)))
    for name in (name for name, count in folders.items() if count > 1):
        same = [model for model in grid.models if model_name(model) == name]
        yield f"grid.models: {', '.join(same)}: their runs would have the same name {name}; rename a folder or link it"
    if grid.models and not grid.sources:
        yield "grid.models: give the labelled sets to fine-tune them on in grid.sources"
    for name in (*(["objectives"] if grid.sizes else []), "seeds", *(["tunings"] if grid.sources else [])):
        if not getattr(grid, name):
            yield f"grid.{name} is empty: the grid has no runs"
    for name in grid.baselines:
        if name not in BASELINE_NAMES:
            yield f"grid.baselines: {name!r} must be one of {', '.join(BASELINE_NAMES)}"
    yield from _comparison_errors(grid)
    yield from _shot_errors(grid)
    yield from _axis_errors(grid)
    yield from _mapping_errors(grid, names)
    yield from _override_errors(grid)
    for name in ("variants", "sources", "shot_targets"):
        for value in getattr(grid, name):
            if not PART_OF_A_NAME.fullmatch(value):
                yield f"grid.{name}: {value!r} {ALLOWED}"


def _comparison_errors(grid: GridConfig) -> Iterator[str]:
    """Comparisons of the same arms that have a tuning in common: their tests would be corrected for each other."""
    for one, other in combinations(grid.comparisons, 2):
        if (one.first, one.second) != (other.first, other.second):
            continue
        first, second = ({*(each.tunings or TUNINGS)} for each in (one, other))
        if shared := sorted(first & second):
            yield f"grid.comparisons: duplicate comparison of {', '.join(shared)}, {one.first} minus {one.second}"


def model_name(model: str) -> str:
    """A model's path or name on the hub as part of a folder's name."""
    return re.sub(r"[^\w.]+", "_", model.removeprefix(HUB_PREFIX), flags=re.ASCII).strip("_")


def size_name(size: str) -> str:
    """The name of a model size: an option of `model=`, or a .yaml file.

    Raises:
        UserError: the file cannot be read.
    """
    return read_option_file("pretrain", "model", size).name if is_file(size) else size


def _size_names(grid: GridConfig) -> Generator[str, None, list[str]]:
    """Returns the names of the sizes of a grid and yields what is wrong with the files of those that have one."""
    names = []
    for size in grid.sizes:
        try:
            names.append(name := size_name(size))
        except UserError as error:
            yield f"grid.sizes: {error}"
            continue
        if is_file(size) and (name in group_options("pretrain")["model"] or names.count(name) > 1):
            yield f"grid.sizes: {size}: there is another size {name}; rename the file or its key name"
        if is_file(size) and not PART_OF_A_NAME.fullmatch(name):
            yield f"grid.sizes: {name!r} {ALLOWED}"
    return names


def _axis_errors(grid: GridConfig) -> Iterator[str]:
    for path, values in grid.finetune_axes.items():
        name = f"grid.finetune_axes.{path}"
        if path in SET_BY_THE_GRID["finetune"]:
            use = "; use grid.finetune_seeds" if path == "train.seed" else ""
            yield f"{name}: {path} is set by the grid and cannot be overridden{use}"
        if path == "folds":
            yield f"{name}: folds {NO_FOLDS}"
        if not values:
            yield f"{name} is empty: the grid has no fine-tuning runs"
        texts = [commandline.value_text(value) for value in values]
        if len(set(texts)) < len(texts):
            yield f"{name}: duplicate value"
        for value in texts:
            if not re.fullmatch(FOLD if path == "data.fold" else r"[\w.+-]+", value, re.ASCII):
                yield f"{name}: {value!r} {ALLOWED}"


def _shot_errors(grid: GridConfig) -> Iterator[str]:
    """What is missing for the k-shot runs of a grid, or contradicts them."""
    if bool(grid.shots) != bool(grid.shot_targets):
        yield "grid.shots and grid.shot_targets: give both or neither"
    for tuning in set(grid.shot_tunings) - set(grid.tunings):
        yield f"grid.shot_tunings: {tuning!r} is not one of grid.tunings ({', '.join(grid.tunings)})"
    if grid.shot_tunings and not grid.shots:
        yield "grid.shot_tunings: has no effect without grid.shots"
    if not grid.shots:
        return
    if not (grid.sources and grid.subset_seeds):
        yield "grid.shots: the grid has no k-shot runs without grid.sources and grid.subset_seeds"
    if min(grid.shots) < 1:
        yield f"grid.shots: {min(grid.shots)} must be at least 1; the tagger itself is the run with k = 0"
    if any("all" in source.split("+") for source in grid.sources):
        yield "grid.shots: name the sets of grid.sources=[all], so that targets among them are left out"
    for word in grid.finetune_shots:
        if (key := override_key(word)) in SET_BY_SHOTS:
            yield f"grid.finetune_shots: {key} is set by the grid and cannot be overridden"


def _mapping_errors(grid: GridConfig, names: Sequence[str]) -> Iterator[str]:
    """Unknown names and values that are not positive in the mappings of a grid."""
    options = group_options("pretrain")
    sizes = sorted({*options["model"], *names})
    allowed: dict[str, Sequence[str]] = {
        **dict.fromkeys(("per_size", "gpus_per_size", "hours_per_size", "mem_gb_per_size"), sizes),
        "per_objective": options["objective"],
        "finetune_per_tuning": list(TUNINGS),
    }
    for name, values in allowed.items():
        for value in set(getattr(grid, name)) - set(values):
            yield f"grid.{name}.{value}: must be one of {', '.join(values)}"
    for name in set(grid.extra_checkpoints) - set(grid.objectives) - set(grid.variants):
        yield f"grid.extra_checkpoints.{name}: neither an objective nor a variant of the grid"
    for name in ("gpus_per_size", "hours_per_size", "mem_gb_per_size"):
        for size, value in getattr(grid, name).items():
            if value <= 0:
                yield f"grid.{name}.{size}={value}: must be above 0"


def _override_errors(grid: GridConfig) -> Iterator[str]:
    """Overrides of keys that the grid sets itself."""
    lists: dict[tuple[str, str], Iterable[str]] = {
        ("pretrain", "grid.pretrain"): grid.pretrain,
        ("finetune", "grid.finetune"): grid.finetune,
        ("finetune", "grid.finetune_shots"): grid.finetune_shots,
    }
    for name in ("variants", "per_size", "per_objective"):
        for value, overrides in getattr(grid, name).items():
            lists["pretrain", f"grid.{name}.{value}"] = overrides
    for tuning, overrides in grid.finetune_per_tuning.items():
        lists["finetune", f"grid.finetune_per_tuning.{tuning}"] = overrides
    for (command, path), overrides in lists.items():
        for word in overrides:
            if (key := override_key(word)) in SET_BY_THE_GRID[command]:
                yield f"{path}: {key} is set by the grid and cannot be overridden"
            if key == "folds":
                yield f"{path}: folds {NO_FOLDS}"


def checkpoint_errors(
    pretrains: Sequence[Job], finetunes: Sequence[Job], configs: Mapping[str, Any]
) -> list[str]:
    """Checkpoints to fine-tune that their pretraining run will not write, or will delete."""
    wanted: dict[str, dict[int, None]] = {}
    for job in finetunes:
        if job.checkpoint_step is not None:
            wanted.setdefault(job.needs[0], {})[job.checkpoint_step] = None
    errors = []
    for job in pretrains:
        if job.id not in configs or job.id not in wanted:
            continue
        train = configs[job.id].train
        absent = [str(step) for step in wanted[job.id] if not _is_saved(step, configs[job.id])]
        if absent:
            errors.append(
                f"grid.checkpoints: {job.id} writes no checkpoint at step {', '.join(absent)} "
                f"(train.max_steps={train.max_steps}, train.checkpoint_every={train.checkpoint_every})"
            )
        if train.keep_checkpoints:
            errors.append(f"grid.checkpoints: {job.id} deletes old checkpoints; set train.keep_checkpoints=0")
    return errors


def _is_saved(step: int, config: PretrainConfig) -> bool:
    """Whether a run writes a checkpoint at a step."""
    train = config.train
    return step == train.max_steps or (0 <= step < train.max_steps and step % train.checkpoint_every == 0)


def resource_errors(grid: GridConfig, cluster: ClusterConfig) -> Iterator[str]:
    """Time limits that are none, and GPUs that cannot be spread evenly over nodes."""
    allowed = f"must be a positive number for one of {', '.join(PROGRAMS)}"
    for kind, minutes in cluster.timeout_min_per_kind.items():
        if kind not in PROGRAMS or minutes < 1:
            yield f"cluster.timeout_min_per_kind.{kind}={minutes}: {allowed}"
    for size, gpus in grid.gpus_per_size.items() if cluster.gpus_per_node else ():
        nodes = ceil(gpus / cluster.gpus_per_node)
        if nodes and gpus % nodes:
            yield (
                f"grid.gpus_per_size.{size}={gpus}: {nodes} nodes with at most cluster.gpus_per_node={cluster.gpus_per_node} "
                f"cannot have the same number each; give {gpus - gpus % nodes} or {gpus + nodes - gpus % nodes}"
            )
