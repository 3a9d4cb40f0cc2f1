"""The typed configuration of every command.

Each command has one dataclass, listed in COMMANDS. It holds the defaults; the YAML files under conf/ hold only what an
option (`model=tiny`, `objective=maml`) changes. commandline.py turns a command line into an instance, checks.py checks it.
"""

from __future__ import annotations

from metapt.baseline_names import BASELINE_NAMES, RULE_BASELINES, TRAINED_BASELINES
from metapt.config.compilation_choice import is_compiled
from metapt.config.continuation import identity_in
from metapt.config.deepspeed import DS_CONFIGS, deepspeed_settings, zero_stage
from metapt.config.generation import GenerateConfig
from metapt.config.grids import ClusterConfig, GridConfig, StatusConfig, SubmitConfig
from metapt.config.keys import identity, settings
from metapt.config.meta import MetaConfig
from metapt.config.ner import (
    DOCUMENT_MARKS,
    TUNINGS,
    BaselineConfig,
    DescribeConfig,
    EvaluateConfig,
    FinetuneConfig,
    NerConfig,
    NerDataConfig,
    SetsConfig,
    TagConfig,
    tag_layer_lr,
    training_splits,
    tuning_lr,
)
from metapt.config.objective_terms import ClassesConfig, EpisodesConfig, MultitaskConfig, TermConfig
from metapt.config.pretraining import (
    AUTO,
    CorpusConfig,
    EstimateConfig,
    LogConfig,
    ModelConfig,
    PrepareConfig,
    PretrainCommandConfig,
    PretrainConfig,
    ProbeConfig,
    TrainConfig,
)
from metapt.config.schedule import learning_rate
from metapt.config.scoring import SYSTEMS_DIR, ScoreConfig

__all__ = [
    "AUTO",
    "BASELINE_NAMES",
    "DOCUMENT_MARKS",
    "DS_CONFIGS",
    "RULE_BASELINES",
    "SYSTEMS_DIR",
    "TRAINED_BASELINES",
    "TUNINGS",
    "BaselineConfig",
    "ClassesConfig",
    "ClusterConfig",
    "CorpusConfig",
    "DescribeConfig",
    "EpisodesConfig",
    "EstimateConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "GenerateConfig",
    "GridConfig",
    "LogConfig",
    "MetaConfig",
    "ModelConfig",
    "MultitaskConfig",
    "NerConfig",
    "NerDataConfig",
    "PrepareConfig",
    "PretrainCommandConfig",
    "PretrainConfig",
    "ProbeConfig",
    "ScoreConfig",
    "SetsConfig",
    "StatusConfig",
    "SubmitConfig",
    "TagConfig",
    "TermConfig",
    "TrainConfig",
    "deepspeed_settings",
    "identity",
    "identity_in",
    "is_compiled",
    "learning_rate",
    "settings",
    "tag_layer_lr",
    "training_splits",
    "tuning_lr",
    "zero_stage",
]

COMMANDS: dict[str, type] = {
    "pretrain": PretrainCommandConfig,
    "prepare": PrepareConfig,
    "probe": ProbeConfig,
    "estimate": EstimateConfig,
    "finetune": FinetuneConfig,
    "tag": TagConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "describe": DescribeConfig,
    "baseline": BaselineConfig,
    "score": ScoreConfig,
    "submit": SubmitConfig,
    "status": StatusConfig,
}
