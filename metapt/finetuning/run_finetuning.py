"""One fine-tuning run, from its configuration to a run folder with metrics, predictions, scores and the tagger."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from metapt import atomic_folders
from metapt.config import FinetuneConfig, identity, settings, training_splits
from metapt.data.labelled_sets import check_has_entities, evaluated_sets, open_collection, source_sets
from metapt.finetuning.baseline_scores import baseline_scores
from metapt.finetuning.distributed import is_main_process, on_its_device
from metapt.finetuning.resume import FinetuneCheckpoints
from metapt.finetuning.run_summary import print_summary
from metapt.finetuning.score_sets import TUNINGS, SetScorer, write_tagger
from metapt.finetuning.setup import FinetuneSetup, build_setup, require_precision, require_shots
from metapt.finetuning.tuner import Tuner
from metapt.models.pretrained import model_folder, model_origin
from metapt.runs import Run
from metapt.tagger.serialization import weights_sha256
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
    model_dir = model_folder(config.checkpoint)
    origin = model_origin(model_dir, config.checkpoint)
    earlier = origin.pop(TUNINGS, [])
    collection = open_collection(config.data, config.source, config.data.eval_sets)
    eval_sets = evaluated_sets(collection, config.data.eval_sets)
    splits = training_splits(config)
    sources = source_sets(collection, config.source, splits)
    check_has_entities(collection, sources, splits)
    parts = [(name, split) for name in sources for split in splits]
    parts += [(name, "test") for name in eval_sets]
    run = Run(config.run_dir)
    fingerprints = {"weights": weights_sha256(model_dir), "sentences": collection.fingerprint(parts)}
    with run.locked() if is_main_process() else nullcontext():
        if run.is_done:
            run.check_identity(identity(config), fingerprints, asdict(config))
            if is_main_process():
                run.repair_metrics()
            print(f"{run.path}: already done")
            return
        # before run.start, so that a configuration error leaves no config.yaml
        setup = build_setup(config, run, model_dir, collection, stop, fingerprints["weights"], eval_sets)
        if earlier:
            require_shots(config, setup.train.together.sentences)
        is_main = setup.processes.is_main_process
        if is_main:
            for note in collection.notes():
                log(note)
            require_precision(run, setup.processes.precision)
            run.start(identity(config), fingerprints, asdict(config), setup.processes.places())
        checkpoints = FinetuneCheckpoints(run, setup.processes, setup.trained, setup.optimizer)
        Tuner(setup, checkpoints).train()
        scorer = SetScorer(setup, collection)
        tuning_sets = {name: None for tuning in earlier for name in tuning["source_sets"]} | dict.fromkeys(
            sources
        )
        result = training_result(setup, checkpoints) | {
            "origin": origin,
            "earlier_tunings": earlier,
            "settings": settings(config),
            "inputs": fingerprints,
            "source_sets": sources,
            "generated_data": config.data.name == "demo" or origin.get("generated_data", False),
            "custom_sets": collection.custom_sets,
            "sentences_left_out": dict(collection.report.bad_input.skipped),
            "shared_sentences": scorer.shared_sentences(list(tuning_sets), eval_sets),
            "sets": scorer.score(eval_sets),
            "baselines": baseline_scores(config, collection, sources, eval_sets)
            if is_main and not earlier
            else None,
        }
        write_tagger(setup, result)
        if is_main:
            run.finish(result)
            for _, checkpoint in run.checkpoints():
                atomic_folders.remove(checkpoint)
    if is_main:
        print_summary(run, config, result)


def training_result(setup: FinetuneSetup, checkpoints: FinetuneCheckpoints) -> dict[str, Any]:
    """The part of result.json that is known when training ends; docs/run-folder.md describes the entries."""
    config, state, train = setup.config, checkpoints.state, setup.train.together
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
    }
