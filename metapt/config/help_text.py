"""The text that `metapt COMMAND --help` prints."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metapt import config as schema
from metapt.config.composition import (
    REQUIRED_GROUPS,
    chosen_options,
    compose,
    default_options,
    describe_option,
    group_options,
    parse_override,
)
from metapt.config.keys import Key, fields_by_path, key_of

WIDTH = 100
COLUMN = 34  # where the text of an entry begins
GROUPS_TITLE = """\
configuration groups: GROUP=OPTION sets several of the keys below; KEY=VALUE takes precedence.
GROUP=FILE.yaml takes an option of your own from a file (docs/configuration.md)"""
TEXT_ARGUMENTS = {
    "tag": '["sentence" ...]',
    "generate": '["prompt" ...]',
    "score": "GOLD PREDICTED [B]",
}  # what commands take beside keys
NOTES = {
    "describe": """\
`metapt describe classes [key=value ...]` prints the word classes of a corpus instead:
their sizes and most frequent words. It takes the keys of `metapt prepare`.""",
    "tag": """\
A word of the command line is a setting if it begins with KEY=, otherwise a sentence. After --,
every word is a sentence.

  metapt tag checkpoint=runs/ner "Pumunta si Maria sa Cebu."
  metapt tag checkpoint=runs/ner format=json -- x=1 "y = 2"
  cat lines.txt | metapt tag checkpoint=runs/ner format=iob2""",
    "generate": """\
A word of the command line is a setting if it begins with KEY=, otherwise a prompt. After --,
every word is a prompt.

  metapt generate checkpoint=runs/tiny "The city of" "Ang lungsod"
  metapt generate checkpoint=runs/tiny temperature=0 -- "The city of" """,
    "score": """\
GOLD and PREDICTED are files with the same sentences in the same order:

- columns: a word and its tag per line (IOB1, IOB2, IOBES, BILOU, BMES), a blank line after each
  sentence;
- JSON lines: an object per sentence, {"words": ["Si", "Ana"], "tags": ["O", "B-PER"]} or
  {"text": "Si Ana", "entities": [[3, 6, "PER"]]} (characters from 0, end exclusive).

