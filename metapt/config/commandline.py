"""From a command line (`model=tiny meta.rho=0.3`) to a checked configuration object.

Hydra composes the files under conf/COMMAND/; the dataclasses of metapt/config/ are the schema. Hydra alone
stops at the first mistake with a long message; here every override is looked at by itself first, so that all
mistakes are told at once, each in a line that says what exists.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import MISSING as MANDATORY
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metapt import config as schema
from metapt.config.checks import check
from metapt.errors import UserError

CONF = Path(__file__).parent / "conf"
SAME_CHOICES = {
    "estimate": "pretrain",
    "describe": "finetune",
    "baseline": "finetune",
}  # commands that take those of another one
TEXTS = {  # commands that take texts beside their keys, and what --help says of them
    "tag": """ ["a sentence" ...]

A word of the command line is a setting if it begins with a name and =, else a sentence; after -- all are sentences:
  python -m metapt.tag checkpoint=runs/ner "Pumunta si Maria sa Cebu."
  python -m metapt.tag checkpoint=runs/ner format=json -- x=1 "y = 2"
  cat lines.txt | python -m metapt.tag checkpoint=runs/ner format=iob2"""
}
HELP = {"-h", "--help"}
SETTING = re.compile(r"[A-Za-z_][\w.]*=")


def load(command: str, arguments: Sequence[str]) -> Any:
    """The checked configuration of `command` for its command line arguments.

    Args:
        command: one of `config.COMMANDS`; its YAML files, if it has choices, are under conf/COMMAND/ (or another's).
        arguments: `key=value` words, as after `python -m metapt.COMMAND`.
    Returns: the command's dataclass, filled in.
    Raises:
        UserError: with every mistake that was found, one a line.
        SystemExit: after printing the keys, if `--help` is asked for.
    """
    if HELP & set(arguments):
        print(usage(command))
        raise SystemExit(0)
    complaints: list[str] = []
    good: list[str] = []
    for argument in arguments:
        complaint = _examine(command, argument)
        if complaint:
            complaints.append(complaint)
        else:
            good.append(argument)
    try:
        composed = _compose(command, good)
        complaints += _fill_missing(command, composed)
        config = OmegaConf.to_object(composed)
        complaints += check(config)
    except (HydraException, OmegaConfBaseException) as error:
        complaints.append(_first_line(error))
    if complaints:
        listed = "".join(f"\n  {line}" for line in dict.fromkeys(complaints))
        raise UserError(f"metapt.{command}: {len(set(complaints))} mistake(s) in the configuration{listed}")
    return config


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Command line words of a command of TEXTS: its settings (and `--help`), and its texts.

    A mistyped key is a setting too, so that it is told and not taken for a text.
    """
    words = list(arguments)
    begin = words.index("--") if "--" in words else len(words)
    settings = [word for word in words[:begin] if SETTING.match(word) or word in HELP]
    texts = [word for word in words[:begin] if word not in settings]
    return settings, texts + words[begin + 1 :]


def usage(command: str) -> str:
    """What `--help` prints: groups with their options, then every key with its default and meaning."""
    lines = [f"python -m metapt.{command} key=value ...{TEXTS.get(command, '')}", ""]
    if groups := choices(command):
        lines += ["choices:", *(f"  {group}={'|'.join(options)}" for group, options in groups.items()), ""]
    lines += ["keys:"]
    for path, item in _leaves(schema.COMMANDS[command]):
        default = "" if item.default in (MANDATORY, None) else f" [{item.default}]"
        if item.default is MISSING:
            default = " [empty]"
        options = f" ({'|'.join(item.metadata['choices'])})" if "choices" in item.metadata else ""
        lines.append(f"  {path + '=':28} {item.metadata['help']}{options}{default}")
    return "\n".join(lines)


def word(key: str, value: object) -> str:
    """The command line word `key=value` for a value with any characters in it (spaces, =, commas, quotes)."""
    text = str(value)
    plain = re.fullmatch(r"\d+|[A-Za-z_./][\w./+:@-]*", text, re.ASCII)
    if not plain or text.lower() in ("true", "false", "null", "nan", "inf"):
        text = "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + (match[2] and "\\'"), text) + "'"
    return f"{key}={text}"


def _compose(command: str, overrides: Sequence[str]) -> Any:
    """What Hydra composes for the choices, with the other overrides applied in turn; of a mapping, the whole value.

    Hydra itself would refuse entries of a mapping that no file mentions, and takes a while: a grid has hundreds of
    command lines with few distinct choices.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    chosen = {
        item.key_or_group: str(item.value()) for item in parsed if item.key_or_group in choices(command)
    }
    config = deepcopy(_composed(command, tuple(f"{group}={option}" for group, option in chosen.items())))
    for item in parsed:
        name = item.key_or_group
        if name not in chosen:
            is_mapping = name.startswith(_mappings(command))
            OmegaConf.update(config, name, _value(command, item), merge=not is_mapping, force_add=is_mapping)
    return config


def _value(command: str, item: Override) -> Any:
    """What an override sets; where the key takes text, `true` is a word like any other."""
    value = item.value()
    types = {path: leaf.type for path, leaf in _leaves(schema.COMMANDS[command])}
    takes_text = types.get(item.key_or_group) in ("str", "str | None")
    return str(item.input_line).partition("=")[2] if isinstance(value, bool) and takes_text else value


@cache
def _composed(command: str, chosen: tuple[str, ...]) -> DictConfig:
    if not choices(command):
        return OmegaConf.structured(schema.COMMANDS[command])
    # here: they take a while to import, and metapt.status is asked often
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=schema.COMMANDS[command])
    with initialize_config_dir(config_dir=str(_folder(command)), version_base="1.3"):
        return compose("config", overrides=list(chosen))


def _fill_missing(command: str, composed: Any) -> list[str]:
    """Complaints about required keys that were not given; they get a value, so that the other checks can run."""
    helps = {path: item.metadata["help"] for path, item in _leaves(schema.COMMANDS[command])}
    missing = sorted(OmegaConf.missing_keys(composed))
    for name in missing:
        OmegaConf.update(composed, name, "missing")
    return [f"{name} is required ({helps[name]})" for name in missing]


def _mappings(command: str) -> tuple[str, ...]:
    """The keys whose entries the user names."""
    return tuple(path for path, item in _leaves(schema.COMMANDS[command]) if "dict" in str(item.type))


def _examine(command: str, argument: str) -> str | None:
    """The complaint about one override by itself, or None."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return (
            f"{argument!r}: not of the form key=value (a value with =, spaces or commas needs quotes inside)"
        )
    if override.type is not OverrideType.CHANGE or override.is_sweep_override():
        return f"{argument!r}: only key=value is understood here; grids are made with metapt.submit"
    name = override.key_or_group
    groups = choices(command)
    if name in groups:
        options = groups[name]
        return (
            None if str(override.value()) in options else f"{argument}: {name} is one of {', '.join(options)}"
        )
    return _examine_key(command, override)


