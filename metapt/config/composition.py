"""Composition of a configuration: Hydra merges the YAML files of the chosen options, then keys are overridden in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from metapt import config as schema
from metapt.config.keys import fields_by_path
from metapt.config.option_files import is_file, read_option_file

CONF = Path(__file__).parent / "conf"
MICRO_BATCH = "train.micro_batch"
ROUNDED_TOKENS = 10**8  # data.max_tokens of a hub data set is a multiple of it
OWN = "own"  # what Hydra calls an option that is in a file of the user
SHARED_CONF = {  # commands that use the YAML files of another command
    "prepare": "pretrain",
    "probe": "pretrain",
    "estimate": "pretrain",
    "describe": "finetune",
    "evaluate": "finetune",
    "baseline": "finetune",
}

# Groups of which the command line has to name an option; the help shows the values of the one in config.yaml.
REQUIRED_GROUPS = {"submit": ("grid",)}
SPECIFIC_OVERRIDES = {
    "grid.finetune": ["grid.finetune_per_tuning"],
    "grid.pretrain": ["grid.per_size", "grid.per_objective"],
}
"""Overrides of a grid, and more specific ones that come after them."""


def compose(command: str, overrides: Sequence[str]) -> Any:
    """The OmegaConf configuration of a command: its chosen options, then the other overrides in turn.

    An override of a mapping replaces the whole mapping. Hydra itself would reject entries that no YAML file mentions,
    and is slow: a grid has hundreds of command lines with few distinct choices, whose compositions are cached.
    """
    parsed = list(map(parse_override, overrides))
    chosen = chosen_options(command, parsed)
    files = {
        group: read_option_file(command, group, option) for group, option in chosen.items() if is_file(option)
    }
    named = {group: OWN if group in files else option for group, option in chosen.items()}
    texts = tuple((group, file.text) for group, file in files.items())
    config, replaced = deepcopy(_compose_options(command, tuple(named.items()), texts)), None
    for group, file in files.items():
        if (name := f"{group}.name") in file.values:
            OmegaConf.update(config, name, file.values[name])
    for override in parsed:
        name = override.key_or_group
        if name == MICRO_BATCH and override.value() == schema.AUTO:
            replaced = config.train.micro_batch
        if name not in group_options(command):
            is_mapping = name.startswith(mapping_keys(command))
            value = _value(command, override)
            OmegaConf.update(config, name, value, merge=not is_mapping, force_add=is_mapping)
    if replaced is not None:
        _keep_sequences(config.train, replaced)
    written = {override.key_or_group for override in parsed}
    for general, specific in SPECIFIC_OVERRIDES.items():
        if general in written:
            _prefer_written(config, general, [name for name in specific if name not in written])
    _limit_hub_tokens(config)
    return config


@lru_cache(maxsize=4096)
def parse_override(word: str) -> Override:
    """A word of a command line as Hydra reads it. The jobs of a grid share most of their words, and each is read three times.

    Raises:
        HydraException: it is not of the form key=value.
    """
    return OverridesParser.create().parse_override(word)


def _keep_sequences(train: DictConfig, replaced: int | str) -> None:
    """Keep the number of sequences in an update where train.micro_batch=auto has replaced a number."""
    if schema.AUTO == train.micro_batch != replaced and train.sequences_per_update is None:
        train.sequences_per_update = replaced * train.micro_batches_per_update


def _prefer_written(config: DictConfig, general: str, specific: Sequence[str]) -> None:
    """Remove the keys of overrides that the user wrote from more specific overrides of the grid, which would win."""
    keys = {word.partition("=")[0] for word in OmegaConf.select(config, general)}
    for name in specific:
        values: Any = OmegaConf.to_container(OmegaConf.select(config, name), resolve=False)
        kept = {
            case: [word for word in words if word.partition("=")[0] not in keys]
            for case, words in values.items()
        }
        OmegaConf.update(config, name, kept, merge=False, force_add=True)


def _limit_hub_tokens(config: Any) -> None:
    """Read no more of a hub data set than updates need that are all next-token prediction, unless data.max_tokens is given.

    The number is the same for all objectives, so that they share a corpus; 2 % more make up for the random number of held-out
    tokens.
    """
    data = config.get("data")
    if data is None or data.get("name") != "hub" or "max_tokens" not in data or data.max_tokens is not None:
        return
    train = config.train
    sequences = train.sequences_per_update
    if sequences is None:
        if train.micro_batch == schema.AUTO:
            return  # an error, which is reported later
        sequences = train.micro_batch * train.micro_batches_per_update
    kept = max(0.5, 1 - data.eval_fraction)  # data.eval_fraction is checked later
    needed = train.max_steps * sequences * train.seq_len * 1.02 / kept
    data.max_tokens = max(1, math.ceil(needed / ROUNDED_TOKENS)) * ROUNDED_TOKENS


def chosen_options(command: str, overrides: Sequence[Override]) -> dict[str, str]:
    """The option of each configuration group that the overrides choose."""
    groups = group_options(command)
    return {item.key_or_group: str(item.value()) for item in overrides if item.key_or_group in groups}


@cache
def group_options(command: str) -> dict[str, list[str]]:
    """The configuration groups of a command (such as `model`) and their options; files named _* are parts of options."""
    folders = sorted(path for path in _folder(command).glob("*") if path.is_dir())
    return {folder.name: sorted(path.stem for path in folder.glob("[!_]*.yaml")) for folder in folders}


def default_options(command: str) -> dict[str, str]:
    """The option of each configuration group that is used if the command line names none."""
    if not group_options(command):
        return {}
    file = _folder(command) / "config.yaml"
    defaults = yaml.safe_load(file.read_text(encoding="utf-8"))["defaults"]
    return {group: option for item in defaults if isinstance(item, dict) for group, option in item.items()}


def describe_option(command: str, group: str, option: str) -> str:
    """The first comment line of an option's YAML file, Hydra's `# @package` aside."""
    lines = (_folder(command) / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    comments = (line.removeprefix("# ") for line in lines if line.startswith("# "))
    return next(line for line in comments if not line.startswith("@package"))


@cache
def mapping_keys(command: str) -> tuple[str, ...]:
    """The keys whose values are mappings, with entries that the user names."""
    return tuple(
        path for path, item in fields_by_path(schema.COMMANDS[command]).items() if "dict" in str(item.type)
    )


def _value(command: str, override: Override) -> Any:
    """The value that an override sets. Where the key takes text, `true` and numbers are texts like any other."""
    value = override.value()
    item = fields_by_path(schema.COMMANDS[command]).get(override.key_or_group)
    takes_text = item is not None and item.type in ("str", "str | None")
    is_read = isinstance(value, bool | int | float)
    return str(override.input_line).partition("=")[2] if is_read and takes_text else value


@cache
def _compose_options(
    command: str, chosen: tuple[tuple[str, str], ...], texts: tuple[tuple[str, str], ...]
) -> DictConfig:
    """The configuration of the chosen options.

    Args:
        chosen: (group, option).
        texts: (group, YAML text) of each option OWN.
    """
    if not group_options(command):
        return OmegaConf.structured(schema.COMMANDS[command])
    # imported here because it takes long and `metapt status` does not need it
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=schema.COMMANDS[command])
    overrides = [f"{group}={option}" for group, option in chosen]
    with TemporaryDirectory() as folder:
        for group, text in texts:
            (Path(folder) / group).mkdir()
            (Path(folder) / group / f"{OWN}.yaml").write_text(text, encoding="utf-8")
        if texts:
            overrides.append(f"hydra.searchpath=['file://{folder}']")
        with initialize_config_dir(config_dir=str(_folder(command)), version_base="1.3"):
            return compose("config", overrides=overrides)


def _folder(command: str) -> Path:
    return CONF / SHARED_CONF.get(command, command)
