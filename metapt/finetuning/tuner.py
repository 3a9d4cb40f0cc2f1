"""The training loop of a tagger: steps, dev scores, early stopping.

With a fixed number of updates (`ner.max_steps`) there is no dev set, and the last weights are kept. Otherwise the best epoch is the one with the highest dev micro-F1 and, among equals, with the lowest dev loss. The loss matters
because the F1 of a weak decoder stays at zero for the first epochs, which early stopping must not take for a plateau.
"""

from __future__ import annotations

import math
import time
from contextlib import closing, nullcontext, suppress

import numpy as np
import torch
from torch import Tensor

from metapt import randomness
from metapt.errors import OperationalError
from metapt.finetuning.lora import merged
from metapt.finetuning.progress import FinetuneLog, finetune_header
from metapt.finetuning.resume import FinetuneCheckpoints, TrainingState
from metapt.finetuning.setup import FinetuneSetup
from metapt.models.device import memory_errors
from metapt.tagger.encoding import EncodedSet, WordFeatures, collate, epoch_batches
from metapt.tagger.model import SubwordBatch
from metapt.tagger.predict import dev_scores
from metapt.training.progress_line import log
from metapt.training.signals import StopRequested

CHECKPOINT_STEPS = 200  # between checkpoints of a run without a dev set


