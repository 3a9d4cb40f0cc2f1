"""What a fine-tuning run tells on stderr while it works."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

PROGRESS_SECONDS = 5.0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Progress:
    """A line every few seconds: where training is, and how long it may last at most."""

    def __init__(self, max_epochs: int, steps_per_epoch: int, first_step: int):
        self.max_epochs, self.max_steps = max_epochs, max_epochs * steps_per_epoch
        self.first_step = first_step
        self.began = self.shown = time.monotonic()

    def show(self, epoch: int, step: int, loss: float, best: str) -> None:
        """Args: epochs and steps done, and a word on the best epoch, or nothing."""
        now = time.monotonic()
        if now - self.shown < PROGRESS_SECONDS:
            return
        self.shown = now
        left = (now - self.began) / (step - self.first_step) * (self.max_steps - step)
        say(
            f"epoch {epoch + 1}/{self.max_epochs}  step {step}/{self.max_steps}  loss {loss:.4f}{best}"
            f"  at most {timedelta(seconds=round(left))} left"
        )
