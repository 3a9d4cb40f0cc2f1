"""One pretraining run on this rank: its recorded start, its training, and one line if memory is exhausted."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Any

from metapt.config import PretrainConfig, identity_in
from metapt.data.corpus import Corpus
from metapt.estimate.memory import Ranks
from metapt.estimate.update_split import memory_advice, with_numbers
from metapt.models.device import memory_errors, training_device, use_deterministic_algorithms
from metapt.models.meta_lm import SLOW_BF16, slow_in_bf16
from metapt.runs import Run
from metapt.training.signals import StopRequest
from metapt.training.trainer import Trainer


def train_run(config: PretrainConfig, run: Run, corpus: Corpus, stop: StopRequest) -> dict[str, Any] | None:
    """Train a run to its end, from its newest checkpoint if there is one; all ranks must call it.

    Returns: the content of result.json on rank 0, None on the others.
    Raises:
        UserError: the memory of the device is exhausted; the message names the key to set. Others as `Trainer.train`.
    """
    if config.train.deterministic:
        use_deterministic_algorithms()
    ranks = Ranks(int(os.environ.get("WORLD_SIZE", "1")), training_device(config.device).type)
    numbers = [with_numbers(config, ranks, None)]
    with memory_errors(str(run.path), lambda: memory_advice(numbers[-1], ranks)):
        trainer = Trainer(config, run, corpus, stop)
        numbers.append(trainer.config)
        _record_start(config, run, trainer)
        result = trainer.train()
    return result if trainer.engine.rank == 0 else None


def _record_start(config: PretrainConfig, run: Run, trainer: Trainer) -> None:
    """Record the start of a run in its folder; all ranks must call it."""
    circumstances = trainer.circumstances()
    if trainer.engine.rank > 0:
        return
    if config.train.precision == "bf16" and slow_in_bf16(trainer.engine.device):
        print(SLOW_BF16, file=sys.stderr, flush=True)
    fingerprints = {"corpus": trainer.corpus.fingerprint}
    if trainer.data.classes is not None:
        fingerprints["classes"] = trainer.data.classes.sha256
    run.start(identity_in(config, run), fingerprints, asdict(config), circumstances)
    run.withdraw_result()
