"""The training loop of a tagger: steps, dev scores, early stopping, checkpoints, and the tagging of test sets.

Head-only (`regime=head`): the decoder is frozen, so the word vectors of a set are computed once and every epoch
reuses them. Full (`regime=full`): everything is trained. What a step does depends on (seed, step, epoch) alone, and
a checkpoint holds the rest, so a run that was killed ends with the same weights as one that was not.

The best epoch is that of the highest dev micro-F1, and among equals that of the lowest dev loss: F1 stays at zero
for the first epochs of a weak decoder, and early stopping must not take that for a standstill.
"""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from metapt import randomness
from metapt.config import FinetuneConfig
from metapt.data.iob2 import TAGS
from metapt.data.uner import Collection, training_sentences
from metapt.errors import Interrupted, OperationalError, UserError
from metapt.models.tagger import PieceBatch, Tagger, TagLayer, load_base
from metapt.ner.evaluate import annotate, dev_figures
from metapt.ner.features import (
    EncodedSet,
    WordPieces,
    collate,
    encode,
    epoch_batches,
    special_pieces,
    word_vectors,
)
from metapt.ner.scoring import scored, write_predictions
from metapt.runs import ENGINE_DIR, STATE_FILE, CheckpointFolders, MetricsWriter, Run, write_json
from metapt.training.interruption import StopRequest

PROGRESS_SECONDS = 5.0
WEIGHTS_FILE, BEST_FILE, OPTIMIZER_FILE = "weights.safetensors", "best.safetensors", "optimizer.pt"


