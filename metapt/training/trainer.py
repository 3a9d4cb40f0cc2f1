"""The pretraining loop: at every step a Bernoulli draw chooses between the two objectives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metapt.config import PretrainConfig, TrainConfig
from metapt.data.batches import Batches, heldout_sequences
from metapt.data.corpus import Corpus
from metapt.data.episodes import EpisodeSampler, corpus_index
from metapt.errors import Interrupted, OperationalError
from metapt.meta.objectives import Outcome, autoregressive, episode, is_episode
from metapt.models.cost import parameter_count
from metapt.models.learner import build_learner
from metapt.runs import Run
from metapt.training.checkpoints import Checkpoints
from metapt.training.engine import Engine
from metapt.training.interruption import StopRequest
from metapt.training.telemetry import Telemetry


def learning_rate(train: TrainConfig, step: int) -> float:
    """Rate of the update after `step` updates: linear warm-up, then cosine to min_lr_share * lr, or constant."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    progress = (step - train.warmup_steps) / max(1, train.max_steps - train.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * progress))
    return train.lr * (train.min_lr_share + (1 - train.min_lr_share) * share)


class Trainer:
    """One pretraining run on this rank.

    Work is dealt to ranks in units whose number does not depend on them: `train.accumulation` micro-batches or
    `meta.tasks_per_step` episodes an update. Rank r of W takes units r, r + W, ...
    """

    def __init__(self, config: PretrainConfig, run: Run, corpus: Corpus, stop: StopRequest):
        self.config, self.run, self.corpus, self.stop = config, run, corpus, stop
        train, tokenizer = config.train, corpus.tokenizer
        self.batches = Batches(corpus.train, train.seq_len, train.seed)
        self.heldout = heldout_sequences(
            corpus.heldout, train.seq_len, train.heldout_batches * train.micro_batch
        )
        self.sampler = None
        if config.meta.rho > 0:
            index = corpus_index(corpus, config.meta)
            self.sampler = EpisodeSampler(
                corpus.train, index, config.meta, train.seed, tokenizer.mask_id, tokenizer.eos_id
            )
        self.engine = Engine(build_learner(config, eos_id=tokenizer.eos_id), config)
        self.last_heldout: dict[str, float] | None = None
        self.checkpoints = Checkpoints(
            run, self.engine, self.origin(), corpus.tokenizer_dir, train.keep_checkpoints
        )

    def origin(self) -> dict[str, Any]:
        """What is worth knowing of the models that this run makes (metapt.json)."""
        config = self.config
        return {
            "model": config.model.name,
            "objective": config.meta.objective,
            "scope": config.meta.scope,
            "rho": config.meta.rho,
            "seed": config.train.seed,
            "parameters": parameter_count(config.model),
            "label": config.label,
            "data": config.data.name,
            "tokenizer": self.corpus.tokenizer.name,
            "generated_data": config.data.name == "demo",
            "corpus_fingerprint": self.corpus.fingerprint,
        }

    def train(self) -> dict[str, Any]:
        """Trains to the end, from the newest checkpoint if there is one. Returns what result.json holds.

        Raises:
            Interrupted: a signal asked for it; a checkpoint of the last update stands.
        """
        train = self.config.train
        first, totals = self.checkpoints.restore()
        if self.engine.rank == 0:
            self.run.trim_metrics(first if first else -1)
        self.engine.barrier()
        telemetry = Telemetry(self.run, self.config, totals, self.engine.rank)
        try:
            if first == 0:
                telemetry.heldout(0, **self.evaluate())
                self.checkpoints.save(0, totals)
            for step in range(first, train.max_steps):
                telemetry.restart_clock()
                is_task = is_episode(self.config.meta, train.seed, step)
                values = self.update(step, is_task)
                telemetry.update(step + 1, is_task, **values)
                self._after_update(step + 1, telemetry)
            final = self.last_heldout or self.evaluate()
        finally:
            telemetry.close()
        origin = {**self.origin(), "step": train.max_steps}
        kept = {"data": self.config.data.name, "generated_data": origin["generated_data"]}
        return {
            "kind": "pretrain",
            "origin": origin,
            "steps": train.max_steps,
            **vars(totals),
            **final,
            **kept,
        }

    def update(self, step: int, is_task: bool) -> dict[str, Any]:
        """One optimizer update. Returns what metrics.jsonl holds of it, averaged over units and ranks."""
        train, meta, engine = self.config.train, self.config.meta, self.engine
        units = range(engine.rank, meta.tasks_per_step if is_task else train.accumulation, engine.world_size)
        measures: list[dict[str, Tensor]] = []
        for unit in units:
            outcome = self._episode(step, unit) if is_task else self._autoregressive(step, unit)
            engine.backward(outcome.loss / len(units), last=unit == units[-1])
            measures.append(outcome.measures)
        means = {
            name: torch.stack([unit[name].double() for unit in measures]).mean(dim=0) for name in measures[0]
        }
        values = {name: engine.mean(mean).tolist() for name, mean in means.items()}
        if not all(np.isfinite(value).all() for value in values.values()):
            raise OperationalError(
                f"{self.run.path}: a loss of update {step + 1} is not finite, and the update was not made; "
                "the checkpoints before it are intact"
            )
        lr = learning_rate(train, step)
        return {**values, "grad_norm": engine.step(lr), "lr": lr}

    def evaluate(self) -> dict[str, float]:
        """Loss and perplexity on the held-out split. The mean is over tokens, whatever the number of ranks."""
        size, engine = self.config.train.micro_batch, self.engine
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for start in range(engine.rank * size, len(self.heldout), engine.world_size * size):
                sequences = self._tensor(self.heldout[start : start + size])
                total += float(engine.learner.lm_loss(sequences)) * len(sequences)
        loss = float(engine.mean(total)) * engine.world_size / len(self.heldout)
        return {"heldout_loss_nats": loss, "heldout_perplexity": math.exp(min(loss, 700.0))}

    def _after_update(self, done: int, telemetry: Telemetry) -> None:
        """Evaluation and checkpoint where they are due, and the stop where one was asked for."""
        train = self.config.train
        is_last = done == train.max_steps
        if done % train.heldout_every == 0 or is_last:
            self.last_heldout = self.evaluate()
            telemetry.heldout(done, **self.last_heldout)
        stop = self.engine.any(bool(self.stop))
        if done % train.checkpoint_every == 0 or is_last or stop:
            self.checkpoints.save(done, telemetry.totals)
        if stop and not is_last:
            raise Interrupted(
                f"{self.run.path}: {self.stop.name or 'a signal'} after update {done}; resumable"
            )

    def _autoregressive(self, step: int, unit: int) -> Outcome:
        train = self.config.train
        first = (step * train.accumulation + unit) * train.micro_batch
        return autoregressive(
            self.engine.learner, self._tensor(self.batches.sequences(first, train.micro_batch))
        )

    def _episode(self, step: int, unit: int) -> Outcome:
        assert self.sampler is not None
        meta, seed = self.config.meta, self.config.train.seed
        return episode(self.engine.learner, self.sampler.episode(step, unit), meta, seed, step, unit)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.engine.device)
