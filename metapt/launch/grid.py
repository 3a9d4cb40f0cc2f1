"""From a grid to its plan: the jobs, and what each one needs. Nothing here reads or writes the grid folder.

prepare (one per corpus) -> pretrain (size x objective x seed x variant)
                         -> finetune (pretraining run x source x tuning x checkpoint) -> report
finetune (other model x source x tuning x seed) -> report
finetune (above) -> finetune (fine-tuned tagger x target x shots x subset seed) -> report
baseline (x source, if it learns) -> report
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

from metapt.config import (
    TRAINED_BASELINES,
    ClusterConfig,
    GridConfig,
    PretrainConfig,
    SubmitConfig,
    commandline,
)
from metapt.errors import UserError, listed
from metapt.launch import run_identity
from metapt.launch.grid_checks import checkpoint_errors, grid_errors, model_name, resource_errors, size_name
from metapt.launch.job_arguments import PROGRAMS, arguments, cache_folder, checkpoint_path, merged
from metapt.launch.jobs import Job, Plan

SHOT_KEYS = {"sentences": "data.max_train_sentences", "entities_per_type": "data.entities_per_type"}


def plan(config: SubmitConfig) -> Plan:
    """The jobs of a grid, each after the jobs that it needs, and all of a seed before those of the next one.

    Raises:
        UserError: lists every error in the grid and in the command lines of its jobs.
    """
    grid, cluster, root = config.grid, config.cluster, Path(config.root)
    _require_none(grid, grid_errors(grid))
    pretrains = list(_pretrains(grid, cluster))
    finetunes = [job for pretrain in pretrains for job in _finetunes(grid, cluster, pretrain)]
    finetunes += _model_finetunes(grid, cluster)
    shots = [job for tagger in finetunes for job in _shots(grid, tagger)]
    drafts = [
        *_by_seed([*pretrains, *finetunes, *shots], grid),
        *_baselines(grid),
    ]  # their ids have no hash yet
    cache = cache_folder(cluster, root)
    configs, errors = _load(drafts, root, cache)
    errors += checkpoint_errors(pretrains, finetunes, configs)
    errors += resource_errors(grid, cluster)
    _require_none(grid, errors)
    runs, configs = _with_hashes(drafts, configs, root)
    jobs = _with_prepares(runs, configs)
    jobs.append(Job("report", "report", needs=tuple(job.id for job in jobs)))
    rendered = (replace(job, program=PROGRAMS[job.kind], argv=arguments(job, root, cache)) for job in jobs)
    comparisons = tuple(asdict(comparison) for comparison in grid.comparisons)
    return Plan(grid.name, tuple(rendered), comparisons, tuple(grid.targets), grid.margin, configs)


def _require_none(grid: GridConfig, errors: Iterable[str]) -> None:
    lines = list(dict.fromkeys(errors))
    if lines:
        listed = "".join(f"\n  {line}" for line in lines)
        raise UserError(f"grid {grid.name}: {len(lines)} configuration error(s){listed}")


def _by_seed(jobs: Sequence[Job], grid: GridConfig) -> list[Job]:
    """All arms of one seed before the next seed, so that a grid that is stopped has whole comparisons."""
    seeds: list[int | None] = list(dict.fromkeys((*grid.seeds, *grid.finetune_seeds)))
    return sorted(jobs, key=lambda job: seeds.index(job.seed))


def _pretrains(grid: GridConfig, cluster: ClusterConfig) -> Iterator[Job]:
    for option, objective in product(grid.sizes, grid.objectives):
        size = size_name(option)
        nodes, gpus = _resources(grid.gpus_per_size.get(size), cluster)
        for (variant, overrides), seed in product(_variants_of(objective, grid).items(), grid.seeds):
            yield Job(
                f"pretrain/{_joined(size, objective, f's{seed}', variant)}",
                "pretrain",
                size=size,
                objective=objective,
                variant=variant,
                seed=seed,
                overrides=commandline.without_files(
                    "pretrain",
                    merged(
                        [commandline.quote_override("model", option), f"objective={objective}"],
                        grid.pretrain,
                        grid.per_size.get(size, []),
                        grid.per_objective.get(objective, []),
                        overrides,
                    ),
                ),
                nodes=nodes,
                gpus_per_node=gpus,
                hours=grid.hours_per_size.get(size),
                mem_gb=grid.mem_gb_per_size.get(size),
            )


def _variants_of(objective: str, grid: GridConfig) -> dict[str, list[str]]:
    """The variants of an objective, by name.

    Vanilla pretraining has no episodes: of variants that differ only in keys of these and of other loss terms, it has the first.
    """
    variants: dict[str, list[str]] = grid.variants or {"": []}
    if objective != "vanilla":
        return variants
    distinct: dict[str, list[str]] = {}
    for name, overrides in variants.items():
        kept = [word for word in overrides if not word.startswith(("meta.", "episodes.", "multitask."))]
        if kept not in distinct.values():
            distinct[name] = kept
    return distinct


def _resources(gpus: int | None, cluster: ClusterConfig) -> tuple[int, int]:
    """Nodes, and GPUs per node, of a pretraining job that needs `gpus` GPUs; None: what the cluster's keys say."""
    if gpus is None or not cluster.gpus_per_node:
        return cluster.nodes, cluster.gpus_per_node
    nodes = ceil(gpus / cluster.gpus_per_node)
    return nodes, gpus // nodes  # without a rest (resource_errors)


