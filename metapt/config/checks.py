"""Every check on a configuration: the bounds of single keys, and what holds across keys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from typing import Any

from metapt.config import (
    BaselineConfig,
    DescribeConfig,
    EstimateConfig,
    FinetuneConfig,
    PretrainConfig,
    SubmitConfig,
    uneven_units,
    zero_stage,
)
from metapt.evaluation.baselines import BASELINES


def check(config: Any) -> list[str]:
    """Every complaint about a configuration, each beginning with the dotted path of the key."""
    complaints = list(_check_fields(config, ""))
    if isinstance(config, PretrainConfig):
        complaints += _check_pretrain(config)
    if isinstance(config, FinetuneConfig | DescribeConfig):
        data = config.data
        if data.name == "custom" and not data.corpora:
            complaints.append("data.corpora is required with data=custom (presets or .yaml files)")
    if isinstance(config, EstimateConfig):
        ranks = config.nodes * max(1, config.gpus)
        complaints += [
            f"{each}: must be a multiple of the number of ranks, {ranks}"
            for each in uneven_units(config, ranks)
        ]
    if isinstance(config, SubmitConfig):
        complaints += _check_submit(config)
    if isinstance(config, BaselineConfig) and config.name in BASELINES:
        complaints += _check_baseline(config)
    return complaints


def _check_submit(config: SubmitConfig) -> Iterator[str]:
    cluster = config.cluster
    if cluster.gpu_request == "constraint" and not cluster.gpu_type:
        yield "cluster.gpu_type is required with cluster.gpu_request=constraint (the feature of nodes with GPUs)"
    if cluster.gpu_request == "none" and cluster.gpu_type:
        yield f"cluster.gpu_type={cluster.gpu_type}: cluster.gpu_request=none asks for no GPUs"
    if config.dry_run == "test" and cluster.name != "slurm":
        yield f"dry_run=test: asks sbatch, and cluster={cluster.name} has none; give cluster=slurm or dry_run=true"
    if cluster.name == "slurm" and "%" in config.root:
        yield f"root={config.root}: Slurm takes % in a path for a pattern"


def _check_baseline(config: BaselineConfig) -> Iterator[str]:
    learns = BASELINES[config.name].learns
    if learns and config.source is None:
        yield f"source is required with name={config.name}, which learns"
    if not learns and config.source is not None:
        yield f"source={config.source}: name={config.name} is a rule and learns nothing"
    if config.name == "crf" and find_spec("pycrfsuite") is None:
        yield "name=crf needs python-crfsuite (pip install python-crfsuite)"


def _check_fields(node: Any, prefix: str) -> Iterator[str]:
    for item in fields(node):
        path, value, rule = f"{prefix}{item.name}", getattr(node, item.name), item.metadata
        if is_dataclass(value):
            yield from _check_fields(value, f"{path}.")
        elif value is None:
            continue
        elif value == "" and item.default != "":
            yield f"{path} must not be empty ({rule['help']})"
        elif "choices" in rule and value not in rule["choices"]:
            yield f"{path}={value}: must be one of {', '.join(rule['choices'])}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{path}={value}: must be a finite number"
        elif "low" in rule and value < rule["low"]:
            yield f"{path}={value}: must be at least {rule['low']}"
        elif "above" in rule and value <= rule["above"]:
            yield f"{path}={value}: must be above {rule['above']}"
        elif "high" in rule and value > rule["high"]:
            yield f"{path}={value}: must be at most {rule['high']}"


def _check_pretrain(config: PretrainConfig) -> Iterator[str]:
    model, meta, data, train = config.model, config.meta, config.data, config.train
    if model.num_heads < 1 or model.num_kv_heads < 1:
        return  # told already, and nothing can be divided by them
    if model.hidden_size % model.num_heads:
        yield f"model.hidden_size={model.hidden_size}: must be a multiple of model.num_heads={model.num_heads}"
    elif (model.hidden_size // model.num_heads) % 2:
        yield f"model.hidden_size={model.hidden_size}: each of {model.num_heads} heads needs an even width (RoPE)"
    if model.num_heads % model.num_kv_heads:
        yield f"model.num_kv_heads={model.num_kv_heads}: must divide model.num_heads={model.num_heads}"
    if train.seq_len > model.max_positions:
        yield f"train.seq_len={train.seq_len}: the model has only model.max_positions={model.max_positions}"
    if data.vocab_size > model.vocab_size:
        yield f"data.vocab_size={data.vocab_size}: the model has only model.vocab_size={model.vocab_size}"
    if data.name == "text" and not data.text_dir:
        yield "data.text_dir is required with data=text (a folder of .txt, .jsonl or .parquet)"
    if meta.objective == "vanilla" and meta.rho > 0:
        yield f"meta.rho={meta.rho}: objective=vanilla has no episodes; use objective=maml"
    if meta.objective == "maml" and meta.rho == 0:
        yield "meta.rho=0: objective=maml without episodes is objective=vanilla"
    if meta.rho > 0:
        if meta.start_step >= train.max_steps:
            yield f"meta.start_step={meta.start_step}: no update is left for episodes before train.max_steps={train.max_steps}"
        if meta.window > model.max_positions:
            yield f"meta.window={meta.window}: the model has only model.max_positions={model.max_positions}"
        if meta.min_context >= meta.window:
            yield f"meta.min_context={meta.min_context}: must be less than meta.window={meta.window}"
        if meta.scope == "last_n" and meta.last_n > model.num_layers:
            yield f"meta.last_n={meta.last_n}: the model has only model.num_layers={model.num_layers}"
        if meta.algorithm == "reptile" and meta.scope == "head":
            yield "meta.algorithm=reptile: learns only what is adapted, with meta.scope=head nothing of the decoder; use full or last_n"
    if train.warmup_steps > train.max_steps:
        yield f"train.warmup_steps={train.warmup_steps}: exceeds train.max_steps={train.max_steps}"
    try:
        stage = zero_stage(config.ds)
    except ValueError as error:
        yield f"ds={config.ds}: {error}"
        return
    if train.compile and stage == 3:
        yield f"train.compile=true: ds={config.ds} gathers parameters module by module, which compiled blocks do not let it"
