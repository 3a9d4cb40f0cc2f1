"""From a command line (`model=tiny meta.rho=0.3`) to a checked configuration object.

Hydra alone stops at the first error with a long message. Here every override is examined by itself first, so that all
errors are reported at once, one a line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metapt import config as schema
from metapt.config.checkpoint_keys import fill_from_checkpoint
from metapt.config.checks import NO_SEQUENCES, check
from metapt.config.composition import MICRO_BATCH, compose, group_options, mapping_keys, parse_override
from metapt.config.help_text import TEXT_ARGUMENTS, flags, help_text
from metapt.config.initial_keys import fill_from_initial_model, with_option
from metapt.config.keys import fields_by_path, key_of
from metapt.config.option_files import flat_values, is_file, read_option_file
from metapt.errors import UserError, first_line

HELP = {"-h", "--help"}
PRINT_CONFIG = "--print-config"
SEQUENCES = "train.sequences_per_update"
SPLIT = (f"{MICRO_BATCH}=", "train.micro_batches_per_update=", f"{SEQUENCES}=")
SETTING = re.compile(r"[A-Za-z_][\w.]*=")


def load(command: str, arguments: Sequence[str]) -> Any:
    """The checked configuration of a command.

    Args:
        command: one of `config.COMMANDS`.
        arguments: the words of the command line after `metapt COMMAND`.
    Returns: an instance of the command's dataclass.
    Raises:
        UserError: with every error in the configuration, one a line.
        SystemExit: after printing what `--help` or `--print-config` asks for.
    """
    replaced = {f"--{path}": f"{path}=true" for path in flags(command)}
    words = [replaced.get(word, word) for word in arguments if word not in {*HELP, PRINT_CONFIG}]
    settings = with_option(command, [_readable(command, word) for word in words])
    problems = {word: list(_examine(command, word)) for word in settings}
    valid = [word for word in settings if not problems[word]]
    errors = list(chain.from_iterable(problems.values()))
    if HELP & set(arguments):
        _refuse(command, errors)
        print(help_text(command, valid))
        raise SystemExit(0)
    try:
        composed = compose(command, valid)
        if command == "probe":
            fill_from_checkpoint(composed, valid)
        if problems_of_init := list(fill_from_initial_model(composed, valid)):
            _refuse(command, [*errors, *problems_of_init])
        if required := _fill_missing(command, composed):
            errors += required
            if OmegaConf.missing_keys(composed):
                _refuse(command, errors)
        config = OmegaConf.to_object(composed)
        errors += check(config)
    except (HydraException, OmegaConfBaseException) as error:
        errors.append(_composition_error(error))
    _refuse(command, errors)
    if PRINT_CONFIG in arguments:
        print(OmegaConf.to_yaml(composed, resolve=True), end="")
        raise SystemExit(0)
    return config


def split_settings_and_texts(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The settings (options included) and the texts in the command line of a command that takes both.

    A word that looks like a setting is one even if there is no such key, so that a mistyped key is an error.
    """
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    settings = [word for word in words[:end] if SETTING.match(word) or word in {*HELP, PRINT_CONFIG}]
    texts = [word for word in words[:end] if word not in settings]
    return settings, texts + words[end + 1 :]


def quote_override(key: str, value: object) -> str:
    """The word `key=value` for a value with any characters in it, such as spaces, =, commas and quotes."""
    text = str(value)
    plain = re.fullmatch(r"\d+|[A-Za-z_./][\w./+:@-]*", text, re.ASCII)
    if not plain or text.lower() in ("true", "false", "null", "nan", "inf"):
        text = "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + (match[2] and "\\'"), text) + "'"
    return f"{key}={text}"


def without_files(command: str, words: Sequence[str]) -> tuple[str, ...]:
    """The words of a command line, with those that choose an option by its file replaced by what the file sets.

    So a job does not depend on a file that may change, or be absent, before it starts.

    Raises:
        UserError: a file cannot be read or has errors.
    """
    groups = group_options(command)
    chosen = [word for word in words if word.partition("=")[0] in groups]
    shipped = [word for word in chosen if not is_file(word.partition("=")[2].strip("'\""))]
    if len(shipped) == len(chosen):
        return tuple(words)
    _refuse(command, list(chain.from_iterable(_examine(command, word) for word in chosen)))
    values, otherwise = (
        dict(flat_values(command, OmegaConf.to_container(compose(command, options))))
        for options in (chosen, shipped)
    )
    changed = [
        f"{path}={value_text(value)}" for path, value in values.items() if value != otherwise.get(path)
    ]
    others = [word for word in words if word not in chosen]
    return (*shipped, *changed, *others, *_sequences(command, [*chosen, *others]))


def _sequences(command: str, words: Sequence[str]) -> list[str]:
    """The word with the sequences of an update if train.micro_batch=auto splits those of an option in a file.

    Without the file they would be those of another option.

    Raises:
        UserError: the file has train.micro_batch=auto, and nothing says how many there are.
    """
    groups = group_options(command)
    split = [word for word in words if word.startswith(SPLIT) and not list(_examine(command, word))]
    composed = compose(command, [*(word for word in words if word.partition("=")[0] in groups), *split])
    if OmegaConf.select(composed, MICRO_BATCH) != schema.AUTO:
        return []
    if composed.train.sequences_per_update is None:
        _refuse(command, [NO_SEQUENCES])
    return [f"{SEQUENCES}={composed.train.sequences_per_update}"]


