"""The command `metapt pretrain`: one pretraining run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from metapt.config import PretrainCommandConfig, PretrainConfig, commandline, identity_in
from metapt.config.registry import TASKS
from metapt.data import DEMO_NOTICE
from metapt.errors import UserError, run_command
from metapt.launch.run_checks import check_run, vocabulary_error
from metapt.runs import Run
from metapt.training import experiment_trackers
from metapt.training.progress_line import log
from metapt.training.signals import StopRequest, StopRequested

if TYPE_CHECKING:
    from metapt.data.corpus import Corpus


def main(argv: Sequence[str]) -> None:
    """Start or resume the run of these arguments; a finished run is left as it is.

    Raises:
        UserError: an error in the arguments or the data, or the folder holds another run.
        Interrupted: a signal arrived, and the last update, if there was one, is saved in a checkpoint; or a device failed.
    """
    stop = StopRequest().listen()
    config: PretrainCommandConfig = commandline.load("pretrain", argv)
    experiment_trackers.require_packages(config.log)
    if config.check:
        ranks = config.nodes * max(1, config.gpus)
        check_run(config, ranks)
        print(f"{config.run_dir}: nothing to refuse on {ranks} rank(s)")
        return
    run = Run(config.run_dir)
    is_main_rank = os.environ.get("RANK", "0") == "0"
    if is_main_rank:  # before the slow imports
        log(
            f"pretrain {config.model.name}, objective {config.meta.objective}, data {config.data.name}: {run.path}"
        )
    if config.device == "cpu":  # before the first use of CUDA
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with run.locked() if is_main_rank else nullcontext(), stop.watched(run, config.train.hang_timeout_s):
        if not _is_done(config, run, is_main_rank):
            pretrain(config, run, stop)


def _is_done(config: PretrainConfig, run: Run, is_main_rank: bool) -> bool:
    """Whether the run is done. Rank 0 looks at the folder, since ranks may see different states of a file system.

    Raises:
        UserError: on all ranks, if the folder holds another run.
    """
    found: bool | UserError = False
    if is_main_rank and run.result_file.exists():
        try:
            run.check_identity(identity_in(config, run), config=asdict(config))
            reason = _reason_to_go_on(run, config)
            found = reason is None
            print(f"{run.path}: {reason or 'already done'}", file=sys.stderr if reason else sys.stdout)
            if found:
                run.repair_metrics()
        except UserError as error:
            found = error
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from metapt.training.engine import from_main_rank

        found = from_main_rank(found)
    if isinstance(found, UserError):
        raise found
    return found


def pretrain(config: PretrainConfig, run: Run, stop: StopRequest) -> None:
    """Train a run to its end on this rank. Raises as `main`."""
    from metapt.models.device import training_device

    training_device(config.device)  # refuses a CPU before the corpus is prepared
    corpus = prepare(config, stop)
    if error := vocabulary_error(config, corpus.tokenizer.size):
        raise UserError(error)
    from metapt.training.run_training import train_run

    if result := train_run(config, run, corpus, stop):
        run.finish(result)
        perplexity = f"{result['eval_perplexity']:.1f}"
        print(f"{run.path}: held-out perplexity {perplexity} after {result['steps']} updates")
        if result["generated_data"]:
            print(DEMO_NOTICE)


def _reason_to_go_on(run: Run, config: PretrainConfig) -> str | None:
    """Why a run that has a result is not done; None if it is."""
    if problem := run.result_problem(hashed=""):
        return f"the result does not count and is withdrawn: {problem}"
    steps, wanted = run.result()["steps"], config.train.max_steps
    return f"ended after {steps} updates and is extended to {wanted}" if steps < wanted else None


def prepare(config: PretrainConfig, stop: StopRequest) -> Corpus:
    """The corpus and its index of episode windows, created if they do not exist.

    A signal stops this at once. Ranks that received none learn of it afterwards.

    Raises:
        Interrupted: a rank received a signal.
    """
    from metapt.data.corpus import prepare_corpus
    from metapt.data.corpus_classes import corpus_classes

    corpus = None
    with suppress(StopRequested), stop.at_once():
        corpus = prepare_corpus(config.data, progress=log)
        if config.meta.rho > 0:
            TASKS[config.meta.task].load().of(config, corpus)
        if config.classes.sizes:
            corpus_classes(corpus, config.classes, log)
    stops = bool(stop)
    if "RANK" in os.environ:
        from metapt.training.engine import any_rank

        stops = any_rank(stops)
    if corpus is None or stops:
        raise stop.interruption(config.run_dir, "during preparation of the corpus")
    return corpus


if __name__ == "__main__":
    run_command(main)