@dataclass
class State:
    """How far a run is: epochs and steps done, the epoch whose weights are kept, and its scores.

    seconds_total is the time of steps and dev scores, without that of loading, frozen features and checkpoints.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_step: int = 0
    dev_f1: float = -1.0
    dev_loss_nats: float = float("inf")
    seconds_total: float = 0.0


class Tuning:
    """One fine-tuning at work. `trained` is the module that learns: the whole tagger, or only its TagLayer."""

    def __init__(
        self, config: FinetuneConfig, run: Run, folder: Path, collection: Collection, stop: StopRequest
    ):
        self.config, self.ner, self.run = config, config.ner, run
        self.collection, self.stop = collection, stop
        self.accelerator = Accelerator(mixed_precision="bf16" if self.ner.precision == "bf16" else "no")
        if self.accelerator.num_processes > 1:
            raise UserError("fine-tuning runs in one process; start one run for each GPU")
        self.tokenizer = load_tokenizer(folder)
        self.tagger = self._build(folder)
        self.pieces = self._word_pieces()
        self.train_set, self.dev_set = self._encode("train"), self._encode("dev")
        self.head_only = config.regime == "head"
        self.trained: nn.Module = self.tagger.layer if self.head_only else self.tagger
        self.forward = self.accelerator.prepare_model(self.trained)
        self.optimizer = self._optimizer()
        self.train_vectors: Tensor | None = None  # head-only: computed when training begins
        self.dev_vectors: Tensor | None = None
        self.state, self.best = State(), self._weights()

    def _build(self, folder: Path) -> Tagger:
        decoder = load_base(folder)
        if len(self.tokenizer) > decoder.config.vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has {len(self.tokenizer)} pieces, the model {decoder.config.vocab_size}"
            )
        positions = min(
            getattr(decoder.config, "max_position_embeddings", self.ner.max_len),
            self.tokenizer.model_max_length,  # of some encoders less, which begin to count at 2
        )
        if self.ner.max_len > positions:
            raise UserError(
                f"ner.max_len={self.ner.max_len}: {folder} was made for at most {positions} pieces"
            )
        with randomness.torch_seed(self.config.train.seed, "tag layer"):
            layer = TagLayer(decoder.config.hidden_size, TAGS, self.ner.head, self.ner.dropout)
        decoder.requires_grad_(self.config.regime == "full")
        return Tagger(decoder, layer, self.ner.piece).to(self.accelerator.device)

    def _word_pieces(self) -> WordPieces:
        """Pieces of words as the model expects them: an encoder's windows stand between its special pieces."""
        frame = ((), ()) if self.tagger.causal else special_pieces(self.tokenizer)
        room = self.ner.max_len - sum(map(len, frame))
        return WordPieces(self.tokenizer, self.ner.prefix_space, room // 2, frame)

    def _encode(self, split: str) -> EncodedSet:
        """The train or dev sentences of the source. Training sentences are cut, dev sentences are not."""
        sentences = training_sentences(self.collection, self.config.source, split)
        most = self.config.data.max_train_sentences
        if split == "train" and most is not None and most < len(sentences):
            draw = randomness.generator(self.config.train.seed, "training sentences")
            sentences = [
                sentences[index] for index in sorted(draw.choice(len(sentences), most, replace=False))
            ]
        return encode(sentences, self.pieces, self.ner.max_len, cut=split == "train")

    def _optimizer(self) -> AcceleratedOptimizer:
        groups = [{"params": list(self.tagger.layer.parameters()), "lr": self.ner.head_lr or self.ner.lr}]
        if not self.head_only:
            groups.append({"params": list(self.tagger.decoder.parameters()), "lr": self.ner.lr})
        return self.accelerator.prepare_optimizer(
            torch.optim.AdamW(groups, weight_decay=self.ner.weight_decay, fused=True)
        )

    def _vectors(self, encoded: EncodedSet) -> Tensor:
        return word_vectors(self.tagger, encoded, self.ner.eval_batch_size, self.accelerator)

    def train(self) -> None:
        """Trains until an epoch is the last, going on where a run in the folder ended; the best weights are loaded.

        Raises:
            Interrupted: a signal came; a checkpoint stands.
        """
        self._restore()
        self.run.trim_metrics(self.state.step)
        if self.head_only and not self._finished:
            count = len(self.train_set.lengths) + len(self.dev_set.lengths)
            _say(f"word vectors of {count} sentences, for all epochs")
            self.train_vectors, self.dev_vectors = self._vectors(self.train_set), self._vectors(self.dev_set)
        progress = Progress(self.ner.max_epochs, self._steps_per_epoch, self.state.step)
        with closing(MetricsWriter(self.run)) as metrics:
            while not self._finished:
                self._epoch(metrics, progress)
        self.trained.load_state_dict(self.best)

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self.train_set.lengths) / self.ner.batch_size)

    @property
    def _finished(self) -> bool:
        state = self.state
        return state.epoch >= self.ner.max_epochs or state.epoch - state.best_epoch >= self.ner.patience

    def _epoch(self, metrics: MetricsWriter, progress: Progress) -> None:
        """What is left of the epoch that the state is in, its dev score, and a checkpoint."""
        state, started = self.state, time.monotonic() - self.state.seconds_total
        batches = epoch_batches(self.train_set, self.ner.batch_size, self.config.train.seed, state.epoch)
        rate = self.optimizer.param_groups[-1]["lr"]
        self.forward.train()
        for chosen in batches[state.step - state.epoch * len(batches) :]:
            loss = self._step(chosen)
            state.seconds_total = time.monotonic() - started
            told = {"epoch": state.epoch + 1, "loss_nats": loss, "lr": rate}
            metrics.write(state.step, "train", **told, seconds_total=state.seconds_total)
            progress.show(state, loss)
            if self.stop and state.step % len(batches):  # at the end of an epoch its score comes first
                self._save()
                raise Interrupted(
                    f"{self.run.path}: {self.stop.name} after step {state.step}; a checkpoint stands"
                )
        vectors = self._vectors(self.dev_set) if self.dev_vectors is None else self.dev_vectors
        f1, loss = dev_figures(self.tagger.layer, vectors, self.dev_set, self.ner.eval_batch_size)
        state.epoch += 1
        state.seconds_total = time.monotonic() - started
        metrics.write(state.step, "dev", epoch=state.epoch, f1=f1, loss_nats=loss)
        if (f1, -loss) > (state.dev_f1, -state.dev_loss_nats):
            state.best_epoch, state.best_step = state.epoch, state.step
            state.dev_f1, state.dev_loss_nats = f1, loss
            self.best = self._weights()
        self._save()
        if self.stop and not self._finished:
            raise Interrupted(
                f"{self.run.path}: {self.stop.name} after epoch {state.epoch}; a checkpoint stands"
            )

    def _step(self, chosen: np.ndarray) -> float:
        """One update on the chosen sentences. Returns their loss in nats: the mean of the NLL per word."""
        device, state = self.accelerator.device, self.state
        words, lengths = (
            self.train_set.words(chosen),
            self.train_set.lengths[torch.from_numpy(chosen)].to(device),
        )
        inputs: Tensor | PieceBatch
        if self.train_vectors is None:
            inputs = collate([self.train_set.windows[index] for index in chosen]).to(device)
        else:
            inputs = self.train_vectors[words].to(device)
        with randomness.torch_seed(self.config.train.seed, "fine-tuning step", state.step):
            loss = self.forward(inputs, self.train_set.tags[words].to(device), lengths).mean()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise OperationalError(
                f"{self.run.path}: the loss is {value} at step {state.step + 1}; ner.lr may be too high"
            )
        self.accelerator.backward(loss)
        if self.ner.grad_clip:
            self.accelerator.clip_grad_norm_(self.trained.parameters(), self.ner.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        return value

    def _weights(self) -> dict[str, Tensor]:
        """A copy of what is trained."""
        return {name: value.detach().cpu().clone() for name, value in self.trained.state_dict().items()}

    def _save(self) -> None:
        """A checkpoint of the state: what is trained, the best of it so far, the optimizer. Older ones are removed."""
        final, older = self.run.checkpoint(self.state.step), self.run.checkpoints()
        staging = CheckpointFolders.staging(final)
        (staging / ENGINE_DIR).mkdir()
        save_file(self._weights(), staging / ENGINE_DIR / WEIGHTS_FILE)
        save_file(self.best, staging / ENGINE_DIR / BEST_FILE)
        torch.save(self.optimizer.state_dict(), staging / ENGINE_DIR / OPTIMIZER_FILE)
        write_json(staging / STATE_FILE, asdict(self.state))
        CheckpointFolders.commit(staging, final)
        for _, folder in older:
            if folder != final:
                CheckpointFolders.remove(folder)

    def _restore(self) -> None:
        """Goes back to the newest intact checkpoint, if there is one."""
        found = self.run.newest_checkpoint(_say)
        if found is None:
            return
        folder = found[1]
        engine = folder / ENGINE_DIR
        self.trained.load_state_dict(load_file(engine / WEIGHTS_FILE))
        self.best = load_file(engine / BEST_FILE)
        self.optimizer.load_state_dict(torch.load(engine / OPTIMIZER_FILE, weights_only=True))
        values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        # null stands for what is not finite: the loss before the first score, as it is in a new state
        self.state = State(**{name: value for name, value in values.items() if value is not None})

    def save_tagger(self) -> None:
        """Writes the tagger with its tokenizer into the run folder, whole or not at all."""
        staging = CheckpointFolders.staging(self.run.tagger_dir)
        self.tagger.save(staging)
        self.tokenizer.save_pretrained(staging)
        CheckpointFolders.commit(staging, self.run.tagger_dir)

    def evaluate(self, name: str, split: str = "test") -> dict[str, Any]:
        """Tags a set, writes its predictions, and returns its figures as docs/design.md has them.

        Raises:
            Interrupted: a signal came; the checkpoint of the last epoch still stands.
        """
        if self.stop:
            raise Interrupted(
                f"{self.run.path}: {self.stop.name} before {name} was tagged; a checkpoint stands"
            )
        sentences = self.collection.load(name, split)
        _say(f"tagging {name} {split}, {len(sentences)} sentences")
        encoded = encode(sentences, self.pieces, self.ner.max_len, cut=False)
        annotations = annotate(self.tagger.layer, self._vectors(encoded), encoded, self.ner.eval_batch_size)
        write_predictions(self.run.predictions_dir / f"{name}.jsonl", sentences, annotations)
        return scored(name, split, sentences, [each.predicted for each in annotations])


class Progress:
    """A line on stderr every few seconds: where training is, and how long it may last at most."""

    def __init__(self, max_epochs: int, steps_per_epoch: int, first_step: int):
        self.max_epochs, self.max_steps, self.first_step = (
            max_epochs,
            max_epochs * steps_per_epoch,
            first_step,
        )
        self.began = self.shown = time.monotonic()

    def show(self, state: State, loss: float) -> None:
        now = time.monotonic()
        if now - self.shown < PROGRESS_SECONDS:
            return
        self.shown = now
        left = (now - self.began) / (state.step - self.first_step) * (self.max_steps - state.step)
        best = f"  dev F1 {state.dev_f1:.3f} (epoch {state.best_epoch})" if state.best_epoch else ""
        _say(
            f"epoch {state.epoch + 1}/{self.max_epochs}  step {state.step}/{self.max_steps}  loss {loss:.4f}{best}"
            f"  at most {timedelta(seconds=round(left))} left"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        UserError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: no tokenizer could be loaded ({str(error).splitlines()[0]})") from None
