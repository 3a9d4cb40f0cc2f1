"""What a fine-tuning run reports while it trains: metrics, their copies in experiment trackers, progress on stderr."""

from __future__ import annotations

from dataclasses import asdict

from metapt.config import FinetuneConfig, tag_layer_lr, tuning_lr
from metapt.finetuning.resume import TrainingState
from metapt.finetuning.setup import FinetuneSetup
from metapt.runs import Run
from metapt.training.experiment_trackers import TrackedMetricsWriter
from metapt.training.progress_line import ProgressLine, device_name, quantity, resumption


def finetune_header(setup: FinetuneSetup, steps_per_epoch: int, state: TrainingState) -> str:
    """What a fine-tuning run prints before its first step: where it runs, what it trains on what, where it writes.

    Args:
        state: that from which the run continues.
    """
    config, processes, train = setup.config, setup.processes, setup.train.together
    ranks = processes.world_size
    trained = sum(value.numel() for value in setup.trained.parameters() if value.requires_grad)
    total = sum(value.numel() for value in setup.tagger.parameters())
    dev = f", {len(setup.dev.together.lengths)} for development" if setup.dev else ""
    rate = (tag_layer_lr if config.tuning == "head_only" else tuning_lr)(config, setup.tagger.width)
    length = config.ner.max_steps or f"at most {config.ner.max_epochs} epochs of {steps_per_epoch}"
    return "\n".join(
        [
            f"device     {device_name(processes.accelerator.device)}, {ranks} process{'es' if ranks > 1 else ''}, {processes.precision}",
            f"model      {config.checkpoint}: {quantity(total)} parameters, {quantity(trained)} of them trained",
            f"source     {config.source}: {len(train.lengths)} sentences, {len(train.tags)} words{dev}",
            f"training   {length} updates at learning rate {rate:g}",
            f"run        {setup.run.path}{resumption('update', state.step)}",
        ]
    )


class FinetuneLog:
    """Writes the metrics of training steps and dev scores, and shows progress on stderr.

    Args:
        first_step: finished steps of the run; metrics up to this step are in metrics.jsonl already.
    """

    def __init__(self, run: Run, config: FinetuneConfig, steps_per_epoch: int, first_step: int):
        max_steps = config.ner.max_steps
        self._max_epochs = config.ner.max_epochs if max_steps is None else -(-max_steps // steps_per_epoch)
        self._metrics = TrackedMetricsWriter(run, config.log, asdict(config), first_step)
        self._progress = ProgressLine(
            max_steps or self._max_epochs * steps_per_epoch, stops_early=max_steps is None
        )

    def train_step(self, state: TrainingState, loss: float, rate: float) -> None:
        """Log the step that was just made, with its loss in nats and its learning rate."""
        epoch = state.epoch + 1
        self._metrics.write(
            state.step, "train", epoch=epoch, loss_nats=loss, lr=rate, seconds_total=state.seconds_total
        )
        values = [f"epoch {epoch}/{self._max_epochs}", f"loss {loss:.4f}"]
        if state.dev_f1 >= 0:
            values.append(f"dev F1 {state.dev_f1:.3f} (epoch {state.best_epoch})")
        self._progress.show(state.step, values)

    def dev_scores(self, state: TrainingState, f1: float, loss: float) -> None:
        """Log the dev scores of the epoch that just ended."""
        self._metrics.write(state.step, "dev", epoch=state.epoch, f1=f1, loss_nats=loss)

    def close(self) -> None:
        self._progress.close()
        self._metrics.close()
