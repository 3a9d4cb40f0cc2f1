"""Declaration of configuration keys, and the part of a configuration that identifies a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Key:
    """What is known of a configuration key beside its type and default.

    Attributes:
        help: a phrase that says what the key is, understandable without any other key.
        unit: unit of a number, such as "tokens"; empty for pure numbers.
        absent: what `null` means, for a key that may be null.
        choices: allowed values, each with a clause that says what it does.
        words: words that a key allows beside numbers, each with a clause that says what it does.
        low, above, high: bounds of a number: at least, greater than, at most.
        identity: whether the value is part of the identity of a run (see `identity`).
        internal: set by a configuration group (`model=tiny` sets model.name) and not by the user.
        flag: whether `--KEY` on the command line stands for `KEY=true`.
        only: the options of the configuration group of its section without which it has no effect, such as slurm for
            cluster.partition; empty: it always has one.
        only_with: the same for other keys, by dotted path: those of their values with which it has an effect.
    """

    help: str
    unit: str = ""
    absent: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    low: float | None = None
    above: float | None = None
    high: float | None = None
    identity: bool = True
    internal: bool = False
    flag: bool = False
    only: tuple[str, ...] = ()
    only_with: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def key(default: Any, help: str, **properties: Any) -> Any:
    """A dataclass field for a configuration key; `properties` are attributes of Key."""
    metadata = {"key": Key(help, **properties)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def key_of(item: Field[Any]) -> Key:
    """The Key that a dataclass field declares."""
    declared: Key = item.metadata["key"]
    return declared


def default_of(item: Field[Any]) -> Any:
    """The default of a configuration key."""
    return item.default if item.default_factory is MISSING else item.default_factory()


@cache
def fields_by_path(schema: type, prefix: str = "") -> dict[str, Field[Any]]:
    """Every key of a configuration dataclass and its sections, by dotted path."""
    found: dict[str, Field[Any]] = {}
    for item in fields(schema):
        section = item.default_factory
        if isinstance(section, type) and is_dataclass(section):
            found |= fields_by_path(section, f"{prefix}{item.name}.")
        else:
            found[f"{prefix}{item.name}"] = item
    return found


def hang_timeout_key() -> int:
    """The key `train.hang_timeout_s` of pretraining and of fine-tuning."""
    return key(
        1200,
        "time without progress after which a run counts as hung, ends, and can be resumed on another node; must be longer "
        "than an update and than saving a checkpoint; 0: never",
        unit="seconds",
        low=0,
        high=6000,
        identity=False,
    )


def identity(config: Any) -> dict[str, Any]:
    """The part of a configuration that decides the outcome of a run, as nested dictionaries.

    Two runs with equal identities are the same run. Paths, logging and resources are not part of it. A configuration
    may add values that follow from several keys (`derived_identity`, by section).
    """
    values = asdict(config)

    def prune(section: Any, node: dict[str, Any]) -> dict[str, Any]:
        kept = {}
        for item in fields(section):
            value = getattr(section, item.name)
            if is_dataclass(value):
                if part := prune(value, node[item.name]):
                    kept[item.name] = part
            elif key_of(item).identity:
                kept[item.name] = node[item.name]
        return kept

    derived = config.derived_identity() if hasattr(config, "derived_identity") else {}
    kept = prune(config, values)
    return {**kept, **{section: kept[section] | added for section, added in derived.items()}}


def settings(config: Any) -> dict[str, Any]:
    """The identity of a configuration with dotted keys: {"train.lr": 0.003, ...}, as result.json records it."""

    def flatten(node: dict[str, Any], prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for name, value in node.items():
            if prefix + name in keys or not isinstance(value, dict):
                flat[prefix + name] = value
            else:
                flat |= flatten(value, f"{prefix}{name}.")
        return flat

    schema: type = type(config)
    keys = fields_by_path(schema)
    return flatten(identity(config), "")
