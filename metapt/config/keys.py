"""How a configuration key is declared, and which keys decide the outcome of a run.

A field's metadata holds its help line, its allowed values (`choices`) or bounds (`low`, `above`, `high`), whether it decides
the outcome of a run (`identity`), and, for a key that came later, what runs without it did (`before`).
"""

from __future__ import annotations

from dataclasses import asdict, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING


def key(default: Any, help: str, **metadata: Any) -> Any:
    """A configuration key: a dataclass field with its help line and its checks."""
    metadata = {"help": help, **metadata}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def identity(config: Any) -> dict[str, Any]:
    """The part of a configuration that decides the outcome of a run, as nested dictionaries.

    A key at the value that stands for the time before it was there (`before`) is left out, so that a run keeps its
    identity, and its folder, in later versions.
    """
    values = asdict(config)

    def prune(schema: Any, node: dict[str, Any]) -> dict[str, Any]:
        kept = {}
        for item in fields(schema):
            value = getattr(schema, item.name)
            if is_dataclass(value):
                if part := prune(value, node[item.name]):
                    kept[item.name] = part
            elif item.metadata.get("identity", True) and item.metadata.get("before", MISSING) != value:
                kept[item.name] = node[item.name]
        return kept

    return prune(config, values)
