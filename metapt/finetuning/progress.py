"""What a fine-tuning run reports while it trains: metrics, their copies in experiment trackers, progress on stderr."""

from __future__ import annotations

from dataclasses import asdict

from metapt.config import FinetuneConfig
from metapt.finetuning.resume import TrainingState
from metapt.runs import Run
from metapt.training.experiment_trackers import TrackedMetricsWriter
from metapt.training.progress_line import ProgressLine


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
