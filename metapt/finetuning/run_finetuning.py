"""One fine-tuning run, from its configuration to a run folder with metrics, predictions, scores and the tagger."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from metapt import atomic_folders
from metapt.config import FinetuneConfig, identity, settings
from metapt.finetuning.baseline_scores import baseline_scores
from metapt.finetuning.distributed import is_main_process, on_its_device
from metapt.finetuning.inputs import find_inputs
from metapt.finetuning.resume import FinetuneCheckpoints
from metapt.finetuning.run_summary import print_summary
from metapt.finetuning.score_sets import score_sets, write_tagger
from metapt.finetuning.setup import FinetuneSetup, build_setup, require_precision, require_shots
from metapt.finetuning.tuner import Tuner
from metapt.runs import Run
from metapt.training.progress_line import log
from metapt.training.signals import StopRequest


def finetune(config: FinetuneConfig, stop: StopRequest) -> None:
    """Start or resume the run that a configuration describes; a finished run is left unchanged.

    Raises:
        UserError: the checkpoint, the data or the run folder does not match the configuration.
        Interrupted: a signal arrived, and a checkpoint has been saved.
    """
    with on_its_device(config):
        _finetune(config, stop)


def _finetune(config: FinetuneConfig, stop: StopRequest) -> None:
    inputs = find_inputs(config)
    run = Run(config.run_dir)
    is_main = is_main_process()
    with run.locked() if is_main else nullcontext():
        if run.is_done:
            run.check_identity(identity(config), inputs.fingerprints, asdict(config))
            if is_main:
                run.repair_metrics()
            print(f"{run.path}: already done")
            return
        # before run.start, so that a configuration error leaves no config.yaml
        setup = build_setup(config, inputs, run, stop)
        if inputs.earlier_tunings:
            require_shots(config, setup.train.together.sentences)
        if is_main:
            for note in inputs.sets.collection.notes():
                log(note)
            require_precision(run, setup.processes.precision)
            run.start(identity(config), inputs.fingerprints, asdict(config), setup.processes.places())
        checkpoints = FinetuneCheckpoints(run, setup.processes, setup.trained, setup.optimizer)
        Tuner(setup, checkpoints).train()
        result = training_result(setup, checkpoints) | {"sets": score_sets(setup)}
        if is_main:
            result["baselines"] = (
                None if inputs.earlier_tunings else baseline_scores(inputs.sets, config.ner.cache_dir)
            )
        write_tagger(setup, result)
        if is_main:
            run.finish(result)
            for _, checkpoint in run.checkpoints():
                atomic_folders.remove(checkpoint)
    if is_main:
        print_summary(run, config, result)


def training_result(setup: FinetuneSetup, checkpoints: FinetuneCheckpoints) -> dict[str, Any]:
    """The part of result.json that is known when training ends; docs/run-folder.md describes the entries."""
    config, inputs, state, train = setup.config, setup.inputs, checkpoints.state, setup.train.together
    sets = inputs.sets.result_entries(inputs.earlier_tunings)
    return {
        "kind": "finetune",
        "source": config.source,
        "tuning": config.tuning,
        "seed": config.train.seed,
        "ner_head": config.ner.head,
        "steps": state.step,
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "best_step": state.best_step,
        "dev_f1": None if setup.dev is None else state.dev_f1,
        "seconds_total": state.seconds_total,
        "lr": setup.optimizer.param_groups[-1]["lr"],
        "types": [tag[2:] for tag in setup.tagger.layer.tags if tag.startswith("B-")],
        "train_sentences": train.sentences,
        "train_sentences_split": train.sentences_split,
        "train_words": len(train.tags),
        "pooled_character_fraction": train.pooled_character_fraction,
        "origin": inputs.origin,
        "earlier_tunings": inputs.earlier_tunings,
        "settings": settings(config),
        "inputs": inputs.fingerprints,
        **sets,
        "generated_data": sets["generated_data"] or inputs.origin.get("generated_data", False),
    }
