"""One fine-tuning run: a decoder, a source to tune it on, a folder in which everything about it is found afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metapt.config import FinetuneConfig, identity
from metapt.data import DEMO_NOTICE
from metapt.data.uner import Collection, open_collection, source_sets
from metapt.errors import UserError
from metapt.ner.tuning import Tuning
from metapt.runs import CheckpointFolders, Run, file_sha256, model_folder, model_origin
from metapt.training.interruption import StopRequest


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
    parts = [(name, split) for name in source_sets(collection, config.source) for split in ("train", "dev")]
    parts += [(name, "test") for name in tests]
    run = Run(config.run_dir)
    fingerprints = {"weights": weights_sha256(folder), "sentences": collection.fingerprint(parts)}
    with run.claimed():
        if run.is_done:
            run.refuse_another(identity(config), fingerprints)
            print(f"{run.path}: done already")
            return
        tuning = Tuning(
            config, run, folder, collection, stop
        )  # first, so that a mistake leaves no config.yaml
        run.begin(identity(config), fingerprints, asdict(config))
        tuning.train()
        tuning.save_tagger()
        result = describe(tuning) | {
            "origin": origin,
            "source_sets": source_sets(collection, config.source),
            "generated_data": config.data.name == "demo" or origin.get("generated_data", False),
            "sets": {name: tuning.evaluate(name) for name in tests},
        }
        run.finish(result)
        for _, checkpoint in run.checkpoints():
            CheckpointFolders.remove(checkpoint)
    print(f"{run.path}: dev F1 {result['dev_f1']:.3f} in epoch {result['best_epoch']} of {result['epochs']}")
    if result["generated_data"]:
        print(DEMO_NOTICE)


def describe(tuning: Tuning) -> dict[str, Any]:
    """The part of result.json that is known when training has ended; docs/design.md says what each entry means."""
    config, state = tuning.config, tuning.state
    return {
        "kind": "finetune",
        "source": config.source,
        "regime": config.regime,
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
    }


def evaluated_sets(collection: Collection, wanted: Sequence[str]) -> list[str]:
    """The sets with a test split, or those of them that are wanted.

    Raises:
        UserError: a wanted set has no test split.
    """
    known = collection.sets("test")
    missing = [name for name in wanted if name not in known]
    if missing:
        raise UserError(
            f"data.eval_sets: no test split of {', '.join(missing)}; there are {', '.join(known)}"
        )
    return [name for name in known if name in wanted or not wanted]


def weights_sha256(folder: Path) -> str:
    """Checksum of a model folder's weights; of several files, their checksums joined by +."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: holds no *.safetensors")
    return "+".join(file_sha256(path) for path in files)
