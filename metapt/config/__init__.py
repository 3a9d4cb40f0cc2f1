"""The whole typed configuration. metapt/config/checks.py checks it.

Each command has one dataclass, named in COMMANDS. Defaults live here; the YAML files under conf/ hold only what a choice
(`model=tiny`, `objective=maml`) changes. metapt/config/commandline.py turns a command line into one of these.
"""

from __future__ import annotations

from metapt.config.deepspeed import DS_CONFIGS, deepspeed_settings, zero_stage
from metapt.config.grids import ClusterConfig, GridConfig, StatusConfig, SubmitConfig
from metapt.config.keys import identity
from metapt.config.ner import (
    TUNINGS,
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
    EstimateConfig,
    LogConfig,
    MetaConfig,
    ModelConfig,
    PretrainConfig,
    TrainConfig,
    ranks_share_episodes,
    uneven_units,
)

__all__ = [
    "DS_CONFIGS",
    "TUNINGS",
    "BaselineConfig",
    "ClusterConfig",
    "CorpusConfig",
    "DescribeConfig",
    "EstimateConfig",
    "FinetuneConfig",
    "GridConfig",
    "LogConfig",
    "MetaConfig",
    "ModelConfig",
    "NerConfig",
    "NerDataConfig",
    "PretrainConfig",
    "SetsConfig",
    "StatusConfig",
    "SubmitConfig",
    "TagConfig",
    "TrainConfig",
    "deepspeed_settings",
    "identity",
    "ranks_share_episodes",
    "tuning_rate",
    "uneven_units",
    "zero_stage",
]

COMMANDS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "estimate": EstimateConfig,
    "finetune": FinetuneConfig,
    "tag": TagConfig,
    "describe": DescribeConfig,
    "baseline": BaselineConfig,
    "submit": SubmitConfig,
    "status": StatusConfig,
}
