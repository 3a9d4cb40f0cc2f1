"""Head-only tuning: word features computed once or read from the cache, against computing them in every epoch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

from timing import Case

from metapt.config import commandline
from metapt.data import demo
from metapt.data.tokenizers import train_tokenizer
from metapt.finetuning.inputs import find_inputs
from metapt.finetuning.progress import FinetuneLog
from metapt.finetuning.resume import FinetuneCheckpoints
from metapt.finetuning.setup import build_setup
from metapt.finetuning.tuner import Tuner
from metapt.models.decoder import build_decoder
from metapt.runs import Run
from metapt.training.signals import StopRequest


class Recomputing(Tuner):
    """Computes the word features of the training and dev sets in every epoch."""

    def _epoch(self, metrics: FinetuneLog | None) -> None:
        self._compute_frozen_features()
        super()._epoch(metrics)


def head_only(folder: Path) -> list[Case]:
    """Ten epochs on 100 training and 200 dev sentences at tiny; test sets are not scored."""
    model = folder / "model"
    decoder = build_decoder(
        commandline.load("pretrain", ["model=tiny", "objective=maml_paper", "data=demo"]).model, 0
    )
    decoder.save_pretrained(model)
    train_tokenizer(demo.documents(size_bytes=100_000), 2000).save_pretrained(model)
    words = ["source=sk_demo", "data=demo", "data.max_train_sentences=100", "ner.patience=10"]
    words.append(f"checkpoint={model}")
    run_dirs = (folder / f"run{number}" for number in count())
    named = commandline.load("finetune", [*words, f"run_dir={folder / 'run'}"])
    inputs = find_inputs(named)  # once: it is tuning that is timed

    def tune_with(tuner: type[Tuner], *overrides: str) -> Callable[[], object]:
        """A function that trains a tag layer in a run folder of its own."""

        def tune() -> None:
            config = commandline.load("finetune", [*words, f"run_dir={next(run_dirs)}", *overrides])
            run = Run(config.run_dir)
            run.path.mkdir()
            setup = build_setup(config, inputs, run, StopRequest())
            checkpoints = FinetuneCheckpoints(run, setup.processes, setup.trained, setup.optimizer)
            tuner(setup, checkpoints).train()

        return tune

    once, cached = tune_with(Tuner), tune_with(Tuner, f"ner.cache_dir={folder / 'cache'}")
    name = "head-only tuning, ten epochs"
    once_name = "word features computed once"
    return [
        Case(f"{name}, {once_name}", once, "word features in every epoch", tune_with(Recomputing)),
        Case(f"{name}, word features from the cache", cached, once_name, once),
    ]
