"""The identity of a run: a hash of its configuration and of its inputs' identities. It is part of the folder's name.

Hence a changed configuration is another run in another folder, and an unchanged one is found again, whoever asks. Inputs
that are not made by the grid (text, tokenizer, labelled sets) count by their path as it was given; what they
hold is checked when the run begins, by fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from metapt.config import BaselineConfig, FinetuneConfig, PretrainConfig, identity


def corpus_settings(config: PretrainConfig) -> dict[str, Any]:
    """What decides which token shards a pretraining run reads."""
    data = config.data
    return {**identity(config)["data"], "text_dir": data.text_dir, "tokenizer": data.tokenizer}


def of_corpus(config: PretrainConfig) -> str:
    return _digest(corpus_settings(config))


def of_pretraining(config: PretrainConfig) -> str:
    return _digest({**identity(config), "data": corpus_settings(config)})


def of_tagging(config: FinetuneConfig | BaselineConfig, **inputs: str) -> str:
    """Args: inputs: what is tuned: the identity of the pretraining run and which checkpoint of it, or another model."""
    sets = {"uner_dir": config.data.uner_dir, "corpora": config.data.corpora}
    return _digest({**identity(config), "inputs": {**sets, **inputs}})


def _digest(value: Any) -> str:
    """Six digits: two configurations of one readable name that share them are refused by the run itself."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
