"""The whole typed configuration. metapt/config/checks.py checks it.

Each command has one dataclass, named in COMMANDS. Defaults live here; the YAML files under conf/ hold only what a choice
(`model=tiny`, `objective=maml`) changes. metapt/config/commandline.py turns a command line into one of these.
"""

from __future__ import annotations

from metapt.config.deepspeed import DS_CONFIGS, deepspeed_settings, zero_stage
from metapt.config.grids import ClusterConfig, GridConfig, StatusConfig, SubmitConfig
from metapt.config.keys import identity
from metapt.config.ner import (
    REGIMES,
    BaselineConfig,
    DescribeConfig,
    FinetuneConfig,
    NerConfig,
    NerDataConfig,
    SetsConfig,
    TagConfig,
    tuning_rate,
)
from metapt.config.pretraining import (
    CorpusConfig,
    LogConfig,
    MetaConfig,
    ModelConfig,
    PlanConfig,
    PretrainConfig,
    TrainConfig,
    uneven_units,
    work_together,
)

__all__ = [
    "DS_CONFIGS",
    "REGIMES",
    "BaselineConfig",
    "ClusterConfig",
    "CorpusConfig",
    "DescribeConfig",
    "FinetuneConfig",
    "GridConfig",
    "LogConfig",
    "MetaConfig",
    "ModelConfig",
    "NerConfig",
    "NerDataConfig",
    "PlanConfig",
    "PretrainConfig",
    "SetsConfig",
    "StatusConfig",
    "SubmitConfig",
    "TagConfig",
    "TrainConfig",
    "deepspeed_settings",
    "identity",
    "tuning_rate",
    "uneven_units",
    "work_together",
    "zero_stage",
]

COMMANDS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "plan": PlanConfig,
    "finetune": FinetuneConfig,
    "tag": TagConfig,
    "data describe": DescribeConfig,
    "baseline": BaselineConfig,
    "submit": SubmitConfig,
    "status": StatusConfig,
}
