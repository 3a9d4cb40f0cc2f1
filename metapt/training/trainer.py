"""The pretraining loop: at every step a Bernoulli draw chooses between the two objectives."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metapt.config import PretrainConfig, TrainConfig, ranks_share_episodes
from metapt.data.batches import Batches, eval_sequences
from metapt.data.corpus import Corpus
from metapt.data.episodes import Episode, EpisodeSampler, corpus_index
from metapt.errors import Interrupted, OperationalError
from metapt.estimate.flops import flops_of_episode, flops_of_step, parameter_count
from metapt.meta.objectives import Outcome, episode, is_episode, next_token
from metapt.models.meta_lm import build_meta_lm
from metapt.runs import Run
from metapt.training.checkpoints import Checkpoints
from metapt.training.dynamics import Dynamics, parameter_groups
from metapt.training.engine import Engine
from metapt.training.metrics import Telemetry, Totals
from metapt.training.signals import StopRequest, StopRequested
from metapt.training.zero3 import episode_together


def learning_rate(train: TrainConfig, step: int) -> float:
    """Rate of the update after `step` updates: linear warm-up, then cosine to min_lr_ratio * lr, or constant."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    progress = (step - train.warmup_steps) / max(1, train.max_steps - train.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * progress))
    return train.lr * (train.min_lr_ratio + (1 - train.min_lr_ratio) * share)


