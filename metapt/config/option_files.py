"""Options of configuration groups in files of the user: `grid=./mine.yaml`, `model=./mine.yaml`.

Such a file is written like those under conf/: the keys of its group, or whole sections, and `defaults: [tiny, _self_]` to
change an option that exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from metapt import config as schema
from metapt.config.keys import fields_by_path, key_of
from metapt.errors import UserError, first_line

PACKAGE = re.compile(
    r"^# @package (\S+)$", re.MULTILINE
)  # Hydra's: to which part of the configuration a file belongs
GLOBAL = "_global_"
SUFFIXES = (".yaml", ".yml")


def is_file(option: str) -> bool:
    """Whether an option of a group names a file and not one of the options that metapt has."""
    return option.endswith(SUFFIXES)


@dataclass(frozen=True)
class OptionFile:
    """An option that a user wrote.

    Attributes:
        name: of the option: its key `name`, or the file name without its ending.
        text: the YAML text, with the line from which Hydra learns its package.
        values: its keys by dotted path; a mapping that is the value of a key is one value.
    """

    name: str
    text: str
    values: dict[str, Any]


def read_option_file(command: str, group: str, path: str) -> OptionFile:
    """Read an option from a file.

    Raises:
        UserError: there is no such file, or it is not a YAML mapping.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        content = OmegaConf.create(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{group}={path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise UserError(
            f"{group}={where}: not YAML ({getattr(error, 'problem', first_line(error))})"
        ) from None
    if not isinstance(content, DictConfig):
        raise UserError(f"{group}={path}: must hold keys with values, such as {_example(command, group)}")
    content.pop("defaults", None)
    sections = _sections(schema.COMMANDS[command])
    declared = PACKAGE.search(text)
    if declared:
        package = declared[1]
    else:
        package = GLOBAL if group not in sections or sections & set(content) else group
        text = f"# @package {package}\n{text}"
    values = dict(
        flat_values(command, OmegaConf.to_container(content), "" if package == GLOBAL else f"{package}.")
    )
    own = values.get(f"{group}.name") or Path(path).stem
    item = fields_by_path(schema.COMMANDS[command]).get(f"{group}.name")
    if item is not None and not key_of(item).choices:
        values[f"{group}.name"] = own
    return OptionFile(str(own), text, values)


def _sections(command_schema: type) -> set[str]:
    """The names of the sections of a command's keys, such as `model` and `train`."""
    return {
        item.name
        for item in fields(command_schema)
        if isinstance(item.default_factory, type) and is_dataclass(item.default_factory)
    }


def flat_values(command: str, node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys under a node of a file, by dotted path, with their values."""
    for name, value in node.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and path not in fields_by_path(schema.COMMANDS[command]):
            yield from flat_values(command, value, f"{path}.")
        else:
            yield path, value


@cache
def _example(command: str, group: str) -> str:
    """A key of a group, as a file would have it."""
    prefix = f"{group}."
    keys = (
        path.removeprefix(prefix)
        for path, item in fields_by_path(schema.COMMANDS[command]).items()
        if path.startswith(prefix) and not key_of(item).internal
    )
    return f"{next(keys, 'key')}: VALUE"
