"""The state of training, and what a run reports of it: metrics, their copies in experiment trackers, progress on stderr."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass

from metapt.config import FinetuneConfig
from metapt.runs import Run
from metapt.training.experiment_trackers import TrackedMetricsWriter
from metapt.training.progress_line import ProgressLine


@dataclass
class TrainingState:
    """Progress of a run: finished epochs and steps, and the best epoch so far with its dev scores.

    Attributes:
        dev_f1, dev_loss_nats: of the best epoch.
        seconds_total: time of steps and dev scores, without loading, frozen features and checkpoints.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_step: int = 0
    dev_f1: float = -1.0
    dev_loss_nats: float = float("inf")
    seconds_total: float = 0.0

    def is_best(self, f1: float, loss: float) -> bool:
        """Whether dev scores are better than the best so far: higher F1, or equal F1 and lower loss."""
        return (f1, -loss) > (self.dev_f1, -self.dev_loss_nats)


def log(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)


class FinetuneLog:
    """Writes the metrics of training steps and dev scores, and shows progress on stderr.

    Args:
        first_step: finished steps of the run; metrics up to this step are in metrics.jsonl already.
    """

    def __init__(self, run: Run, config: FinetuneConfig, steps_per_epoch: int, first_step: int):
        self._max_epochs = config.ner.max_epochs
        self._metrics = TrackedMetricsWriter(run, config.log, asdict(config), first_step)
        self._progress = ProgressLine(self._max_epochs * steps_per_epoch, stops_early=True)

    def train_step(self, state: TrainingState, loss: float, rate: float) -> None:
        """Log the step that was just made, with its loss in nats and its learning rate."""
        epoch = state.epoch + 1
        self._metrics.write(
            state.step, "train", epoch=epoch, loss_nats=loss, lr=rate, seconds_total=state.seconds_total
        )
        values = [f"epoch {epoch}/{self._max_epochs}", f"loss {loss:.4f}"]
        if state.best_epoch:
            values.append(f"dev F1 {state.dev_f1:.3f} (epoch {state.best_epoch})")
        self._progress.show(state.step, values)

    def dev_scores(self, state: TrainingState, f1: float, loss: float) -> None:
        """Log the dev scores of the epoch that just ended."""
        self._metrics.write(state.step, "dev", epoch=state.epoch, f1=f1, loss_nats=loss)

    def close(self) -> None:
        self._progress.close()
        self._metrics.close()
