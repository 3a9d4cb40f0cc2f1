"""The training loop of a tagger: steps, dev scores, early stopping, checkpoints, and the tagging of test sets.

Head-only (`tuning=head_only`): the decoder is frozen, so the word features of a set are computed once and every epoch
reuses them; with `ner.cache_dir` every other run on the same decoder and set, too. Full (`tuning=full`): everything is trained; `tuning=lora`: adapters of the decoder are, and merged into it in the end. What a step does depends on (seed, step, epoch) alone, and
a checkpoint holds the rest, so a run that was killed ends with the same weights as one that was not.

The best epoch is that of the highest dev micro-F1, and among equals that of the lowest dev loss: F1 stays at zero
for the first epochs of a weak decoder, and early stopping must not take that for a standstill.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metapt import atomic_folders, randomness
from metapt.config import FinetuneConfig, tuning_lr
from metapt.data.iob2 import TAGS
from metapt.data.labelled_sets import Collection, sample_indices, source_sets
from metapt.errors import Interrupted, OperationalError, UserError
from metapt.evaluation.predictions import write_predictions
from metapt.evaluation.span_f1 import scored
from metapt.files import file_sha256, write_json
from metapt.finetuning.distributed import Ranks
from metapt.finetuning.feature_cache import FeatureCache
from metapt.finetuning.lora import merged, with_adapters
from metapt.finetuning.progress import Progress, say
from metapt.runs import ENGINE_DIR, STATE_FILE, MetricsWriter, Run
from metapt.tagger.encoding import (
    EncodedSet,
    Reading,
    WordFeatures,
    collate,
    encode,
    epoch_batches,
    load_tokenizer,
    special_tokens,
    word_features,
)
from metapt.tagger.model import SubwordBatch, Tagger, TagLayer, load_base
from metapt.tagger.predict import annotate, dev_scores
from metapt.tagger.serialization import CARD_FILE, save_tagger
from metapt.training.signals import StopRequest, StopRequested

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

    @property
    def best_so_far(self) -> str:
        return f"  dev F1 {self.dev_f1:.3f} (epoch {self.best_epoch})" if self.best_epoch else ""


class Tuning:
    """One fine-tuning at work. `trained` is the module that learns: the whole tagger, or only its TagLayer."""

    def __init__(
        self,
        config: FinetuneConfig,
        run: Run,
        folder: Path,
        collection: Collection,
        stop: StopRequest,
        weights_sha256: str,
    ):
        self.config, self.ner, self.run = config, config.ner, run
        self.collection, self.stop = collection, stop
        self.ranks = Ranks(self.ner.precision)
        self.accelerator = self.ranks.accelerator
        self.tokenizer = load_tokenizer(folder)
        self.tagger = self._build(folder)
        self.reading = self._reading()
        self.word_tokenizer = self.reading.word_tokenizer(self.tokenizer)
        self.head_only = config.tuning == "head_only"
        if self.head_only and self.ranks.count > 1:
            raise UserError(
                "tuning=head_only runs in one process: what it trains is small; start one run for each GPU"
            )
        self.cache = (
            FeatureCache(self.ner.cache_dir, self.ner.cache_gb)
            if self.head_only and self.ner.cache_dir
            else None
        )
        self.decoder_key = self._decoder_key(folder, weights_sha256)
        self.train_parts, self.dev_parts = self._encode("train"), self._encode("dev")
        self.train_set, self.dev_set = map(EncodedSet.joined, (self.train_parts, self.dev_parts))
        self.trained: nn.Module = self.tagger.layer if self.head_only else self.tagger
        self.forward = self.accelerator.prepare_model(self.trained)
        self.optimizer = self._optimizer()
        self.train_features: WordFeatures | None = None  # head-only: computed when training begins
        self.dev_features: WordFeatures | None = None
        self.state, self.best = State(), self._weights()

    def _build(self, folder: Path) -> Tagger:
        decoder = load_base(folder)
        if len(self.tokenizer) > decoder.config.vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has {len(self.tokenizer)} subwords, the model {decoder.config.vocab_size}"
            )
        positions = min(
            getattr(decoder.config, "max_position_embeddings", self.ner.max_len),
            self.tokenizer.model_max_length,  # of some encoders less, which begin to count at 2
        )
        if self.ner.max_len > positions:
            raise UserError(
                f"ner.max_len={self.ner.max_len}: {folder} was made for at most {positions} subwords"
            )
        with randomness.torch_seed(self.config.train.seed, "tag layer"):
            layer = TagLayer(decoder.config.hidden_size, TAGS, self.ner.head, self.ner.dropout)
        decoder.requires_grad_(self.config.tuning == "full")
        if self.config.tuning == "lora":
            decoder = with_adapters(decoder, self.ner.lora_rank, self.ner.lora_alpha, self.config.train.seed)
        return Tagger(decoder, layer, self.ner.subword_pooling).to(self.accelerator.device)

    def _reading(self) -> Reading:
        """How words are read as the model expects them: an encoder's windows stand between its special tokens."""
        before, after = ((), ()) if self.tagger.causal else special_tokens(self.tokenizer)
        return Reading(self.ner.prefix_space, self.ner.max_len, tuple(before), tuple(after))

    def _encode(self, split: str) -> list[EncodedSet]:
        """The train or dev sentences of each set of the source. Training sentences are cut, dev sentences are not."""
        is_train, data = split == "train", self.config.data
        sets = [
            self.collection.load(name, split) for name in source_sets(self.collection, self.config.source)
        ]
        ends = np.cumsum([len(sentences) for sentences in sets])
        chosen = sample_indices(int(ends[-1]), data.max_train_sentences if is_train else None, self.config.train.seed)
        numbers = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
        return [
            encode(
                [sentences[number - (end - len(sentences))] for number in mine],
                self.word_tokenizer,
                self.ner.max_len,
                cut=is_train,
            )
            for sentences, end, mine in zip(sets, ends, numbers, strict=True)
            if len(mine)
        ]

    def _optimizer(self) -> AcceleratedOptimizer:
        rate = tuning_lr(self.config)
        groups = [{"params": list(self.tagger.layer.parameters()), "lr": self.ner.head_lr or rate}]
        learning = [value for value in self.tagger.decoder.parameters() if value.requires_grad]
        if learning:
            groups.append({"params": learning, "lr": rate})
        return self.accelerator.prepare_optimizer(
            torch.optim.AdamW(groups, weight_decay=self.ner.weight_decay, fused=True)
        )

    def _decoder_key(self, folder: Path, weights_sha256: str) -> dict[str, Any]:
        """All that word features are a function of, besides the encoded set; the batch and the device round differently."""
        device = self.accelerator.device
        return {
            "weights": weights_sha256,
            "config": file_sha256(folder / "config.json"),
            "subword_pooling": self.ner.subword_pooling,
            "precision": self.ner.precision,
            "batch_size": self.ner.eval_batch_size,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "libraries": [torch.__version__, transformers.__version__],
        }

    def _features(self, encoded: EncodedSet) -> Tensor:
        """The features of the words of a set; those of a frozen decoder from the cache, if there is one."""

        def compute() -> Tensor:
            return word_features(self.tagger, encoded, self.ner.eval_batch_size, self.accelerator)

        if self.cache is None:
            return compute()
        return self.cache.get({**self.decoder_key, "set": encoded.sha256()}, compute)

    def _frozen_features(self) -> None:
        """The features of what is trained and scored on. A signal ends this at once. Raises Interrupted."""
        count = len(self.train_set.lengths) + len(self.dev_set.lengths)
        say(f"word features of {count} sentences, for all epochs")
        try:
            with self.stop.at_once():
                self.train_features = WordFeatures([self._features(part) for part in self.train_parts])
                self.dev_features = WordFeatures([self._features(part) for part in self.dev_parts])
        except StopRequested:
            raise self._interrupted("while word features were computed; resumable") from None

    def train(self) -> None:
        """Trains until an epoch is the last, going on where a run in the folder ended; the best weights are loaded.

        Raises:
            Interrupted: a signal came; a checkpoint stands.
        """
        self._restore()
        unscored = self.state.step > self.state.epoch * self._steps_per_epoch
        self.ranks.alone(lambda: self.run.trim_metrics(self.state.step, rewritten_kinds=["dev"] if unscored else []))
        if self.head_only and not self._finished:
            self._frozen_features()
        progress = Progress(self.ner.max_epochs, self._steps_per_epoch, self.state.step)
        with closing(MetricsWriter(self.run)) if self.ranks.leads else nullcontext() as metrics:
            while not self._finished:
                self._epoch(metrics, progress)
        self._load(self.best)
        if self.config.tuning == "lora":
            self.tagger.decoder = merged(self.tagger.decoder)

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self.train_set.lengths) / self.ner.batch_size)

    @property
    def _finished(self) -> bool:
        state = self.state
        return state.epoch >= self.ner.max_epochs or state.epoch - state.best_epoch >= self.ner.patience

    def _epoch(self, metrics: MetricsWriter | None, progress: Progress) -> None:
        """What is left of the epoch that the state is in, its dev score, and a checkpoint."""
        state, started = self.state, time.monotonic() - self.state.seconds_total
        batches = epoch_batches(self.train_set, self.ner.batch_size, self.config.train.seed, state.epoch)
        rate = self.optimizer.param_groups[-1]["lr"]
        self.forward.train()
        for chosen in batches[state.step - state.epoch * len(batches) :]:
            loss, asked = self._step(chosen)
            state.seconds_total = time.monotonic() - started
            if metrics:
                told = {"epoch": state.epoch + 1, "loss_nats": loss, "lr": rate}
                metrics.write(state.step, "train", **told, seconds_total=state.seconds_total)
                progress.show(state.epoch, state.step, loss, state.best_so_far)
            if asked:
                self._save()
                raise self._interrupted(f"after step {state.step}; a checkpoint stands")
        f1, loss = self._scored()
        state.epoch += 1
        state.seconds_total = time.monotonic() - started
        if metrics:
            metrics.write(state.step, "dev", epoch=state.epoch, f1=f1, loss_nats=loss)
        if (f1, -loss) > (state.dev_f1, -state.dev_loss_nats):
            state.best_epoch, state.best_step = state.epoch, state.step
            state.dev_f1, state.dev_loss_nats = f1, loss
            self.best = self._weights()
        self._save()

    def _scored(self) -> tuple[float, float]:
        """F1 and loss on the dev set, of the first rank: another's last bits must not make it stop at another epoch.

        Raises:
            Interrupted: a signal came; a checkpoint of the epoch that is not scored yet stands.
        """
        figures = (0.0, 0.0)
        with suppress(StopRequested), self.stop.at_once():
            features = self._features(self.dev_set) if self.dev_features is None else self.dev_features
            figures = dev_scores(self.tagger.layer, features, self.dev_set, self.ner.eval_batch_size)
        if self.ranks.any(bool(self.stop)):
            self._save()
            raise self._interrupted(f"before epoch {self.state.epoch + 1} was scored; a checkpoint stands")
        return self.ranks.of_lead(figures)

    def _step(self, chosen: np.ndarray) -> tuple[float, bool]:
        """One update on the chosen sentences, which the ranks share.

        Returns: their loss in nats, the mean of the NLL per word, and whether any rank was asked to stop.
        """
        device, state, ranks = self.accelerator.device, self.state, self.ranks
        mine = chosen[ranks.rank :: ranks.count]
        idle = not len(mine)  # such a rank goes along with any sentence, which counts nothing
        mine = chosen[:1] if idle else mine
        words, lengths = self.train_set.words(mine), self.train_set.lengths[torch.from_numpy(mine)].to(device)
        inputs: Tensor | SubwordBatch
        if self.train_features is None:
            inputs = collate([self.train_set.windows[index] for index in mine]).to(device)
        else:
            inputs = self.train_features[words].to(device)
        draw = state.step * ranks.count + ranks.rank
        with randomness.torch_seed(self.config.train.seed, "fine-tuning step", draw):
            losses = self.forward(inputs, self.train_set.tags[words].to(device), lengths)
        loss = losses.sum() * (0 if idle else 1) / len(chosen)
        told = torch.stack([loss.detach(), loss.new_tensor(float(bool(self.stop)))])
        value, asked = ranks.total(told).tolist()
        if not math.isfinite(value):
            raise OperationalError(
                f"{self.run.path}: the loss is {value} at step {state.step + 1}; ner.lr may be too high"
            )
        self.accelerator.backward(loss * ranks.count)  # gradients are averaged over the ranks
        if self.ner.grad_clip:
            self.accelerator.clip_grad_norm_(self.trained.parameters(), self.ner.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.step += 1
        return value, bool(asked)

    def _interrupted(self, when: str) -> Interrupted:
        return Interrupted(f"{self.run.path}: {self.stop.name or 'a signal to another rank'} {when}")

    def _learning(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.trained.named_parameters() if value.requires_grad}

    def _weights(self) -> dict[str, Tensor]:
        """A copy of what is trained."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self._learning().items()}

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        """The opposite of `_weights`."""
        for name, value in self._learning().items():
            value.copy_(weights[name])

    def _save(self) -> None:
        """A checkpoint of the state: what is trained, the best of it so far, the optimizer. Older ones are removed.

        Raises:
            OperationalError: on all ranks, if the first cannot write it; the one before stands.
        """

        def write() -> None:
            final, older = self.run.checkpoint(self.state.step), self.run.checkpoints()
            staging = atomic_folders.staging(final)
            (staging / ENGINE_DIR).mkdir()
            save_file(self._weights(), staging / ENGINE_DIR / WEIGHTS_FILE)
            save_file(self.best, staging / ENGINE_DIR / BEST_FILE)
            torch.save(self.optimizer.state_dict(), staging / ENGINE_DIR / OPTIMIZER_FILE)
            write_json(staging / STATE_FILE, asdict(self.state))
            atomic_folders.commit(staging, final)
            for _, folder in older:
                if folder != final:
                    atomic_folders.remove(folder)

        try:
            self.ranks.alone(write)
        except OperationalError as error:
            if self.ranks.leads:
                self.run.remove_leftovers()
            raise OperationalError(
                f"{self.run.path}: no checkpoint could be written, the one before stands: {error}"
            ) from None

    def _restore(self) -> None:
        """Goes back to the newest intact checkpoint, if there is one; any number of ranks may have made it."""
        found = self.ranks.of_lead(self.run.newest_checkpoint(say) if self.ranks.leads else None)
        if found is None:
            return
        folder = found[1]
        engine = folder / ENGINE_DIR
        self._load(load_file(engine / WEIGHTS_FILE))
        self.best = load_file(engine / BEST_FILE)
        self.optimizer.load_state_dict(torch.load(engine / OPTIMIZER_FILE, weights_only=True))
        values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        # null stands for what is not finite: the loss before the first score, as it is in a new state
        self.state = State(**{name: value for name, value in values.items() if value is not None})

    def save_tagger(self, card: str) -> None:
        """Writes the tagger with its tokenizer and its card into the run folder, whole or not at all."""

        def write() -> None:
            staging = atomic_folders.staging(self.run.tagger_dir)
            save_tagger(staging, self.tagger, self.tokenizer, self.reading)
            (staging / CARD_FILE).write_text(card, encoding="utf-8")
            atomic_folders.commit(staging, self.run.tagger_dir)

        self.ranks.alone(write)

    def evaluate(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Tags the test sets, dealt to the ranks, and writes their predictions; on every rank the figures of all.

        Raises:
            Interrupted: a signal came; the checkpoint of the last epoch still stands.
        """
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(names), self.ranks.count):
            with suppress(StopRequested), self.stop.at_once():
                for name in names[start : start + self.ranks.count][self.ranks.rank :][:1]:
                    found[name] = self._evaluate(name)
            if self.ranks.any(bool(self.stop)):
                raise self._interrupted("while test sets were tagged; a checkpoint stands")
        figures = {name: value for part in self.ranks.gathered(found) for name, value in part.items()}
        return {name: figures[name] for name in names}

    def _evaluate(self, name: str, split: str = "test") -> dict[str, Any]:
        """Tags a set, writes its predictions, and returns its figures as docs/run-folder.md has them."""
        sentences = self.collection.load(name, split)
        say(f"tagging {name} {split}, {len(sentences)} sentences")
        encoded = encode(sentences, self.word_tokenizer, self.ner.max_len, cut=False)
        features = self._features(encoded)
        annotations = annotate(self.tagger.layer, features, encoded, self.ner.eval_batch_size)
        write_predictions(self.run.predictions_dir / f"{name}.jsonl", sentences, annotations)
        figures = scored(name, split, sentences, [each.predicted for each in annotations])
        if not figures["gold_spans"]:
            say(f"{name} {split} has no entity: its F1 says nothing")
        return figures
