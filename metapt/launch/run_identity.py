"""The identity of a run: a hash of its configuration and of the identities of its inputs, which ends its folder's name.

A changed configuration is therefore another run in another folder, and an unchanged one is found again by any
submission. Inputs that the grid does not make (text, tokenizer, labelled sets) count by their path as the user gave
it. Their content is checked by fingerprint when the run begins.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from metapt.config import BaselineConfig, FinetuneConfig, PretrainConfig, identity


def corpus_settings(config: PretrainConfig) -> dict[str, Any]:
    """The settings that decide which token shards a pretraining run reads."""
    data = config.data
    return {**identity(config)["data"], "text_dir": data.text_dir, "tokenizer": data.tokenizer}


def corpus_digest(config: PretrainConfig) -> str:
    return _digest(corpus_settings(config))


def pretraining_digest(config: PretrainConfig) -> str:
    return _digest({**identity(config), "data": corpus_settings(config)})


def tagging_digest(config: FinetuneConfig | BaselineConfig, **inputs: str) -> str:
    """The hash of a fine-tuning run or a baseline.

    Args:
        inputs: what is fine-tuned: the hash of the pretraining run and its checkpoint, that of the run that made a
            tagger, or another model.
    """
    sets = {"uner_dir": config.data.uner_dir, "corpora": config.data.corpora}
    return _digest({**identity(config), "inputs": {**sets, **inputs}})


def _digest(value: Any) -> str:
    """Six hexadecimal digits. If two configurations with one readable name collide, the run refuses the second one."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