With a third file, the systems A and B are compared. A file name with = in it is given after --.

  metapt score UNER/tl_trg/test.iob2 gpt.jsonl name=gpt
  metapt score gold.conll flair.conll spacy.jsonl 'types={PERSON: PER, GPE: LOC}'""",
}


def help_text(command: str, overrides: Sequence[str]) -> str:
    """Usage, configuration groups and keys of a command, with the values that these overrides result in."""
    keys = schema.COMMANDS[command]
    parsed = list(map(parse_override, overrides))
    chosen = chosen_options(command, parsed)
    defaults = compose(command, [f"{group}={option}" for group, option in chosen.items()])
    values = _Values(compose(command, overrides), defaults, [item.key_or_group for item in parsed])
    paragraphs = inspect.cleandoc(keys.__doc__ or "").split("\n\n")
    parts = [f"usage: {usage_line(command)}", *(_wrap(paragraph, WIDTH) for paragraph in paragraphs)]
    if command in NOTES:
        parts.append(NOTES[command])
    if group_options(command):
        parts.append("\n".join([GROUPS_TITLE, *_group_entries(command, chosen)]))
    for title, section in _sections(keys):
        parts.append("\n".join([title, *(_key_entry(path, item, values) for path, item in section.items())]))
    parts.append("\n".join(_options(command)))
    return "\n\n".join(parts)


def usage_line(command: str) -> str:
    """One line with the arguments of a command."""
    words = [f"metapt {command}", *(f"[--{path}]" for path in flags(command)), "[key=value ...]"]
    return " ".join([*words, TEXT_ARGUMENTS.get(command, "")]).strip()


def flags(command: str) -> list[str]:
    """The keys of a command for which `--KEY` stands for `KEY=true`."""
    return [path for path, item in fields_by_path(schema.COMMANDS[command]).items() if key_of(item).flag]


def _options(command: str) -> Iterator[str]:
    yield "--help          print this text; with KEY=VALUE words, the values that they result in"
    yield "--print-config  check the configuration, print it as YAML, and stop"
    for path in flags(command):
        yield f"--{path:13} the same as {path}=true"


def _group_entries(command: str, chosen: Mapping[str, str]) -> Iterator[str]:
    """One entry for each configuration group of a command."""
    for group, options in group_options(command).items():
        default = default_options(command)[group]
        shown = f"default: {default}"
        if group in REQUIRED_GROUPS.get(command, ()):
            shown = f"required; the values below are those of {group}={default}"
        if group in chosen:
            shown = f"given: {chosen[group]}"
        meanings = {name: describe_option(command, group, name) for name in options}
        yield _entry(group, f"({shown})", meanings)


def _sections(command_schema: type) -> Iterator[tuple[str, dict[str, Field[Any]]]]:
    """Title and keys of each section: keys without a section first. Internal keys are left out."""
    keys = {path: item for path, item in fields_by_path(command_schema).items() if not key_of(item).internal}
    if general := {path: item for path, item in keys.items() if "." not in path}:
        yield "keys:", general
    for section in fields(command_schema):
        if isinstance(section.default_factory, type) and is_dataclass(section.default_factory):
            title = _wrap(f"{section.name}: {section.default_factory.__doc__}", WIDTH)
            yield title, {path: item for path, item in keys.items() if path.startswith(f"{section.name}.")}


class _Values:
    """Values of keys as text.

    Args:
        config: the configuration of a command line.
        defaults: the configuration of its configuration groups alone.
        given: the keys on the command line.
    """

    def __init__(self, config: Any, defaults: Any, given: Sequence[str]):
        self._config, self._defaults, self._given = config, defaults, given

    def describe(self, path: str, key: Key) -> str:
        """`required`, `default: VALUE`, or, for a key of the command line, `given: VALUE`."""
        required = ["required"] if _value_at(self._defaults, path) == MISSING else []
        value = _value_at(self._config, path)
        if value == MISSING:
            return "required"
        is_given = any(name == path or name.startswith(f"{path}.") for name in self._given)
        return "; ".join([*required, f"{'given' if is_given else 'default'}: {_value_text(value, key)}"])


def _value_at(config: Any, path: str) -> Any:
    """The value of a key in plain Python types; a reference that cannot be resolved is kept as it is written."""
    try:
        value = OmegaConf.select(config, path, throw_on_missing=True)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException:
        node: Any = OmegaConf.to_container(config)
        for name in path.split("."):
            node = node[name]
        return node


def _value_text(value: Any, key: Key | None = None) -> str:
    """A value as it is written on the command line, or the meaning of its absence."""
    if value is None:
        return key.absent if key and key.absent else "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_value_text, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_value_text(item)}" for name, item in value.items()) + "}"
    return str(value) if value != "" else "empty"


def _key_entry(path: str, item: Field[Any], values: _Values) -> str:
    key = key_of(item)
    only = f" ({path.partition('.')[0]}={' or '.join(key.only)})" if key.only else ""
    unit = f" [{key.unit}]" if key.unit else ""
    shown = {**key.choices, **key.words}
    return _entry(path, f"{key.help}{only}{unit} ({values.describe(path, key)})", shown)


def _entry(name: str, text: str, choices: Mapping[str, str]) -> str:
    """Lines with a name on the left, and a text and choices on the right."""
    right = [_wrap(text, WIDTH - COLUMN)]
    width = max(map(len, choices), default=0)
    for choice, meaning in choices.items():
        wrapped = _wrap(meaning, WIDTH - COLUMN - width - 4)
        right.append(
            textwrap.indent(wrapped, " " * (width + 4)).replace(" " * (width + 4), f"  {choice:{width}}  ", 1)
        )
    block = textwrap.indent("\n".join(right), " " * COLUMN)
    left = f"  {name}"
    return f"{left:{COLUMN}}{block[COLUMN:]}" if len(left) < COLUMN else f"{left}\n{block}"


def _wrap(text: str, width: int) -> str:
    """Wrapped text, in which `default:` stays with the word after it."""
    kept = text.replace("default: ", "default:\0")
    return textwrap.fill(kept, width, break_on_hyphens=False).replace("\0", " ")