def _finetunes(grid: GridConfig, cluster: ClusterConfig, pretrain: Job) -> Iterator[Job]:
    """The fine-tuning jobs of a pretraining run."""
    steps: Sequence[int | None] = [*(grid.checkpoints or (None,)), *_extra_checkpoints(grid, pretrain)]
    seeds: Sequence[int | None] = grid.finetune_seeds or (None,)
    for job, step, seed in product(_tunings(grid, cluster, Path(pretrain.id).name), steps, seeds):
        checkpoint = "" if step is None else f"step{step:06d}"
        yield replace(
            job,
            id=_joined(job.id, checkpoint, "" if seed is None else f"finetune_s{seed}"),
            needs=(pretrain.id,),
            size=pretrain.size,
            objective=pretrain.objective,
            variant=pretrain.variant,
            seed=pretrain.seed,
            finetune_seed=seed,
            checkpoint_step=step,
        )


def _extra_checkpoints(grid: GridConfig, pretrain: Job) -> list[int]:
    """Further steps of a run to fine-tune: those of its objective and those of its variant."""
    names = dict.fromkeys((pretrain.objective, pretrain.variant))
    steps = [step for name in names for step in grid.extra_checkpoints.get(name, [])]
    return [step for step in dict.fromkeys(steps) if step not in grid.checkpoints]


def _model_finetunes(grid: GridConfig, cluster: ClusterConfig) -> Iterator[Job]:
    """The fine-tuning jobs of models that the grid does not pretrain."""
    for model in grid.models:
        jobs = _tunings(grid, cluster, model_name(model))
        for job, seed in product(jobs, grid.finetune_seeds or grid.seeds):
            yield replace(job, id=_joined(job.id, f"s{seed}"), model=model, seed=seed)


def _tunings(grid: GridConfig, cluster: ClusterConfig, name: str) -> Iterator[Job]:
    """The fine-tuning jobs of a model with this name, without the model and the seed. A frozen decoder uses one GPU."""
    axes = [
        [(key, commandline.value_text(value)) for value in values]
        for key, values in grid.finetune_axes.items()
    ]
    points = list(product(*axes))
    for source, tuning, point in product(grid.sources, grid.tunings, points):
        values = [_axis_name(key, value) for key, value in point]
        overrides = merged(
            grid.finetune,
            grid.finetune_per_tuning.get(tuning, []),
            (f"{key}={value}" for key, value in point),
        )
        yield Job(
            f"finetune/{_joined(name, source, tuning, *values)}",
            "finetune",
            source=source,
            tuning=tuning,
            overrides=commandline.without_files("finetune", overrides),
            gpus_per_node=min(1 if tuning == "head_only" else cluster.finetune_gpus, cluster.gpus_per_node),
        )


def _axis_name(key: str, value: str) -> str:
    """A value of an axis as part of a job's name; of data.fold='1/5', fold_1of5."""
    return f"{key.rpartition('.')[2]}_{value}".replace("'", "").replace("/", "of")