class Trainer:
    """One pretraining run on this rank.

    Work is dealt to ranks in units whose number does not depend on them: `train.micro_batches_per_update` micro-batches or
    `meta.tasks_per_step` episodes an update. Rank r of W takes units r, r + W, ..., or its rows of every episode
    where parameters are partitioned (metapt/training/zero3.py).
    """

    def __init__(self, config: PretrainConfig, run: Run, corpus: Corpus, stop: StopRequest):
        self.config, self.run, self.corpus, self.stop = config, run, corpus, stop
        train, tokenizer = config.train, corpus.tokenizer
        self.batches = Batches(corpus.train, train.seq_len, train.seed)
        self.eval_rows = eval_sequences(corpus.eval, train.seq_len, train.eval_batches * train.micro_batch)
        self.sampler = None
        if config.meta.rho > 0:
            index = corpus_index(corpus, config.meta)
            self.sampler = EpisodeSampler(
                corpus.train, index, config.meta, train.seed, tokenizer.mask_id, tokenizer.eos_id
            )
        self.engine = Engine(build_meta_lm(config, eos_id=tokenizer.eos_id), config)
        self.together = ranks_share_episodes(config)
        self.dynamics = Dynamics(
            self.engine, config, torch.from_numpy(self.eval_rows), self.sampler, poll=self.poll
        )
        self.done = self.saved = 0  # updates; those of the newest checkpoint
        self.last_eval: dict[str, float] = {}
        self.checkpoints = Checkpoints(
            run, self.engine, self.origin(), corpus.tokenizer_dir, train.keep_checkpoints
        )

    def origin(self) -> dict[str, Any]:
        """What is worth knowing of the models that this run makes (metapt.json)."""
        config = self.config
        return {
            "model": config.model.name,
            "objective": config.meta.objective,
            "algorithm": config.meta.algorithm,
            "scope": config.meta.scope,
            "rho": config.meta.rho,
            "seed": config.train.seed,
            "parameters": parameter_count(config.model),
            "variant": config.variant,
            "data": config.data.name,
            "tokenizer": self.corpus.tokenizer.name,
            "generated_data": config.data.name == "demo",
            "corpus_fingerprint": self.corpus.fingerprint,
        }

    def train(self) -> dict[str, Any]:
        """Trains to the end, from the newest checkpoint if there is one. Returns what result.json holds.

        Raises:
            Interrupted: a signal asked for it; a checkpoint of the last update stands.
            OperationalError: a checkpoint could not be written, or too many updates in a row were not finite.
        """
        train = self.config.train
        self.done, totals = self.checkpoints.restore()
        self.saved = self.done
        if self.engine.rank == 0:
            # measured again, in case that was broken off
            self.run.trim_metrics(self.done, rewritten_kinds=("eval", "dynamics"))
        self.engine.barrier()
        telemetry = Telemetry(self.run, self.config, totals, self.engine.rank, self.done)
        try:
            self._after_update(telemetry)
            while self.done < train.max_steps:
                self._next_update(telemetry)
                self._after_update(telemetry)
        except StopRequested:
            self._save(totals)
            asked = self.stop.name or "a signal to another rank"
            raise Interrupted(f"{self.run.path}: {asked} after update {self.done}; resumable") from None
        finally:
            telemetry.close()
        return {
            "kind": "pretrain",
            "origin": {**self.origin(), "step": train.max_steps},
            "steps": train.max_steps,
            **vars(totals),
            **self.last_eval,
            "data": self.config.data.name,
            "generated_data": self.config.data.name == "demo",
        }

    def poll(self) -> None:
        """A safe point to stop at; all ranks come by equally often.

        Raises:
            StopRequested: on all ranks, if any of them was asked to stop.
        """
        if self.engine.any(bool(self.stop)):
            raise StopRequested

    def update(self, step: int, is_task: bool) -> tuple[dict[str, Any], list[str]]:
        """One optimizer update, which is not applied if anything about it is not finite.

        Returns: what metrics.jsonl holds of it, averaged over units and ranks, and `flops`, the operations of all of
            them; and the names of what is not finite.
        Raises:
            StopRequested: as `poll`; no parameter has changed, and the gradients so far are of no use.
        """
        train, meta, engine = self.config.train, self.config.meta, self.engine
        together = is_task and self.together
        first, stride = (0, 1) if together else (engine.rank, engine.world_size)
        units = range(first, meta.tasks_per_step if is_task else train.micro_batches_per_update, stride)
        measures: list[dict[str, Tensor]] = []
        for unit in units:
            self.poll()
            if together:
                measures.append(self._episode_together(step, unit))
                continue
            outcome = self._episode(step, unit) if is_task else self._autoregressive(step, unit)
            engine.backward(outcome.loss / len(units), last=unit == units[-1])
            measures.append(outcome.measures)
        means = {
            name: torch.stack([unit[name].double() for unit in measures]).mean(dim=0) for name in measures[0]
        }
        values: dict[str, Any] = {name: engine.mean(mean).tolist() for name, mean in means.items()}
        flops = round(values["flops"] * meta.tasks_per_step) if is_task else flops_of_step(self.config, False)
        lr = learning_rate(train, step)
        losses_finite = all(np.isfinite(value).all() for value in values.values())
        by_part = {}
        if self.dynamics.is_due(step + 1):
            by_part = {"gradient_norms": engine.gradient_norms(parameter_groups(engine.meta_lm))}
        values |= {"grad_norm": engine.step(lr, apply=losses_finite), "lr": lr, "flops": flops}
        not_finite = [name for name, value in values.items() if not np.isfinite(value).all()]
        return values | by_part, not_finite

    def batch(self, step: int, is_task: bool) -> dict[str, Any]:
        """What identifies the data of an update: its episodes, or its sequences and their rows in the corpus."""
        train = self.config.train
        if is_task:
            return {"seed": train.seed, "step": step, "tasks": list(range(self.config.meta.tasks_per_step))}
        count = train.micro_batches_per_update * train.micro_batch
        rows = self.batches.rows(step * count, count)
        return {"first_sequence": step * count, "rows": rows.tolist()}

    def evaluate(self) -> dict[str, float]:
        """Loss and perplexity on the held-out split. The mean is over tokens, whatever the number of ranks.

        Raises:
            StopRequested: as `poll`.
        """
        size, engine = self.config.train.micro_batch, self.engine
        total = torch.zeros((), dtype=torch.float64)
        for round_start in range(0, len(self.eval_rows), engine.world_size * size):
            self.poll()
            start = round_start + engine.rank * size
            mine = self.eval_rows[start : start + size]
            # a rank that has no sequences left in the last round goes on with the others (ZeRO 3 gathers weights)
            sequences = self._tensor(mine if len(mine) else self.eval_rows[:1])
            with torch.no_grad():
                total += float(engine.meta_lm.lm_loss(sequences)) * len(mine)
        loss = float(engine.mean(total)) * engine.world_size / len(self.eval_rows)
        return {"eval_loss_nats": loss, "eval_perplexity": math.exp(min(loss, 700.0))}

    def _next_update(self, telemetry: Telemetry) -> None:
        train, step = self.config.train, self.done
        telemetry.restart_clock()
        is_task = is_episode(self.config.meta, train.seed, step)
        values, not_finite = self.update(step, is_task)
        if not_finite:
            telemetry.skipped(step + 1, is_task, values["flops"], not_finite, self.batch(step, is_task))
        else:
            telemetry.update(step + 1, is_task, **values)
        self.done += 1
        if telemetry.totals.skipped_in_row >= train.max_consecutive_skips:
            raise OperationalError(
                f"{self.run.path}: the last {telemetry.totals.skipped_in_row} updates up to {self.done} were not finite "
                f"and not applied (train.max_consecutive_skips); the checkpoint of update {self.saved} stands"
            )

    def _after_update(self, telemetry: Telemetry) -> None:
        """Evaluation, dynamics and checkpoint where they are due: of a fresh run before the first update, too."""
        train = self.config.train
        is_last = self.done == train.max_steps
        if self.done % train.eval_every == 0 or is_last:
            self.last_eval = self.evaluate()
            telemetry.evaluation(self.done, **self.last_eval)
        if self.dynamics.is_due(self.done):
            telemetry.dynamics(self.done, **self.dynamics.measure())
        if self.done % train.checkpoint_every == 0 or is_last:
            self._save(telemetry.totals)

    def _save(self, totals: Totals) -> None:
        if self.saved != self.done or self.done == 0:
            self.checkpoints.save(self.done, totals)
            self.saved = self.done

    def _autoregressive(self, step: int, unit: int) -> Outcome:
        train = self.config.train
        first = (step * train.micro_batches_per_update + unit) * train.micro_batch
        return next_token(self.engine.meta_lm, self._tensor(self.batches.sequences(first, train.micro_batch)))

    def _episode(self, step: int, unit: int) -> Outcome:
        assert self.sampler is not None
        meta, seed = self.config.meta, self.config.train.seed
        task = self.sampler.episode(step, unit)
        outcome = episode(self.engine.meta_lm, task, meta, seed, step, unit, self.poll)
        outcome.measures["flops"] = self._flops(task)
        return outcome

    def _episode_together(self, step: int, unit: int) -> dict[str, Tensor]:
        assert self.sampler is not None
        assert self.engine.shards is not None
        task, meta, seed = self.sampler.episode(step, unit), self.config.meta, self.config.train.seed
        backward = partial(self.engine.backward, last=False)
        measures = episode_together(
            self.engine.shards, self.engine.meta_lm, backward, task, meta, seed, step, unit, self.poll
        )
        return measures | {"flops": self._flops(task)}

    def _flops(self, task: Episode) -> Tensor:
        lengths = ((side.positions + 1).tolist() for side in (task.support, task.query))
        return torch.tensor(flops_of_episode(self.config, *lengths), dtype=torch.float64)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.engine.device)