def _examine_key(command: str, override: Override) -> str | None:
    name = override.key_or_group
    known = [path for path, _ in _leaves(schema.COMMANDS[command])]
    if name not in known and not name.startswith(tuple(f"{path}." for path in _mappings(command))):
        close = difflib.get_close_matches(name, [*known, *choices(command)], n=3, cutoff=0.5)
        close = close or [path for path in known if path.split(".")[-1] == name.split(".")[-1]]
        hint = f"did you mean {' or '.join(close)}?" if close else f"see python -m metapt.{command} --help"
        also = "; after -- it would be a text" if command in TEXTS else ""
        return f"{name}: no such key; {hint}{also}"
    value = override.value()
    if isinstance(value, str) and "${" in value:
        return None
    try:
        OmegaConf.update(_scratch(command), name, value, merge=True, force_add=False)
    except OmegaConfBaseException as error:
        return f"{name}={override.get_value_element_as_str()}: {_first_line(error)}"
    return None


@cache
def _scratch(command: str) -> Any:
    """Takes any value of the right type; never read."""
    return OmegaConf.structured(schema.COMMANDS[command])


@cache
def choices(command: str) -> dict[str, list[str]]:
    """The configuration groups of a command and their options."""
    folders = sorted(path for path in _folder(command).glob("*") if path.is_dir())
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}


def _folder(command: str) -> Path:
    return CONF / SAME_CHOICES.get(command, command)


@cache
def _leaves(node: type, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted path and dataclass field of every key of a schema."""
    found = []
    for item in fields(node):
        nested = item.default_factory
        if isinstance(nested, type) and is_dataclass(nested):
            found += _leaves(nested, f"{prefix}{item.name}.")
        else:
            found.append((f"{prefix}{item.name}", item))
    return found


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