def _shots(grid: GridConfig, tagger: Job) -> Iterator[Job]:
    """The jobs that train a fine-tuned tagger further, on samples of the targets that are not among its sources."""
    is_extra = tagger.checkpoint_step is not None and tagger.checkpoint_step not in grid.checkpoints
    if is_extra or (grid.shot_tunings and tagger.tuning not in grid.shot_tunings):
        return
    targets = [target for target in grid.shot_targets if target not in tagger.source.split("+")]
    for target, shots, seed in product(targets, grid.shots, grid.subset_seeds):
        values = dict.fromkeys(SHOT_KEYS.values(), "null") | {SHOT_KEYS[grid.shot_unit]: str(shots)}
        values |= {"data.subset_seed": str(seed), "ner.max_steps": str(grid.shot_updates)}
        yield replace(
            tagger,
            id=f"finetune/{_joined(Path(tagger.id).name, target, f'k{shots}', f'subset{seed}')}",
            needs=(tagger.id,),
            source=target,
            model="",
            checkpoint_step=None,
            overrides=merged(
                tagger.overrides,
                grid.finetune_shots,
                (f"{name}={value}" for name, value in values.items()),
            ),
        )


def _baselines(grid: GridConfig) -> Iterator[Job]:
    """Every baseline on the data of the fine-tuning runs, if there are any; those that learn, once per source."""
    data = tuple(word for word in grid.finetune if re.match(r"data[.=]", word))
    data = commandline.without_files("baseline", data)
    for name in grid.baselines if grid.sources else []:
        for source in grid.sources if name in TRAINED_BASELINES else [""]:
            job_id = f"baseline/{_joined(name, source)}"
            yield Job(job_id, "baseline", source=source, baseline=name, overrides=data)


def _joined(*parts: str) -> str:
    """The readable part of a run's name."""
    return "-".join(filter(None, parts))


def _load(drafts: Sequence[Job], root: Path, cache: Path) -> tuple[dict[str, Any], list[str]]:
    """The configuration of every run by job id, and the errors in them: each one once, with the first job that has it."""
    configs: dict[str, Any] = {}
    jobs_with: dict[str, list[str]] = {}
    for job in drafts:
        try:
            configs[job.id] = commandline.load(job.kind, arguments(job, root, cache))
        except UserError as error:
            for line in str(error).splitlines()[1:]:  # the first line is a heading
                jobs_with.setdefault(line.strip(), []).append(job.id)
    errors = []
    for line, ids in jobs_with.items():
        errors.append(f"{line} (in {listed(ids, 1)})")
    return configs, errors


def _with_hashes(
    drafts: Sequence[Job], configs: dict[str, Any], root: Path
) -> tuple[list[Job], dict[str, Any]]:
    """The runs and their configurations under their final names, which end with the hash of their identity."""
    digests: dict[str, str] = {}  # by draft id
    final: dict[str, Any] = {}  # configurations by job id
    runs = []
    for draft in drafts:  # each comes after the run that it needs
        digests[draft.id] = digest = _identity(draft, configs[draft.id], digests)
        needs = tuple(f"{needed}-{digests[needed]}" for needed in draft.needs)
        job = replace(draft, id=f"{draft.id}-{digest}", needs=needs)
        paths = {"run_dir": str(root / job.run_dir)}
        if job.kind == "finetune":
            paths["checkpoint"] = checkpoint_path(job, root)
        final[job.id] = replace(configs[draft.id], **paths)
        runs.append(job)
    return runs, final


def _identity(draft: Job, config: Any, digests: dict[str, str]) -> str:
    """The hash of a run, given those of the runs that it needs."""
    if draft.kind == "pretrain":
        return run_identity.pretraining_digest(config)
    if draft.kind == "baseline":
        return run_identity.tagging_digest(config)
    if draft.model:
        return run_identity.tagging_digest(config, checkpoint=draft.model)
    (needed,) = draft.needs
    if needed.startswith("finetune/"):
        return run_identity.tagging_digest(config, tagger=digests[needed])
    step = draft.checkpoint_step
    checkpoint = "last" if step is None else str(step)
    return run_identity.tagging_digest(config, pretraining=digests[needed], checkpoint=checkpoint)


def _with_prepares(runs: Sequence[Job], configs: dict[str, Any]) -> list[Job]:
    """The runs after one job per distinct corpus, which the pretraining runs on that corpus need."""
    prepares: dict[str, Job] = {}
    complete = []
    for job in runs:
        if job.kind == "pretrain":
            config: PretrainConfig = configs[job.id]
            job_id = f"prepare/{config.data.name}-{run_identity.corpus_digest(config)}"
            first = replace(job, id=job_id, kind="prepare", variant="", nodes=1, gpus_per_node=0)
            prepares.setdefault(job_id, replace(first, hours=None, mem_gb=None))
            complete.append(replace(job, needs=(job_id,)))
        else:
            complete.append(job)
    return [*prepares.values(), *complete]
