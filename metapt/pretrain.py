"""python -m metapt.pretrain key=value ...: one pretraining run. `--help` lists the keys."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from metapt.config import PretrainConfig, commandline, identity
from metapt.data import DEMO_NOTICE
from metapt.errors import Interrupted, UserError, run_command
from metapt.runs import Run
from metapt.training import experiment_trackers
from metapt.training.signals import StopRequest, StopRequested

if TYPE_CHECKING:
    from metapt.data.corpus import Corpus


def main(argv: Sequence[str]) -> None:
    """Starts, resumes, or (if it is done) leaves alone the run that the arguments describe.

    Raises:
        UserError: a mistake in the arguments or the data; or the folder holds another run.
        Interrupted: a signal came, and the last update, if there was one, stands in a checkpoint.
    """
    stop = StopRequest().listen()
    config: PretrainConfig = commandline.load("pretrain", argv)
    experiment_trackers.require_packages(config.log)
    run = Run(config.run_dir)
    leads = os.environ.get("RANK", "0") == "0"
    with run.locked() if leads else nullcontext():
        if run.is_done:
            run.check_identity(identity(config))
            print(f"{run.path}: done already")
            return
        pretrain(config, run, stop)


def pretrain(config: PretrainConfig, run: Run, stop: StopRequest) -> None:
    """Trains `run` to its end on this rank. Raises as `main`."""
    corpus = prepare(config, stop)
    if corpus.tokenizer.size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {corpus.tokenizer.size} entries, and model.vocab_size={config.model.vocab_size}; "
            f"give model.vocab_size={-(-corpus.tokenizer.size // 64) * 64}"
        )
    from metapt.models.meta_lm import SLOW_BF16, slow_in_bf16
    from metapt.training.trainer import Trainer

    trainer = Trainer(config, run, corpus, stop)
    if trainer.engine.rank == 0:
        if config.train.precision == "bf16" and slow_in_bf16(trainer.engine.device):
            print(SLOW_BF16, file=sys.stderr, flush=True)
        run.start(identity(config), {"corpus": corpus.fingerprint}, asdict(config))
    result = trainer.train()
    if trainer.engine.rank == 0:
        run.finish(result)
        print(
            f"{run.path}: held-out perplexity {result['eval_perplexity']:.1f} after {result['steps']} updates"
        )
        if result["generated_data"]:
            print(DEMO_NOTICE)


def prepare(config: PretrainConfig, stop: StopRequest) -> Corpus:
    """The corpus and its index of windows, made if they are not there.

    A signal gives this up at once. The other ranks may not have had it: they are told when they have come as far.
    Raises:
        Interrupted: some rank was asked to stop.
    """
    from metapt.data.corpus import prepare_corpus
    from metapt.data.episodes import corpus_index

    corpus = None
    with suppress(StopRequested), stop.at_once():
        corpus = prepare_corpus(config.data)
        if config.meta.rho > 0:
            corpus_index(corpus, config.meta)
    stops = bool(stop)
    if "RANK" in os.environ:
        from metapt.training.engine import any_rank

        stops = any_rank(stops)
    if corpus is None or stops:
        asked = stop.name or "a signal to another rank"
        raise Interrupted(f"{config.run_dir}: {asked} while the corpus was made ready; resumable")
    return corpus


if __name__ == "__main__":
    run_command(main)
