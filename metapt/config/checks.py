"""Checks of a configuration: bounds and choices of single keys, and conditions across keys."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from metapt.config import (
    AUTO,
    TRAINED_BASELINES,
    BaselineConfig,
    ClusterConfig,
    DescribeConfig,
    EvaluateConfig,
    FinetuneConfig,
    MetaConfig,
    ModelConfig,
    PretrainConfig,
    SubmitConfig,
    TrainConfig,
    zero_stage,
)
from metapt.config.keys import default_of, fields_by_path, key_of
from metapt.errors import install_hint

NO_SEQUENCES = (
    "train.micro_batch=auto: needs train.sequences_per_update, the number of sequences that are split"
)
OWN_OPTIONS = {  # of sbatch, which metapt writes into every batch script, and the key that changes them
    "account": "cluster.account",
    "array": "cluster.max_running",
    "comment": "",
    "cpus-per-task": "cluster.cpus_per_task",
    "dependency": "",
    "error": "",
    "exclude": "cluster.exclude",
    "job-name": "",
    "kill-on-invalid-dep": "",
    "mem": "cluster.mem_gb",
    "nodes": "cluster.nodes",
    "no-requeue": "",
    "ntasks": "",
    "ntasks-per-node": "cluster.gpus_per_node",
    "open-mode": "",
    "output": "",
    "parsable": "",
    "partition": "cluster.partition",
    "qos": "cluster.qos",
    "requeue": "",
    "signal": "cluster.signal_delay_s",
    "time": "cluster.timeout_min",
}


def check(config: Any) -> list[str]:
    """Every error in a configuration, each beginning with the dotted path of the key."""
    errors = [*_check_fields(config, ""), *_without_effect(config)]
    if isinstance(config, PretrainConfig):
        errors += _check_pretrain(config)
    if isinstance(config, FinetuneConfig | DescribeConfig | EvaluateConfig):
        data = config.data
        if data.name == "custom" and not data.corpora and not _names_paths(config):
            errors.append(
                "data.corpora is required with data=custom; give presets, .yaml files or paths of labelled files"
            )
    if isinstance(config, FinetuneConfig | BaselineConfig):
        data = config.data
        if data.max_train_sentences is not None and data.entities_per_type is not None:
            errors.append(
                "data.max_train_sentences and data.entities_per_type cannot be combined; give one of them"
            )
    if isinstance(config, FinetuneConfig) and config.folds is not None:
        errors += _beside_folds(config)
    if isinstance(config, SubmitConfig):
        errors += _check_submit(config)
    if isinstance(config, BaselineConfig):
        errors += _check_baseline(config)
    return errors


def _without_effect(config: Any) -> Iterator[str]:
    """The keys that are set although they have no effect beside the others."""
    unused: dict[tuple[str, tuple[Any, ...]], list[str]] = {}
    schema: type = type(config)
    for path, item in fields_by_path(schema).items():
        key = key_of(item)
        group = {f"{path.rpartition('.')[0]}.name": key.only} if key.only else {}
        needed = {**group, **key.only_with}
        if not needed or attrgetter(path)(config) == default_of(item):
            continue
        for other, values in needed.items():
            if attrgetter(other)(config) not in values:
                unused.setdefault((other, values), []).append(path)
    for (other, values), names in unused.items():
        found, *wanted = (
            "null" if value is None else str(value) for value in (attrgetter(other)(config), *values)
        )
        has, option = ("have" if len(names) > 1 else "has"), other.removesuffix(".name")
        yield f"{', '.join(names)}: {has} no effect with {option}={found}, only with {option}={' or '.join(wanted)}"


def _beside_folds(config: FinetuneConfig) -> Iterator[str]:
    """The keys that a cross-validation decides itself."""
    defaults = type(config.data)()
    for name in ("eval_sets", "fold", "test_fraction"):
        if getattr(config.data, name) != getattr(defaults, name):
            yield f"data.{name}: has no effect with folds={config.folds}, which scores each fold of the source"


def _names_paths(config: FinetuneConfig | DescribeConfig | EvaluateConfig) -> bool:
    """Whether a source, or a set to evaluate on, is the path of a labelled file or folder."""
    named = config.source.split("+") if isinstance(config, FinetuneConfig) else config.sets
    return any("/" in item or Path(item).is_file() for item in named)


def _check_fields(section: Any, prefix: str) -> Iterator[str]:
    for item in fields(section):
        path, value = f"{prefix}{item.name}", getattr(section, item.name)
        if is_dataclass(value):
            yield from _check_fields(value, f"{path}.")
        elif value is not None and (error := _value_error(path, value, item)):
            yield error


def _value_error(path: str, value: Any, item: Field[Any]) -> str | None:
    """The error in the value of one key by itself."""
    key = key_of(item)
    if value == "" and item.default != "":
        return f"{path} must not be empty ({key.help})"
    if key.choices and value not in key.choices:
        return f"{path}={value}: must be one of {', '.join(key.choices)}"
    if key.words and isinstance(value, str):
        return None if value in key.words else f"{path}={value}: must be a number or {' or '.join(key.words)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path}={value}: must be a finite number"
    if key.low is not None and value < key.low:
        return f"{path}={value}: must be at least {key.low:g}"
    if key.above is not None and value <= key.above:
        return f"{path}={value}: must be greater than {key.above:g}"
    if key.high is not None and value > key.high:
        return f"{path}={value}: must be at most {key.high:g}"
    return None


def _check_pretrain(config: PretrainConfig) -> Iterator[str]:
    model, meta, data, train = config.model, config.meta, config.data, config.train
    yield from _check_heads(model)
    if train.seq_len > model.max_positions:
        yield f"train.seq_len={train.seq_len}: must be at most model.max_positions={model.max_positions}"
    if data.vocab_size > model.vocab_size:
        yield f"data.vocab_size={data.vocab_size}: must be at most model.vocab_size={model.vocab_size}"
    if data.name == "text" and not data.text_dir:
        yield "data.text_dir is required with data=text; give a folder with .txt, .jsonl, .json or .parquet files"
    if meta.objective == "vanilla" and meta.rho > 0:
        yield f"meta.rho={meta.rho}: objective=vanilla has no episodes; use objective=maml_paper"
    if meta.rho > 0:
        yield from _check_episodes(meta, model, train.max_steps)
        yield from _check_task(config)
    yield from _check_terms(config)
    yield from _check_split(train, meta)
    if train.warmup_steps > train.max_steps:
        yield f"train.warmup_steps={train.warmup_steps}: must be at most train.max_steps={train.max_steps}"
    if train.schedule_steps is not None:
        if train.schedule == "constant":
            yield f"train.schedule_steps={train.schedule_steps}: train.schedule=constant has no end; remove one of the two"
        if train.schedule_steps <= train.warmup_steps:
            yield (
                f"train.schedule_steps={train.schedule_steps}: must be greater than "
                f"train.warmup_steps={train.warmup_steps}"
            )
    try:
        stage = zero_stage(config.ds)
    except ValueError as error:
        yield f"ds={config.ds}: {error}"
        return
    if train.compile == "true" and stage == 3:
        yield f"train.compile=true: not supported with ds={config.ds}, because ZeRO stage 3 gathers parameters module by module"


def _check_split(train: TrainConfig, meta: MetaConfig) -> Iterator[str]:
    """What does not combine in the split of an update into micro-batches."""
    if train.micro_batch != AUTO:
        if train.sequences_per_update is not None:
            yield (
                f"train.sequences_per_update={train.sequences_per_update}: only train.micro_batch=auto splits it; "
                "train.micro_batches_per_update is the number of micro-batches of a given size"
            )
    elif meta.mixing == "per_micro_batch" and meta.rho > 0:
        yield "train.micro_batch=auto: with meta.mixing=per_micro_batch the split decides how many episodes there are; give a number"
    elif train.sequences_per_update is None:
        yield NO_SEQUENCES


def _check_terms(config: PretrainConfig) -> Iterator[str]:
    active, objective = (
        [name for name, term in config.terms.items() if term.weight > 0],
        config.meta.objective,
    )
    if objective == "vanilla" and active:
        yield f"{active[0]}.weight={config.terms[active[0]].weight}: objective={objective} has no such term; use objective={active[0]}"
    if objective.startswith("maml") and not (config.meta.rho or config.episodes.weight):
        yield (
            f"meta.rho=0, episodes.weight={config.episodes.weight:g}: objective={objective} without episodes is objective=vanilla; "
            "use that, or set one of them greater than 0"
        )
    if objective == "maml" and config.episodes.weight and not config.episodes.inner_steps:
        yield "episodes.inner_steps=0: objective=maml has an inner loop; use objective=twin"
    if objective in ("episodes", "twin", "multitask", "both") and not active:
        yield f"objective={objective}: needs episodes.weight or multitask.weight greater than 0"
    if active and len(config.classes.sizes) < 2:
        yield f"classes.sizes={config.classes.sizes}: needs at least two partitions, since the last is never trained on"
    if any(size < 2 for size in config.classes.sizes):
        yield f"classes.sizes={config.classes.sizes}: a partition needs at least 2 classes"
    for name in active:
        if config.terms[name].start_step >= config.train.max_steps:
            yield (
                f"{name}.start_step={config.terms[name].start_step}: must be less than train.max_steps={config.train.max_steps}, "
                "or the term never takes part"
            )
    name = "sequences_per_update" if config.train.micro_batch == AUTO else "micro_batch"
    if active and (getattr(config.train, name) or 0) % config.meta.batch_sequences:
        yield (
            f"train.{name}={getattr(config.train, name)}: must be a multiple of "
            f"meta.batch_sequences={config.meta.batch_sequences}"
        )
    if objective == "twin" and config.episodes.inner_steps:
        yield f"episodes.inner_steps={config.episodes.inner_steps}: objective=twin has no inner loop; use objective=episodes"
    if (
        config.episodes.weight > 0
        and not config.episodes.inner_steps
        and config.episodes.initial_head == "zero"
    ):
        yield "episodes.inner_steps=0: a zero classifier without an inner loop learns nothing; use initial_head=prototypes"


def _check_heads(model: ModelConfig) -> Iterator[str]:
    if model.num_heads < 1 or model.num_kv_heads < 1:
        return  # reported by the check of the single keys
    if model.hidden_size % model.num_heads:
        yield f"model.hidden_size={model.hidden_size}: must be a multiple of model.num_heads={model.num_heads}"
    elif (model.hidden_size // model.num_heads) % 2:
        yield (
            f"model.hidden_size={model.hidden_size}: divided by model.num_heads={model.num_heads} must be even, "
            "because rotary embeddings rotate pairs of dimensions"
        )
    if model.num_heads % model.num_kv_heads:
        yield f"model.num_kv_heads={model.num_kv_heads}: must divide model.num_heads={model.num_heads}"


def _check_episodes(meta: MetaConfig, model: ModelConfig, max_steps: int) -> Iterator[str]:
    if meta.start_step >= max_steps:
        yield f"meta.start_step={meta.start_step}: must be less than train.max_steps={max_steps}, or no update is an episode"
    if meta.window > model.max_positions:
        yield f"meta.window={meta.window}: must be at most model.max_positions={model.max_positions}"
    if meta.min_context >= meta.window:
        yield f"meta.min_context={meta.min_context}: must be less than meta.window={meta.window}"
    if meta.weight != 1 and meta.mixing != "sum":
        yield f"meta.weight={meta.weight}: meta.mixing={meta.mixing} has no weight of episodes; use meta.mixing=sum"
    if meta.scope == "last_n" and meta.last_n > model.num_layers:
        yield f"meta.last_n={meta.last_n}: must be at most model.num_layers={model.num_layers}"
    if meta.algorithm == "reptile" and meta.scope == "head":
        yield (
            "meta.algorithm=reptile: with meta.scope=head the decoder would learn nothing from episodes; "
            "use meta.scope=full or last_n"
        )


def _check_task(config: PretrainConfig) -> Iterator[str]:
    """What does not combine in episodes on windows."""
    meta = config.meta
    if meta.task == "word_classes" and len(config.classes.sizes) < 2:
        yield f"classes.sizes={config.classes.sizes}: meta.task=word_classes needs at least two partitions, since the last is never trained on"
    if meta.task == "word_classes" and meta.prediction_position == "end":
        yield "meta.prediction_position=end: windows of meta.task=word_classes end with the word itself; use mask"
    if not meta.inner_steps and meta.initial_head == "zero":
        yield "meta.inner_steps=0: a zero classifier without an inner loop learns nothing; use meta.initial_head=prototypes"
    if not meta.inner_steps and meta.algorithm != "fomaml":
        yield f"meta.inner_steps=0: meta.algorithm={meta.algorithm} learns from inner steps; use meta.algorithm=fomaml"
    if meta.makes_head_anew and meta.algorithm == "meta_sgd":
        yield (
            f"meta.algorithm=meta_sgd: learns a rate for each weight of the classifier, which meta.initial_head={meta.initial_head} "
            "makes anew in each episode; use meta.initial_head=learned or persistent"
        )


def _check_submit(config: SubmitConfig) -> Iterator[str]:
    cluster = config.cluster
    if cluster.gpu_request == "constraint" and not cluster.gpu_type:
        yield "cluster.gpu_type is required with cluster.gpu_request=constraint; give the feature of the GPU nodes"
    if cluster.gpu_request == "none" and cluster.gpu_type:
        yield f"cluster.gpu_type={cluster.gpu_type}: cluster.gpu_request=none requests no GPUs; remove one of the two"
    yield from _check_extra(cluster)
    for name in cluster.exports:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            yield f"cluster.exports: {name!r} is no name of an environment variable"
    try:
        shlex.split(cluster.launcher or "")
    except ValueError as error:
        yield f"cluster.launcher={cluster.launcher}: is no shell command ({error})"
    if config.dry_run == "test" and cluster.name != "slurm":
        yield "dry_run=test: calls sbatch, which needs cluster=slurm; otherwise use dry_run=true"
    if cluster.name == "slurm" and "%" in config.root:
        yield f"root={config.root}: must not contain %, which Slurm replaces in paths"


def _check_extra(cluster: ClusterConfig) -> Iterator[str]:
    """The options of sbatch that metapt writes itself."""
    for name, value in cluster.extra.items():
        option = name.replace("_", "-")
        if option in OWN_OPTIONS:
            key = OWN_OPTIONS[option]
            yield f"cluster.extra.{name}: metapt sets this option" + (f"; use {key}" if key else "")
        if option == "gpus-per-node" and cluster.gpu_request == "gpus_per_node":
            yield f"cluster.extra.{name}: metapt sets this option; use cluster.gpus_per_node and cluster.gpu_type"
        if option == "gres" and cluster.gpu_request == "gres" and re.search(r"(^|,)(gres:)?gpu\b", value):
            yield f"cluster.extra.{name}={value}: cluster.gpu_request=gres requests the GPUs; use cluster.gpu_type"
        if option == "constraint" and cluster.gpu_request == "constraint" and "|" in value:
            yield f"cluster.extra.{name}={value}: joined with cluster.gpu_type by &, so it cannot contain |"


def _check_baseline(config: BaselineConfig) -> Iterator[str]:
    is_trained = config.name in TRAINED_BASELINES
    if is_trained and config.source is None:
        yield f"source is required with name={config.name}, which is trained"
    if not is_trained and config.source is not None:
        yield f"source={config.source}: name={config.name} is a rule and is not trained; remove source"
    if config.name == "crf" and find_spec("pycrfsuite") is None:
        yield f"name=crf needs python-crfsuite. {install_hint('finetune')}"
