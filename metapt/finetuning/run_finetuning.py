"""One fine-tuning run: a decoder, a source to tune it on, a folder in which everything about it is found afterwards."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metapt import atomic_folders
from metapt.config import FinetuneConfig, identity
from metapt.data import DEMO_NOTICE
from metapt.data.labelled_sets import check_has_entities, evaluated_sets, open_collection, source_sets
from metapt.errors import UserError
from metapt.files import file_sha256
from metapt.finetuning.distributed import leads
from metapt.finetuning.model_card import model_card
from metapt.finetuning.tuner import Tuning
from metapt.models.pretrained import model_folder, model_origin
from metapt.runs import Run
from metapt.training.signals import StopRequest


def finetune(config: FinetuneConfig, stop: StopRequest) -> None:
    """Starts, resumes, or (if it is done) leaves alone the run that a configuration describes.

    Raises:
        UserError: the checkpoint, the data or the run folder is not what the configuration needs.
        Interrupted: `stop` was set, and a checkpoint stands.
    """
    folder = model_folder(config.checkpoint)
    origin = model_origin(folder, config.checkpoint)
    collection = open_collection(config.data)
    tests = evaluated_sets(collection, config.data.eval_sets)
    sources = source_sets(collection, config.source)
    check_has_entities(collection, sources)
    parts = [(name, split) for name in sources for split in ("train", "dev")]
    parts += [(name, "test") for name in tests]
    run = Run(config.run_dir)
    fingerprints = {"weights": weights_sha256(folder), "sentences": collection.fingerprint(parts)}
    with run.locked() if leads() else nullcontext():
        if run.is_done:
            run.check_identity(identity(config), fingerprints)
            print(f"{run.path}: done already")
            return
        # first, so that a mistake leaves no config.yaml
        tuning = Tuning(config, run, folder, collection, stop, fingerprints["weights"])
        if tuning.ranks.leads:
            run.start(identity(config), fingerprints, asdict(config))
        tuning.train()
        result = describe(tuning) | {
            "origin": origin,
            "source_sets": sources,
            "generated_data": config.data.name == "demo" or origin.get("generated_data", False),
            "custom_sets": collection.custom_sets,
            "sets": tuning.evaluate(tests),
        }
        tuning.save_tagger(model_card(result, asdict(config.ner), is_causal=tuning.tagger.causal))
        if tuning.ranks.leads:
            run.finish(result)
            for _, checkpoint in run.checkpoints():
                atomic_folders.remove(checkpoint)
    if not tuning.ranks.leads:
        return
    print(f"{run.path}: dev F1 {result['dev_f1']:.3f} in epoch {result['best_epoch']} of {result['epochs']}")
    print(
        f"cut in training at ner.max_len={config.ner.max_len}: {result['train_sentences_cut']} of "
        f"{result['train_sentences']} sentences, {result['train_words_cut']} words ({result['train_words']} were read)"
    )
    if result["generated_data"]:
        print(DEMO_NOTICE)


def describe(tuning: Tuning) -> dict[str, Any]:
    """The part of result.json that is known when training has ended; docs/run-folder.md says what each entry means."""
    config, state = tuning.config, tuning.state
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
        "dev_f1": state.dev_f1,
        "seconds_total": state.seconds_total,
        "train_sentences": len(tuning.train_set.lengths),
        "train_sentences_cut": tuning.train_set.num_cut,
        "train_words": len(tuning.train_set.tags),
        "train_words_cut": tuning.train_set.words_cut,
    }


def weights_sha256(folder: Path) -> str:
    """Checksum of a model folder's weights; of several files, their checksums joined by +."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: holds no *.safetensors")
    return "+".join(file_sha256(path) for path in files)