def value_text(value: Any) -> str:
    """A value as Hydra reads it after `key=`."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{value_text(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(value_text, value))}]"
    if isinstance(value, str):
        return quote_override("", value)[1:]
    return "null" if value is None else str(value).lower()


def _readable(command: str, word: str) -> str:
    """A word as Hydra reads it: a text that it cannot read, such as a path with spaces, in quotes; `auto` as null."""
    name, _, value = word.partition("=")
    item = fields_by_path(schema.COMMANDS[command]).get(name)
    if value == "auto" and item is not None and key_of(item).absent.startswith("auto: "):
        return f"{name}=null"
    if item is None or item.type not in ("str", "str | None"):
        return word
    try:
        parse_override(word)
    except HydraException:
        return quote_override(name, value)
    return word


def _refuse(command: str, errors: Sequence[str]) -> None:
    distinct = list(dict.fromkeys(errors))
    if distinct:
        count = f"{len(distinct)} configuration error{'s' if len(distinct) > 1 else ''}"
        raise UserError("\n  ".join([f"metapt {command}: {count}", *distinct]))


def _fill_missing(command: str, composed: Any) -> list[str]:
    """Errors about required keys that were not given. Texts get a value, so that the other checks can run."""
    keys = fields_by_path(schema.COMMANDS[command])
    missing = sorted(OmegaConf.missing_keys(composed))
    for name in missing:
        if keys[name].type == "str":
            OmegaConf.update(composed, name, "missing")
    return [f"{name} is required ({key_of(keys[name]).help})" for name in missing]


def _examine(command: str, word: str) -> Iterator[str]:
    """The errors in one override by itself."""
    try:
        override = parse_override(word)
    except HydraException:
        yield f"{word!r}: not of the form key=value (quote a value with =, spaces or commas: key='\"a, b\"')"
        return
    if override.type is not OverrideType.CHANGE or override.is_sweep_override():
        yield _examine_sweep(command, word, override)
        return
    name, groups = override.key_or_group, group_options(command)
    if name not in groups:
        if error := _examine_key(command, name, override.value(), override.get_value_element_as_str()):
            yield error
    elif is_file(option := str(override.value())):
        yield from _examine_file(command, name, option)
    elif option not in groups[name]:
        yield f"{word}: must be one of {', '.join(groups[name])}, or a file of yours that ends in .yaml"


def _examine_sweep(command: str, word: str, override: Override) -> str:
    """The error in a word that is no assignment of one value."""
    item = fields_by_path(schema.COMMANDS[command]).get(override.key_or_group)
    if override.is_sweep_override() and item is not None and str(item.type).startswith("list"):
        return f"{word}: a list is written in brackets: '{override.key_or_group}=[{word.partition('=')[2]}]'"
    hint = "give one value" if command == "submit" else "use metapt submit for several runs"
    return f"{word!r}: only key=value with one value is supported; {hint}"


def _examine_file(command: str, group: str, path: str) -> Iterator[str]:
    """The errors in the keys of a file that is an option of a group."""
    try:
        values = read_option_file(command, group, path).values
    except UserError as error:
        yield str(error)
        return
    for name, value in values.items():
        if problem := _examine_key(command, name, value, value):
            yield f"{path}: {problem}"


def _examine_key(command: str, name: str, value: Any, text: object) -> str | None:
    """The error in the value of one key by itself, or None; `text` is the value as it was written."""
    keys = fields_by_path(schema.COMMANDS[command])
    if name not in keys and not name.startswith(tuple(f"{path}." for path in mapping_keys(command))):
        return f"{name}: no such key; {_suggestion(command, name)}"
    if isinstance(value, str) and "${" in value:
        return None
    try:
        OmegaConf.update(_scratch(command), name, value, merge=True, force_add=False)
    except OmegaConfBaseException as error:
        return f"{name}={text}: {first_line(error)}"
    return None


def _suggestion(command: str, name: str) -> str:
    """Keys that the user may have meant by an unknown one."""
    known = [
        path for path, item in fields_by_path(schema.COMMANDS[command]).items() if not key_of(item).internal
    ]
    close = difflib.get_close_matches(name, [*known, *group_options(command)], n=3, cutoff=0.5)
    close = close or [path for path in known if path.split(".")[-1] == name.split(".")[-1]]
    hint = f"did you mean {' or '.join(close)}?" if close else f"metapt {command} --help lists the keys"
    return f"{hint} After --, it is not a key" if command in TEXT_ARGUMENTS else hint


@cache
def _scratch(command: str) -> Any:
    """A configuration that is only written to, to check the types of values."""
    return OmegaConf.structured(schema.COMMANDS[command])


def _composition_error(error: Exception) -> str:
    """An error that only the whole configuration shows, such as an environment variable that is not set."""
    name = getattr(error, "full_key", None)
    message = first_line(error).removeprefix("KeyError raised while resolving interpolation: ").strip('"')
    return f"{name}: {message}" if name else message
