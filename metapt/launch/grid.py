"""From a grid to its plan: the jobs, and what each waits for. Nothing here touches the disk.

prepare (one per corpus) -> pretrain (size x objective x seed x variant)
                         -> finetune (pretrain x source x tuning x checkpoint) -> report
finetune (further model x source x tuning x seed), baseline (x source, if it learns) -> report
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from metapt.config import (
    TUNINGS,
    ClusterConfig,
    GridConfig,
    PretrainConfig,
    SubmitConfig,
    commandline,
    uneven_units,
)
from metapt.errors import UserError
from metapt.evaluation.baselines import BASELINES
from metapt.launch import run_identity
from metapt.launch.jobs import Job, Plan
from metapt.models.pretrained import HUB_PREFIX
from metapt.runs import Run

SET_BY_THE_GRID = {
    "pretrain": {"model", "objective", "train.seed", "variant", "data.cache_dir", "run_dir"},
    "finetune": {"checkpoint", "source", "tuning", "train.seed", "run_dir"},
}


def plan(config: SubmitConfig) -> Plan:
    """The jobs of a grid, in an order in which each comes after the ones that it needs.

    Raises:
        UserError: with every mistake in the grid and in the command lines that it makes.
    """
    grid, root = config.grid, Path(config.root)
    complaints = list(_complaints(grid))
    if complaints:
        raise _mistakes(grid, complaints)
    pretrains = list(_pretrains(grid, config.cluster, root))
    finetunes = [job for pretrain in pretrains for job in _finetunes(grid, config.cluster, root, pretrain)]
    finetunes += _model_finetunes(grid, config.cluster, root)
    baselines = list(_baselines(grid, root))
    configs, complaints = _load([*pretrains, *finetunes, *baselines])
    complaints += _checkpoint_complaints(grid, pretrains, configs)
    complaints += _gpu_complaints(config.cluster, pretrains, configs)
    if complaints:
        raise _mistakes(grid, complaints)
    (pretrains, finetunes, baselines), configs = _identified(pretrains, finetunes, baselines, configs, root)
    prepares, pretrains = _with_prepares(pretrains, configs)
    before = [*prepares, *pretrains, *finetunes, *baselines]
    needs = tuple(job.id for job in before)
    report = Job("report", "report", ("-m", "metapt", "report"), (str(root),), "report", needs)
    return Plan(grid.name, (*before, report), configs)


def merged(*overrides: Iterable[str]) -> list[str]:
    """The `key=value` words of several lists; of two for the same key, the later one."""
    return list({word.partition("=")[0]: word for word in chain.from_iterable(overrides)}.values())


def _pretrains(grid: GridConfig, cluster: ClusterConfig, root: Path) -> Iterator[Job]:
    for size, objective in product(grid.sizes, grid.objectives):
        for (variant, words), seed in product(_variants_of(objective, grid).items(), grid.seeds):
            yield _pretrain(grid, cluster, root, size, objective, variant, words, seed)


def _variants_of(objective: str, grid: GridConfig) -> dict[str, list[str]]:
    """The variants of an objective. Without episodes `meta.` means nothing, and those that differ in it alone are one."""
    variants: dict[str, list[str]] = grid.variants or {"": []}
    if objective != "vanilla":
        return variants
    distinct: dict[str, list[str]] = {}
    for name, words in variants.items():
        kept = [word for word in words if not word.startswith("meta.")]
        if kept not in distinct.values():
            distinct[name] = kept
    return distinct


def _pretrain(
    grid: GridConfig,
    cluster: ClusterConfig,
    root: Path,
    size: str,
    objective: str,
    variant: str,
    words: list[str],
    seed: int,
) -> Job:
    name = "-".join(filter(None, (size, objective, f"s{seed}", variant)))
    run_dir = f"pretrain/{name}"
    argv = merged(
        [f"model={size}", f"objective={objective}"],
        grid.pretrain,
        grid.per_size.get(size, []),
        grid.per_objective.get(objective, []),
        words,
        [commandline.word("train.seed", seed)],
        [commandline.word("variant", variant)] if variant else [],
        [
            commandline.word("data.cache_dir", root / "corpus"),
            commandline.word("run_dir", root / run_dir),
        ],
    )
    nodes, gpus = _resources(grid.gpus_per_size.get(size), cluster)
    return Job(
        run_dir,
        "pretrain",
        ("-m", "metapt.pretrain"),
        tuple(argv),
        run_dir,
        variant=variant,
        nodes=nodes,
        gpus_per_node=gpus,
        hours=grid.hours_per_size.get(size),
        mem_gb=grid.mem_gb_per_size.get(size),
    )


def _finetunes(grid: GridConfig, cluster: ClusterConfig, root: Path, pretrain: Job) -> Iterator[Job]:
    run = Run(root / pretrain.run_dir)
    seed = next(word for word in pretrain.argv if word.startswith("train.seed="))
    steps: Sequence[int | None] = [*(grid.checkpoints or (None,)), *_extra_checkpoints(grid, pretrain)]
    for source, tuning, step in product(grid.sources, grid.tunings, steps):
        name = "-".join(
            [Path(pretrain.run_dir).name, source, tuning, *([] if step is None else [f"step{step:06d}"])]
        )
        checkpoint = run.path if step is None else run.checkpoint(step)
        job = _finetune(grid, cluster, root, name, checkpoint, source, tuning, seed)
        yield replace(job, needs=(pretrain.id,), variant=pretrain.variant)


def _extra_checkpoints(grid: GridConfig, pretrain: Job) -> list[int]:
    """What is fine-tuned of a run besides, by its objective and by its variant."""
    objective = next(word for word in pretrain.argv if word.startswith("objective=")).partition("=")[2]
    names = dict.fromkeys((objective, pretrain.variant))
    steps = [step for name in names for step in grid.extra_checkpoints.get(name, [])]
    return [step for step in dict.fromkeys(steps) if step not in grid.checkpoints]


def _model_finetunes(grid: GridConfig, cluster: ClusterConfig, root: Path) -> Iterator[Job]:
    """Models that the grid does not pretrain, tuned as its own are."""
    for model, source, tuning, seed in product(grid.models, grid.sources, grid.tunings, grid.seeds):
        name = "-".join([folder_name(model), source, tuning, f"s{seed}"])
        word = commandline.word("train.seed", seed)
        yield _finetune(grid, cluster, root, name, model, source, tuning, word)


def folder_name(model: str) -> str:
    """A model's path or name on the hub as part of a folder's name."""
    return re.sub(r"[^\w.]+", "_", model.removeprefix(HUB_PREFIX), flags=re.ASCII).strip("_")


def _finetune(
    grid: GridConfig,
    cluster: ClusterConfig,
    root: Path,
    name: str,
    checkpoint: str | Path,
    source: str,
    tuning: str,
    seed: str,
) -> Job:
    """The job that tunes one checkpoint on one source; `seed` is a word of its command line."""
    run_dir = f"finetune/{name}"
    argv = merged(
        [commandline.word("ner.cache_dir", root / "features")],
        grid.finetune,
        grid.finetune_per_tuning.get(tuning, []),
        [commandline.word("checkpoint", checkpoint)],
        [commandline.word("source", source), commandline.word("tuning", tuning), seed],
        [commandline.word("run_dir", root / run_dir)],
    )
    gpus = min(1 if tuning == "head_only" else cluster.finetune_gpus, cluster.gpus_per_node)
    return Job(run_dir, "finetune", ("-m", "metapt.finetune"), tuple(argv), run_dir, gpus_per_node=gpus)


def _baselines(grid: GridConfig, root: Path) -> Iterator[Job]:
    """Each baseline on the data of the fine-tuning runs, if there are any; those that learn, on every source."""
    data = [word for word in grid.finetune if word.startswith(("data=", "data."))]
    for name in grid.baselines if grid.sources else []:
        for source in grid.sources if BASELINES[name].learns else [None]:
            run_dir = "-".join(filter(None, (f"baseline/{name}", source)))
            argv = [*data, commandline.word("name", name), commandline.word("run_dir", root / run_dir)]
            argv += [commandline.word("source", source)] if source else []
            yield Job(run_dir, "baseline", ("-m", "metapt.baseline"), tuple(argv), run_dir)


def _identified(
    pretrains: list[Job], finetunes: list[Job], baselines: list[Job], configs: dict[str, Any], root: Path
) -> tuple[list[list[Job]], dict[str, Any]]:
    """The runs and their configurations under their final names, which end with the hash of what they are."""
    final: dict[str, Job] = {}
    named: dict[str, Any] = {}
    digests: dict[str, str] = {}

    def rename(job: Job, digest: str, **paths: Path) -> Job:
        name = f"{job.id}-{digest}"
        paths["run_dir"] = root / name
        argv = merged(job.argv, (commandline.word(key, path) for key, path in paths.items()))
        named[name] = replace(configs[job.id], **{key: str(path) for key, path in paths.items()})
        final[job.id] = replace(job, id=name, run_dir=name, argv=tuple(argv))
        return final[job.id]

    for job in pretrains:
        digests[job.id] = run_identity.of_pretraining(configs[job.id])
        rename(job, digests[job.id])
    for job in finetunes:
        config = configs[job.id]
        if not job.needs:
            rename(job, run_identity.of_tagging(config, checkpoint=config.checkpoint))
            continue
        (needed,) = job.needs
        below = Path(config.checkpoint).relative_to(root / needed)  # which checkpoint, if not the last
        digest = run_identity.of_tagging(config, pretraining=digests[needed], checkpoint=str(below))
        renamed = rename(job, digest, checkpoint=root / final[needed].id / below)
        final[job.id] = replace(renamed, needs=(final[needed].id,))
    for job in baselines:
        rename(job, run_identity.of_tagging(configs[job.id]))
    return [[final[job.id] for job in jobs] for jobs in (pretrains, finetunes, baselines)], named


def _with_prepares(pretrains: list[Job], configs: dict[str, Any]) -> tuple[list[Job], list[Job]]:
    """One job per distinct corpus, and the pretraining jobs, each waiting for its own."""
    prepares: dict[str, Job] = {}
    waiting = []
    for job in pretrains:
        config: PretrainConfig = configs[job.id]
        name = f"prepare/{config.data.name}-{run_identity.of_corpus(config)}"
        argv = tuple(word for word in job.argv if word.partition("=")[0] not in ("run_dir", "variant"))
        prepares.setdefault(name, Job(name, "prepare", ("-m", "metapt.prepare"), argv, name))
        waiting.append(replace(job, needs=(name,)))
    return list(prepares.values()), waiting


def _resources(gpus: int | None, cluster: ClusterConfig) -> tuple[int, int]:
    """Nodes, and GPUs on each, of a pretraining job that wants so many GPUs (None: what the cluster says)."""
    if gpus is None or not cluster.gpus_per_node:
        return cluster.nodes, cluster.gpus_per_node
    per_node = min(gpus, cluster.gpus_per_node)
    return -(-gpus // per_node), per_node


def _load(jobs: Sequence[Job]) -> tuple[dict[str, Any], list[str]]:
    """The configuration of every job, and what is wrong with them: each mistake once, with the first job it is in."""
    configs: dict[str, Any] = {}
    found: dict[str, list[str]] = {}
    for job in jobs:
        try:
            configs[job.id] = commandline.load(job.kind, job.argv)
        except UserError as error:
            for line in str(error).splitlines()[1:]:  # the first line is a heading
                found.setdefault(line.strip(), []).append(job.id)
    complaints = []
    for line, ids in found.items():
        others = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        complaints.append(f"{line} (in {ids[0]}{others})")
    return configs, complaints


def _complaints(grid: GridConfig) -> Iterator[str]:
    for name in ("sizes", "objectives", "seeds", "sources", "tunings", "checkpoints", "baselines", "models"):
        repeated = [str(value) for value, count in Counter(getattr(grid, name)).items() if count > 1]
        if repeated:
            yield f"grid.{name}: {', '.join(repeated)} stands there twice"
    for name in ("sizes", "objectives", "seeds", *(["tunings"] if grid.sources else [])):
        if not getattr(grid, name):
            yield f"grid.{name} is empty: the grid has no runs"
    for name in grid.baselines:
        if name not in BASELINES:
            yield f"grid.baselines: {name!r} must be one of {', '.join(BASELINES)}"
    options = commandline.choices("pretrain")
    keyed = {
        "per_size": options["model"],
        "gpus_per_size": options["model"],
        "hours_per_size": options["model"],
        "mem_gb_per_size": options["model"],
        "per_objective": options["objective"],
        "finetune_per_tuning": TUNINGS,
    }
    for name, known in keyed.items():
        for value in set(getattr(grid, name)) - set(known):
            yield f"grid.{name}.{value}: must be one of {', '.join(known)}"
    for name in set(grid.extra_checkpoints) - set(grid.objectives) - set(grid.variants):
        yield f"grid.extra_checkpoints.{name}: neither an objective nor a variant of the grid"
    for name in ("gpus_per_size", "hours_per_size", "mem_gb_per_size"):
        for size, value in getattr(grid, name).items():
            if value <= 0:
                yield f"grid.{name}.{size}={value}: must be above 0"
    yield from _reserved(grid)


def _reserved(grid: GridConfig) -> Iterator[str]:
    """Keys that follow from the grid itself, and names that cannot be part of a folder's name."""
    lists = {("pretrain", "grid.pretrain"): grid.pretrain, ("finetune", "grid.finetune"): grid.finetune}
    for name in ("variants", "per_size", "per_objective"):
        lists |= {("pretrain", f"grid.{name}.{value}"): words for value, words in getattr(grid, name).items()}
    for tuning, words in grid.finetune_per_tuning.items():
        lists["finetune", f"grid.finetune_per_tuning.{tuning}"] = words
    for (command, place), words in lists.items():
        for word in words:
            if (name := word.partition("=")[0]) in SET_BY_THE_GRID[command]:
                yield f"{place}: {name} follows from the grid and cannot be set"
    for name in ("variants", "sources"):
        for value in getattr(grid, name):
            if not re.fullmatch(r"[\w.+]+", value, re.ASCII):
                yield f"grid.{name}: {value!r} becomes part of a folder's name: letters, digits, _ . and + only"


