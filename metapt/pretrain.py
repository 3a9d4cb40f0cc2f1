"""python -m metapt.pretrain key=value ...: one pretraining run. `--help` lists the keys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict

from metapt import commandline
from metapt.config import PretrainConfig, identity
from metapt.data import DEMO_NOTICE
from metapt.errors import UserError, run_command
from metapt.runs import Run
from metapt.training import loggers
from metapt.training.interruption import StopRequest


def main(argv: Sequence[str]) -> None:
    """Starts, resumes, or (if it is done) leaves alone the run that the arguments describe.

    Raises:
        UserError: a mistake in the arguments or the data; or the folder holds another run.
        Interrupted: a signal came, and a checkpoint stands.
    """
    config: PretrainConfig = commandline.load("pretrain", argv)
    loggers.require_packages(config.log)
    run = Run(config.run_dir)
    leads = os.environ.get("RANK", "0") == "0"
    with run.claimed() if leads else nullcontext():
        if run.is_done:
            run.refuse_another(identity(config))
            print(f"{run.path}: done already")
            return
        pretrain(config, run)


def pretrain(config: PretrainConfig, run: Run) -> None:
    """Trains `run` to its end on this rank."""
    stop = StopRequest().listen()  # before the slow imports, during which a signal would otherwise kill
    from metapt.data.corpus import prepare_corpus

    corpus = prepare_corpus(config.data)
    if corpus.tokenizer.size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {corpus.tokenizer.size} entries, and model.vocab_size={config.model.vocab_size}; "
            f"give model.vocab_size={-(-corpus.tokenizer.size // 64) * 64}"
        )
    from metapt.training.trainer import Trainer

    trainer = Trainer(config, run, corpus, stop)
    if trainer.engine.rank == 0:
        run.begin(identity(config), {"corpus": corpus.fingerprint}, asdict(config))
    result = trainer.train()
    if trainer.engine.rank == 0:
        run.finish(result)
        print(
            f"{run.path}: held-out perplexity {result['heldout_perplexity']:.1f} after {result['steps']} updates"
        )
        if result["generated_data"]:
            print(DEMO_NOTICE)


if __name__ == "__main__":
    run_command(main)
