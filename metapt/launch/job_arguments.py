"""The command line of a job, rendered from its fields."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from metapt.config import ClusterConfig, commandline
from metapt.launch.jobs import Job
from metapt.runs import Run

PROGRAMS = {
    "prepare": ("-m", "metapt.prepare"),
    "pretrain": ("-m", "metapt.pretrain"),
    "finetune": ("-m", "metapt.finetune_command"),
    "baseline": ("-m", "metapt.baseline"),
    "report": ("-m", "metapt", "report"),
}


def cache_folder(cluster: ClusterConfig, root: str | Path) -> Path:
    """The folder for token shards and downloads of the hub: `cluster.cache`, or else the grid folder."""
    return Path(cluster.cache or root).expanduser()


def arguments(job: Job, root: Path, cache: Path) -> tuple[str, ...]:
    """The words after the program of a job.

    Args:
        root: the grid folder.
        cache: the folder for token shards.
    """
    if job.kind == "report":
        return (str(root),)
    if job.kind == "prepare":
        return _pretraining(job, cache)
    run_dir = commandline.quote_override("run_dir", root / job.run_dir)
    if job.kind == "pretrain":
        variant = [commandline.quote_override("variant", job.variant)] if job.variant else []
        return merged(_pretraining(job, cache), variant, [run_dir])
    if job.kind == "finetune":
        return merged(_finetuning(job, root), [run_dir])
    source = [commandline.quote_override("source", job.source)] if job.source else []
    return merged(job.overrides, [commandline.quote_override("name", job.baseline)], source, [run_dir])


def checkpoint_path(job: Job, root: Path) -> str:
    """What a fine-tuning job tunes: another model, or the run or checkpoint of the one job that it needs.

    That job is a pretraining run, or the fine-tuning run whose tagger is trained further.
    """
    if job.model:
        return job.model
    run = Run(root / job.needs[0])
    return str(run.path if job.checkpoint_step is None else run.checkpoint(job.checkpoint_step))


def merged(*overrides: Iterable[str]) -> tuple[str, ...]:
    """The `key=value` words of several lists. Where two words have the same key, the later one counts."""
    return tuple({override_key(word): word for word in chain.from_iterable(overrides)}.values())


def override_key(word: str) -> str:
    """The key of a `key=value` word."""
    return word.partition("=")[0]


def _pretraining(job: Job, cache: Path) -> tuple[str, ...]:
    """What a pretraining run and the preparation of its corpus have in common."""
    return merged(
        job.overrides,
        [
            commandline.quote_override("train.seed", job.seed),
            commandline.quote_override("data.cache_dir", cache / "corpus"),
        ],
    )


def _finetuning(job: Job, root: Path) -> tuple[str, ...]:
    seed = job.seed if job.finetune_seed is None else job.finetune_seed
    return merged(
        [commandline.quote_override("ner.cache_dir", root / "features")],
        job.overrides,
        [
            commandline.quote_override("checkpoint", checkpoint_path(job, root)),
            commandline.quote_override("source", job.source),
            commandline.quote_override("tuning", job.tuning),
            commandline.quote_override("train.seed", seed),
        ],
    )
