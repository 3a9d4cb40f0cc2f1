"""The keys of a pretraining configuration that follow from the model that `init=` names: its shape and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import OmegaConf

from metapt import config as schema
from metapt.config.keys import fields_by_path
from metapt.config.registry import INITIAL_MODEL
from metapt.errors import UserError

OPTION = "pretrained"
"""The option of the group `model` that leaves the shape to the model of `init=`."""


def with_option(command: str, words: Sequence[str]) -> list[str]:
    """The words of a command line, with `model=pretrained` first if `init=` names a model and no word chooses a size."""
    given = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    names_model = given.get("init", "null") not in ("", "null") and "init" in fields_by_path(
        schema.COMMANDS[command]
    )
    return [f"model={OPTION}", *words] if names_model and "model" not in given else list(words)


def fill_from_initial_model(composed: Any, words: Sequence[str]) -> Iterator[str]:
    """Set the keys that follow from `init`; yield what contradicts it.

    Args:
        composed: the configuration as Hydra composed it, changed in place.
        words: the `key=value` words of the command line.
    Raises:
        OperationalError: the hub is not available.
    """
    name, is_option = composed.get("init"), OmegaConf.select(composed, "model.name") == OPTION
    if not name:
        if is_option:
            yield f"model={OPTION}: needs init=MODEL, the model to continue from"
        return
    own_shape = [word for word in words if word.startswith("model.")]
    if own_shape or not is_option:
        yield f"init={name}: brings its own shape; remove {own_shape[0] if own_shape else 'model=' + composed.model.name}"
        return
    try:
        model = INITIAL_MODEL.load()(name)
        for key, value in {**model.shape, "name": model.name}.items():
            OmegaConf.update(composed, f"model.{key}", value)
        composed.init_sha256 = model.sha256
        yield from _fill_tokenizer(composed, words, model)
    except UserError as error:
        yield str(error)


def _fill_tokenizer(composed: Any, words: Sequence[str], model: Any) -> Iterator[str]:
    """Make the model's tokenizer that of the corpus; yield an error if the configuration names another one."""
    wanted, given = composed.data.tokenizer, [word for word in words if word.startswith("data.tokenizer=")]
    if wanted == "train" and not given:
        composed.data.tokenizer = model.tokenizer
    elif wanted == "train" or not model.has_tokenizer(wanted):
        yield (
            f"data.tokenizer={wanted}: init={composed.init} has another tokenizer; remove the key, or "
            f"for data=hub with a column of text give data.tokenizer={model.tokenizer}"
        )
