"""The pretraining loop: updates of next-token prediction, of episodes, or of both, with evaluations and checkpoints between them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from metapt.config import PretrainConfig, learning_rate, settings
from metapt.data.batches import eval_sequences
from metapt.data.corpus import Corpus
from metapt.errors import OperationalError
from metapt.estimate.flops import parameter_count, passes_over
from metapt.meta.terms import add_terms
from metapt.meta.update_plan import UpdatePlan, plan_update
from metapt.models.meta_lm import build_meta_lm
from metapt.runs import Run
from metapt.training.checkpoints import Checkpoints
from metapt.training.dynamics import Dynamics, parameter_groups
from metapt.training.engine_setup import build_engine
from metapt.training.metrics import MetricsLogger, RunTotals
from metapt.training.signals import StopRequest, StopRequested
from metapt.training.units import TrainingData, UpdateUnits


class Trainer:
    """One pretraining run on this rank.

    An update is a function of the seed and its number alone (metapt/meta/update_plan.py); metapt/training/units.py divides its
    work among the ranks.
    """

    def __init__(self, config: PretrainConfig, run: Run, corpus: Corpus, stop: StopRequest):
        self.run, self.corpus, self.stop = run, corpus, stop
        tokenizer = corpus.tokenizer
        self.data = TrainingData.load(config, corpus)
        meta_lm = build_meta_lm(config, eos_id=tokenizer.eos_id)
        terms = add_terms(meta_lm, config, self.data.classes)
        self.engine, config = build_engine(meta_lm, config)
        self.config = config
        train = config.train
        self.eval_rows = eval_sequences(corpus.eval, train.seq_len, train.eval_sequences)
        self.units = UpdateUnits(config, self.data, terms, self.engine, self.check_stop)
        self.dynamics = Dynamics(
            self.engine,
            config,
            torch.from_numpy(self.eval_rows),
            self.data.sampler,
            self.check_stop,
            self.data.word_probe(self.eval_rows, train.micro_batch) if train.dynamics_every else None,
        )
        self.updates_done = 0
        self.last_saved = 0
        """Step of the newest checkpoint."""
        self.last_eval: dict[str, float] = {}
        self.checkpoints = Checkpoints(
            run,
            self.engine,
            self.origin(),
            corpus.tokenizer_dir,
            (train.keep_checkpoints, train.keep_optimizer_states),
        )

    def origin(self) -> dict[str, Any]:
        """How the models of this run are pretrained, for metapt.json."""
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
            "settings": settings(config),
            **({"init": {"model": config.init, "sha256": config.init_sha256}} if config.init else {}),
        }

    def circumstances(self) -> dict[str, Any]:
        """Where and how the run is trained, for starts.jsonl; all ranks must call it."""
        train = self.config.train
        return {
            **self.engine.places(),
            "ds": self.config.ds,
            "deterministic": train.deterministic,
            "compiled": self.engine.meta_lm.compiled_shape is not None,
            "micro_batch": train.micro_batch,
            "micro_batches_per_update": train.micro_batches_per_update,
        }

    def train(self) -> dict[str, Any]:
        """Train to the end, from the newest checkpoint if there is one.

        Returns: the content of result.json.
        Raises:
            Interrupted: a signal requested it; a checkpoint of the last update has been saved.
            OperationalError: a checkpoint could not be written, or too many consecutive updates were not finite.
        """
        train = self.config.train
        self.updates_done, totals = self.checkpoints.restore()
        self.last_saved = self.updates_done
        if self.engine.rank == 0:
            # Measurements at this step are repeated, since the interruption may have come before or during them.
            self.run.trim_metrics(self.updates_done, rewritten_kinds=("eval", "dynamics"))
        self.engine.barrier()
        logger = MetricsLogger(self.run, self.config, totals, self.engine.rank, self.updates_done)
        logger.announce(self.corpus, self.engine.device, self.engine.world_size)
        try:
            self._after_update(logger)
            while self.updates_done < train.max_steps:
                self._next_update(logger)
                self._after_update(logger)
        except StopRequested:
            self._save(totals)
            raise self.stop.interruption(self.run.path, f"after update {self.updates_done}") from None
        finally:
            logger.close()
        return {
            "kind": "pretrain",
            "origin": {**self.origin(), "step": train.max_steps},
            "steps": train.max_steps,
            **vars(totals),
            **self.last_eval,
            "corpus_passes": passes_over(self.config, len(self.corpus.train)),
            "data": self.config.data.name,
            "generated_data": self.config.data.name == "demo",
        }

    def check_stop(self) -> None:
        """Stop here if a signal requested it; all ranks must call it equally often.

        Raises:
            StopRequested: on all ranks, if any of them received a signal.
        """
        if self.engine.any_rank(bool(self.stop)):
            raise StopRequested

    def update(self, step: int, plan: UpdatePlan) -> tuple[dict[str, Any], list[str]]:
        """Make one optimizer update; it is not applied if a loss or the gradient is not finite.

        Args:
            step: number of updates before it.
            plan: its units of work.
        Returns: the values for metrics.jsonl, averaged over units and ranks, with `flops` of all of them; and the
            names of the values that are not finite.
        Raises:
            StopRequested: as `check_stop`. No parameter has changed, and the accumulated gradient is invalid.
        """
        engine = self.engine
        values = self.units.accumulate_gradient(step, plan)
        losses_finite = all(np.isfinite(value).all() for value in values.values())
        norms = {}
        if self.dynamics.is_due(step + 1):
            norms = {"gradient_norms": engine.gradient_norms(parameter_groups(engine.meta_lm))}
        lr = learning_rate(self.config.train, step)
        values["grad_norm"], values["lr"] = engine.step(lr, apply=losses_finite), lr
        not_finite = [name for name, value in values.items() if not np.isfinite(value).all()]
        return values | norms, not_finite

    def evaluate(self) -> dict[str, float]:
        """Loss and perplexity on the held-out split: means over tokens, independent of the number of ranks.

        Raises:
            StopRequested: as `check_stop`.
        """
        size, engine = self.config.train.micro_batch, self.engine
        total = torch.zeros((), dtype=torch.float64)
        for round_start in range(0, len(self.eval_rows), engine.world_size * size):
            self.check_stop()
            start = round_start + engine.rank * size
            rows = self.eval_rows[start : start + size]
            # A rank without sequences in the last round still runs the model, since ZeRO 3 gathers weights.
            sequences = torch.from_numpy(rows if len(rows) else self.eval_rows[:1]).to(engine.device)
            with torch.no_grad():
                total += float(engine.meta_lm.lm_loss(sequences)) * len(rows)
        loss = float(engine.mean(total)) * engine.world_size / len(self.eval_rows)
        return {"eval_loss_nats": loss, "eval_perplexity": math.exp(min(loss, 700.0))}

    def _next_update(self, logger: MetricsLogger) -> None:
        train, step = self.config.train, self.updates_done
        logger.restart_clock()
        plan = plan_update(self.config, step)
        values, not_finite = self.update(step, plan)
        if not_finite:
            batch = self.units.identify(step, plan)
            logger.log_skipped(step + 1, plan, values["flops"], not_finite, batch)
        else:
            logger.log_update(step + 1, plan, **values)
        self.updates_done += 1
        skipped = logger.totals.skipped_in_row
        if skipped >= train.max_consecutive_skips:
            raise OperationalError(
                f"{self.run.path}: the last {skipped} updates up to {self.updates_done} were not finite and not "
                f"applied (train.max_consecutive_skips); the checkpoint of update {self.last_saved} is intact"
            )

    def _after_update(self, logger: MetricsLogger) -> None:
        """Evaluation, dynamics and checkpoint if they are due; called before the first update as well."""
        train, step = self.config.train, self.updates_done
        is_last = step == train.max_steps
        if step % train.eval_every == 0 or is_last:
            self.last_eval = self.evaluate()
            logger.log_evaluation(step, **self.last_eval)
        if self.dynamics.is_due(step):
            logger.log_dynamics(step, **self.dynamics.measure())
        if step % train.checkpoint_every == 0 or is_last:
            self._save(logger.totals)

    def _save(self, totals: RunTotals) -> None:
        if self.last_saved != self.updates_done or self.updates_done == 0:
            self.checkpoints.save(self.updates_done, totals)
            self.last_saved = self.updates_done