def _checkpoint_complaints(grid: GridConfig, pretrains: list[Job], configs: dict[str, Any]) -> list[str]:
    complaints = []
    for job in pretrains:
        config: PretrainConfig | None = configs.get(job.id)
        wanted = [*grid.checkpoints, *_extra_checkpoints(grid, job)]
        if config is None or not wanted:
            continue
        train = config.train
        absent = [
            step
            for step in wanted
            if not (
                0 <= step <= train.max_steps
                and (step % train.checkpoint_every == 0 or step == train.max_steps)
            )
        ]
        if absent:
            complaints.append(
                f"grid.checkpoints: {', '.join(map(str, absent))} will not exist in {job.id} "
                f"(train.max_steps={train.max_steps}, train.checkpoint_every={train.checkpoint_every})"
            )
        if train.keep_checkpoints:
            complaints.append(f"grid.checkpoints: {job.id} deletes old ones; set train.keep_checkpoints=0")
    return complaints


def _gpu_complaints(cluster: ClusterConfig, pretrains: list[Job], configs: dict[str, Any]) -> list[str]:
    complaints = []
    for job in pretrains:
        tasks = job.nodes * job.tasks_per_node
        uneven = uneven_units(configs[job.id], tasks) if job.id in configs else []
        complaints += [f"{job.id}: {each} must be a multiple of its {tasks} tasks" for each in uneven]
    if cluster.name != "slurm" and cluster.nodes > 1:
        complaints.append(f"cluster.nodes={cluster.nodes}: cluster={cluster.name} has one")
    return complaints


def _mistakes(grid: GridConfig, complaints: Iterable[str]) -> UserError:
    lines = list(dict.fromkeys(complaints))
    return UserError(f"grid {grid.name}: {len(lines)} mistake(s)" + "".join(f"\n  {line}" for line in lines))