class Tuner:
    """Trains a tagger until early stopping or the last epoch, and ends with the weights of the best epoch.

    With `tuning=head_only` the decoder is frozen: word features are computed once, and every epoch reuses them.

    Args:
        checkpoints: hold the training state; an interrupted run resumes from the newest.
    """

    def __init__(self, setup: FinetuneSetup, checkpoints: FinetuneCheckpoints):
        self.setup, self.checkpoints = setup, checkpoints
        self.ner, self.seed = setup.config.ner, setup.config.train.seed
        self.steps_per_epoch = math.ceil(len(setup.train.together.lengths) / self.ner.batch_size)
        self.train_features: WordFeatures | None = None  # of a frozen decoder
        self.dev_features: WordFeatures | None = None

    @property
    def state(self) -> TrainingState:
        return self.checkpoints.state

    def train(self) -> None:
        """Train to the end, from the newest checkpoint if there is one, and load the best weights.

        Raises:
            Interrupted: a signal arrived; a checkpoint has been saved.
        """
        setup = self.setup
        self.checkpoints.restore()
        step, is_main = self.state.step, setup.processes.is_main_process
        is_unscored = step > self.state.epoch * self.steps_per_epoch
        setup.processes.run_on_main(
            lambda: setup.run.trim_metrics(step, rewritten_kinds=["dev"] if is_unscored else [])
        )
        if is_main:
            log(finetune_header(setup, self.steps_per_epoch, self.state))
        if setup.config.tuning == "head_only" and not self._is_finished:
            self._compute_frozen_features()
        output = (
            closing(FinetuneLog(setup.run, setup.config, self.steps_per_epoch, step))
            if is_main
            else nullcontext()
        )
        with output as metrics:
            while not self._is_finished:
                self._epoch(metrics)
        if setup.dev is not None:
            self.checkpoints.load_best()
        if setup.config.tuning == "lora":
            setup.tagger.decoder = merged(setup.tagger.decoder)

    @property
    def _is_finished(self) -> bool:
        state = self.state
        if self.ner.max_steps is not None:
            return state.epoch * self.steps_per_epoch >= self.ner.max_steps
        return state.epoch >= self.ner.max_epochs or state.epoch - state.best_epoch >= self.ner.patience

    def _compute_frozen_features(self) -> None:
        """Compute the word features of the training and dev sentences; a signal ends this immediately."""
        setup = self.setup
        splits = [setup.train, *([setup.dev] if setup.dev else [])]
        count = sum(data.together.sentences for data in splits)
        log(f"computing word features of {count} sentences, once for all epochs")
        try:
            with setup.stop.at_once():
                self.train_features, *dev = (
                    WordFeatures([setup.extract_features(part) for part in data.parts]) for data in splits
                )
                self.dev_features = dev[0] if dev else None
        except StopRequested:
            raise setup.stop.interruption(setup.run.path, "while word features were computed") from None

    def _epoch(self, metrics: FinetuneLog | None) -> None:
        """Run the remaining steps of the current epoch, score the dev set if there is one, and save a checkpoint."""
        setup, state, started = self.setup, self.state, time.monotonic() - self.state.seconds_total
        first = state.step
        batches = epoch_batches(setup.train.together, self.ner.batch_size, self.seed, state.epoch)
        rate = setup.optimizer.param_groups[-1]["lr"]
        setup.forward.train()
        end = None if self.ner.max_steps is None else self.ner.max_steps - state.epoch * len(batches)
        for batch in batches[first - state.epoch * len(batches) : end]:
            with memory_errors(str(setup.run.path), self._memory_advice):
                loss, stop_requested = self._step(batch)
            state.seconds_total = time.monotonic() - started
            if metrics:
                metrics.train_step(state, loss, rate)
            if stop_requested:
                self.checkpoints.save()
                raise setup.stop.interruption(setup.run.path, f"after step {state.step}")
        if setup.dev is None:
            self._end_unscored_epoch(first)
            return
        f1, loss = self._dev_scores(setup.dev.together)
        state.epoch += 1
        state.seconds_total = time.monotonic() - started
        if metrics:
            metrics.dev_scores(state, f1, loss)
        self.checkpoints.keep_if_best(f1, loss)
        self.checkpoints.save()

    def _end_unscored_epoch(self, first: int) -> None:
        """Count the epoch, and save a checkpoint every CHECKPOINT_STEPS: a few sentences make very short epochs.

        Args:
            first: finished steps when the epoch began.
        """
        state = self.state
        state.epoch += 1
        state.best_epoch, state.best_step = state.epoch, state.step
        if state.step // CHECKPOINT_STEPS > first // CHECKPOINT_STEPS:
            self.checkpoints.save()

    def _step(self, batch: np.ndarray) -> tuple[float, bool]:
        """Make one update on a batch of sentences, which is split over the ranks.

        Args:
            batch: sentence numbers.
        Returns: the loss in nats, that is the mean over sentences of the negative log-likelihood per word; and whether
            any rank was asked to stop.
        """
        setup, state, processes = self.setup, self.state, self.setup.processes
        device, data = processes.accelerator.device, self.setup.train.together
        own = batch[processes.rank :: processes.world_size]
        is_idle = not len(own)  # a rank without a sentence computes any sentence and gives it weight 0
        own = batch[:1] if is_idle else own
        rows, lengths = data.word_rows(own), data.lengths[torch.from_numpy(own)].to(device)
        inputs: Tensor | SubwordBatch
        if self.train_features is None:
            inputs = collate([data.windows[index] for index in own]).to(device)
        else:
            inputs = self.train_features[rows].to(device)
        index = state.step * processes.world_size + processes.rank
        with randomness.torch_seed(self.seed, "fine-tuning step", index):
            losses = setup.forward(inputs, data.tags[rows].to(device), lengths)
        loss = losses.sum() * (0 if is_idle else 1) / len(batch)
        shared = torch.stack([loss.detach(), loss.new_tensor(float(bool(setup.stop)))])
        value, stop_requests = processes.sum(shared).tolist()
        if not math.isfinite(value):
            raise OperationalError(
                f"{setup.run.path}: the loss is {value} at step {state.step + 1}; try a lower ner.lr"
            )
        self._update(loss * processes.world_size)  # because gradients are averaged over the ranks
        state.step += 1
        return value, bool(stop_requests)

    def _memory_advice(self) -> str:
        """Which keys to set if a training batch does not fit into the memory."""
        size = max(1, self.ner.batch_size // 2)
        adapters = ", or tuning=lora" if self.setup.config.tuning == "full" else ""
        more = (
            "" if self.setup.config.tuning == "head_only" else "use more processes, which divide a batch, or "
        )
        return f"{more}set ner.batch_size={size}{adapters} (another run: the results differ)"

    def _update(self, loss: Tensor) -> None:
        setup, accelerator = self.setup, self.setup.processes.accelerator
        accelerator.backward(loss)
        if self.ner.grad_clip:
            accelerator.clip_grad_norm_(setup.trained.parameters(), self.ner.grad_clip)
        setup.optimizer.step()
        setup.optimizer.zero_grad()

    def _dev_scores(self, data: EncodedSet) -> tuple[float, float]:
        """Compute F1 and loss on the dev set.

        All ranks use the scores of the main process, because rounding differences could make ranks stop at different
        epochs.

        Raises:
            Interrupted: a signal arrived; a checkpoint of the unscored epoch has been saved.
        """
        setup = self.setup
        scores = (0.0, 0.0)
        with suppress(StopRequested), setup.stop.at_once():
            features = setup.extract_features(data) if self.dev_features is None else self.dev_features
            scores = dev_scores(setup.tagger.layer, features, data, self.ner.eval_batch_size)
        if setup.processes.any(bool(setup.stop)):
            self.checkpoints.save()
            raise setup.stop.interruption(setup.run.path, f"before epoch {self.state.epoch + 1} was scored")
        return setup.processes.broadcast(scores)
